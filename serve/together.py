"""Visitors who ask at the same time are answered in one batch: for the model many are hardly more work than one.

A thread of its own steps the batch, a token of every answer at a time, for as long as anybody waits for one. Whoever
comes joins at the next step, whoever has his answer or goes away leaves it, and each reads his own words at his own
pace. Where a step fails the visitors are put into smaller batches, so that memory that does not last for all of them
lasts for some, and a question that nothing can be done with fails alone.
"""

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from llava_ial.conversation import Message
from llava_ial.inference import MAX_NEW_TOKENS, AddressPredictor, Asked, Photo

# A visitor reads what has come twenty times a second: an eye wants no more, and each reading costs the page something.
PACE_S = 0.05
# Without a word for so long, a visitor is given none, so that he may look at the clock and can be stopped.
BEAT_S = 0.5
# The thread ends when nobody has come for so long.
LINGER_S = 5.0

T = TypeVar("T")


@dataclass(eq=False)
class _Visit:
    """A question and what has been answered to it.

    Attributes:
        said: Token ids; only the thread of the batch adds to it.
        is_over: Set when nothing more will be said.
        has_left: True when nobody reads any more.
        error: What its reader is to be told.
    """

    asked: Asked
    said: list[int] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    has_left: bool = False
    error: Exception | None = None

    @property
    def num_rows(self) -> int:
        """The photos."""
        return len(self.asked.pixel_values)

    @property
    def is_waiting(self) -> bool:
        """Whether there is anybody to whom there is more to say."""
        return not (self.has_left or self.is_over.is_set())

    def so_far(self) -> Asked:
        """The question and what has been said already, from where another batch goes on."""
        return Asked([*self.asked.prompt, *self.said], self.asked.pixel_values)

    def read(self) -> Iterator[list[int]]:
        """The tokens as they come, some at a time; none at least every ``BEAT_S``."""
        num_read, last = 0, time.monotonic()
        while True:
            is_over = self.is_over.wait(PACE_S)
            new = self.said[num_read:]
            if new or time.monotonic() - last > BEAT_S:
                yield new
                num_read, last = num_read + len(new), time.monotonic()
            if is_over:
                break
        if self.error is not None:
            raise self.error


class Together:
    """Answers questions of several visitors at the same time; its thread does all that the model has to do.

    Args:
        predictor: A model that can answer.
        batch_size: Most photos whose questions are in one batch. A question about more of them has a batch alone.
    """

    def __init__(self, predictor: AddressPredictor, batch_size: int) -> None:
        self._predictor = predictor
        self._batch_size = self._limit = batch_size
        self._waiting: deque[_Visit] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._has_come = threading.Condition()
        self._thread: threading.Thread | None = None

    def stream(self, messages: Sequence[Message], *photos: Photo) -> Generator[str, None, None]:
        """The answer to the last message in pieces, "" where none has come for a while.

        Closing the iterator ends this answer at the next step; the others' go on.

        Raises:
            UserError: A photo cannot be read, or the messages are no dialogue.
        """
        prepare = functools.partial(self._predictor.prepare, messages, *photos)
        visit = _Visit(self.run(prepare) if self._predictor.takes_hints else prepare())  # a hint is the model's work
        self._call(lambda: self._waiting.append(visit))
        try:
            yield from self._predictor.in_words(visit.read())
        finally:
            visit.has_left = True

    def run(self, work: Callable[[], T]) -> T:
        """Other work of the model, done between two steps; what it returns or raises."""
        result: Future[T] = Future()

        def job() -> None:
            try:
                result.set_result(work())
            except Exception as error:  # its caller is to be told
                result.set_exception(error)

        self._call(lambda: self._jobs.append(job))
        return result.result()

    def _call(self, put: Callable[[], None]) -> None:
        with self._has_come:
            put()
            self._has_come.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        batch, inside = self._predictor.open_batch(), list[_Visit]()
        while self._wait(inside):
            while self._jobs:
                self._jobs.popleft()()
            newcomers = self._admit(sum(visit.num_rows for visit in inside))
            inside += newcomers
            try:
                if newcomers:
                    tokens = self._predictor.join(batch, [visit.so_far() for visit in newcomers])
                    _hand_out(newcomers, tokens.tolist(), batch.end)
                elif inside:
                    _hand_out(inside, batch.step().tolist(), batch.end)
                staying = [i for i, visit in enumerate(inside) if visit.is_waiting]
                if len(staying) < len(inside):
                    batch.keep(staying)
                    inside = [inside[i] for i in staying]
            except Exception as error:  # whatever it is, somebody waits to be told
                self._part([visit for visit in inside if visit.is_waiting], error)
                batch, inside = self._predictor.open_batch(), []

    def _wait(self, inside: Sequence[_Visit]) -> bool:
        """Returns when there is something to do, or False when nobody came for a while: the thread has ended then."""
        with self._has_come:
            if inside or self._waiting or self._jobs:
                return True
            self._limit = self._batch_size
            if not self._has_come.wait_for(lambda: self._waiting or self._jobs, LINGER_S):
                self._thread = None
            return self._thread is not None

    def _admit(self, num_rows: int) -> list[_Visit]:
        """Those who wait and for whom there is room beside so many rows, in the order in which they came."""
        newcomers = []
        with self._has_come:
            while self._waiting and (num_rows == 0 or num_rows + self._waiting[0].num_rows <= self._limit):
                visit = self._waiting.popleft()
                if visit.is_waiting:
                    newcomers.append(visit)
                    num_rows += visit.num_rows
        return newcomers

    def _part(self, visits: Sequence[_Visit], error: Exception) -> None:
        """After a failure: lets half as many in at a time, from where each is; who was alone is told what it was."""
        if len(visits) == 1:
            visits[0].error = error
            visits[0].is_over.set()
            self._limit = self._batch_size
            return
        error.__traceback__ = None  # its frames hold the memory that may have been too little
        with self._has_come:
            self._limit = max(1, sum(visit.num_rows for visit in visits) // 2)
            self._waiting.extendleft(reversed(visits))


def _hand_out(visits: Sequence[_Visit], tokens: Sequence[int], end: int) -> None:
    for visit, token in zip(visits, tokens, strict=True):
        visit.said.append(token)
        if token == end or len(visit.said) == MAX_NEW_TOKENS:
            visit.is_over.set()
