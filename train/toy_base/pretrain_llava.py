"""First half of ``toy-llava``: a small LLaVA that describes street scenes and speaks of addresses.

    python -m train.toy_base.pretrain_llava --clip runs/toy_base/toy-clip --output runs/toy_base/toy-llava-talk

It is to ``toy-clip`` what LLaVA-1.5 is to CLIP: the frozen tower, a projector of two layers, a small LLaMA. It learns
two things from the cities that ``toy-clip`` saw: what a photo shows, with the photo, and how one talks about addresses,
from text alone. No photo comes with its address, and no demo city or name of one enters.
"""

import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # read once, when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    AutoImageProcessor,
    CLIPModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from llava_ial.config import parse_config
from llava_ial.conversation import IMAGE_TOKEN, chat_template_hash, load_chat_template
from llava_ial.data.llava import IGNORE_INDEX, EncodedDialogue, encode_dialogue, pad_batch
from llava_ial.errors import run_command
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, write_json
from llava_ial.models.address_clip import load_clip
from llava_ial.models.feature_layers import set_features
from llava_ial.models.identity import hash_tensors, tower_hash
from llava_ial.models.llava_folder import save_processor
from llava_ial.training.optim import build_optimizer, learning_rate_at, set_learning_rate
from train.toy_base.cities import FIRST_PRETRAINING_SEED, CityPhotos, generate_cities, generator_version, load_cities
from train.toy_base.dialogues import address_dialogues, build_data_sets, scene_dialogues
from train.toy_base.llava import build_llava, load_or_train_tokenizer
from train.toy_base.pretrain_clip import normalise

KIND = "toy_llava_talk"
# The template holds the system sentence and the speakers' names: every dialogue spends few tokens on them if the
# vocabulary is learned as if it had been read that often.
TEMPLATE_WEIGHT = 2000
BATCHES_SORTED = 16  # talk of similar length is found among so many batches


@dataclass
class Settings:
    """What decides the weights, and where things lie."""

    output: Path = field(metadata={"help": "folder of the model"})
    clip: Path = field(metadata={"help": "folder of toy-clip, whose tower is taken"})
    cities: Path = field(default=Path("runs/toy_base/cities"), metadata={"help": "generated cities are kept here"})
    num_cities: int = field(default=48, metadata={"help": "cities whose scenes are described, as toy-clip's"})
    city_size: str = field(default="medium", metadata={"help": "size of each, as the generator names it"})
    photos_per_city: int = field(default=1500, metadata={"help": "photos in each"})
    scenes_per_city: int = field(default=500, metadata={"help": "of these, described"})
    held_out_cities: int = field(default=1, metadata={"help": "of these cities, never trained on: they measure"})
    talking_cities: int = field(default=24, metadata={"help": "cities whose addresses are spoken of, without photos"})
    vocab_size: int = field(default=1024, metadata={"help": "entries of the byte-level BPE"})
    width: int = field(default=96, metadata={"help": "hidden size of the language model"})
    layers: int = field(default=4, metadata={"help": "layers of the language model"})
    steps: int = field(default=2600, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=36, metadata={"help": "dialogues a step; a third of them with a photo"})
    learning_rate: float = field(default=2e-3, metadata={"help": "peak of the cosine"})
    weight_decay: float = field(default=0.05, metadata={"help": "on matrices"})
    warmup_steps: int = field(default=100, metadata={"help": "linear warm-up"})
    seed: int = field(default=0, metadata={"help": "of weights and order"})


@dataclass(frozen=True)
class Scenes:
    """Encoded descriptions with the tower's outputs ``(N, image tokens, width)`` for their photos."""

    dialogues: list[EncodedDialogue]
    features: torch.Tensor


