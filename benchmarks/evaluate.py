"""Answers per second: this project's batch evaluation against the two ways in which it is usually done.

    python benchmarks/evaluate.py                                            toy shapes and 576 image tokens, on the CPU
    python benchmarks/evaluate.py --shapes 7b --device cuda --dtype bfloat16       LLaVA-1.5-7B's shapes, on a GPU
    python benchmarks/evaluate.py --shapes tiny --output tried.json                        to try the script

Measured in one process, in turn, on the same model, photos and questions:

    loop     one question at a time with `generate`, photo decoded for each, as LLaVA's scripts do
    batched  `generate` on left-padded batches, every row with its photo and whole prompt
    static   the same with the static cache of `transformers`, on a GPU compiled (with --static_cache)
    ours     `AddressPredictor.answer_batch`: photo and shared prompt once for all questions about the photo

Weights are random and every answer has the same number of tokens, so that all do the same work; that all give the same
words is checked in float32. On the CPU seconds are its cores' own time, so that other work does not count; on a GPU
those of the clock. Needs torch, transformers, peft, accelerate, numpy, pillow, pyarrow and llava_ial. Writes
benchmarks/results/evaluate.json and prints a table.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # read once, when torch is imported

import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import torch
from PIL import Image
from tqdm import tqdm
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from llava_ial.config import parse_config
from llava_ial.conversation import IMAGE_TOKEN, Message, user_question
from llava_ial.data.images import load_photo
from llava_ial.data.llava import encode_prompt
from llava_ial.errors import UserError, run_command
from llava_ial.inference import AddressPredictor
from llava_ial.manifest import library_versions, write_json
from llava_ial.models.llava_folder import LoadedLlava
from llava_ial.prompts import STREET, WHERE, WORDINGS
from train.toy_base.llava import load_or_train_tokenizer

RESULTS = Path("benchmarks/results/evaluate.json")
Answers = list[str]


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model; the number of image tokens is ``(image_size / patch_size) ** 2``."""

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    width: int
    layers: int
    heads: int
    vocab_size: int


SHAPES = {
    "tiny": Shapes(28, 14, 64, 2, 32, 2, 2, 512),
    "toy": Shapes(112, 14, 192, 6, 256, 4, 8, 2048),
    "576": Shapes(336, 14, 256, 6, 512, 8, 8, 32000),
    "7b": Shapes(336, 14, 1024, 24, 4096, 32, 32, 32064),
}


@dataclass
class BenchmarkConfig:
    """What is measured."""

    shapes: list[str] = field(default_factory=lambda: ["toy", "576"], metadata={"help": f"of {', '.join(SHAPES)}"})
    questions: list[int] = field(default_factory=lambda: [1, 4, 12], metadata={"help": "questions a photo"})
    photos: int = field(default=4, metadata={"help": "photos a measurement"})
    new_tokens: int = field(default=24, metadata={"help": "tokens of every answer"})
    batch_size: int = field(default=32, metadata={"help": "questions at a time, of 'batched' and of 'ours'"})
    repeats: int = field(default=2, metadata={"help": "measurements of each; the fastest counts"})
    static_cache: bool = field(default=False, metadata={"help": "measure 'static' too"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    dtype: str = field(default="float32", metadata={"help": "float32 or bfloat16"})
    output: Path = field(default=RESULTS, metadata={"help": "JSON to write"})


def main() -> None:
    """Measures, prints, writes."""
    (config,) = parse_config(BenchmarkConfig, description=__doc__ or "")
    if unknown := set(config.shapes) - set(SHAPES):
        raise UserError(f"--shapes {min(unknown)}: unknown; allowed: {', '.join(SHAPES)}")
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype {config.dtype}: float32 or bfloat16")
    transformers_logging.set_verbosity_error()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        photos = draw_photos(Path(folder), config.photos)
        for name in config.shapes:
            subject = Subject(SHAPES[name], config)
            for num_questions in config.questions:
                rows.append(
                    {"shapes": name, "questions": num_questions, **measure(subject, photos, num_questions, config)}
                )
                print(format_row(rows[-1]), flush=True)
            del subject
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name()
        if config.device == "cuda"
        else f"{torch.get_num_threads()} threads, {os.cpu_count()} CPU cores",
        "versions": library_versions(),
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()},
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, facts | {"rows": rows})
    print(f"written: {config.output}")


