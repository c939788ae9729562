"""Stage 1's training step on one GPU: images a second and the share of the chip's arithmetic that it uses.

    python benchmarks/gpu_stage1.py                          ViT-B/16 and ViT-L/14 at 336 pixels, bfloat16, some batches
    python benchmarks/gpu_stage1.py --models b16 --batch_sizes 256 --compile true

Beside the whole step, in the same run: the bare forward and backward of both encoders, of which the step should be
nearly all, and the step with a text for every photo, as if none were shared.

Random weights and pixels that are on the GPU already: speed does not depend on the values, and what the loaders cost is
measured by benchmarks/stage1.py. Needs torch, transformers, accelerate, numpy, pillow and llava_ial. Writes
benchmarks/results/gpu_stage1.json after each measurement and prints it; stops by itself when its time is used up.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import CLIPConfig, CLIPModel

from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import write_json
from llava_ial.models.address_clip import AddressCLIP
from llava_ial.models.losses import LossWeights, Truths, address_clip_losses

# Vision width, layers, heads, patch, image side; text width, layers, heads; shared width.
MODELS = {
    "b16": (768, 12, 12, 16, 224, 512, 12, 8, 512),
    "l14_336": (1024, 24, 16, 14, 336, 768, 12, 12, 768),
    "tiny": (32, 2, 2, 16, 32, 32, 2, 2, 32),
}
# Dense bfloat16 arithmetic of the data sheets, in 1e12 operations a second.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "RTX 4090": 165.0, "A10G": 70.0}
ADDRESS_TOKENS, CAPTION_TOKENS = 32, 56
PAPER_BATCH, PAPER_ADDRESSES = 256, 428
_COUNTED_S, _WARM_STEPS = 8.0, 3


@dataclass
class BenchmarkConfig:
    """What is measured."""

    models: list[str] = field(default_factory=lambda: ["b16", "l14_336"], metadata={"help": "of b16, l14_336, tiny"})
    batch_sizes: list[int] = field(default_factory=lambda: [64, 256, 512], metadata={"help": "photos of a step"})
    device: str = field(default="cuda", metadata={"help": "cuda, cuda:1 ... or cpu, to try the script"})
    compile: bool = field(default=False, metadata={"help": "torch.compile both towers"})
    peak_tflops: float = field(default=0.0, metadata={"help": "of the chip in bfloat16; 0 looks it up by its name"})
    seconds: float = field(default=480.0, metadata={"help": "no further measurement is begun after so long"})
    counted_seconds: float = field(default=_COUNTED_S, metadata={"help": "of each measurement"})
    output: Path = field(default=Path("benchmarks/results/gpu_stage1.json"), metadata={"help": "JSON to write"})


def main() -> None:
    """Measures each model with each batch."""
    (config,) = parse_config(BenchmarkConfig, description=__doc__ or "")
    if unknown := set(config.models) - set(MODELS):
        raise UserError(f"--models {', '.join(sorted(unknown))}: allowed: {', '.join(MODELS)}")
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU here; --device cpu --models tiny tries the script")
    started, rows = time.monotonic(), []
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = config.peak_tflops or next((v for name, v in PEAK_TFLOPS.items() if name in machine), 0.0)
    facts = {"machine": machine, "peak_tflops": peak, "torch": torch.__version__, "precision": "bf16"}
    for name in config.models:
        for batch_size in config.batch_sizes:
            if time.monotonic() - started < config.seconds:
                rows.append(measure(name, batch_size, device, config, peak))
                print(json.dumps(rows[-1]))
                write_json(config.output, {**facts, "runs": rows, "memory_per_photo_mb": memory_per_photo(rows)})


def measure(name: str, batch_size: int, device: torch.device, config: BenchmarkConfig, peak: float) -> dict[str, Any]:
    """Steps of one model with one batch, out of memory said as such."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    row: dict[str, Any] = {"model": name, "batch_size": batch_size, "compile": config.compile}
    try:
        seconds = step_seconds(name, batch_size, device, config)
        memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
        bare = step_seconds(name, batch_size, device, config, is_bare=True)
        unshared = step_seconds(name, batch_size, device, config, shares_texts=False)
    except torch.OutOfMemoryError:
        return {**row, "out_of_memory": True}
    tflops = training_flops(name, batch_size) / seconds / 1e12
    return {
        **row, "images_per_second": batch_size / seconds, "milliseconds": 1000 * seconds, "model_tflops": tflops,
        "utilisation": tflops / peak if peak else None, "peak_memory_gb": memory,
        "share_of_bare": bare / seconds, "gain_of_shared_texts": unshared / seconds,
    }  # fmt: skip


