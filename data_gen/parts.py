"""A build as steps over parts: each part alone (map), or all of them once (reduce), on one process or on many.

A part is up to ``rows_a_part`` photos. What a step makes of a part is written under a temporary name and renamed; then
the part's mark is written, a small JSON file of facts. A step that finds a mark passes over its part, so a build that
was killed goes on where it was. Nothing that is written depends on who wrote it: one process, a pool, the tasks of a
cluster or Ray make the same files.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_gen.houses import Houses
from data_gen.map_cache import CompiledMap, load_compiled_map
from data_gen.run_options import RunOptions, Share
from data_gen.settings import BuildSettings
from data_gen.streets import StreetMap
from data_gen.workers import worker_pool
from llava_ial.errors import UserError
from llava_ial.manifest import MANIFEST, write_json

WORK = ".work"  # what steps keep for each other; gone from a finished folder
_POLL_S = 0.5

Facts = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What a step needs to know: the settings, the folder that is written, and how many processes it may use."""

    settings: BuildSettings
    folder: Path
    map_cache: Path
    workers: int = 1

    @property
    def work(self) -> Path:
        """Where steps keep what is not published."""
        return self.folder / WORK

    @property
    def street_map(self) -> StreetMap:
        """The streets of a build that has a map."""
        if self.compiled is None:
            raise ValueError("this build imports its addresses: it has no map")
        return self.compiled.street_map

    @property
    def houses(self) -> Houses:
        """The numbered houses of a build that has a map and wants them; none otherwise."""
        if self.compiled is None or not self.settings.house_number_m:
            return Houses(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), [])
        return self.compiled.houses

    @property
    def compiled(self) -> CompiledMap | None:
        """The map, read once in each process; None where addresses are imported."""
        settings = self.settings
        if settings.streets is None:
            return None
        areas = settings.neighbourhoods
        stamps = file_stamp(settings.streets), file_stamp(areas) if areas is not None else None
        return _compiled(settings.streets, tuple(settings.highways), areas, self.map_cache, stamps)


def file_stamp(path: Path) -> tuple[str, int, int]:
    """What changes with a file: what a process read of it is good as long as this is the same."""
    found = path.stat()
    return str(path.resolve()), found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1)
def _compiled(
    streets: Path, highways: tuple[str, ...], neighbourhoods: Path | None, cache: Path, stamps: object
) -> CompiledMap:
    del stamps  # part of the key alone
    return load_compiled_map(streets, highways, neighbourhoods, cache)


# Top-level functions, so that another process finds them by their name.
PartTask = Callable[[Context, int], Facts]


class Steps:
    """Runs the steps of one build, as one of the processes that share it."""

    def __init__(self, context: Context, options: RunOptions) -> None:
        self._context = context
        self._options = options
        self._share: Share = options.share

    @cached_property
    def num_parts(self) -> int:
        """How many parts the photos make; known once they are listed."""
        return int(self.facts("list")["parts"])

    def once(self, name: str, make: Callable[[Context], Facts]) -> None:
        """A step over all parts: the first process makes it, the others wait."""
        mark = self._mark(name)
        if not mark.exists():
            if self._share.index == 0:
                _finish(mark, make(self._context))
            else:
                self._wait([mark])

    def each(self, name: str, task: PartTask, *, is_alone: bool = False) -> None:
        """A step over each part: every process makes its own share, then waits until all parts are there.

        Args:
            name: Of the step.
            task: What is done with a part.
            is_alone: The task takes all that this machine has (a model, a server): no pool of processes.
        """
        marks = [self._mark(name, part) for part in range(self.num_parts)]
        todo = [part for part, mark in enumerate(marks) if self._share.owns(part) and not mark.exists()]
        if todo:
            context = replace(self._context, workers=1) if is_alone else self._context
            run_parts(name, task, context, todo, self._options.engine)
        self._wait(marks)

    def facts(self, name: str) -> Facts:
        """What a step over all parts noted."""
        return _load(self._mark(name))

    def part_facts(self, name: str) -> list[Facts]:
        """What a step over each part noted, by part."""
        return [_load(self._mark(name, part)) for part in range(self.num_parts)]

    def seconds(self, started: float) -> dict[str, float]:
        """How long each step took that ended after ``started`` (of the clock), by the newest of its marks."""
        ended: dict[str, float] = {}
        done = self._context.work / "done"
        for mark in done.rglob("*.json"):
            step = mark.relative_to(done).parts[0].removesuffix(".json")
            ended[step] = max(ended.get(step, 0.0), mark.stat().st_mtime)
        found, before = {}, started
        for step, moment in sorted(ended.items(), key=lambda item: item[1]):
            if moment > started:
                found[step], before = round(moment - before, 2), moment
        return found

    def is_published(self) -> bool:
        """True once the first process has finished the folder."""
        return (self._context.folder / MANIFEST).exists()

    def _mark(self, name: str, part: int | None = None) -> Path:
        return _mark(self._context, name, part)

    def _wait(self, marks: Iterable[Path]) -> None:
        """Waits for other processes, as long as one of them still finishes a part now and then."""
        missing = [mark for mark in marks if not mark.exists()]
        since = time.monotonic()
        while missing and not self.is_published():
            time.sleep(_POLL_S)
            left = [mark for mark in missing if not mark.exists()]
            since = time.monotonic() if len(left) < len(missing) else since
            missing = left
            if missing and time.monotonic() - since > self._options.wait_s:
                name = missing[0].relative_to(self._context.work).with_suffix("")
                raise UserError(
                    f"num_shards: waited {self._options.wait_s:g} s for {name} of another process and nothing came; "
                    "start that process, or the same command again: finished parts are kept"
                )


def run_parts(name: str, task: PartTask, context: Context, parts: Sequence[int], engine: str) -> None:
    """Runs a task on parts: here, in a pool of processes, or by Ray; each part is marked as it is done."""
    if engine == "ray":
        from data_gen.ray_engine import run_on_ray

        run_on_ray(run_part, name, task, context, parts)
        return
    if context.workers <= 1 or len(parts) < 2:
        for part in tqdm(parts, desc=f"{name}, parts", unit="part", disable=None if len(parts) > 1 else True):
            run_part(name, task, context, part)
        return
    alone = replace(context, workers=1)
    with worker_pool(context.workers) as pool:
        waiting = [pool.submit(run_part, name, task, alone, part) for part in parts]
        for future in tqdm(waiting, desc=f"{name}, parts", unit="part", disable=None):
            future.result()


def run_part(name: str, task: PartTask, context: Context, part: int) -> None:
    """One part of one step, and its mark."""
    _finish(_mark(context, name, part), task(context, part))


def _mark(context: Context, name: str, part: int | None) -> Path:
    return context.work / "done" / (f"{name}.json" if part is None else f"{name}/{part:05d}.json")


def _finish(mark: Path, facts: Facts) -> None:
    mark.parent.mkdir(parents=True, exist_ok=True)
    write_json(mark, facts)


def _load(mark: Path) -> Facts:
    loaded: Facts = json.loads(mark.read_text(encoding="utf-8"))
    return loaded
