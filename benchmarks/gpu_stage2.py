"""Stage 2's training step on one GPU: tokens and questions a second, the share of the chip's arithmetic, memory.

    python benchmarks/gpu_stage2.py                          LLaVA-1.5-7B's shapes, LoRA of rank 128, bfloat16
    python benchmarks/gpu_stage2.py --models tiny --device cpu --batch_sizes 2

Random weights and pixels that are on the GPU already: speed does not depend on the values. Each batch is trained in two
ways: all questions about a photo in one sequence, as here, and each question in a sequence of its own, as LLaVA does;
and with the language model at four bits where bitsandbytes is installed. Needs torch, transformers, peft, accelerate,
numpy, pillow and llava_ial. Writes benchmarks/results/gpu_stage2.json and prints it; begins nothing new when its time
is used up.
"""

import gc
import importlib.util
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import logging as transformers_logging

from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import write_json
from llava_ial.models.llava import LoraSettings, add_adapter, load_base
from llava_ial.models.quantized import quantization_config
from llava_ial.training.llava_groups import optimizer_groups

# Vision width, layers, heads, patch, image side; text width, layers, heads, inner width, vocabulary.
MODELS = {
    "7b": (1024, 24, 16, 14, 336, 4096, 32, 32, 11008, 32064),
    "tiny": (32, 2, 2, 16, 32, 64, 2, 2, 128, 512),
}
# Dense bfloat16 arithmetic of the data sheets, in 1e12 operations a second.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "RTX 4090": 165.0, "A10G": 70.0}
# A dialogue of a city's data set with LLaMA's tokenizer, beside the photo: the system's sentence, and questions with
# their answers. (576 image tokens and these make the 700 of the toy city's dialogues.)
SYSTEM_TOKENS, TURNS, TURN_TOKENS, ANSWER_TOKENS = 38, 3, 29, 13
IMAGE_TOKEN_ID, _FIRST_WORD = 3, 10


@dataclass
class BenchmarkConfig:
    """What is measured."""

    models: list[str] = field(default_factory=lambda: ["7b"], metadata={"help": "of 7b, tiny"})
    batch_sizes: list[int] = field(default_factory=lambda: [4, 8, 16], metadata={"help": "dialogues of a step"})
    lora_rank: int = field(default=128, metadata={"help": "rank of LoRA; its scale is twice that"})
    device: str = field(default="cuda", metadata={"help": "cuda, cuda:1 ... or cpu, to try the script"})
    checkpointing: str = field(default="both", metadata={"help": "activation checkpointing: on, off, both"})
    quantize: bool = field(default=True, metadata={"help": "measure four bits, too, where bitsandbytes is there"})
    peak_tflops: float = field(default=0.0, metadata={"help": "of the chip in bfloat16; 0 looks it up by its name"})
    seconds: float = field(default=480.0, metadata={"help": "no further measurement is begun after so long"})
    counted_seconds: float = field(default=12.0, metadata={"help": "of each measurement"})
    output: Path = field(default=Path("benchmarks/results/gpu_stage2.json"), metadata={"help": "JSON to write"})


@dataclass(frozen=True)
class Case:
    """One measurement."""

    model: str
    batch_size: int
    is_checkpointed: bool
    is_quantized: bool
    one_question_a_sequence: bool


def main() -> None:
    """Measures every case."""
    (config,) = parse_config(BenchmarkConfig, description=__doc__ or "")
    if unknown := set(config.models) - set(MODELS):
        raise UserError(f"--models {', '.join(sorted(unknown))}: allowed: {', '.join(MODELS)}")
    if config.checkpointing not in ("on", "off", "both"):
        raise UserError(f"--checkpointing {config.checkpointing}: allowed: on, off, both")
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU here; --device cpu --models tiny tries the script")
    transformers_logging.disable_progress_bar()
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = config.peak_tflops or next((v for name, v in PEAK_TFLOPS.items() if name in machine), 0.0)
    started, rows = time.monotonic(), []
    for case in cases(config):
        if time.monotonic() - started < config.seconds:
            rows.append(measure(case, device, config, peak))
            print(json.dumps(rows[-1]), flush=True)
        results = {
            "machine": machine, "peak_tflops": peak, "torch": torch.__version__, "precision": "bf16",
            "lora_rank": config.lora_rank, "runs": rows, "ratios": ratios(rows),
        }  # fmt: skip
        write_json(config.output, results)  # after each case: a machine may be taken away before the last
    if failed := [row for row in rows if "error" in row]:
        raise UserError(f"{len(failed)} of {len(rows)} measurements failed, see {config.output}: {failed[0]['error']}")