def memory_per_photo(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By model: what a photo more in the batch takes, from its smallest to its largest batch that fitted."""
    found = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        fitted = [row for row in rows if row["model"] == name and not row.get("out_of_memory")]
        if len(fitted) > 1:
            small, large = (pick(fitted, key=lambda row: row["batch_size"]) for pick in (min, max))
            grown = large["peak_memory_gb"] - small["peak_memory_gb"]
            found[name] = 1000 * grown / (large["batch_size"] - small["batch_size"])
    return found


def step_seconds(
    name: str,
    batch_size: int,
    device: torch.device,
    config: BenchmarkConfig,
    *,
    is_bare: bool = False,
    shares_texts: bool = True,
) -> float:
    """Mean seconds of a whole step: both encoders, all losses, backward, clipping, AdamW.

    Args:
        name: Of the model.
        batch_size: Photos.
        device: Where.
        config: Of the benchmark.
        is_bare: Forward and backward of the encoders alone.
        shares_texts: Addresses of several photos are encoded once.
    """
    model = build_model(name).to(device)
    if config.compile:
        model.clip.vision_model.compile()
        model.clip.text_model.compile(dynamic=True)
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.98), **fused)
    inputs, rows, truths = build_batch(name, batch_size, device, shares_texts=shares_texts)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            features = model(**inputs)
        if is_bare:
            torch.autograd.backward([feature.float().sum() for feature in features.values()])
            return
        for kind, row in rows.items():
            features[f"{kind}_features"] = features[f"{kind}_features"][row]
        address_clip_losses(features, truths, weights=LossWeights())["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.clamp_logit_scale()

    for _ in range(_WARM_STEPS):
        step()
    _wait(device)
    started, num_steps = time.perf_counter(), 0
    while num_steps < 1 or time.perf_counter() - started < config.counted_seconds:
        step()
        num_steps += 1
        _wait(device)
    return (time.perf_counter() - started) / num_steps


def build_model(name: str) -> AddressCLIP:
    """A CLIP of the size with random weights."""
    width, layers, heads, patch, side, text_width, text_layers, text_heads, shared = MODELS[name]
    config = CLIPConfig(
        text_config={
            "hidden_size": text_width, "num_hidden_layers": text_layers, "num_attention_heads": text_heads,
            "intermediate_size": 4 * text_width, "projection_dim": shared,
        },
        vision_config={
            "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": side,
            "patch_size": patch, "intermediate_size": 4 * width, "projection_dim": shared,
        },
        projection_dim=shared,
    )  # fmt: skip
    return AddressCLIP(CLIPModel(config))


def num_texts(batch_size: int) -> int:
    """Different addresses that a batch is expected to hold, drawn evenly from the paper's."""
    return max(1, round(PAPER_ADDRESSES * (1 - (1 - 1 / PAPER_ADDRESSES) ** batch_size)))


def build_batch(
    name: str, batch_size: int, device: torch.device, *, shares_texts: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Truths]:
    """Inputs, the row of each photo's text, and what is true of the photos."""
    side, different = MODELS[name][4], num_texts(batch_size) if shares_texts else batch_size
    inputs = {"pixel_values": torch.randn(batch_size, 3, side, side, device=device)}
    for kind, count, length in (("address", different, ADDRESS_TOKENS), ("caption", batch_size, CAPTION_TOKENS)):
        ids = torch.randint(5, 40_000, (count, length), device=device)
        ids[:, -1] = 49_407  # the end mark of CLIP's tokenizer
        inputs |= {f"{kind}_input_ids": ids, f"{kind}_attention_mask": torch.ones_like(ids)}
    address = torch.randint(0, different, (batch_size,), device=device)
    rows = {"address": address, "caption": torch.arange(batch_size, device=device)}
    xy_m = 5000 * torch.rand(batch_size, 2, device=device)
    return inputs, rows, Truths(address, address, address, xy_m, torch.arange(batch_size, device=device))


def training_flops(name: str, batch_size: int) -> float:
    """Operations of the two encoders, forward and twice that back, by the usual count of matrix products."""
    width, layers, _, patch, side, text_width, text_layers, _, _ = MODELS[name]
    patches = (side // patch) ** 2

    def tower(width: int, layers: int, tokens: int) -> float:
        return layers * (24 * tokens * width**2 + 4 * tokens**2 * width)

    photo = tower(width, layers, patches + 1) + 2 * patches * 3 * patch**2 * width
    texts = num_texts(batch_size) * tower(text_width, text_layers, ADDRESS_TOKENS)
    texts += batch_size * tower(text_width, text_layers, CAPTION_TOKENS)
    return 3 * (batch_size * photo + texts)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    run_command(main)
