"""First half of ``toy-clip``: a small CLIP from nothing, on photos and scene descriptions of many generated cities.

    python -m train.toy_base.pretrain_clip --output runs/toy_base/toy-clip-scenes

Real fine-tuning starts from a pretrained CLIP; this is the stand-in for machines that have none. It learns from scene
descriptions alone here; ``pretrain_names`` goes on from it. No demo city enters.
"""

import json
import math
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # read once, when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from llava_ial.config import parse_config
from llava_ial.errors import run_command
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, write_json
from llava_ial.models.address_clip import save_tokenizer
from train.toy_base.augment import augment
from train.toy_base.cities import (
    FIRST_PRETRAINING_SEED,
    CityPhotos,
    generate_cities,
    generator_version,
    load_cities,
)
from train.toy_base.clip import build_clip_config, build_image_processor, train_clip_tokenizer
from train.toy_base.mimetic import initialise_mimetic
from train.toy_base.names import invented_addresses
from train.toy_base.snapshot import Snapshot

KIND = "toy_clip_scenes"


@dataclass
class Settings:
    """What decides the weights, and where things lie."""

    output: Path = field(metadata={"help": "folder of the model"})
    cities: Path = field(default=Path("runs/toy_base/cities"), metadata={"help": "generated cities are kept here"})
    num_cities: int = field(default=48, metadata={"help": "cities to train on"})
    city_size: str = field(default="medium", metadata={"help": "size of each, as the generator names it"})
    photos_per_city: int = field(default=1500, metadata={"help": "photos in each"})
    held_out_cities: int = field(default=1, metadata={"help": "of these, never trained on: they measure"})
    image_size: int = field(default=112, metadata={"help": "side of a photo in pixels"})
    patch_size: int = field(default=14, metadata={"help": "side of a patch in pixels"})
    vision_width: int = field(default=128, metadata={"help": "hidden size of the vision tower"})
    vision_layers: int = field(default=6, metadata={"help": "layers of the vision tower"})
    text_width: int = field(default=128, metadata={"help": "hidden size of the text tower"})
    text_layers: int = field(default=2, metadata={"help": "layers of the text tower"})
    embed_dim: int = field(default=128, metadata={"help": "dimension of the shared space"})
    vocab_size: int = field(default=2048, metadata={"help": "entries of the byte-level BPE"})
    steps: int = field(default=2000, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=192, metadata={"help": "photos a step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak of the cosine"})
    weight_decay: float = field(default=0.1, metadata={"help": "on matrices"})
    warmup_steps: int = field(default=60, metadata={"help": "linear warm-up"})
    min_crop: float = field(default=0.6, metadata={"help": "smallest share of a photo's area that a crop keeps"})
    seed: int = field(default=0, metadata={"help": "of weights, order and augmentation"})
    snapshot_every: int = field(
        default=200, metadata={"help": "steps between snapshots, from which a stopped run goes on"}
    )


_NOT_IDENTITY = ("output", "cities", "snapshot_every")


def main() -> None:
    """Generates the cities, trains, measures and saves."""
    (settings,) = parse_config(Settings, description=__doc__ or "")
    identity = {k: v for k, v in asdict(settings).items() if k not in _NOT_IDENTITY}
    if claim_folder(settings.output, KIND, identity) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete")
        return
    started = time.time()
    seeds = list(range(FIRST_PRETRAINING_SEED, FIRST_PRETRAINING_SEED + settings.num_cities))
    made = generate_cities(
        settings.cities, seeds, photos=settings.photos_per_city, pixels=settings.image_size, size=settings.city_size
    )
    photos = load_cities(made)
    # Scene descriptions hold no word of an address; without such words a street's name would be spelt out in letters.
    addresses = invented_addresses(made, per_city=200, seed=settings.seed)
    tokenizer = train_clip_tokenizer([*photos.captions, *addresses], vocab_size=settings.vocab_size)
    model, log = train(settings, photos, tokenizer)
    save(settings, model, tokenizer, log)
    facts = {
        "city_seeds": seeds,
        "generator_version": generator_version(made),
        "held_out": log[-1],
    }
    (settings.output / "snapshot.pt").unlink(missing_ok=True)
    write_json(settings.output / "run.json", {"seconds": round(time.time() - started), "cpu_count": os.cpu_count()})
    publish_manifest(settings.output, KIND, identity, **facts)


