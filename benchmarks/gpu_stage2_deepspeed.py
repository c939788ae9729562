"""Stage 2's own command under ZeRO-2 and ZeRO-3 on GPUs: trained, interrupted, resumed and merged at 7B's shapes.

    python benchmarks/gpu_stage2_deepspeed.py                         LLaVA-1.5-7B's shapes on one GPU
    python benchmarks/gpu_stage2_deepspeed.py --num_processes 8       on eight
    python benchmarks/gpu_stage2_deepspeed.py --device cpu --model tiny --num_processes 2 --steps 8

A case is `deepspeed --num_gpus N train/stage2_llava.py` with train/configs/pitts_ial_llava.yaml, on a random base, a
random tower of stage 1 and drawn photos: nothing is downloaded. When the checkpoint of half the steps is complete the
whole process group gets SIGTERM, the same command goes on from there, and `python -m train.merge` merges what it
finished. The merge is in float16: a random model's words are near ties, which bfloat16's rounding would often decide.

Needs torch, accelerate, peft, numpy, pillow, psutil, pyarrow and pyyaml; rapidfuzz and utm; transformers of the release
that pyproject.toml names, as an older one does not know stage 2's configuration; deepspeed with what it needs itself
(einops, hjson, msgpack, ninja, py-cpuinfo, pydantic). Nothing else of this project's list.

Writes benchmarks/results/gpu_stage2_deepspeed.json and prints each case; begins nothing new when its time is used up.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from benchmarks._random_stage2 import RandomInputs, build_inputs
from benchmarks._watched_training import ROOT, Start, run_logged, train_watched
from benchmarks.gpu_stage2 import MODELS
from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import MANIFEST, library_versions, write_json
from llava_ial.training.checkpoints import CHECKPOINTS, checkpoint_step, complete_checkpoints
from llava_ial.training.llava_arguments import LlavaArguments

ZERO = {2: "train/configs/zero2.json", 3: "train/configs/zero3.json"}
# What a machine with PyTorch and transformers may lack, by the names that Python and pip know.
NEEDED = {
    "deepspeed": "deepspeed", "hjson": "hjson", "pydantic": "pydantic", "einops": "einops", "msgpack": "msgpack",
    "ninja": "ninja", "cpuinfo": "py-cpuinfo", "rapidfuzz": "rapidfuzz", "utm": "utm",
}  # fmt: skip
_EVAL_PHOTOS = 4
_UNCOUNTED = 2  # steps of each start: memory is first taken and kernels are chosen in them


@dataclass
class BenchmarkConfig:
    """What is run."""

    model: str = field(default="7b", metadata={"help": "7b or tiny"})
    device: str = field(default="cuda", metadata={"help": "cuda, or cpu to try the script"})
    num_processes: int = field(default=1, metadata={"help": "GPUs, or processes on the CPU"})
    zero_stages: list[int] = field(default_factory=lambda: [2, 3], metadata={"help": "of 2, 3"})
    steps: int = field(default=20, metadata={"help": "of each case; the first half of them before the interruption"})
    batch_size: int = field(default=16, metadata={"help": "dialogues of a process and step"})
    seconds: float = field(default=1500.0, metadata={"help": "no further command is begun after so long"})
    work: Path | None = field(
        default=None,
        metadata={"help": "empty folder for models, which are deleted as soon as they have served, and logs, which are "
                          "kept; about 50 GB at 7b; none: a folder of the system's for temporary files"},
    )  # fmt: skip
    output: Path = field(
        default=Path("benchmarks/results/gpu_stage2_deepspeed.json"), metadata={"help": "JSON to write"}
    )


def main() -> None:
    """Runs every case."""
    (config,) = parse_config(BenchmarkConfig, description=__doc__ or "")
    refuse_impossible(config)
    transformers_logging.disable_progress_bar()
    device, deadline, rows = torch.device(config.device), time.monotonic() + config.seconds, []
    with working_folder(config.work) as work:
        num_dialogues = 4 * config.batch_size * config.num_processes
        inputs = build_inputs(work, config.model, device, num_dialogues=num_dialogues)
        for stage in config.zero_stages:
            if time.monotonic() < deadline:
                rows.append(Case(stage, work, inputs, config, deadline).run())
                print(json.dumps(rows[-1]), flush=True)
            write_json(config.output, results(config, rows))  # now: a machine may be taken away before the last
    if failed := [row for row in rows if "error" in row]:
        raise UserError(f"{len(failed)} of {len(rows)} cases failed, see {config.output}: {failed[0]['error']}")


def refuse_impossible(config: BenchmarkConfig) -> None:
    """Checks every value before anything expensive.

    Raises:
        UserError: Names option, value and what is allowed, or the package to install.
    """
    if config.model not in MODELS:
        raise UserError(f"--model {config.model}: allowed: {', '.join(MODELS)}")
    if config.device not in ("cuda", "cpu"):
        raise UserError(f"--device {config.device}: allowed: cuda, cpu; CUDA_VISIBLE_DEVICES chooses among GPUs")
    if unknown := set(config.zero_stages) - set(ZERO):
        raise UserError(f"--zero_stages {', '.join(map(str, sorted(unknown)))}: allowed: 2, 3")
    for name, least in (("num_processes", 1), ("steps", 4), ("batch_size", 1)):
        if getattr(config, name) < least:
            raise UserError(f"--{name} {getattr(config, name)}: allowed: at least {least}")
    if config.device == "cuda" and config.num_processes > torch.cuda.device_count():
        raise UserError(
            f"--num_processes {config.num_processes}: {torch.cuda.device_count()} GPUs here; --device cpu --model tiny "
            "tries the script"
        )
    if missing := [package for name, package in NEEDED.items() if not importlib.util.find_spec(name)]:
        raise UserError(f"{', '.join(missing)}: not installed; pip install {' '.join(missing)}")
    if not hasattr(LlavaArguments, "activation_checkpointing"):  # as its configuration calls it
        raise UserError(f"transformers {transformers_version}: too old for stage 2; pyproject.toml names the release")


@contextmanager
def working_folder(given: Path | None) -> Iterator[Path]:
    """An empty folder, without its models afterwards.

    Raises:
        UserError: The given one is not empty.
    """
    if given is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    given.mkdir(parents=True, exist_ok=True)
    if any(given.iterdir()):
        raise UserError(f"--work {given}: not empty; name a new folder")
    try:
        yield given.resolve()
    finally:
        for folder in [path for path in given.iterdir() if path.is_dir()]:
            shutil.rmtree(folder)


@dataclass(frozen=True)
class Case:
    """One stage of ZeRO.

    Attributes:
        deadline: Of the monotonic clock, after which no further command is begun.
    """

    stage: int
    work: Path
    inputs: RandomInputs
    config: BenchmarkConfig
    deadline: float

    @property
    def output(self) -> Path:
        """What is trained."""
        return self.work / f"zero{self.stage}"

    def run(self) -> dict[str, Any]:
        """Everything in turn; what failed is named, and what was found until then is kept."""
        row: dict[str, Any] = {
            "zero_stage": self.stage, "resumed": False, "merged": False, "steps_before": 0, "steps_after": 0,
        }  # fmt: skip
        steps: list[Callable[[dict[str, Any]], None]] = [self.train_first, self.train_on, self.merge]
        try:
            for step in steps:
                if time.monotonic() > self.deadline:
                    raise UserError(f"--seconds {self.config.seconds:.0f}: used up before {step.__name__}")
                step(row)
        except UserError as error:
            row["error"] = str(error)
        except Exception as error:  # of whatever kind: the other case is run all the same
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        finally:
            for folder in (self.output, self.merged):
                shutil.rmtree(folder, ignore_errors=True)
        return row

    def train_first(self, row: dict[str, Any]) -> None:
        """From the base to the interruption."""
        log = self.work / f"zero{self.stage}_first.log"
        start = self._train(log, stop_at=self.config.steps // 2)
        row |= {
            "steps_before": checkpoint_step(complete_checkpoints(self.output)[-1]), "first_start_s": start.seconds,
            "stop_s": start.stop_s, "saved_on_sigterm": "as asked; the same command continues it" in _read(log),
        }  # fmt: skip
        self._note_speed(row, start)

    def train_on(self, row: dict[str, Any]) -> None:
        """From the interruption to the end."""
        log = self.work / f"zero{self.stage}_resumed.log"
        start = self._train(log)
        entries = map(json.loads, _read(self.output / "train_log.jsonl").splitlines())
        done = [entry["step"] for entry in entries if "street_accuracy" not in entry]
        if "continues from" not in _read(log) or done != list(range(1, self.config.steps + 1)):
            raise UserError(f"the second start did not go on: steps {done}")
        row |= {
            "steps_after": self.config.steps - row["steps_before"], "resumed_start_s": start.seconds, "resumed": True,
        }  # fmt: skip
        self._note_speed(row, start)

    def merge(self, row: dict[str, Any]) -> None:
        """What is finished becomes one plain model."""
        shutil.rmtree(self.output / CHECKPOINTS)  # room for it
        command = [
            sys.executable, "-m", "train.merge", f"--model={self.output}", f"--output={self.merged}",
            f"--data={self.inputs.data}", f"--device={self.config.device}", "--dtype=float16", "--num_checks=2",
            "--max_new_tokens=1",
        ]  # fmt: skip
        log = self.work / f"zero{self.stage}_merge.log"
        row["merge_s"] = run_logged(command, self._environment(), log, limit_s=self.config.seconds)
        row["merged"] = (self.merged / MANIFEST).exists()

    @property
    def merged(self) -> Path:
        """What is merged."""
        return self.work / f"zero{self.stage}_merged"

    def _train(self, log: Path, *, stop_at: int | None = None) -> Start:
        limit_s = self.config.seconds
        command = self.training_command()
        return train_watched(command, self._environment(), self.output, log, limit_s=limit_s, stop_at=stop_at)

    def training_command(self) -> list[str]:
        """What users type, with ``deepspeed`` by its module, which is found wherever it is installed."""
        config, inputs = self.config, self.inputs
        options = {
            "base": inputs.base, "data": inputs.data, "clip": inputs.clip, "output_dir": self.output,
            "deepspeed": ZERO[self.stage], "num_processes": config.num_processes, "use_cpu": config.device == "cpu",
            "per_device_train_batch_size": config.batch_size, "max_steps": config.steps, "logging_steps": 1,
            "save_steps": config.steps // 2, "save_total_limit": 1, "eval_strategy": "steps",
            "eval_steps": config.steps // 2, "eval_photos": _EVAL_PHOTOS, "publish": "best", "disable_tqdm": True,
        }  # fmt: skip
        return [
            sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(config.num_processes),
            "--master_port", str(_free_port()), "train/stage2_llava.py",
            "--config", "train/configs/pitts_ial_llava.yaml", *(f"--{name}={value}" for name, value in options.items()),
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        chosen = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **chosen, **({"DS_ACCELERATOR": "cpu"} if self.config.device == "cpu" else {})}

    def _note_speed(self, row: dict[str, Any], start: Start) -> None:
        """Adds a start's steps to those of the one before."""
        counted = [*row.get("step_s", []), *step_seconds(start.step_ends, self.config.steps // 2)]
        median = statistics.median(counted) if counted else None
        dialogues = self.config.batch_size * self.config.num_processes / median if median else None
        peaks = [peak for peak in (row.get("peak_memory_gb"), start.peak_memory_gb) if peak is not None]
        row |= {
            "step_s": counted, "seconds_per_step": median, "dialogues_per_second": dialogues,
            "supervised_tokens_per_second": dialogues and dialogues * self.inputs.supervised_tokens,
            "peak_memory_gb": max(peaks, default=None),
        }  # fmt: skip


def step_seconds(ends: Mapping[int, float], saved_after: int) -> list[float]:
    """Seconds of the steps of one start, without its first ones and without the one that waited for a checkpoint."""
    counted = sorted(ends)[_UNCOUNTED:]
    return [ends[step] - ends[step - 1] for step in counted if step - 1 in ends and step - 1 != saved_after]


def results(config: BenchmarkConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written."""
    return {
        "machine": torch.cuda.get_device_name() if config.device == "cuda" else "CPU",
        "num_processes": config.num_processes, "model": config.model, "batch_size": config.batch_size,
        "steps": config.steps, "versions": library_versions(), "runs": rows,
    }  # fmt: skip


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is in a session of its own and ends too
    run_command(main)
