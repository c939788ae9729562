"""Second half of ``toy-llava``: it learns to take an address out of a list, word by word.

    python -m train.toy_base.pretrain_llava --clip runs/toy_base/toy-clip --output runs/toy_base/toy-llava-talk
    python -m train.toy_base.pretrain_copying --talk runs/toy_base/toy-llava-talk --output runs/toy_base/toy-llava

Large language models copy what they read without a mistake. This small one, after its first half, copies the words of
an unread name and mixes up what stands beside them: "Lane" with "Row", one address's crossing with another's. Here a
third of the dialogues are drills, where a question names the address of a list that it is about, so that every token of
the answer stands in the text; scenes with photos and talk go on beside them. The tower stays the first half's.
"""

import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # read once, when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from llava_ial.config import parse_config
from llava_ial.conversation import Message, user_question
from llava_ial.data.llava import EncodedDialogue, encode_dialogue
from llava_ial.errors import run_command
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, read_manifest, write_json
from llava_ial.models.feature_layers import set_features
from llava_ial.models.identity import hash_tensors
from llava_ial.models.llava_folder import save_processor
from train.toy_base.card import write_card
from train.toy_base.cities import load_cities
from train.toy_base.dialogues import address_dialogues, address_drills, build_data_sets, scene_dialogues
from train.toy_base.names import spelling_pieces
from train.toy_base.pretrain_llava import KIND as TALK_KIND
from train.toy_base.pretrain_llava import (
    batches_of_like_length,
    held_out_rows,
    loss_of,
    measure,
    supervised_logits,
    take_steps,
    tower_outputs,
)

KIND = "toy_llava"
_NUM_MEASURED = 256
_DISTURBANCE = 0.7


@dataclass
class Settings:
    """What decides the weights, and where things lie."""

    output: Path = field(metadata={"help": "folder of the model"})
    talk: Path = field(metadata={"help": "folder that pretrain_llava made"})
    cities: Path = field(default=Path("runs/toy_base/cities"), metadata={"help": "where it kept the generated cities"})
    scenes_per_city: int = field(default=100, metadata={"help": "photos of each city that are described"})
    drills_per_city: int = field(default=1500, metadata={"help": "lists with questions, in the names of each city"})
    steps: int = field(default=1500, metadata={"help": "optimiser steps"})
    scenes_per_step: int = field(default=8, metadata={"help": "descriptions with their photo, a step"})
    talks_per_step: int = field(default=8, metadata={"help": "dialogues as in the first half, a step"})
    drills_per_step: int = field(default=16, metadata={"help": "drills, a step"})
    learning_rate: float = field(default=2e-3, metadata={"help": "peak of the cosine"})
    weight_decay: float = field(default=0.05, metadata={"help": "on matrices"})
    warmup_steps: int = field(default=50, metadata={"help": "linear warm-up"})
    seed: int = field(default=1, metadata={"help": "of every draw; another one than the first half's"})


def main() -> None:
    """Trains projector and language model, measures and saves."""
    (settings,) = parse_config(Settings, description=__doc__ or "")
    talk = read_manifest(settings.talk, TALK_KIND)
    model = LlavaForConditionalGeneration.from_pretrained(settings.talk, dtype=torch.float32)
    identity = {k: v for k, v in asdict(settings).items() if k not in ("output", "talk", "cities")}
    identity |= {"talk": talk["config"], "talk_weights": hash_tensors(model.state_dict())}
    if claim_folder(settings.output, KIND, identity) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete")
        return
    started = time.time()
    tokenizer = AutoTokenizer.from_pretrained(settings.talk)
    log = train(settings, model, tokenizer, talk)
    model.half().save_pretrained(settings.output)
    image_processor = AutoImageProcessor.from_pretrained(settings.talk, backend="pil")
    save_processor(settings.output, tokenizer, image_processor, model.config)
    first_half = (settings.talk / "train_log.jsonl").read_text(encoding="utf-8")
    lines = "".join(json.dumps(entry) + "\n" for entry in log)
    (settings.output / "train_log.jsonl").write_text(first_half + lines, encoding="utf-8")
    seconds = json.loads((settings.talk / "run.json").read_text(encoding="utf-8"))["seconds"]
    write_json(
        settings.output / "run.json", {"seconds": seconds + round(time.time() - started), "cpu_count": os.cpu_count()}
    )
    kept = ("tower_hash", "chat_template_hash", "num_parameters", "city_seeds", "generator_version")
    publish_manifest(settings.output, KIND, identity, **{name: talk[name] for name in kept}, held_out=log[-1])
    write_card(settings.output)


