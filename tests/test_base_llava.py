"""The tiny base LLaVA: made by its command, opened by plain transformers, asked as the project asks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_ial.conversation import user_question
from llava_ial.data.llava import encode_prompt
from llava_ial.manifest import read_manifest
from tests.tiny_world import TinyWorld, build_tiny_base_clip, build_tiny_dataset


def _build(clip: Path, data: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train.toy_base.llava", "--clip", str(clip), "--data", str(data)]
    command += ["--output", str(output), "--steps", "2", "--batch_size", "2", "--width", "32", "--layers", "1", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("base_llava")
    data, clip, base = folder / "data", folder / "clip", folder / "base"
    build_tiny_dataset(data, TinyWorld())
    build_tiny_base_clip(clip, data)
    made = _build(clip, data, base)
    assert made.returncode == 0, made.stderr
    assert "the language model is random: pretraining it on the text" in made.stdout
    return data, clip, base


def test_plain_transformers_asks_with_the_same_ids(world: tuple[Path, Path, Path]) -> None:
    _, _, base = world
    processor = AutoProcessor.from_pretrained(base, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(base)
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where was this taken?"}]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=text, images=Image.new("RGB", (96, 72)), return_tensors="pt")
    ours = encode_prompt(processor.tokenizer, [user_question("Where was this taken?")], model.config.image_seq_length)
    assert inputs["input_ids"][0].tolist() == ours
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_the_manifest_says_what_it_was_trained_on_and_a_finished_folder_is_reused(
    world: tuple[Path, Path, Path],
) -> None:
    data, clip, base = world
    assert read_manifest(base, "base_llava")["pretrained_on"] == "text of the data set's dialogues"
    assert "already there" in _build(clip, data, base).stdout
    assert _build(clip, data, base, "--seed", "1").returncode == 2


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    data, clip, base = world
    assert _build(clip, data, tmp_path / "again").returncode == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_a_folder_that_is_no_clip_is_named(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    ended = _build(tmp_path, world[0], tmp_path / "out")
    assert ended.returncode == 2
    assert f"--clip {tmp_path}: no CLIP there" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
