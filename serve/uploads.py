"""Photos that visitors uploaded: who uses which, so that each is deleted soon after its last visitor has left.

Gradio names an upload by its content, so visitors with the same photo share one file, and one of them may still wait in
the queue when another leaves. That is why a file is deleted only when nobody uses it and it has lain for ten minutes.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import gradio as gr

from serve import texts

Move = Callable[[Path | str | None], Awaitable[str | None]]

# Longest life of a photo, and of one that nobody uses.
MAX_AGE_S, UNUSED_S = 3600, 600
# An upload that has not grown for so long will not go on.
STRAY_S = 120
_PREFIX = "llava-ial-uploads-"


def refuse_addresses(page: gr.Blocks) -> None:
    """Lets no component of a page download a file that is named by its address.

    Gradio would fetch it before anything of ours is called: whoever can ask could send this computer to any other.
    """
    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = _of_this_computer(  # type: ignore[method-assign]
            block.async_move_resource_to_block_cache
        )


def _of_this_computer(move: Move) -> Move:
    async def moved(path: Path | str | None) -> str | None:
        if isinstance(path, str) and "://" in path:
            raise gr.Error(texts.NO_ADDRESS, print_exception=False)
        return await move(path)

    return moved


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A new folder for uploads, deleted at the end; those of chats that were killed are deleted now."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _held(left):  # another's, or of a chat that runs
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, _held(Path(name)):
        yield Path(name)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes; a kill lets go of it too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


class Uploads:
    """The folder of uploads.

    Args:
        folder: Everything in it may be deleted; nothing outside it ever is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._photos: dict[str, set[Path]] = {}
        self._lock = threading.Lock()

    def remember(self, visitor: str, photos: Iterable[Path]) -> None:
        """Notes which photos a visitor uses now, instead of those of before."""
        with self._lock:
            self._photos[visitor] = {photo.resolve() for photo in photos}

    def forget_visitor(self, request: gr.Request) -> None:
        """Called when a page is closed."""
        self._forget(request.session_hash or "")

    @contextlib.contextmanager
    def borrow(self, photos: Sequence[Path]) -> Iterator[None]:
        """Keeps photos for one call of a program."""
        call = f"call-{uuid.uuid4()}"
        self.remember(call, photos)
        try:
            yield
        finally:
            self._forget(call)

    def sweep(self, now: float | None = None) -> None:
        """Deletes what is too old, what nobody uses any more, and halves of uploads that broke off."""
        now = time.time() if now is None else now
        with self._lock:
            used = {path for paths in self._photos.values() for path in paths}
        for path in self.folder.rglob("*"):
            # Gradio gives whole uploads a folder of their own; what is still arriving lies beside these.
            whole_s = MAX_AGE_S if path in used else UNUSED_S
            limit_s = STRAY_S if path.parent == self.folder else whole_s
            with contextlib.suppress(FileNotFoundError):  # Gradio sweeps too
                if path.is_file() and now - path.stat().st_mtime > limit_s:
                    path.unlink()

    def _forget(self, visitor: str) -> None:
        with self._lock:
            self._photos.pop(visitor, None)