def cases(config: BenchmarkConfig) -> list[Case]:
    """What is to be measured, the most telling first."""
    states = {"on": [True], "off": [False], "both": [False, True]}[config.checkpointing]
    found = [
        Case(name, size, is_checkpointed, False, alone)
        for name in config.models
        for size in config.batch_sizes
        for is_checkpointed in states
        for alone in (False, True)
    ]
    if config.quantize and importlib.util.find_spec("bitsandbytes"):
        found += [Case(name, config.batch_sizes[0], True, True, False) for name in config.models]
    return found


def measure(case: Case, device: torch.device, config: BenchmarkConfig, peak: float) -> dict[str, Any]:
    """Steps of one case, out of memory said as such, any other failure as its error."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    row: dict[str, Any] = dict(vars(case))
    try:
        seconds = step_seconds(case, device, config)
    except torch.OutOfMemoryError:
        return {**row, "out_of_memory": True}
    except Exception as error:  # of whatever kind: the other cases are measured all the same
        return {**row, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    turns, num_tokens = shape(case)
    tflops = training_flops(case) / seconds / 1e12
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    questions = case.batch_size * TURNS
    return {
        **row, "tokens_a_sequence": num_tokens, "milliseconds": 1000 * seconds,
        "tokens_per_second": questions // turns * num_tokens / seconds, "questions_per_second": questions / seconds,
        "supervised_tokens_per_second": questions * ANSWER_TOKENS / seconds, "model_tflops": tflops,
        "utilisation": tflops / peak if peak else None, "peak_memory_gb": memory,
    }  # fmt: skip


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions a second of one sequence per dialogue to those of one per question, pair by pair."""
    found = []
    for row in rows:
        same = {name: row[name] for name in ("model", "batch_size", "is_checkpointed", "is_quantized")}
        alone = [r for r in rows if r["one_question_a_sequence"] and all(r[name] == same[name] for name in same)]
        if not row["one_question_a_sequence"] and alone and "milliseconds" in row and "milliseconds" in alone[0]:
            found.append({**same, "speedup": row["questions_per_second"] / alone[0]["questions_per_second"]})
    return found