def main() -> None:
    """Generates what is missing, trains, measures and saves."""
    (settings,) = parse_config(Settings, description=__doc__ or "")
    clip = load_clip(str(settings.clip))
    identity = {k: v for k, v in asdict(settings).items() if k not in ("output", "clip", "cities")}
    identity |= {"clip": hash_tensors(clip.state_dict())}
    if claim_folder(settings.output, KIND, identity) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete")
        return
    started = time.time()
    seeds = list(range(FIRST_PRETRAINING_SEED, FIRST_PRETRAINING_SEED + settings.num_cities))
    made = generate_cities(
        settings.cities, seeds, photos=settings.photos_per_city, pixels=clip.config.vision_config.image_size,
        size=settings.city_size,
    )  # fmt: skip
    talked = build_data_sets(made[: settings.talking_cities], settings.cities)
    photos = load_cities(made, per_city=settings.scenes_per_city)
    model, tokenizer, log = train(settings, clip, photos, talked)
    model.half().save_pretrained(settings.output)
    image_processor = AutoImageProcessor.from_pretrained(settings.clip, backend="pil")
    save_processor(settings.output, tokenizer, image_processor, model.config)
    lines = "".join(json.dumps(entry) + "\n" for entry in log)
    (settings.output / "train_log.jsonl").write_text(lines, encoding="utf-8")
    write_json(settings.output / "run.json", {"seconds": round(time.time() - started), "cpu_count": os.cpu_count()})
    facts = {
        "tower_hash": tower_hash(clip.vision_model),
        "chat_template_hash": chat_template_hash(),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "city_seeds": seeds,
        "generator_version": generator_version(made),
        "held_out": log[-1],
    }
    publish_manifest(settings.output, KIND, identity, **facts)


def train(
    settings: Settings, clip: CLIPModel, photos: CityPhotos, talked: list[Path]
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase, list[dict[str, float]]]:
    """A third of every batch are scenes with photos, the rest talk about addresses without; the tower is frozen."""
    scenes, talk = scene_dialogues(photos.captions, settings.seed), address_dialogues(talked, settings.seed)
    texts = [message.content.replace(IMAGE_TOKEN, "") for dialogue in [*scenes, *talk] for message in dialogue]
    texts += [load_chat_template()] * TEMPLATE_WEIGHT
    tokenizer = load_or_train_tokenizer(None, texts, settings.vocab_size)
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = build_llava(clip, tokenizer, width=settings.width, layers=settings.layers)
    # The class token, and the last layer's output: what stage 1 will train.
    count = set_features(model, -1, "full")
    features = tower_outputs(model, photos)
    encoded = [encode_dialogue(tokenizer, dialogue, count) for dialogue in tqdm(scenes, desc="scenes", unit="dialogue")]
    talking = [encode_dialogue(tokenizer, dialogue, 0) for dialogue in tqdm(talk, desc="talk", unit="dialogue")]
    num_seen = settings.batch_size // 3
    num_heard = settings.batch_size - num_seen
    is_held_out = held_out_rows(photos, settings.held_out_cities)
    pool = torch.nonzero(~is_held_out).flatten()
    model.model.vision_tower.requires_grad_(False)
    talks = batches_of_like_length([len(talk.input_ids) for talk in talking], num_heard, generator)

    def losses() -> dict[str, torch.Tensor]:
        rows = pool[torch.randint(len(pool), (num_seen,), generator=generator)]
        seen = loss_of(model, [encoded[row] for row in rows.tolist()], features[rows])
        return {"scene": seen, "talk": loss_of(model, [talking[i] for i in next(talks)])}

    log = take_steps(model, losses, settings)
    held_out = torch.nonzero(is_held_out).flatten()[:256]
    log.append(measure(model, [encoded[row] for row in held_out.tolist()], features[held_out]))
    print(f"held-out cities: {log[-1]}")
    return model, tokenizer, log


class Schedule(Protocol):
    """How many steps, and how large."""

    steps: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int


