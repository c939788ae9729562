"""Stage 2's training against TRL's SFTTrainer and against one sequence per question, as ratios of one run.

    python -m venv runs/trl && runs/trl/bin/pip install trl peft pillow
    python -m benchmarks.stage2 --trl_python runs/trl/bin/python

The same small LLaVA with LLaVA-1.5's vocabulary (random weights: speed does not depend on them), photos, dialogues and
batch for all. Every part is a fresh process; they take turns, the processors' own seconds are counted, so that other
work on the machine slows none, and medians are compared. Memory is the peak of the process. Writes
benchmarks/results/stage2.json and prints it; without --trl_python that part is left out, which the result says.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)))))  # read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, TrainerCallback

from benchmarks._fresh_process import run_fresh
from llava_ial.config import parse_config
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import IGNORE_INDEX
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import MANIFEST, library_versions, write_json
from llava_ial.models.address_clip import load_clip
from llava_ial.models.llava_folder import save_processor
from llava_ial.records import ConversationRecord, write_records
from llava_ial.training.interruption import StopRequest
from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_run import build_run, read_inputs
from llava_ial.training.llava_settings import LlavaSettings
from llava_ial.training.llava_trainer import LlavaTrainer
from tests.tiny_models import write_stage1
from tests.tiny_world import TinyWorld, build_tiny_base_clip, build_tiny_dataset
from train.toy_base.llava import build_llava, load_or_train_tokenizer

RESULTS = Path("benchmarks/results/stage2.json")
TRL_SCRIPT = Path(__file__).with_name("_trl_sft.py")
OURS, ALONE, ALL_LOGITS, TRL = "ours", "one_question_a_sequence", "all_logits", "trl"
# What a part sets beside what is common.
PARTS: dict[str, dict[str, object]] = {
    OURS: {},
    ALONE: {},
    "questions_apart": {"questions_apart": 1},  # computes what ALONE does
    ALL_LOGITS: {},
    "by_length": {"train_sampling_strategy": "group_by_length"},
    "decoded_photos_kept": {"photos_in_memory": 10_000},
    "activation_checkpointing": {"activation_checkpointing": True},
}


@dataclass
class BenchmarkConfig:
    """What is measured."""

    trl_python: Path | None = field(default=None, metadata={"help": "python of an environment with TRL"})
    batch_size: int = field(default=8, metadata={"help": "dialogues of a step; so many times their questions alone"})
    steps: int = field(default=6, metadata={"help": "steps that are counted, after two that are not"})
    repeats: int = field(default=3, metadata={"help": "turns of each part"})
    width: int = field(default=256, metadata={"help": "hidden size of the language model"})
    layers: int = field(default=4, metadata={"help": "layers of the language model"})
    vocabulary: int = field(default=32064, metadata={"help": "tokens that the language model chooses from"})
    image_size: int = field(default=112, metadata={"help": "side of the tower's photos; its patches have 8 pixels"})
    output: Path = field(default=RESULTS, metadata={"help": "JSON to write"})
    part: str = field(default="", metadata={"help": "measure this part alone; set by the parent process"})
    folder: Path | None = field(default=None, metadata={"help": "where the parent has put model and data"})


def main() -> None:
    """Measures everything, or one part where the parent process says so."""
    (config,) = parse_config(BenchmarkConfig, description=__doc__ or "")
    if config.trl_python and not config.trl_python.is_file():
        raise UserError(f"--trl_python {config.trl_python}: no such file")
    if config.repeats < 1:
        raise UserError(f"--repeats {config.repeats}: allowed: at least 1")
    if config.part and config.folder:
        print(json.dumps(measure_part(config, config.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_world(config, folder)
        parts = [*PARTS, *([TRL] if config.trl_python else [])]
        runs: dict[str, list[dict[str, float]]] = {part: [] for part in parts}
        for _ in range(config.repeats):
            for part in parts:
                runs[part].append(run_part(config, folder, part))
            results = summary(config, runs)  # after each turn, so that a measurement that is ended has a result
            write_json(config.output, results)
    print(json.dumps(results, indent=2))


def summary(config: BenchmarkConfig, runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What is written: medians of the turns so far, and ratios to our part."""
    found = {part: {name: statistics.median(run[name] for run in of) for name in of[0]} for part, of in runs.items()}
    speed = {part: values["questions_per_cpu_second"] for part, values in found.items()}
    return {
        "machine": f"{len(os.sched_getaffinity(0))} CPU cores", "threads": torch.get_num_threads(),
        "measured_on": datetime.now(UTC).date().isoformat(), "versions": library_versions(),
        "model": {"width": config.width, "layers": config.layers, "image_tokens": (config.image_size // 8) ** 2,
                  "vocabulary": config.vocabulary},
        "batch_size": config.batch_size, "parts": found, "left_out": [] if config.trl_python else [TRL],
        # Where these differ by more than the ratios below, the ratios say nothing.
        "turns": {part: [round(run["questions_per_cpu_second"], 2) for run in of] for part, of in runs.items()},
        "questions_per_cpu_second_to": {part: speed[OURS] / speed[part] for part in speed if part != OURS},
    }  # fmt: skip


def build_world(config: BenchmarkConfig, folder: Path) -> None:
    """Data set, the same with one question a dialogue, stage 1 and base."""
    world = TinyWorld(num_train=64, width=640, height=480)
    dataset = IALDataset(build_tiny_dataset(folder / "data", world))
    alone = IALDataset(build_tiny_dataset(folder / "alone", world, image_root=folder / "data_photos"))
    records = [part for record in alone.conversations("train") for part in split_dialogue(record)]
    manifest = (folder / "alone" / MANIFEST).read_bytes()
    write_records(folder / "alone" / "conversations" / "train", records, ConversationRecord)
    (folder / "alone" / MANIFEST).write_bytes(manifest)
    base_clip = build_tiny_base_clip(folder / "base_clip", folder / "data", image_size=config.image_size)
    clip = load_clip(str(base_clip))
    image_processor = AutoImageProcessor.from_pretrained(base_clip, backend="pil")
    write_stage1(folder / "stage1", dataset, clip, base_clip, image_processor)
    texts = [message.content for record in dataset.conversations("train") for message in record.messages]
    tokenizer = load_or_train_tokenizer(None, texts, 1024)
    torch.manual_seed(0)
    llava = build_llava(clip, tokenizer, width=config.width, layers=config.layers)
    llava.resize_token_embeddings(config.vocabulary, mean_resizing=False)
    llava.save_pretrained(folder / "base")
    save_processor(folder / "base", tokenizer, image_processor, llava.config)
    dialogues = [
        {"image": str(dataset.image_file(record.image_path)), "messages": [vars(m) for m in record.messages]}
        for record in dataset.conversations("train")
    ]
    write_json(folder / "dialogues.json", dialogues)


def split_dialogue(record: ConversationRecord) -> list[ConversationRecord]:
    """Each question about the photo as a dialogue of its own, as LLaVA's data would have it."""
    mark = record.messages[0].content.partition("\n")[0]
    parts = []
    for turn, question_id in enumerate(record.question_ids):
        question, answer = record.messages[2 * turn : 2 * turn + 2]
        text = question.content if turn == 0 else f"{mark}\n{question.content}"
        parts.append(replace(
            record, conversation_id=question_id, messages=[replace(question, content=text), answer],
            question_ids=[question_id], tasks=[record.tasks[turn]], is_given_away=[False],
        ))  # fmt: skip
    return parts


def run_part(config: BenchmarkConfig, folder: Path, part: str) -> dict[str, float]:
    """One turn of a part in a process of its own."""
    common = [f"--batch_size={config.batch_size}", f"--steps={config.steps}", f"--folder={folder}"]
    if part == TRL:
        command = [str(config.trl_python), str(TRL_SCRIPT), *common]
    else:
        command = [sys.executable, "-m", "benchmarks.stage2", f"--part={part}", *common]
    found = run_fresh(f"part {part}", command)
    print(part, found, file=sys.stderr)
    return found


def measure_part(config: BenchmarkConfig, folder: Path) -> dict[str, float]:
    """Steps of ours, two not counted."""
    data = folder / ("alone" if config.part == ALONE else "data")
    turns = 1 if config.part == ALONE else 2
    options: dict[str, object] = {
        "data": data, "base": folder / "base", "clip": folder / "stage1", "output_dir": folder / f"{time.time_ns()}",
        "use_cpu": True, "max_steps": config.steps + 2, "save_strategy": "no", "lora_rank": 16, "lora_alpha": 32,
        "per_device_train_batch_size": config.batch_size * 2 // turns, "logging_steps": 1000, "disable_tqdm": True,
        **PARTS[config.part],
    }  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in options.items()]
    settings, training = parse_config(LlavaSettings, LlavaArguments, description="", argv=arguments)
    run = build_run(settings, training, read_inputs(settings, training))
    run.output.mkdir()
    clock = Clock()
    with StopRequest() as stop_request:
        trainer = LlavaTrainer(run, stop_request)
        trainer.chooses_logits = config.part != ALL_LOGITS
        trainer.add_callback(clock)
        trainer.train()
    encoded = run.train_set.encoded
    learned = sum(label != IGNORE_INDEX for dialogue in encoded for label in dialogue.labels) / len(encoded)
    return report(clock, config.steps, options["per_device_train_batch_size"], turns, learned)


def report(clock: "Clock", steps: int, rows: Any, turns: int, learned: float) -> dict[str, float]:
    """What a part prints."""
    per_second = steps * int(rows) / (clock.ended - clock.started)
    return {
        "questions_per_cpu_second": per_second * turns,
        "supervised_tokens_per_cpu_second": per_second * learned,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class Clock(TrainerCallback):
    """When the third step began and the last ended."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts after two steps."""
        if state.global_step == 2:
            self.started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last call counts."""
        self.ended = time.process_time()


if __name__ == "__main__":
    run_command(main)
