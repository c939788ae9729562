"""Turns a CLIP of street scenes into ``toy-clip``: photos of many generated cities, with the texts that name a place.

    python -m train.toy_base.pretrain_clip --output runs/toy_base/toy-clip-scenes
    python -m train.toy_base.pretrain_places --scenes runs/toy_base/toy-clip-scenes --output runs/toy_base/toy-clip

Large CLIPs read captions of the web, many of which name streets and towns; descriptions of what can be seen teach
neither to tell one facade from its like nor to tell two addresses apart. So this second half of the pretraining has the
photos of the same cities with their addresses beside their descriptions. No demo city or name of one enters.
"""

import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # read once, when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from llava_ial.config import parse_config
from llava_ial.data.clip import clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import run_command
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, read_manifest, write_json
from llava_ial.models.address_clip import AddressCLIP
from llava_ial.models.identity import hash_tensors, tower_hash
from llava_ial.models.losses import contrastive_loss, positive_targets
from llava_ial.splits import SPLIT_NAMES
from train.toy_base.augment import augment
from train.toy_base.card import write_card
from train.toy_base.cities import decode_photos, generator_version
from train.toy_base.clip import build_image_processor
from train.toy_base.dialogues import build_data_sets
from train.toy_base.pretrain_clip import KIND as SCENES_KIND
from train.toy_base.pretrain_clip import build_adamw, normalise
from train.toy_base.snapshot import Snapshot

KIND = "toy_clip"