def train(
    settings: Settings, photos: CityPhotos, tokenizer: PreTrainedTokenizerBase
) -> tuple[CLIPModel, list[dict[str, float]]]:
    """The contrastive loop; returns the model and the log, whose last entry is measured on held-out cities."""
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = CLIPModel(_config(settings, tokenizer))
    initialise_mimetic(model.vision_model, generator)
    pixels = torch.from_numpy(photos.pixels).permute(0, 3, 1, 2)
    tokens = tokenizer(photos.captions, padding=True, truncation=True, max_length=77, return_tensors="pt")
    held_out = torch.from_numpy(photos.city >= photos.city.max() + 1 - settings.held_out_cities)
    pool = torch.nonzero(~held_out).flatten()
    optimizer, schedule = build_adamw(
        model, settings.learning_rate, settings.weight_decay, steps=settings.steps, warmup_steps=settings.warmup_steps
    )
    snapshot = Snapshot(settings.output / "snapshot.pt", model, optimizer, schedule, generator)
    first, order, log = snapshot.load()
    model.train()
    for step in (bar := tqdm(range(first, settings.steps), desc="toy-clip", unit="step", initial=first)):
        if step % settings.snapshot_every == 0 and step > first:
            snapshot.save(step, order, log)
        if len(order) < settings.batch_size:
            order = pool[torch.randperm(len(pool), generator=generator)]
        rows, order = order[: settings.batch_size], order[settings.batch_size :]
        images = normalise(augment(pixels[rows].float() / 255, generator, min_scale=settings.min_crop))
        text = {"input_ids": tokens.input_ids[rows], "attention_mask": tokens.attention_mask[rows]}
        with torch.autocast("cpu", torch.bfloat16):
            out = model(**text, pixel_values=images)
        logits = out.logits_per_image.float()
        target = torch.arange(len(rows))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # ln 100, as in CLIP
        if step % 50 == 49:
            log.append({"step": step + 1, "loss": round(loss.item(), 4)})
            bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp().item():.1f}")
    log.append(measure(model, pixels[held_out], tokens.input_ids[held_out], tokens.attention_mask[held_out]))
    print(f"held-out cities: {log[-1]}")
    return model, log


@torch.no_grad()
def measure(model: CLIPModel, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Image to text recall among 256 photos of cities that were never trained on (chance: 1/256)."""
    model.eval()
    out = model(input_ids=ids[:256], attention_mask=mask[:256], pixel_values=normalise(pixels[:256].float() / 255))
    rank = (out.logits_per_image > out.logits_per_image.diagonal()[:, None]).sum(dim=1)
    return {f"recall@{k}": round((rank < k).float().mean().item(), 4) for k in (1, 5)}


def normalise(images: torch.Tensor) -> torch.Tensor:
    """CLIP's channel normalisation with mean and deviation 0.5, as ``build_image_processor`` states it."""
    return (images - 0.5) / 0.5


def save(settings: Settings, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, log: list[dict[str, float]]) -> None:
    """A plain ``transformers`` folder in float16."""
    model.half().save_pretrained(settings.output)
    save_tokenizer(tokenizer, settings.output)
    build_image_processor(settings.image_size).save_pretrained(settings.output)
    lines = "".join(json.dumps(entry) + "\n" for entry in log)
    (settings.output / "train_log.jsonl").write_text(lines, encoding="utf-8")


def _config(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> CLIPConfig:
    return build_clip_config(
        tokenizer,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        vision_width=settings.vision_width,
        vision_layers=settings.vision_layers,
        text_width=settings.text_width,
        text_layers=settings.text_layers,
        embed_dim=settings.embed_dim,
        hidden_act="gelu",  # one operation, where CLIP's own is three
    )


def build_adamw(
    model: CLIPModel, learning_rate: float, weight_decay: float, *, steps: int, warmup_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with decay on matrices alone; its schedule is a linear warm-up, then a cosine to zero."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))

    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


if __name__ == "__main__":
    run_command(main)
