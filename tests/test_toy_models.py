"""The base models in the repository: small, plain, whole, and strangers to every demo town."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, CLIPProcessor, LlavaForConditionalGeneration

from data_gen.toy_city import GENERATOR_VERSION
from data_gen.toy_city.names import name_city, name_neighbourhoods, name_streets, street_roots
from data_gen.toy_city.plan import build_plan
from llava_ial.conversation import chat_template_hash
from llava_ial.models.identity import tower_hash
from train.toy_base.cities import FIRST_PRETRAINING_SEED
from train.toy_base.names import LONGER_THAN_NAMES, made_up_street, made_up_word, spelled_word, spelling_pieces

MODELS = Path(__file__).resolve().parents[1] / "train" / "toy_base" / "models"
CLIP, LLAVA = MODELS / "toy-clip", MODELS / "toy-llava"


def manifest(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return content


def names(seed: int, size: str) -> set[str]:
    """Every name that belongs to one town: its streets, its neighbourhoods, its own (states are shared)."""
    plan = build_plan(seed, size)
    return {*name_streets(seed, plan), *name_neighbourhoods(seed, len(plan.neighbourhoods)), name_city(seed)[0]}


def test_both_fit_into_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 10_000_000


def test_transformers_alone_opens_them() -> None:
    clip = CLIPModel.from_pretrained(CLIP, dtype=torch.float32)
    llava = LlavaForConditionalGeneration.from_pretrained(LLAVA, dtype=torch.float32)
    CLIPProcessor.from_pretrained(CLIP, backend="pil")
    AutoProcessor.from_pretrained(LLAVA, backend="pil")
    assert manifest(CLIP)["num_parameters"] == sum(p.numel() for p in clip.parameters())
    assert manifest(LLAVA)["num_parameters"] == sum(p.numel() for p in llava.parameters())


def test_the_llava_has_the_tower_of_the_clip() -> None:
    clip = CLIPModel.from_pretrained(CLIP, dtype=torch.float16)
    llava = LlavaForConditionalGeneration.from_pretrained(LLAVA, dtype=torch.float16)
    assert tower_hash(clip.vision_model) == tower_hash(llava.model.vision_tower)
    assert manifest(LLAVA)["chat_template_hash"] == chat_template_hash()


@pytest.mark.parametrize("folder", [CLIP, LLAVA])
def test_they_were_made_of_the_towns_that_this_generator_draws(folder: Path) -> None:
    facts = manifest(folder)
    assert facts["generator_version"] == GENERATOR_VERSION
    seeds = facts["city_seeds"]
    assert isinstance(seeds, list)
    assert min(seeds) >= FIRST_PRETRAINING_SEED


def test_no_name_of_a_demo_town_was_in_what_they_read() -> None:
    seeds = manifest(CLIP)["city_seeds"]
    assert isinstance(seeds, list)
    size = str(manifest(CLIP)["config"]["scenes"]["city_size"])  # type: ignore[index]
    read = set().union(*(names(seed, size) for seed in seeds))
    draw = np.random.default_rng(0)
    read |= {made_up_street(draw) for _ in range(20_000)} | {made_up_word(draw) for _ in range(20_000)}
    for seed in (*range(12), 21, 22, 23, 24, 25, 999):
        assert not names(seed, "small") & read


def test_a_spelled_name_is_longer_than_any_word_of_a_town() -> None:
    own = {word for seed in range(12) for name in names(seed, "small") for word in name.split()}
    own |= {*street_roots(0), *street_roots(FIRST_PRETRAINING_SEED)}
    assert max(map(len, own)) < LONGER_THAN_NAMES
    draw = np.random.default_rng(0)
    assert {len(spelled_word(["ab", "c"], draw)) for _ in range(50)} <= {LONGER_THAN_NAMES, LONGER_THAN_NAMES + 1}


def test_spelled_names_need_every_token_that_names_of_towns_do() -> None:
    tokenizer = AutoTokenizer.from_pretrained(LLAVA)
    pieces, draw = spelling_pieces(tokenizer), np.random.default_rng(0)
    read = {token for _ in range(30_000) for token in tokenizer.tokenize(f" {spelled_word(pieces, draw)}")}
    needed = {token for root in street_roots(0) for token in tokenizer.tokenize(f" {root}")}
    assert needed <= read
    # Syllables and the towns that it was trained on leave some out: names with these could never be said.
    met = {token for _ in range(30_000) for token in tokenizer.tokenize(f" {made_up_word(draw)}")}
    met |= {token for root in street_roots(FIRST_PRETRAINING_SEED) for token in tokenizer.tokenize(f" {root}")}
    assert {"ell", "igh", "live", "uart"} <= needed - met
