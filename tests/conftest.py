"""Guards and small worlds that every test shares."""

import os

# Before torch is imported: many threads on few cores make tiny models ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import socket
from pathlib import Path

import hypothesis
import pytest

# The same examples every time: a test run must not depend on luck.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_LOOPBACK = {"127.0.0.1", "::1", "localhost", "0.0.0.0"}


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses sockets beyond this machine, so that a test that would need the network fails everywhere alike."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else address
        if self.family != socket.AF_UNIX and host not in _LOOPBACK:
            raise OSError(f"tests are offline: connection to {host} refused")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session", autouse=True)
def own_map_cache(tmp_path_factory: pytest.TempPathFactory):
    """Compiled maps of tests stay out of the user's cache; processes that tests start inherit the variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAVA_IAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the repository; a test that uses it is skipped, visibly, where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data (../shared/data) is not beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory):
    """Data set, stage 1 and stage 2 folders of a tiny model that knows its training photos by heart."""
    from tests.tiny_models import build_tiny_models

    return build_tiny_models(tmp_path_factory.mktemp("tiny"))
