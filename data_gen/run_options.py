"""Where a build goes, how fast and on which processes: options that change nothing of what is written."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llava_ial.errors import UserError

ENGINES = ("local", "ray")
# Variables of this process's number, of the number of processes, of the first number and of the step between two.
# Of SLURM's it is the step's number of tasks: a batch script started with many tasks is itself a single process.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "", ""),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "", ""),
)


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class Share:
    """One of ``count`` processes that share a build."""

    index: int
    count: int

    def owns(self, part: int) -> bool:
        """True for a part that this process makes."""
        return part % self.count == self.index


def _share_of_launcher(environment: Mapping[str, str]) -> Share:
    """What torchrun, srun or a SLURM array says of this process."""
    for index, count, first, step in _LAUNCHERS:
        if environment.get(index, "").isdigit() and environment.get(count, "").isdigit():
            start, stride = int(environment.get(first, 0)), int(environment.get(step, 1))
            return Share((int(environment[index]) - start) // stride, int(environment[count]))
    return Share(0, 1)


@dataclass
class RunOptions:
    """Where a build goes and how fast: nothing here changes what is written."""

    output: Path = field(metadata=_help("folder of the new data set; an interrupted build of it is continued"))
    workers: int = field(default=2, metadata=_help("processes of this machine"))
    engine: str = field(
        default="local",
        metadata=_help("local (processes of this machine) or ray (Ray Data; RAY_ADDRESS names a cluster)"),
    )
    shard_index: int = field(
        default=-1,
        metadata=_help(
            "which of num_shards processes this is, from 0; each makes its share of the parts in the same output "
            "folder; default: RANK, SLURM_PROCID or SLURM_ARRAY_TASK_ID where set, else 0"
        ),
    )
    num_shards: int = field(
        default=0,
        metadata=_help(
            "processes that share this build; default: WORLD_SIZE, SLURM_STEP_NUM_TASKS or the array's size, else 1"
        ),
    )
    wait_s: float = field(
        default=21_600.0, metadata=_help("seconds without news of the other processes after which this one gives up")
    )
    map_cache: Path = field(
        default_factory=lambda: Path(os.environ.get("LLAVA_IAL_CACHE") or "~/.cache/llava-ial") / "maps",
        metadata=_help("folder of compiled maps, so that an extract is read once; LLAVA_IAL_CACHE moves it"),
    )

    def __post_init__(self) -> None:
        self.output, self.map_cache = self.output.expanduser(), self.map_cache.expanduser()
        if self.workers < 1:
            raise UserError(f"workers: {self.workers}; at least 1")
        if not self.wait_s > 0:
            raise UserError(f"wait_s: {self.wait_s}; above 0")
        if self.engine not in ENGINES:
            raise UserError(f"engine: '{self.engine}'; allowed: {', '.join(ENGINES)}")
        _ = self.share  # refuses what is no share

    @property
    def share(self) -> Share:
        """Which processes share the build, and which this one is."""
        found = Share(self.shard_index, self.num_shards) if self.num_shards else _share_of_launcher(os.environ)
        if not 0 <= found.index < found.count:
            raise UserError(
                f"shard_index: {found.index} of num_shards {found.count}; give a number from 0 below num_shards"
            )
        return found
