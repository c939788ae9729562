"""Second half of ``toy-clip``: its text tower learns to tell addresses apart, from text alone.

    python -m train.toy_base.pretrain_clip --output runs/toy_base/toy-clip-scenes
    python -m train.toy_base.pretrain_names --scenes runs/toy_base/toy-clip-scenes --output runs/toy_base/toy-clip

Large CLIPs have read names by the million; a text tower that has read descriptions of scenes alone puts all addresses
of a town at nearly one point, and tuning spends most of its steps on pulling them apart. Here two wordings of one
invented address are alike and all others differ (InfoNCE between texts, as SimCSE, arXiv 2104.08821, has it), while
descriptions stay where they were. No photo enters, so the vision tower is the first half's, bit for bit.
"""

import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # read once, when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from llava_ial.address import Address, format_canonical, format_spoken, format_verbose
from llava_ial.config import parse_config
from llava_ial.errors import run_command
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, read_manifest, write_json
from llava_ial.models.address_clip import AddressCLIP, save_tokenizer
from llava_ial.models.identity import hash_tensors, tower_hash
from llava_ial.models.losses import contrastive_loss
from train.toy_base.card import write_card
from train.toy_base.cities import city_captions
from train.toy_base.clip import build_image_processor
from train.toy_base.names import NameSource
from train.toy_base.pretrain_clip import KIND as SCENES_KIND
from train.toy_base.pretrain_clip import build_adamw

KIND = "toy_clip"
# The sharpness of the comparison between texts: low, so that addresses which share most of their names are pushed apart
# too, and not only the most alike. CLIP's own scale is left to photos and texts.
_SCALE = 5.0


@dataclass
class Settings:
    """What decides the weights, and where things lie."""

    output: Path = field(metadata={"help": "folder of the model"})
    scenes: Path = field(metadata={"help": "folder that pretrain_clip made"})
    cities: Path = field(default=Path("runs/toy_base/cities"), metadata={"help": "where it kept the generated cities"})
    steps: int = field(default=600, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=192, metadata={"help": "addresses a step, all of one town"})
    captions_per_step: int = field(default=64, metadata={"help": "descriptions a step that must stay where they were"})
    caption_weight: float = field(default=5.0, metadata={"help": "weight of their distance"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak of the cosine"})
    weight_decay: float = field(default=0.05, metadata={"help": "on matrices"})
    warmup_steps: int = field(default=60, metadata={"help": "linear warm-up"})
    seed: int = field(default=0, metadata={"help": "of every draw"})


_NOT_IDENTITY = ("output", "scenes", "cities")


def main() -> None:
    """Trains the text tower, measures and saves."""
    (settings,) = parse_config(Settings, description=__doc__ or "")
    scenes = read_manifest(settings.scenes, SCENES_KIND)
    model = CLIPModel.from_pretrained(settings.scenes, dtype=torch.float32)
    identity = {k: v for k, v in asdict(settings).items() if k not in _NOT_IDENTITY}
    identity |= {"scenes": scenes["config"], "scenes_weights": hash_tensors(model.state_dict())}
    if claim_folder(settings.output, KIND, identity) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete")
        return
    started = time.time()
    cities = [settings.cities / f"city-{seed}" for seed in scenes["city_seeds"]]
    tokenizer = AutoTokenizer.from_pretrained(settings.scenes)
    log = train(settings, model, tokenizer, cities)
    model.half().save_pretrained(settings.output)
    save_tokenizer(tokenizer, settings.output)
    build_image_processor(model.config.vision_config.image_size).save_pretrained(settings.output)
    first_half = (settings.scenes / "train_log.jsonl").read_text(encoding="utf-8")
    lines = "".join(json.dumps(entry) + "\n" for entry in log)
    (settings.output / "train_log.jsonl").write_text(first_half + lines, encoding="utf-8")
    facts = {
        "tower_hash": tower_hash(model.vision_model),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "city_seeds": scenes["city_seeds"],
        "generator_version": scenes["generator_version"],
        "held_out": {**scenes["held_out"], **log[-1]},
    }
    seconds = json.loads((settings.scenes / "run.json").read_text(encoding="utf-8"))["seconds"]
    write_json(
        settings.output / "run.json", {"seconds": seconds + round(time.time() - started), "cpu_count": os.cpu_count()}
    )
    publish_manifest(settings.output, KIND, identity, **facts)
    write_card(settings.output)


def train(
    settings: Settings, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, cities: list[Path]
) -> list[dict[str, float]]:
    """Texts against texts; returns the log, whose last entry is measured on names of the last city, never read."""
    draw = np.random.default_rng(settings.seed)
    clip.vision_model.requires_grad_(False)
    clip.visual_projection.requires_grad_(False)
    clip.logit_scale.requires_grad_(False)
    model = AddressCLIP(clip).train()
    sources = [NameSource.of_city(city) for city in cities[:-1]]
    captions = tokenizer(city_captions(cities), padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        parts = zip(captions.input_ids.split(1024), captions.attention_mask.split(1024), strict=True)
        anchors = torch.cat([model.encode_texts(ids, mask) for ids, mask in parts])
    optimizer, schedule = build_adamw(
        clip, settings.learning_rate, settings.weight_decay, steps=settings.steps, warmup_steps=settings.warmup_steps
    )
    same, log = torch.eye(settings.batch_size), []
    for step in (bar := tqdm(range(settings.steps), desc="names", unit="step")):
        addresses = sources[draw.integers(len(sources))].addresses(settings.batch_size, draw)
        one, other = (encode(model, tokenizer, texts) for texts in wordings(addresses, draw))
        names_loss = contrastive_loss(one, other, torch.tensor(_SCALE), same)
        rows = torch.from_numpy(draw.integers(len(anchors), size=settings.captions_per_step))
        moved = 1 - (model.encode_texts(captions.input_ids[rows], captions.attention_mask[rows]) * anchors[rows]).sum(1)
        optimizer.zero_grad()
        (names_loss + settings.caption_weight * moved.mean()).backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            log.append({"step": step + 1, "names_loss": round(names_loss.item(), 4)})
            bar.set_postfix(names=f"{names_loss.item():.3f}", moved=f"{moved.mean().item():.4f}")
    log.append(measure(model, tokenizer, NameSource.of_city(cities[-1])))
    print(f"a city whose names were never read: {log[-1]}")
    return log


def wordings(addresses: list[Address], draw: np.random.Generator) -> tuple[list[str], list[str]]:
    """Two wordings of each address: the encoder's own one and, by chance, one of the other two forms."""
    others = (format_spoken, format_canonical)
    return [format_verbose(a) for a in addresses], [others[draw.integers(2)](a) for a in addresses]


def encode(model: AddressCLIP, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """``(B, D)`` of length one."""
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    return model.encode_texts(tokens.input_ids, tokens.attention_mask)


@torch.no_grad()
def measure(model: AddressCLIP, tokenizer: PreTrainedTokenizerBase, source: NameSource) -> dict[str, float]:
    """How alike different addresses of an unread city are, and how often the other wording is the nearest of 192."""
    model.eval()
    draw = np.random.default_rng(0)
    one, other = (encode(model, tokenizer, texts) for texts in wordings(source.addresses(192, draw), draw))
    cosines = one @ one.T
    off_diagonal = cosines[~torch.eye(len(one), dtype=torch.bool)].mean().item()
    found = ((one @ other.T).argmax(dim=1) == torch.arange(len(one))).float().mean().item()
    return {"mean_cosine_of_addresses": round(off_diagonal, 4), "other_wording_is_nearest": round(found, 4)}


if __name__ == "__main__":
    run_command(main)
