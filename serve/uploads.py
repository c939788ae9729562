"""Photos that visitors uploaded: who still uses which, so that each is deleted when its last visitor leaves."""

import contextlib
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import gradio as gr

MAX_AGE_S = 3600
# An upload that has not grown for so long will not go on.
STRAY_S = 120


class Uploads:
    """The folder of uploads. Two visitors with the same photo share one file: Gradio names it by its content.

    Args:
        folder: Everything in it may be deleted; nothing outside it ever is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._photos: dict[str, set[Path]] = {}
        self._lock = threading.Lock()

    def remember(self, visitor: str, photos: Iterable[Path]) -> None:
        """Notes which photos a visitor uses now; those used before and no longer by anybody are deleted."""
        now = {path for path in (photo.resolve() for photo in photos) if path.is_relative_to(self.folder)}
        with self._lock:
            before = self._photos.get(visitor, set())
            self._photos[visitor] = now
            self._delete(before - now)

    @contextlib.contextmanager
    def borrow(self, photos: Sequence[Path]) -> Iterator[None]:
        """Keeps photos for one call of a program, and deletes them after it unless a visitor uses them too."""
        call = f"call-{uuid.uuid4()}"
        self.remember(call, photos)
        try:
            yield
        finally:
            with self._lock:
                self._delete(self._photos.pop(call, set()))

    def sweep(self, now: float | None = None) -> None:
        """Deletes what nobody gave back: photos older than an hour, and halves of uploads that broke off."""
        now = time.time() if now is None else now
        for path in self.folder.rglob("*"):
            # Gradio gives whole uploads a folder of their own; what is still arriving lies beside these.
            limit_s = STRAY_S if path.parent == self.folder else MAX_AGE_S
            with contextlib.suppress(OSError):  # it may just be deleted, or be a folder that is not empty
                if path.is_file() and now - path.stat().st_mtime > limit_s:
                    path.unlink()

    def forget_visitor(self, request: gr.Request) -> None:
        """Deletes what only this visitor used; called when the page is closed."""
        with self._lock:
            self._delete(self._photos.pop(request.session_hash or "", set()))

    def _delete(self, photos: set[Path]) -> None:
        used = {path for paths in self._photos.values() for path in paths}
        for path in photos - used:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another visitor's upload may be arriving in it
                path.parent.rmdir()
