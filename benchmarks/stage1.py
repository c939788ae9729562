"""Stage 1: its step against the bare model, and what each saving saves, as ratios of one run.

    python benchmarks/stage1.py                   ViT-B/16 with random weights (speed does not depend on them)
    python benchmarks/stage1.py --size toy        a small model, in seconds
    python benchmarks/stage1.py --open_clip runs/open_clip    against open_clip's training step, too; its environment is
                                                  made in that folder, once: some gigabytes are fetched

Writes benchmarks/results/stage1.json and prints it. Timed parts take turns, so that a busy machine slows all of them;
medians are compared. Memory is the peak of a fresh process.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)))))  # read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datetime
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import multiprocessing
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel

from benchmarks._against_open_clip import make_environment, measure_against
from llava_ial import distributed
from llava_ial.config import parse_config
from llava_ial.data.clip import ClipCollator, ClipPhotos, clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.data.images import load_photo
from llava_ial.data.pixels import PhotoPixels
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import write_json
from llava_ial.models.address_clip import AddressCLIP
from llava_ial.models.losses import LossWeights, Truths, address_clip_losses
from llava_ial.training.clip_settings import ClipSettings
from llava_ial.training.clip_step import batch_losses, losses_in_blocks, model_inputs, to_device
from llava_ial.training.feature_cache import cached_backward, split_inputs
from llava_ial.training.optim import build_optimizer
from tests.tiny_world import TinyWorld, build_tiny_base_clip, build_tiny_dataset

RESULTS = Path("benchmarks/results/stage1.json")
# Vision width, layers, heads, patch, image side; text width, layers, heads; shared width.
SIZES = {"b16": (768, 12, 12, 16, 224, 512, 12, 8, 512), "toy": (160, 6, 5, 16, 112, 128, 3, 4, 128)}
# The paper's batch and city: so many rows of a batch are distinct addresses.
PAPER_BATCH, PAPER_ADDRESSES = 256, 428
SETTINGS = ClipSettings(Path(), "", Path())
_BLOCKS = 16  # of the rows of a batch, where they are taken some at a time


@dataclass
class BenchmarkConfig:
    """What is measured."""

    size: str = field(default="b16", metadata={"help": "b16 or toy"})
    batch_size: int = field(default=16, metadata={"help": "photos of a step"})
    text_batch: int = field(default=64, metadata={"help": "rows of the batch in which texts are encoded once or each"})
    repeats: int = field(default=3, metadata={"help": "turns of each timed part, after one that is not counted"})
    loss_batch: int = field(default=2048, metadata={"help": "rows of the batch whose loss processes share"})
    open_clip: Path | None = field(
        default=None, metadata={"help": "environment with open_clip to compare with, made there if it is missing"}
    )
    output: Path = field(default=RESULTS, metadata={"help": "JSON to write"})


def main() -> None:
    """Measures everything, one after the other."""
    (config,) = parse_config(BenchmarkConfig, description=__doc__ or "")
    if config.size not in SIZES:
        raise UserError(f"--size {config.size}: allowed: {', '.join(SIZES)}")
    if config.open_clip and config.size != "b16":
        raise UserError(f"--size {config.size}: allowed with --open_clip: b16, which both have")
    peer = make_environment(config.open_clip) if config.open_clip else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = TinyWorld(num_train=max(64, config.batch_size), width=640, height=480)
        build_tiny_dataset(folder / "data", world)
        build_tiny_base_clip(folder / "base", folder / "data")
        results: dict[str, Any] = {
            "machine": f"{len(os.sched_getaffinity(0))} CPU cores",
            "date": datetime.date.today().isoformat(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "size": config.size,
        }
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "step": lambda: measure_step(config, folder),
            "texts_once": lambda: measure_texts(config, folder),
            "pixels": lambda: measure_pixels(config, folder),
            "memory": lambda: measure_memory(config, folder),
            "shared_loss": lambda: measure_shared_loss(config),
        }
        if peer:
            parts["open_clip"] = lambda: measure_against(
                peer, "b16", batch_size=config.batch_size, steps=max(1, config.repeats - 1), turns=config.repeats
            )
        for name, part in parts.items():
            print(f"measuring {name}", file=sys.stderr)
            results[name] = part()
            write_json(config.output, results)  # after each: what is measured is not lost
    print(json.dumps(results, indent=2))


def build_model(size: str, folder: Path) -> AddressCLIP:
    """A CLIP of the size, with the marks of the tiny tokenizer."""
    width, layers, heads, patch, side, text_width, text_layers, text_heads, shared = SIZES[size]
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    config = CLIPConfig(
        text_config={
            "hidden_size": text_width, "num_hidden_layers": text_layers, "num_attention_heads": text_heads,
            "intermediate_size": 4 * text_width, "projection_dim": shared, "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": side,
            "patch_size": patch, "intermediate_size": 4 * width, "projection_dim": shared,
        },
        projection_dim=shared,
    )  # fmt: skip
    torch.manual_seed(0)
    return AddressCLIP(CLIPModel(config))


def build_photos(config: BenchmarkConfig, folder: Path) -> tuple[ClipPhotos, ClipCollator]:
    """Photos of 640 x 480 as the model takes them."""
    side = SIZES[config.size][4]
    processor = AutoImageProcessor.from_pretrained(folder / "base", backend="pil")
    processor.size, processor.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
    rows = clip_examples(IALDataset(folder / "data"), "train")
    return ClipPhotos(rows, processor), ClipCollator(AutoTokenizer.from_pretrained(folder / "base"), 77)


def take_turns(parts: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each part; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 1):
        for name, part in parts.items():
            started = time.perf_counter()
            part()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_step(config: BenchmarkConfig, folder: Path) -> dict[str, float]:
    """A whole step with its loader in the same process, against forward and backward of the model alone."""
    model = build_model(config.size, folder)
    optimizer = build_optimizer(model, learning_rate=1e-6, weight_decay=0.0)
    photos, collator = build_photos(config, folder)
    loader = DataLoader(photos, batch_size=config.batch_size, collate_fn=collator)
    ready = to_device(next(iter(loader)), torch.device("cpu"))
    loader_seconds: list[float] = []

    def whole() -> None:
        started = time.process_time()
        tensors = to_device(next(iter(loader)), torch.device("cpu"))
        loader_seconds.append(time.process_time() - started)
        batch_losses(model(**model_inputs(tensors)), tensors, SETTINGS)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def bare() -> None:
        features = model(**model_inputs(ready))
        sum(feature.sum() for feature in features.values()).backward()
        model.zero_grad()

    seconds = take_turns({"whole": whole, "bare": bare}, config.repeats)
    return {
        "batch_size": config.batch_size,
        "images_per_second": config.batch_size / seconds["whole"],
        "bare_images_per_second": config.batch_size / seconds["bare"],
        "share_of_bare": seconds["bare"] / seconds["whole"],
        "loader_cpu_seconds_per_image": statistics.median(loader_seconds) / config.batch_size,
    }


def measure_texts(config: BenchmarkConfig, folder: Path) -> dict[str, float]:
    """Encoding the addresses of a batch once each against once a photo, forward and backward."""
    model = build_model(config.size, folder)
    num_addresses = config.text_batch * PAPER_ADDRESSES // PAPER_BATCH
    known, row = torch.randint(num_addresses, (config.text_batch,)).unique(return_inverse=True)
    ids = torch.randint(5, 100, (len(known), 40))
    ids[:, -1] = model.clip.config.text_config.eos_token_id
    mask = torch.ones_like(ids)

    def encode(ids: torch.Tensor, mask: torch.Tensor, row: torch.Tensor) -> None:
        model.encode_texts(ids, mask)[row].square().sum().backward()

    seconds = take_turns(
        {
            "once": lambda: encode(ids, mask, row),
            "each": lambda: encode(ids[row], mask[row], torch.arange(config.text_batch)),
        },
        config.repeats,
    )
    return {"rows": config.text_batch, "different": len(known), "speedup": seconds["each"] / seconds["once"]}


def measure_pixels(config: BenchmarkConfig, folder: Path) -> dict[str, float]:
    """The short way from photo to pixels against the processor of transformers."""
    photos, _ = build_photos(config, folder)
    processor = photos._pixels._image_processor
    images = [load_photo(example.path) for example in photos.examples[:16]]
    short = PhotoPixels(processor)
    seconds = take_turns(
        {
            "short": lambda: [short(image) for image in images],
            "processor": lambda: [processor(image, return_tensors="pt") for image in images],
        },
        config.repeats,
    )
    milliseconds = 1000 * seconds["short"] / len(images)
    return {"milliseconds": milliseconds, "speedup": seconds["processor"] / seconds["short"]}


def measure_memory(config: BenchmarkConfig, folder: Path) -> dict[str, float]:
    """Peak memory of a step, whole and in chunks of a quarter, each in its own process."""
    whole, chunked, half = (
        in_process(step_memory, config, folder, *arguments)
        for arguments in ((config.batch_size, 1), (config.batch_size, 4), (config.batch_size // 2, 1))
    )
    return {
        "whole_mb": whole["mb"],
        "chunked_mb": chunked["mb"],
        "chunked_seconds_to_whole": chunked["seconds"] / whole["seconds"],
        "mb_per_image": (whole["mb"] - half["mb"]) / (config.batch_size - config.batch_size // 2),
    }


def step_memory(config: BenchmarkConfig, folder: Path, batch_size: int, num_chunks: int) -> dict[str, float]:
    """Of one forward and backward."""
    model = build_model(config.size, folder)
    photos, collator = build_photos(config, folder)
    tensors = to_device(collator([photos[i] for i in range(batch_size)]), torch.device("cpu"))

    def losses_of(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return batch_losses(features, tensors, SETTINGS)

    started = time.perf_counter()
    if num_chunks == 1:
        losses_of(model(**model_inputs(tensors)))["loss"].backward()
    else:
        cached_backward(
            model, split_inputs(model_inputs(tensors), num_chunks), losses_of,
            backward=torch.Tensor.backward, no_sync=nullcontext, seed=torch.manual_seed,
        )  # fmt: skip
    return {"seconds": time.perf_counter() - started, "mb": peak_mb()}


def measure_shared_loss(config: BenchmarkConfig) -> dict[str, dict[str, float]]:
    """Seconds and memory that the losses add to a process: by own rows, some of these at a time, by the whole square.

    The whole square is the plain way; on one process it is the same as its own rows.
    """
    # For the processes that are started from here: glibc gives freed matrices back, instead of keeping them for itself.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    ways = {1: ("own_rows", "in_blocks"), 2: ("own_rows", "whole_square"), 4: ("own_rows", "whole_square")}
    return {
        f"{world} processes, {way}": in_process(loss_cost, config, way, world=world)
        for world, some in ways.items()
        for way in some
    }


def loss_cost(config: BenchmarkConfig, way: str) -> dict[str, float]:
    """Of one process: forward and backward of all losses over gathered features."""
    share, width = config.loss_batch // distributed.world_size(), 512
    generator = torch.Generator().manual_seed(distributed.rank())
    names = ("image_features", "address_features", "caption_features")
    features = {n: normalize(torch.randn(share, width, generator=generator), dim=-1).requires_grad_() for n in names}
    address_id = torch.randint(0, PAPER_ADDRESSES, (share,), generator=generator)
    xy_m = 5000 * torch.rand(share, 2, generator=generator)
    before, seconds = peak_mb(), []
    for _ in range(config.repeats + 1):
        started = time.perf_counter()
        everyone = {name: distributed.gather_with_gradient(f) for name, f in features.items()}
        known = [distributed.gather_with_gradient(t) for t in (address_id, address_id, address_id, xy_m, address_id)]
        rows = slice(0, config.loss_batch) if way == "whole_square" else distributed.own_rows(address_id)
        losses = partial(
            address_clip_losses, {**everyone, "logit_scale": torch.tensor(20.0)}, Truths(*known), weights=LossWeights()
        )
        block = max(1, config.loss_batch // _BLOCKS) if way == "in_blocks" else config.loss_batch
        losses_in_blocks(losses, rows, block)["loss"].backward()
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds[1:]), "added_mb": peak_mb() - before}


def in_process(function: Callable[..., dict[str, float]], *arguments: Any, world: int = 1) -> dict[str, float]:
    """Runs in fresh processes of one gloo group; the first one's result."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_join_and_run, args=(queue, rank, world, port, function, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    result: dict[str, float] = queue.get(timeout=600)
    for process in processes:
        process.join()
    return result


def _join_and_run(queue: Any, rank: int, world: int, port: int, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    result = function(*arguments)
    if rank == 0:
        queue.put(result)
    distributed.shut_down()


def peak_mb() -> float:
    """Peak resident memory of this process; unlike ``getrusage`` it forgets the parent that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


if __name__ == "__main__":
    run_command(main)
