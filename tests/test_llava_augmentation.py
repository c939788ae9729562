"""Changed photos in stage 2: another draw each epoch, the same draw however a run is cut, none where it is measured."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_ial.data import dialogue_photos
from llava_ial.data.augmentation import Augmentation
from llava_ial.data.dataset import IALDataset
from llava_ial.data.dialogue_photos import DialoguePhotos
from llava_ial.data.images import load_photo
from llava_ial.data.llava_dataset import LlavaDataset
from llava_ial.data.pixels import PhotoPixels
from llava_ial.errors import UserError
from tests.stage2_runs import adapter, assert_same_weights, crash_at, train_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders

CHANGED = {"min_crop_area": 0.3, "colour_jitter": 0.4, "white_balance_jitter": 0.15}


def pixels_of(rows: LlavaDataset, epoch: int) -> list[torch.Tensor]:
    rows.set_epoch(epoch)
    return [rows[row]["pixel_values"] for row in range(len(rows))]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)]


def test_a_draw_is_of_seed_epoch_and_row_alone(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    rows = run_of(tiny_folders, tmp_path / "out", **CHANGED).train_set
    first, second = pixels_of(rows, 0), pixels_of(rows, 1)
    assert not any(same(first, second))
    again = run_of(tiny_folders, tmp_path / "out", photos_in_memory=3, **CHANGED).train_set
    assert all(same(pixels_of(again, 1), second))
    assert all(same(pixels_of(again, 0), first)), "a photo that is kept is kept as it was taken"
    other = run_of(tiny_folders, tmp_path / "out", seed=1, **CHANGED).train_set
    assert not any(same(pixels_of(other, 0), first))


def test_rows_and_epochs_draw_each_for_itself(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = []

    def remember(_: Augmentation, photo: Image.Image, draw: torch.Generator) -> Image.Image:
        draws.append(float(torch.rand((), generator=draw)))
        return photo

    monkeypatch.setattr(Augmentation, "__call__", remember)
    rows = run_of(tiny_folders, tmp_path / "out", **CHANGED).train_set
    for epoch in range(3):
        pixels_of(rows, epoch)
    assert len(set(draws)) == len(draws) == 24


def test_general_photos_and_talks_are_left_as_they_are(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    """How many there are has another answer where half of them were cut off."""
    data = IALDataset(tiny_folders.data)
    photo = data.image_file(data.samples("train")[0].photo.image_path).resolve()
    turns = ["<image>\nHow many?", "Two.", "Are you sure?", "Yes."]
    talk = [{"from": role, "value": turn} for role, turn in zip(["human", "gpt"] * 2, turns, strict=True)]
    entries = [{"id": i, "image": str(photo), "conversations": talk} for i in range(8)]
    (tmp_path / "general.json").write_text(json.dumps(entries), encoding="utf-8")
    rows = run_of(
        tiny_folders, tmp_path / "out", mix=f"{tmp_path / 'general.json'}:1", questions_apart=1, **CHANGED
    ).train_set
    assert len(rows) == 16
    assert [bool(dialogue.branches) for dialogue in rows.encoded] == [True] * 8 + [False] * 8
    assert same(pixels_of(rows, 0), pixels_of(rows, 1)) == [False] * 8 + [True] * 8


def test_a_large_photo_is_decoded_no_larger_than_its_crops_need(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = run_of(tiny_folders, tmp_path / "out").image_processor
    sizes = []
    monkeypatch.setattr(Augmentation, "__call__", lambda _, photo, draw: sizes.append(photo.size) or photo)
    file = tmp_path / "large.jpg"
    Image.effect_noise((4000, 3000), 80).convert("RGB").save(file)
    photos = DialoguePhotos(processor, augmentation=Augmentation(min_crop_area=0.25))
    side = photos.changed(file, 0).shape[-1]
    assert 2 * 2 * side <= min(sizes[0]) < 3000, "a crop of a quarter fills twice the input"


def test_no_more_photos_are_kept_than_were_asked_for(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed or not: two caches with the same limit would hold twice as many."""
    run, data = run_of(tiny_folders, tmp_path / "out"), IALDataset(tiny_folders.data)
    files = [data.image_file(sample.photo.image_path) for sample in data.samples("train")][:4]
    decoded = []
    monkeypatch.setattr(dialogue_photos, "load_photo", lambda file, **_: decoded.append(file) or load_photo(file))
    photos = DialoguePhotos(run.image_processor, keep=2, augmentation=Augmentation(colour_jitter=0.2))
    for _ in range(3):
        for file in files[:2]:
            photos.plain(file)
        for file in files[2:]:
            photos.changed(file, 0)
    assert [decoded.count(file) for file in files] == [1, 1, 3, 3]


def test_without_it_photos_are_what_they_were_and_measured_ones_always(
    tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    measured = {"eval_strategy": "steps", "eval_split": "train", "eval_photos": 8}
    plain = run_of(tiny_folders, tmp_path / "out", **measured)
    changed = run_of(tiny_folders, tmp_path / "out", **measured, **CHANGED)
    data = IALDataset(tiny_folders.data)
    prepared = [
        PhotoPixels(plain.image_processor)(load_photo(data.image_file(record.image_path)))
        for record in plain.train_set.conversations
    ]
    assert all(same(pixels_of(plain.train_set, 3), prepared))
    assert not any(same(pixels_of(changed.train_set, 3), prepared))
    assert changed.validation is not None
    by_photo = {r.image_path: p for r, p in zip(plain.train_set.conversations, prepared, strict=True)}
    dialogues = changed.validation.dialogues
    assert all(same(pixels_of(dialogues, 3), [by_photo[record.image_path] for record in dialogues.conversations]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_crash_in_the_second_epoch_is_resumed_bit_by_bit(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """Eight dialogues, two a step: step 7 is the third of the second epoch."""
    options = {"max_steps": 8, "save_steps": 2, "save_total_limit": 1, **CHANGED}
    straight = train_here(tiny_folders, tmp_path / "straight", **options)

    resumed = tmp_path / "resumed"
    options["dataloader_num_workers"] = num_workers
    crash_at(monkeypatch, 7, lambda: train_here(tiny_folders, resumed, **options))
    assert_same_weights(train_here(tiny_folders, resumed, **options), straight)
    plain = adapter(train_here(tiny_folders, tmp_path / "plain", max_steps=8))
    assert any(not torch.equal(plain[name], weights) for name, weights in adapter(straight).items())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"min_crop_area": 0}, "--min_crop_area 0.0: allowed: above 0 and at most 1"),
        ({"colour_jitter": 0.1, "dialogues": "captions"}, "--colour_jitter 0.1: allowed: nothing with --dialogues"),
        ({"min_crop_area": 0.5, "dialogues": "captions"}, "--min_crop_area 0.5: allowed: nothing with --dialogues"),
        ({"questions_apart": 1, "dialogues": "captions"}, "--questions_apart 1.0: allowed: 0 with --dialogues"),
        ({"colour_jitter": 1}, "--colour_jitter 1.0: allowed: at least 0 and below 1"),
        ({"white_balance_jitter": -0.1}, "--white_balance_jitter -0.1: allowed"),
        (
            {"colour_jitter": 0.1, "dataloader_num_workers": 1, "dataloader_persistent_workers": True},
            "--dataloader_persistent_workers True: allowed: false with --min_crop_area",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_folders: TinyFolders, tmp_path: Path, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        train_here(tiny_folders, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