def step_seconds(case: Case, device: torch.device, config: BenchmarkConfig) -> float:
    """Mean seconds of a whole step: tower, projector, language model, loss, backward, clipping, AdamW."""
    model = build_model(case, device, config.lora_rank)
    fused = {"fused": True} if device.type == "cuda" else {}
    groups = optimizer_groups(model, 2e-4, 2e-5, 0.0, weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups, **fused)
    batch = build_batch(case, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()
    _wait(device)
    started, num_steps = time.perf_counter(), 0
    while num_steps < 1 or time.perf_counter() - started < config.counted_seconds:
        step()
        num_steps += 1
        _wait(device)
    return (time.perf_counter() - started) / num_steps


def build_model(case: Case, device: torch.device, lora_rank: int) -> PeftModel:
    """A LLaVA of the size with random weights in bfloat16, and what trains of it in float32, as in stage 2."""
    with torch.device(device):
        llava = LlavaForConditionalGeneration._from_config(model_config(case.model), dtype=torch.bfloat16)
    if case.is_quantized:
        with tempfile.TemporaryDirectory() as folder:
            llava.save_pretrained(folder)
            del llava
            gc.collect()
            quantization = quantization_config("nf4", torch.bfloat16)
            llava = load_base(folder, dtype=torch.bfloat16, quantization=quantization, device=str(device))
    model = add_adapter(llava, LoraSettings(lora_rank, 2 * lora_rank, 0.05))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if case.is_checkpointed:
        model.enable_input_require_grads()
        base = model.get_base_model()
        # Older releases of transformers know the second name alone, and a rented machine has the release that it has.
        name = "activation_checkpointing_enable"
        getattr(base, name if hasattr(base, name) else "gradient_checkpointing_enable")()
    return model.train()


def model_config(name: str) -> LlavaConfig:
    """LLaVA-1.5's architecture at a size."""
    width, layers, heads, patch, side, text_width, text_layers, text_heads, inner, vocabulary = MODELS[name]
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, patch_size=patch, image_size=side,
            intermediate_size=4 * width,
        ),
        text_config=LlamaConfig(
            hidden_size=text_width, num_hidden_layers=text_layers, num_attention_heads=text_heads,
            num_key_value_heads=text_heads, intermediate_size=inner, vocab_size=vocabulary,
        ),
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=num_image_tokens(name),
    )  # fmt: skip


def num_image_tokens(name: str) -> int:
    """Patches of a photo."""
    return int((MODELS[name][4] // MODELS[name][3]) ** 2)


def shape(case: Case) -> tuple[int, int]:
    """Questions of a sequence, and its tokens."""
    turns = 1 if case.one_question_a_sequence else TURNS
    return turns, num_image_tokens(case.model) + SYSTEM_TOKENS + turns * TURN_TOKENS


def build_batch(case: Case, device: torch.device) -> dict[str, torch.Tensor]:
    """As many questions as the dialogues of a batch have, in long sequences or in short ones."""
    turns, num_tokens = shape(case)
    rows, images = case.batch_size * TURNS // turns, num_image_tokens(case.model)
    ids = torch.randint(_FIRST_WORD, MODELS[case.model][9], (rows, num_tokens), device=device)
    ids[:, SYSTEM_TOKENS : SYSTEM_TOKENS + images] = IMAGE_TOKEN_ID
    labels = torch.full_like(ids, -100)
    for turn in range(turns):
        end = num_tokens - turn * TURN_TOKENS
        labels[:, end - ANSWER_TOKENS : end] = ids[:, end - ANSWER_TOKENS : end]
    side = MODELS[case.model][4]
    pixels = torch.randn(rows, 3, side, side, device=device)
    targets = functional.pad(labels, (0, 1), value=-100)[:, 1:]
    learned = (targets[0] != -100).nonzero()[:, 0]  # alike in all rows; as in stage 2 no other logits are computed
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels,
        "logits_to_keep": learned, "shift_labels": targets[:, learned],
    }  # fmt: skip


def training_flops(case: Case) -> float:
    """Operations that a step needs, by the usual count of matrix products; what checkpointing repeats is not counted.

    The tower runs forward alone. Frozen weights need no gradient of their own: the language model runs forward and once
    back, and the attention products, which have no weights, twice back.
    """
    width, layers, _, patch, side, text_width, text_layers, _, inner, vocabulary = MODELS[case.model]
    turns, num_tokens = shape(case)
    patches = (side // patch) ** 2 + 1
    tower = layers * (24 * patches * width**2 + 4 * patches**2 * width)
    projector = 3 * 2 * (patches - 1) * (width * text_width + text_width**2)
    weights = num_tokens * text_layers * (4 * text_width**2 + 3 * text_width * inner)
    logits = turns * ANSWER_TOKENS * text_width * vocabulary
    # Causal attention needs half of the square: two products of 2 T^2 / 2 D each, forward and twice back.
    attention = 3 * text_layers * 2 * num_tokens**2 * text_width
    return (case.batch_size * TURNS // turns) * (tower + projector + 2 * 2 * (weights + logits) + attention)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    run_command(main)