def take_steps(
    model: LlavaForConditionalGeneration, losses: Callable[[], dict[str, torch.Tensor]], schedule: Schedule
) -> list[dict[str, float]]:
    """AdamW on the sum of ``losses`` of one batch after the other; returns the log, a line for every 50 steps."""
    optimizer = build_optimizer(model, learning_rate=schedule.learning_rate, weight_decay=schedule.weight_decay)
    log: list[dict[str, float]] = []
    model.train()
    for step in (bar := tqdm(range(schedule.steps), desc="toy-llava", unit="step")):
        rate = learning_rate_at(
            step, num_steps=schedule.steps, warmup_steps=schedule.warmup_steps, peak=schedule.learning_rate, final=0.0
        )
        set_learning_rate(optimizer, rate)
        found = losses()
        optimizer.zero_grad()
        torch.autograd.backward(list(found.values()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            log.append({"step": step + 1, **{f"{name}_loss": round(loss.item(), 4) for name, loss in found.items()}})
            bar.set_postfix({name: f"{loss.item():.3f}" for name, loss in found.items()})
    return log


def held_out_rows(photos: CityPhotos, num_cities: int) -> torch.Tensor:
    """``(N,)``, true for photos of the last cities."""
    return torch.from_numpy(photos.city > photos.city.max() - num_cities)


def batches_of_like_length(lengths: Sequence[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Random rows for ever, those of a batch of similar length, so that little of it is padding."""
    while True:
        drawn = torch.randint(len(lengths), (size * BATCHES_SORTED,), generator=generator).tolist()
        drawn.sort(key=lambda row: lengths[row])
        for place in torch.randperm(BATCHES_SORTED, generator=generator).tolist():
            yield drawn[place * size : (place + 1) * size]


def loss_of(
    model: LlavaForConditionalGeneration, dialogues: list[EncodedDialogue], features: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the supervised tokens; ``features (B, image tokens, width)`` of the tower stand for the photos."""
    logits, labels, _ = supervised_logits(model, dialogues, features)
    return functional.cross_entropy(logits, labels)


def supervised_logits(
    model: LlavaForConditionalGeneration, dialogues: list[EncodedDialogue], features: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits ``(S, vocabulary)`` and labels ``(S,)`` of the supervised tokens, and where they stand ``(B, T - 1)``."""
    pad = model.config.text_config.pad_token_id
    ids = pad_batch([dialogue.input_ids for dialogue in dialogues], pad, side="right")
    labels = pad_batch([dialogue.labels for dialogue in dialogues], IGNORE_INDEX, side="right")
    mask = pad_batch([[1] * len(dialogue.input_ids) for dialogue in dialogues], 0, side="right")
    with torch.autocast("cpu", torch.bfloat16):
        embedded = model.get_input_embeddings()(ids)
        if features is not None:
            projected = model.model.multi_modal_projector(features.float())
            place = (ids == model.config.image_token_id)[..., None].expand_as(embedded)
            embedded = embedded.masked_scatter(place, projected.to(embedded.dtype))
        hidden = model.model.language_model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        supervised = labels[:, 1:] != IGNORE_INDEX
        logits = model.lm_head(hidden[:, :-1][supervised])
    return logits.float(), labels[:, 1:][supervised], supervised


@torch.no_grad()
def tower_outputs(model: LlavaForConditionalGeneration, photos: CityPhotos) -> torch.Tensor:
    """What LLaVA reads of every photo, ``(N, image tokens, width)`` float16; the tower never changes here."""
    tower, layer = model.model.vision_tower.eval(), model.config.vision_feature_layer
    outputs = []
    for start in tqdm(range(0, len(photos.pixels), 256), desc="tower", unit="batch"):
        pixels = torch.from_numpy(photos.pixels[start : start + 256]).permute(0, 3, 1, 2).float() / 255
        hidden = tower(pixel_values=normalise(pixels), output_hidden_states=True).hidden_states
        outputs.append(hidden[layer].half())
    return torch.cat(outputs)


@torch.no_grad()
def measure(
    model: LlavaForConditionalGeneration, dialogues: list[EncodedDialogue], features: torch.Tensor
) -> dict[str, float]:
    """Loss of a description's tokens with its own photo and with another one's; equal ones would mean blindness."""
    model.eval()
    own, other = loss_of(model, dialogues, features), loss_of(model, dialogues, features.roll(1, dims=0))
    return {"scene_loss": round(own.item(), 4), "scene_loss_of_another_photo": round(other.item(), 4)}


if __name__ == "__main__":
    run_command(main)
