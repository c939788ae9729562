"""Pools of processes in which nobody waits for ever for somebody who was killed."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

from llava_ial.errors import UserError


@contextmanager
def worker_pool(
    workers: int, prepare: Callable[..., None] | None = None, *given: object
) -> Iterator[ProcessPoolExecutor]:
    """A pool whose work ends with an error where a worker is killed.

    ``multiprocessing.Pool`` starts another worker then, and waits for ever for what the killed one was doing.

    Args:
        workers: How many processes.
        prepare: Called in each with what is ``given``, before its first work.

    Raises:
        UserError: A worker was killed.
    """
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(prepare, given)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            mend = "for lack of memory, perhaps; start it again with fewer"
            raise UserError(f"--workers {workers}: the system killed one of them, {mend}") from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start(prepare: Callable[..., None] | None, given: tuple[object, ...]) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # work is counted by the process that shares it out
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*given)


def _end_with_parent() -> None:
    """A pool waits for work for ever; when the process that shares it out is killed, nobody is left to send any."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # as a kill would: what is written is whole, because it is renamed into place