@dataclass
class Settings:
    """What decides the weights, and where things lie."""

    output: Path = field(metadata={"help": "folder of the model"})
    scenes: Path = field(metadata={"help": "folder that pretrain_clip made"})
    cities: Path = field(default=Path("runs/toy_base/cities"), metadata={"help": "where it kept the generated cities"})
    steps: int = field(default=1500, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=192, metadata={"help": "photos a step"})
    cities_per_batch: int = field(default=4, metadata={"help": "cities of a batch: few make near negatives"})
    scene_weight: float = field(default=0.3, metadata={"help": "weight of the loss with descriptions"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak of the cosine"})
    weight_decay: float = field(default=0.1, metadata={"help": "on matrices"})
    warmup_steps: int = field(default=60, metadata={"help": "linear warm-up"})
    min_crop: float = field(default=0.6, metadata={"help": "smallest share of a photo's area that a crop keeps"})
    seed: int = field(default=0, metadata={"help": "of order and augmentation"})
    snapshot_every: int = field(
        default=100, metadata={"help": "steps between snapshots, from which a stopped run goes on"}
    )


_NOT_IDENTITY = ("output", "scenes", "cities", "snapshot_every")


@dataclass(frozen=True)
class Places:
    """Photos of many cities: ``pixels (N, 3, S, S)`` uint8, and for each its description, place and city, ``(N,)``."""

    pixels: torch.Tensor
    captions: list[str]
    addresses: list[str]  # (P,) texts of the places of all cities
    place: torch.Tensor
    city: torch.Tensor
    is_test: torch.Tensor


def main() -> None:
    """Builds the cities' data sets, trains, measures and saves."""
    (settings,) = parse_config(Settings, description=__doc__ or "")
    scenes = read_manifest(settings.scenes, SCENES_KIND)
    model = CLIPModel.from_pretrained(settings.scenes, dtype=torch.float32)
    identity = {k: v for k, v in asdict(settings).items() if k not in _NOT_IDENTITY}
    identity |= {"scenes": scenes["config"], "scenes_weights": hash_tensors(model.state_dict())}
    if claim_folder(settings.output, KIND, identity) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete")
        return
    started = time.time()
    seeds = scenes["city_seeds"]
    made = [settings.cities / f"city-{seed}" for seed in seeds]
    places = load_places(build_data_sets(made, settings.cities))
    tokenizer = AutoTokenizer.from_pretrained(settings.scenes)
    held_out_cities = scenes["config"]["held_out_cities"]
    log = train(settings, model, tokenizer, places, held_out_cities)
    model.half().save_pretrained(settings.output)
    tokenizer.save_pretrained(settings.output)
    build_image_processor(model.config.vision_config.image_size).save_pretrained(settings.output)
    first_half = (settings.scenes / "train_log.jsonl").read_text(encoding="utf-8")
    lines = "".join(json.dumps(entry) + "\n" for entry in log)
    (settings.output / "train_log.jsonl").write_text(first_half + lines, encoding="utf-8")
    facts = {
        "tower_hash": tower_hash(model.vision_model),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "city_seeds": seeds,
        "generator_version": generator_version(made),
        "held_out": log[-1],
    }
    (settings.output / "snapshot.pt").unlink(missing_ok=True)
    write_json(settings.output / "run.json", {"seconds": round(time.time() - started), "cpu_count": os.cpu_count()})
    publish_manifest(settings.output, KIND, identity, **facts)
    write_card(settings.output)


def load_places(data_sets: list[Path]) -> Places:
    """Every photo of every split, with the address that the data set gives it."""
    examples, place, city, is_test = [], [], [], []
    addresses: list[str] = []
    for number, folder in enumerate(data_sets):
        dataset = IALDataset(folder)
        for split in SPLIT_NAMES:
            rows = clip_examples(dataset, split)
            examples += rows
            place += [len(addresses) + row.address_id for row in rows]
            city += [number] * len(rows)
            is_test += [split == "test"] * len(rows)
        addresses += [record.verbose for record in dataset.gallery]
    pixels = torch.from_numpy(decode_photos([row.path for row in examples])).permute(0, 3, 1, 2)
    captions = [row.caption for row in examples]
    return Places(pixels, captions, addresses, torch.tensor(place), torch.tensor(city), torch.tensor(is_test))


def train(
    settings: Settings, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, places: Places, held_out_cities: int
) -> list[dict[str, float]]:
    """The contrastive loop; returns the log, whose last entry is measured on the held-out cities."""
    generator = torch.Generator().manual_seed(settings.seed)
    model = AddressCLIP(clip)
    captions = tokenizer(places.captions, padding=True, truncation=True, max_length=77, return_tensors="pt")
    addresses = tokenizer(places.addresses, padding=True, truncation=True, max_length=77, return_tensors="pt")
    num_cities = int(places.city.max()) + 1 - held_out_cities
    rows_of_city = [torch.nonzero(places.city == city).flatten() for city in range(num_cities)]
    optimizer, schedule = build_adamw(
        clip, settings.learning_rate, settings.weight_decay, steps=settings.steps, warmup_steps=settings.warmup_steps
    )
    snapshot = Snapshot(settings.output / "snapshot.pt", clip, optimizer, schedule, generator)
    first, _, log = snapshot.load()
    model.train()
    for step in (bar := tqdm(range(first, settings.steps), desc="places", unit="step", initial=first)):
        if step % settings.snapshot_every == 0 and step > first:
            snapshot.save(step, torch.empty(0), log)
        rows = draw_batch(rows_of_city, settings.cities_per_batch, settings.batch_size, generator)
        images = normalise(augment(places.pixels[rows].float() / 255, generator, min_scale=settings.min_crop))
        unique, of_photo = places.place[rows].unique(return_inverse=True)
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.encode_images(images)
            named = model.encode_texts(addresses.input_ids[unique], addresses.attention_mask[unique])[of_photo]
            described = model.encode_texts(captions.input_ids[rows], captions.attention_mask[rows])
        scale = clip.logit_scale.exp()
        shares = positive_targets("multi", places.place[rows], torch.zeros(len(rows), 2), 1.0)
        place_loss = contrastive_loss(seen, named, scale, shares)
        scene_loss = contrastive_loss(seen, described, scale, torch.eye(len(rows)))
        optimizer.zero_grad()
        (place_loss + settings.scene_weight * scene_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.clamp_logit_scale()
        if step % 50 == 49:
            log.append(
                {"step": step + 1, "place_loss": round(place_loss.item(), 4), "scene_loss": round(scene_loss.item(), 4)}
            )
            bar.set_postfix(place=f"{place_loss.item():.3f}", scene=f"{scene_loss.item():.3f}")
    log.append(measure(model, places, torch.nonzero(places.city >= num_cities).flatten()))
    print(f"held-out cities: {log[-1]}")
    return log


def draw_batch(
    rows_of_city: list[torch.Tensor], num_cities: int, batch_size: int, generator: torch.Generator
) -> torch.Tensor:
    """Rows of a batch: equally many photos of some cities, none twice."""
    chosen = torch.randperm(len(rows_of_city), generator=generator)[:num_cities].tolist()
    share = batch_size // num_cities
    parts = [rows_of_city[city] for city in chosen]
    return torch.cat([part[torch.randperm(len(part), generator=generator)[:share]] for part in parts])


@torch.no_grad()
def measure(model: AddressCLIP, places: Places, rows: torch.Tensor) -> dict[str, float]:
    """Share of the test photos of unseen cities whose nearest training photo of these cities shows the same place."""
    model.eval()
    parts = rows.split(256)
    features = torch.cat([model.encode_images(normalise(places.pixels[part].float() / 255)) for part in parts])
    is_test, place = places.is_test[rows], places.place[rows]
    nearest = (features[is_test] @ features[~is_test].T).argmax(dim=1)
    is_right = place[~is_test][nearest] == place[is_test]
    return {"nearest_photo_shows_place": round(is_right.float().mean().item(), 4)}


if __name__ == "__main__":
    run_command(main)
