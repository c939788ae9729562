"""The bound of what a language model may add: it finds what is there, and nothing where there is nothing."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from PIL import Image

from llava_ial.errors import UserError
from llava_ial.evaluation import beyond
from llava_ial.evaluation.beyond import READINGS, Split, best_weight, fit_reader, format_beyond, measure, tower_tokens
from llava_ial.locating import load_encoder
from llava_ial.models.llava_folder import load_llava_ial
from tests.tiny_models import TinyFolders

CLASSES, WIDTH = 6, 8


def split(truth: torch.Tensor, tokens: torch.Tensor, right: torch.Tensor | None = None) -> Split:
    """``right``: photos that the encoder has right; it can hardly tell an address from the next one."""
    log_probabilities = torch.empty(0)
    if right is not None:
        rows, after = torch.arange(len(truth)), (truth + 1) % CLASSES
        logits = torch.zeros(len(truth), CLASSES)
        logits[rows, truth] = logits[rows, after] = 2.0
        logits[rows, torch.where(right, truth, after)] += 0.3
        log_probabilities = logits.log_softmax(dim=1)
    made = SimpleNamespace(
        truth=truth, panoramas=[str(i // 2) for i in range(len(truth))], num_addresses=CLASSES,
        log_probabilities=log_probabilities, tokens={-1: tokens, -2: tokens},
    )  # fmt: skip
    return cast(Split, made)


def city(*, class_token_tells: bool) -> dict[str, Split]:
    draw = torch.Generator().manual_seed(0)
    looks = torch.randn(CLASSES, WIDTH, generator=draw)
    made = {}
    for name, count in (("train", 240), ("val", 60), ("test", 60)):
        truth = torch.randint(CLASSES, (count,), generator=draw)
        tokens = torch.randn(count, 17, WIDTH, generator=draw)
        if class_token_tells:
            tokens[:, 0] = 3 * looks[truth] + 0.3 * tokens[:, 0]
        right = torch.rand(count, generator=draw) < 0.5
        made[name] = split(truth, tokens, None if name == "train" else right)
    return made


def test_what_the_class_token_tells_is_found_and_only_by_readings_that_have_it() -> None:
    found = measure(city(class_token_tells=True), "test", epochs=120, seed=0)
    for name, (_, has_class) in READINGS.items():
        chosen = found[name]["chosen"]
        if has_class:
            assert found[name]["alone"] > 0.9
            assert chosen.num_right > 3 * max(1, chosen.num_encoder_right)
            assert chosen.difference.p_value < 0.05
        else:
            assert found[name]["alone"] < 0.5
            assert chosen.difference.p_value > 0.05


def test_noise_adds_nothing_and_no_weight_is_said_so() -> None:
    cities = city(class_token_tells=False)
    sure = cities["val"].truth
    cities["val"] = split(sure, cities["val"].tokens[-1], torch.ones(len(sure), dtype=torch.bool))
    assert best_weight(cities["val"], torch.randn(len(sure), CLASSES).log_softmax(dim=1)) == 0.0
    found = measure(cities, "test", epochs=3, seed=0)
    assert all(row["chosen"].num_differ == 0 for row in found.values())
    text = format_beyond(cities["test"], found)
    assert "| `-1, full` |" in text
    assert "| 0 | 0: 0, 0 | +0.0 | 1.000 |" in text


def test_fitting_leaves_the_random_state_and_repeats_itself() -> None:
    train = city(class_token_tells=True)["train"]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    readers = [fit_reader(train.tokens[-1], train.truth, CLASSES, epochs=1, seed=5) for _ in range(2)]
    torch.testing.assert_close(torch.rand(2), expected)
    for ours, again in zip(readers[0].parameters(), readers[1].parameters(), strict=True):
        assert torch.equal(ours, again)


def test_the_tokens_are_those_of_the_tower(tiny_folders: TinyFolders) -> None:
    encoder = load_encoder(tiny_folders.clip, "cpu")
    dataset = beyond.IALDataset(tiny_folders.data)
    files = [dataset.image_file(sample.photo.image_path) for sample in dataset.samples("val")]
    tokens = tower_tokens(encoder, files)
    assert tokens.shape[:3] == (2, len(files), 17)
    photos = [Image.open(file).convert("RGB") for file in files]
    processor = load_llava_ial(tiny_folders.llava).image_processor  # that of the folder of stage 2
    with torch.no_grad():
        output = encoder.model.clip.vision_model(processor(photos, return_tensors="pt")["pixel_values"])
    torch.testing.assert_close(tokens[0, :, 0], output.last_hidden_state[:, 0])
    torch.testing.assert_close(tokens[0, :, 1:].mean(dim=1), output.last_hidden_state[:, 1:].mean(dim=1))


def test_the_command_prints_and_writes(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["beyond", f"--clip={tiny_folders.clip}", f"--data={tiny_folders.data}", "--epochs=1", "--device=cpu",
            f"--output={tmp_path / 'out.json'}"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", argv)
    beyond.main()
    assert "AddressCLIP alone: SSA@1" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "out.json").read_text())["readings"]) == set(READINGS)
    for wrong in (["--split=train"], ["--epochs=0"]):
        monkeypatch.setattr(sys, "argv", [*argv, *wrong])
        with pytest.raises(UserError, match="allowed"):
            beyond.main()