class Subject:
    """One model and the three ways to ask it.

    Args:
        shapes: Of the model.
        config: Of the benchmark.
    """

    def __init__(self, shapes: Shapes, config: BenchmarkConfig) -> None:
        self._config = config
        self._tokenizer = _tokenizer()
        self._num_image_tokens = (shapes.image_size // shapes.patch_size) ** 2
        side = {"height": shapes.image_size, "width": shapes.image_size}
        self._image_processor = CLIPImageProcessorPil(size={"shortest_edge": shapes.image_size}, crop_size=side)
        self.model = _build(shapes, self._tokenizer, self._num_image_tokens, config)
        llava = LoadedLlava(self.model, self._tokenizer, self._image_processor, self._num_image_tokens, {})
        encoder = cast(Any, SimpleNamespace(gallery=[], calibration=None))  # nothing is ranked here
        self._predictor = AddressPredictor(encoder, llava)

    def loop(self, photos: Sequence[Path], questions: Sequence[list[Message]]) -> Answers:
        """One question at a time."""
        answers: Answers = []
        for photo, messages in zip(photos, questions, strict=True):
            answers += self._generate([photo], [messages])
        return answers

    def batched(self, photos: Sequence[Path], questions: Sequence[list[Message]]) -> Answers:
        """Left-padded batches."""
        answers: Answers = []
        size = self._config.batch_size
        for start in range(0, len(questions), size):
            answers += self._generate(photos[start : start + size], questions[start : start + size])
        return answers

    def static(self, photos: Sequence[Path], questions: Sequence[list[Message]]) -> Answers:
        """The same with keys and values in tensors of one size, which `transformers` compiles for on a GPU."""
        self.model.generation_config.cache_implementation = "static"
        try:
            return self.batched(photos, questions)
        finally:
            self.model.generation_config.cache_implementation = None

    def ours(self, photos: Sequence[Path], questions: Sequence[list[Message]]) -> Answers:
        """Prefixes shared."""
        shown = {path: load_photo(path) for path in dict.fromkeys(photos)}
        answers = self._predictor.answer_batch(
            questions,
            [shown[path] for path in photos],
            batch_size=self._config.batch_size,
            max_new_tokens=self._config.new_tokens,
        )
        return [answer.text for answer in answers]

    @torch.no_grad()
    def _generate(self, photos: Sequence[Path], questions: Sequence[list[Message]]) -> Answers:
        prompts = [encode_prompt(self._tokenizer, messages, self._num_image_tokens) for messages in questions]
        width = max(len(prompt) for prompt in prompts)
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        pixels = self._image_processor([load_photo(photo) for photo in photos], return_tensors="pt")["pixel_values"]
        made = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels.to(self.model.device, self.model.dtype),
            do_sample=False,
            max_new_tokens=self._config.new_tokens,
        )
        return [self._tokenizer.decode(row, skip_special_tokens=True).strip() for row in made[:, width:]]


