"""One visitor, one answer at a time: his second question waits for the first, and a new photo ends both."""

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from serve.talk import Talk

PAUSE_S = 0.05
_ACCESS = threading.Lock()

T = TypeVar("T")
Act = Callable[..., Generator[T, None, None]]


class Visitors:
    """The newest conversation of each visitor, for as long as somebody holds it."""

    def __init__(self) -> None:
        self._newest: weakref.WeakValueDictionary[str, Talk] = weakref.WeakValueDictionary()

    def begin(self, visitor: str, talk: Talk) -> None:
        """Notes a new conversation; what still goes on in the one before ends."""
        with _ACCESS:
            self._leave(visitor)
            self._newest[visitor] = talk

    def leave(self, visitor: str) -> None:
        """Ends what goes on for a visitor who has closed the page."""
        with _ACCESS:
            self._leave(visitor)

    def _leave(self, visitor: str) -> None:
        before = self._newest.pop(visitor, None)
        if before is not None:
            before.is_left = True


def until_left(talk: Talk, steps: Generator[T, None, None]) -> Iterator[T]:
    """The steps of an act, until its visitor has left the conversation."""
    with contextlib.closing(steps):
        for step in steps:
            if talk.is_left:
                return
            yield step


def in_turn(act: Act[T]) -> Act[T]:
    """An act on a conversation, its first argument, that begins when no other one is going on in it."""

    @functools.wraps(act)
    def later(talk: Talk, *arguments: Any, **more: Any) -> Generator[T, None, None]:
        while not _take_turn(talk):
            time.sleep(PAUSE_S)
        try:
            yield from until_left(talk, act(talk, *arguments, **more))
        finally:
            talk.is_busy = False

    return later


def _take_turn(talk: Talk) -> bool:
    with _ACCESS:
        if talk.is_busy:
            return False
        talk.is_busy = True
        return True
