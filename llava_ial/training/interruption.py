"""Ending a training between two steps when the machine is about to be taken away."""

import os
import signal
from types import FrameType
from typing import Any


class StopRequest:
    """True once SIGTERM came, as a cluster sends some time before it kills; the loop saves and ends.

    Example:
        >>> with StopRequest() as stop_request:
        ...     bool(stop_request)
        False
    """

    def __init__(self) -> None:
        self._is_requested = False
        self._previous: Any = None

    def __bool__(self) -> bool:
        return self._is_requested

    def __enter__(self) -> "StopRequest":
        self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_requested = True


class LeaveOnRequest(StopRequest):
    """Ends the process at once, with exit code 0, when SIGTERM comes: where everything needed to go on is saved.

    Args:
        message: Printed then; "" on processes that say nothing.
    """

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        if self._message:
            os.write(1, f"{self._message}\n".encode())  # print() may be in the middle of another line
        os._exit(0)  # no process of several waits for another one's clean end