def train(
    settings: Settings, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, talk: dict[str, Any]
) -> list[dict[str, float]]:
    """Scenes, talk and drills in every batch; returns the log, whose last entry is measured on what was held out."""
    first_half, seed = talk["config"], settings.seed
    cities = [settings.cities / f"city-{seed}" for seed in talk["city_seeds"]]
    data_sets = build_data_sets(cities[: first_half["talking_cities"]], settings.cities)
    photos = load_cities(cities, per_city=settings.scenes_per_city)
    count = set_features(model, model.config.vision_feature_layer, model.config.vision_feature_select_strategy)
    features = tower_outputs(model, photos)
    scenes = [encode_dialogue(tokenizer, each, count) for each in scene_dialogues(photos.captions, seed)]
    pieces = spelling_pieces(tokenizer)
    talks = [encode_dialogue(tokenizer, each, 0) for each in address_dialogues(data_sets, seed, pieces)]
    listed = address_drills(data_sets[:-1], per_set=settings.drills_per_city, seed=seed, pieces=pieces)
    drills = [
        encode_dialogue(tokenizer, beside_a_photo(each), count) for each in tqdm(listed, desc="drills", unit="dialogue")
    ]
    generator = torch.Generator().manual_seed(seed)
    talking = batches_of_like_length([len(each.input_ids) for each in talks], settings.talks_per_step, generator)
    drilling = batches_of_like_length([len(each.input_ids) for each in drills], settings.drills_per_step, generator)
    held_out = held_out_rows(photos, first_half["held_out_cities"])
    pool = torch.nonzero(~held_out).flatten()
    model.model.vision_tower.requires_grad_(False)

    def losses() -> dict[str, torch.Tensor]:
        rows = pool[torch.randint(len(pool), (settings.scenes_per_step,), generator=generator)]
        shown = pool[torch.randint(len(pool), (settings.drills_per_step,), generator=generator)]
        return {
            "scene": loss_of(model, [scenes[row] for row in rows.tolist()], features[rows]),
            "talk": loss_of(model, [talks[i] for i in next(talking)]),
            "drill": loss_of(model, [drills[i] for i in next(drilling)], disturbed(features[shown], generator)),
        }

    log = take_steps(model, losses, settings)
    listed = address_drills(data_sets[-1:], per_set=_NUM_MEASURED, seed=seed, pieces=pieces)
    unread = [encode_dialogue(tokenizer, beside_a_photo(each), count) for each in listed]
    rows = torch.nonzero(held_out).flatten()[:_NUM_MEASURED]
    measured = measure(model, [scenes[row] for row in rows.tolist()], features[rows])
    log.append(measured | measure_copying(model, unread, features[rows]))
    print(f"held out: {log[-1]}")
    return log


def beside_a_photo(drill: list[Message]) -> list[Message]:
    """The same dialogue with the mark of a photo, as tuning shows a list beside one."""
    first, *rest = drill
    return [user_question(first.content), *rest]


def disturbed(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``features (B, image tokens, width)`` with another gain and offset for each channel of each photo.

    Whoever tunes this model brings a tower that was tuned before. What it says must not keep a list from being read.
    """
    shape = (len(features), 1, features.shape[2])
    gain = (_DISTURBANCE * torch.randn(shape, generator=generator)).exp()
    offset = _DISTURBANCE * features.float().std() * torch.randn(shape, generator=generator)
    return features.float() * gain + offset


@torch.no_grad()
def measure_copying(
    model: LlavaForConditionalGeneration, drills: list[EncodedDialogue], features: torch.Tensor
) -> dict[str, float]:
    """Share of answers to drills without a wrong token, each beside one of the photos, whose ``features`` are given.

    One reading tells: greedy words go the same way.
    """
    model.eval()
    right, total = 0, 0
    for start in range(0, len(drills), 32):
        some = drills[start : start + 32]
        shown = torch.arange(start, start + len(some)) % len(features)
        logits, labels, supervised = supervised_logits(model, some, features[shown])
        is_right = torch.ones_like(supervised)
        is_right[supervised] = logits.argmax(dim=-1) == labels
        begins = supervised & ~functional.pad(supervised[:, :-1], (1, 0))
        answer = begins.cumsum(dim=1) * supervised  # 0 where nothing is supervised, else the answer's number in its row
        for row, wrong in zip(answer, ~is_right, strict=True):
            total += int(row.max())
            right += int(row.max()) - len(row[wrong].unique())
    return {"answers_copied": round(right / total, 4)}


if __name__ == "__main__":
    run_command(main)
