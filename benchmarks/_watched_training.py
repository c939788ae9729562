"""A training in processes of its own, watched from outside: when its steps end, how much GPU memory is taken."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from llava_ial.errors import UserError
from llava_ial.training.checkpoints import checkpoint_folder

ROOT = Path(__file__).resolve().parents[1]
_STEP_GLANCE_S, _END_GLANCE_S = 0.01, 0.1
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
# Launchers have the last word when a process fails, and it is not the reason.
_REASON = re.compile(r"^(?:\[rank\d+\]:? ?)?((?:error|[\w.]*(?:Error|Exception)): .+)$", re.MULTILINE)


@dataclass
class Start:
    """What was seen of one start.

    Attributes:
        seconds: From start to end.
        step_ends: When each step's line was seen in the log, in seconds of the monotonic clock.
        peak_memory_gb: Of the fullest GPU, without what it held before; None without nvidia-smi.
        stop_s: From SIGTERM until the last process had ended; None if there was none.
    """

    seconds: float = 0.0
    step_ends: dict[int, float] = field(default_factory=dict)
    peak_memory_gb: float | None = None
    stop_s: float | None = None


def train_watched(
    command: Sequence[str], environment: Mapping[str, str], output: Path, log: Path, *,
    limit_s: float, stop_at: int | None = None,
) -> Start:  # fmt: skip
    """Runs a training to its end, or to SIGTERM once the checkpoint of ``stop_at`` is complete.

    Args:
        command: Started in the repository.
        environment: Of the command.
        output: Folder that it writes.
        log: File for what it says.
        limit_s: A command that takes longer is killed.
        stop_at: Step; its whole process group gets the signal, as from a terminal or SLURM.

    Raises:
        UserError: It failed, or took too long, or was finished before it could be interrupted.
    """
    begun, start = time.monotonic(), Start()
    steps = _Steps(output / "train_log.jsonl", start.step_ends)
    with memory_watched(start), started(command, environment, log) as process:
        asked = None
        while process.poll() is None or (asked and has_processes(process.pid)):
            steps.look()
            if asked is None and stop_at and checkpoint_folder(output, stop_at).is_dir():
                asked = time.monotonic()
                os.killpg(process.pid, signal.SIGTERM)
            if time.monotonic() - begun > limit_s:
                raise UserError(f"killed after {limit_s:.0f} s: {last_words(log)}")
            time.sleep(_STEP_GLANCE_S if asked is None else _END_GLANCE_S)
    steps.look()
    ended = time.monotonic()
    start.seconds, start.stop_s = ended - begun, ended - asked if asked else None
    if process.returncode and not asked:
        raise UserError(last_words(log))
    if stop_at and (output / "manifest.json").exists():
        raise UserError("finished before it could be interrupted: take more --steps")
    return start


def run_logged(command: Sequence[str], environment: Mapping[str, str], log: Path, *, limit_s: float) -> float:
    """Runs a command in the repository; returns its seconds.

    Raises:
        UserError: It failed, or took too long.
    """
    begun = time.monotonic()
    with started(command, environment, log) as process:
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"killed after {limit_s:.0f} s: {last_words(log)}") from error
    if process.returncode:
        raise UserError(last_words(log))
    return time.monotonic() - begun


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own, none of which outlives the block."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            if has_processes(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def has_processes(group: int) -> bool:
    """Whether a process of the group runs; a dead one that nobody has asked for its end does not."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (ProcessLookupError, psutil.Error):
            continue
    return False


def last_words(log: Path) -> str:
    """The last error that a log names, or else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    reasons = _REASON.findall(text)
    return (reasons[-1] if reasons else text.rpartition("\n")[2] or "it said nothing")[:300]


@contextmanager
def memory_watched(start: Start) -> Iterator[None]:
    """Asks nvidia-smi again and again in a thread, where it is."""
    before, is_done = _memory_mb(), threading.Event()
    if not before:
        yield
        return

    def watch() -> None:
        while not is_done.wait(0.2):
            taken = max((now - was for now, was in zip(_memory_mb(), before, strict=False)), default=0.0)
            start.peak_memory_gb = max(start.peak_memory_gb or 0.0, taken * 2**20 / 1e9)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def _memory_mb() -> list[float]:
    """MiB that each GPU holds; nothing where nvidia-smi is not, or cannot say."""
    if not shutil.which(_NVIDIA_SMI[0]):
        return []
    done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, check=False)
    return [float(line) for line in done.stdout.splitlines() if line.strip().isdigit()]


class _Steps:
    """Notes when a step's line appears in the log, which has no clock."""

    def __init__(self, path: Path, ends: dict[int, float]) -> None:
        self._path, self._ends = path, ends
        self._last = self._read()

    def look(self) -> None:
        """A resumed run cuts the log to its checkpoint first, so the last step may go back."""
        step = self._read()
        if step > self._last:
            self._ends[step] = time.monotonic()
        self._last = step

    def _read(self) -> int:
        try:
            last: Any = json.loads(self._path.read_text(encoding="utf-8").splitlines()[-1])
        except (OSError, ValueError, IndexError):  # not there yet, empty, or a line half written
            return getattr(self, "_last", 0)
        return int(last["step"])
