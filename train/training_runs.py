"""Commands that a comparison starts, trainings above all: each is run to its end once."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from llava_ial.config import parse_config, save_config
from llava_ial.data.views import ONE
from llava_ial.errors import UserError
from llava_ial.locating import Way
from llava_ial.manifest import MANIFEST, write_json
from llava_ial.training.clip_settings import ClipSettings
from train.prompt_tuning import PromptSettings

ROOT = Path(__file__).resolve().parents[1]
_SECONDS_BETWEEN_LOOKS = 0.2
_SCRIPTS = {ClipSettings: "stage1_clip", PromptSettings: "prompt_tuning"}


@dataclass(frozen=True)
class Command:
    """A command of this project that writes one folder.

    Attributes:
        arguments: Of Python: a script or ``-m`` and a module, and options.
        output: The folder; finished once it has a manifest.
    """

    arguments: tuple[str, ...]
    output: Path


def read_stage1_options(options: Sequence[str], where: str) -> tuple[ClipSettings, Way]:
    """Settings of a training, and how its finished encoder shall locate photos: that needs no training of its own.

    Args:
        options: As for ``train/stage1_clip.py``, without places.
        where: Named in the error.

    Raises:
        UserError: An unknown option or an impossible value.
    """
    try:
        (given,) = parse_config(ClipSettings, description="", argv=["--data=", "--base=", "--output=", *options])
        settings: ClipSettings = replace(given.with_preset(), preset="none")
        settings.refuse_impossible()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    way = Way(settings.views, settings.memory_weight, settings.memory_sharpness)
    plain = Way()
    return replace(settings, views=ONE, memory_weight=0.0, memory_sharpness=plain.memory_sharpness), way


def split_options(given: str) -> tuple[str, list[str]]:
    """``NAME: --option value ...`` as name and options."""
    name, _, options = given.partition(":")
    return name.strip(), shlex.split(options)


class TrainingRuns:
    """Runs trainings, some at a time, in the order in which they are asked for; leaving it ends what still runs.

    Args:
        parallel: How many at a time; they share the cores. A tiny model gains little from a second core, so two
            trainings at once are done sooner than one after the other.
    """

    def __init__(self, parallel: int = 1) -> None:
        cores = len(os.sched_getaffinity(0))
        self._threads = {"OMP_NUM_THREADS": str(max(1, cores // parallel))} if parallel > 1 else {}
        self._pool = ThreadPoolExecutor(parallel)
        self._asked: dict[Path, Future[dict[str, float]]] = {}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_over = False

    def __enter__(self) -> "TrainingRuns":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._running):
            process.terminate()  # it saves and ends
        self._pool.shutdown()

    def start(self, settings: Any) -> Future[dict[str, float]]:
        """Trains as soon as it is its turn; what comes is as of ``train``."""
        if settings.output not in self._asked:
            self._asked[settings.output] = self._pool.submit(self._train, settings)
        return self._asked[settings.output]

    def start_chain(self, commands: Sequence[Command]) -> Future[dict[str, float]]:
        """Runs commands one after the other as soon as it is their turn; what comes is of all of them together."""
        return self._pool.submit(self._run_chain, commands)

    def train(self, settings: Any) -> dict[str, float]:
        """Waits for a training; seconds and the peak of resident memory in bytes, over all attempts.

        Args:
            settings: Of one of the training commands, with places. A finished one is not trained again.

        Raises:
            UserError: The training ended without a result.
        """
        return self.start(settings).result()

    def _run_chain(self, commands: Sequence[Command]) -> dict[str, float]:
        costs = [self._run_once(command) for command in commands]
        return {"seconds": sum(c["seconds"] for c in costs), "peak_bytes": max(c["peak_bytes"] for c in costs)}

    def _train(self, settings: Any) -> dict[str, float]:
        folder: Path = settings.output
        config = folder.with_name(f"{folder.name}.yaml")
        script = ROOT / "train" / f"{_SCRIPTS[type(settings)]}.py"
        if not (folder / MANIFEST).exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            save_config(config, settings)
        return self._run_once(Command((str(script), f"--config={config}"), folder))

    def _run_once(self, command: Command) -> dict[str, float]:
        folder = command.output
        cost_file, log = (folder.with_name(folder.name + ending) for ending in (".cost.json", ".log"))
        cost = {"seconds": 0.0, "peak_bytes": 0.0}
        if cost_file.exists():
            cost = json.loads(cost_file.read_text(encoding="utf-8"))
        if (folder / MANIFEST).exists():
            return cost
        if self._is_over:
            raise UserError(f"{folder.name}: {_name(command)} was not started; the same command continues")
        folder.parent.mkdir(parents=True, exist_ok=True)
        code, seconds, peak = self._run(command.arguments, log)
        cost = {"seconds": cost["seconds"] + seconds, "peak_bytes": max(cost["peak_bytes"], peak)}
        write_json(cost_file, cost)
        name = _name(command)
        if code:
            last = (log.read_text(encoding="utf-8").strip().splitlines() or ["(it said nothing)"])[-1]
            raise UserError(f"{folder.name}: {name} ended with {code}: {last}; see {log}")
        if not (folder / MANIFEST).exists():
            raise UserError(f"{folder.name}: {name} was stopped; the same command continues it")
        return cost

    def _run(self, arguments: Sequence[str], log: Path) -> tuple[int, float, float]:
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self._threads},
            )  # fmt: skip
            self._running.add(process)
            if self._is_over:  # since a moment ago, so that nobody else has ended this one
                process.terminate()
            peak = _watch_memory(process)
            self._running.discard(process)
        return process.returncode, time.monotonic() - started, peak


def _name(command: Command) -> str:
    """What of a command a message names."""
    first, *rest = command.arguments
    return f"{first} {rest[0]}" if first == "-m" else str(Path(first).relative_to(ROOT))


def _watch_memory(process: subprocess.Popen[bytes]) -> float:
    """Waits for a process; the largest resident memory that it had, in bytes, 0 where the system does not tell.

    What ``wait4`` says of a child is at least the memory of the process that started it.
    """
    status, peak = Path(f"/proc/{process.pid}/status"), 0.0
    while True:
        with contextlib.suppress(OSError):
            found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
            peak = max(peak, 1024.0 * int(found.group(1))) if found else peak
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_SECONDS_BETWEEN_LOOKS)
            return peak


def end_on_sigterm() -> None:
    """Makes SIGTERM end this command as Ctrl-C does, so that a training that it has started is ended too."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
