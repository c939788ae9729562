"""What DeepSpeed compiles on CPUs: once, by one process at a time, whatever a killed one has left."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_ial.training import deepspeed_start

LOAD = "from llava_ial.training.deepspeed_start import load_cpu_communication as load; load()"
OP = "deepspeed_shm_comm"


def start_loading(extensions: Path) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(extensions), "DS_ACCELERATOR": "cpu", "PATH": path}
    return subprocess.Popen([sys.executable, "-c", LOAD], env=environment, stderr=subprocess.PIPE, text=True)


def is_compiling(folder: Path) -> bool:
    return (folder / OP / "build.ninja").exists() and not (folder / OP / f"{OP}.so").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_compiler_blocks_nobody(tmp_path: Path) -> None:
    """Two processes at once after one that was killed: one compiles, both load; a later one compiles nothing."""
    folder = tmp_path / "llava_ial"
    killed = start_loading(tmp_path)
    while not is_compiling(folder):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert (folder / OP / "lock").exists(), "the kill left nothing: this test would prove nothing"
    both = [start_loading(tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=500)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("compiling" in text for text in said) == 1
    compiled = (folder / OP / f"{OP}.so").stat().st_mtime_ns
    (folder / OP / "lock").touch()  # as of one killed while it loaded
    later = start_loading(tmp_path)
    assert "compiling" not in later.communicate(timeout=120)[1]
    assert later.returncode == 0
    assert (folder / OP / f"{OP}.so").stat().st_mtime_ns == compiled


def test_compiled_into_the_environment_or_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert deepspeed_start._compiled_folder() == tmp_path / "torch_extensions" / "llava_ial"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not deepspeed_start._compiled_folder().is_relative_to(tmp_path)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "theirs"))
    assert deepspeed_start._compiled_folder() == tmp_path / "theirs" / "llava_ial"


def test_no_compiler_is_told_of_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(deepspeed_start.UserError, match=r"apt-get install g\+\+"):
        deepspeed_start.load_cpu_communication()
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "ninja" else "/usr/bin/" + name)
    with pytest.raises(deepspeed_start.UserError, match="ninja-build"):
        deepspeed_start.load_cpu_communication()