def measure(subject: Subject, photos: Sequence[Path], num_questions: int, config: BenchmarkConfig) -> dict[str, Any]:
    """Answers per second and peak memory of the ways, in turn."""
    wordings = (*WORDINGS[WHERE].train, *WORDINGS[STREET].train)
    asked = [[user_question(wordings[i % len(wordings)])] for _ in photos for i in range(num_questions)]
    shown = [photo for photo in photos for _ in range(num_questions)]
    ways = {"loop": subject.loop, "batched": subject.batched, "ours": subject.ours}
    if config.static_cache:
        ways["static"] = subject.static
        subject.static(shown, asked)  # compiled at the first call
    subject.ours(shown[:1], asked[:1])  # what is done at the first call only
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float] = {}
    said: dict[str, Answers] = {}
    rounds = [name for _ in range(config.repeats) for name in ways]
    for name in tqdm(rounds, desc=f"{num_questions} questions a photo", leave=False):
        with Peak(config.device) as peak:
            started = _clock_s(config.device)
            said[name] = ways[name](shown, asked)
            seconds[name].append(_clock_s(config.device) - started)
        memory[name] = max(memory.get(name, 0.0), peak.mebibytes)
    if config.dtype == "float32" and any(answers != said["loop"] for answers in said.values()):
        raise AssertionError("the ways gave different answers")
    rate = {name: len(asked) / min(times) for name, times in seconds.items()}
    return {
        "answers_per_s": {name: round(value, 3) for name, value in rate.items()},
        "times_loop": round(rate["ours"] / rate["loop"], 2),
        "times_batched": round(rate["ours"] / rate["batched"], 2),
        "peak_mib": {name: round(value) for name, value in memory.items()},
    }


def _clock_s(device: str) -> float:
    return time.process_time() / torch.get_num_threads() if device == "cpu" else time.perf_counter()


class Peak:
    """Most memory above that at the start: of the GPU, or of this process."""

    def __init__(self, device: str) -> None:
        self._is_cuda = device == "cuda"
        self._process = psutil.Process()
        self._is_done = threading.Event()
        self.mebibytes = 0.0

    def __enter__(self) -> "Peak":
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats()
        self._start = torch.cuda.memory_allocated() if self._is_cuda else self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_done.set()
        self._thread.join()
        if self._is_cuda:
            torch.cuda.synchronize()
            self.mebibytes = (torch.cuda.max_memory_allocated() - self._start) / 2**20

    def _watch(self) -> None:
        while not self._is_done.wait(0.01) and not self._is_cuda:
            self.mebibytes = max(self.mebibytes, (self._process.memory_info().rss - self._start) / 2**20)


def draw_photos(folder: Path, count: int) -> list[Path]:
    """Photos of noise, 640 x 480."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(count):
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(generator.integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(paths[-1], quality=90)
    return paths


def format_row(row: dict[str, Any]) -> str:
    """A line for people."""
    rates = ", ".join(f"{name} {value:.2f}/s" for name, value in row["answers_per_s"].items())
    memory = ", ".join(f"{name} {value}" for name, value in row["peak_mib"].items())
    return (
        f"{row['shapes']:>4}, {row['questions']:>2} questions a photo: {rates}; {row['times_loop']:.1f} times the "
        f"loop, {row['times_batched']:.1f} times the batches; MiB above the model: {memory}"
    )


def _tokenizer() -> PreTrainedTokenizerBase:
    texts = [wording for wordings in WORDINGS.values() for wording in (*wordings.train, *wordings.test)]
    return load_or_train_tokenizer(None, texts, 400)


def _build(
    shapes: Shapes, tokenizer: PreTrainedTokenizerBase, num_image_tokens: int, config: BenchmarkConfig
) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=shapes.vision_width, intermediate_size=4 * shapes.vision_width,
        num_hidden_layers=shapes.vision_layers, num_attention_heads=max(1, shapes.vision_width // 64),
        image_size=shapes.image_size, patch_size=shapes.patch_size, projection_dim=shapes.vision_width,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=shapes.vocab_size, hidden_size=shapes.width, intermediate_size=int(2.6875 * shapes.width),
        num_hidden_layers=shapes.layers, num_attention_heads=shapes.heads, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=shapes.vocab_size - 1, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=2048,
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, config.dtype))  # 7B in float32 would fill most GPUs on the way
    try:
        with torch.device(config.device):
            model = LlavaForConditionalGeneration(
                LlavaConfig(
                    vision_config=vision, text_config=text, image_token_index=image, image_seq_length=num_image_tokens
                )
            ).eval()
    finally:
        torch.set_default_dtype(usual)
    # Only tokens that the tokenizer can write, and never the end: every answer has the same length.
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = 0
        model.lm_head.weight[: len(tokenizer.all_special_tokens) + 2] = 0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


if __name__ == "__main__":
    run_command(main)
