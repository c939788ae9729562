"""The projector alone, on captions, before LoRA: the language model keeps every bit, the next run starts from it."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

from llava_ial.data.dataset import IALDataset
from llava_ial.data.training_dialogues import training_dialogues
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.llava import PROJECTOR
from tests.stage2_runs import adapter, assert_same_weights, crash_at, merge_here, train_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders

ALIGN = {"lora_rank": 0, "dialogues": "captions", "projector_learning_rate": 1e-2, "max_steps": 4}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_the_projector_moves_alone_and_lora_goes_on_from_it(
    tiny_folders: TinyFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_folders.llava.parent / "base_llava"
    aligned = train_here(tiny_folders, tmp_path / "aligned", **ALIGN)
    table = capsys.readouterr().out
    assert re.search(r"language model +[\d,]+ +0\n", table)
    assert re.search(r"projector +([\d,]+) +\1\n", table)
    assert "LoRA" not in table
    assert not any("lora_" in name for name in adapter(aligned))
    merged = merge_here(aligned, tmp_path / "merged", dtype="float32", device="cpu", data=tiny_folders.data)
    before, after = weights_of(base), weights_of(merged)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if PROJECTOR in name}
    plain = LlavaForConditionalGeneration.from_pretrained(base)
    opened = PeftModel.from_pretrained(plain, aligned).merge_and_unload().state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in after.items()), "PEFT alone opens the same"

    start = dict(run_of(tiny_folders, tmp_path / "dry", base=merged).model.named_parameters())
    for name, tensor in after.items():
        if PROJECTOR in name:
            assert torch.equal(
                start[f"base_model.model.{name}".replace(PROJECTOR, f"{PROJECTOR}.modules_to_save.default")], tensor
            )
    tuned = train_here(tiny_folders, tmp_path / "tuned", base=merged)
    assert any("lora_" in name for name in adapter(tuned))
    question = training_dialogues(IALDataset(tiny_folders.data), "own")[0]
    assert AddressPredictor.from_pretrained(tuned).answer(
        question.messages[:1], IALDataset(tiny_folders.data).image_file(question.image_path), max_new_tokens=2
    )


def test_an_alignment_is_resumed_bit_by_bit(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_here(tiny_folders, tmp_path / "straight", **ALIGN)

    crash_at(monkeypatch, 3, lambda: train_here(tiny_folders, tmp_path / "resumed", **ALIGN))
    assert_same_weights(straight, train_here(tiny_folders, tmp_path / "resumed", **ALIGN))
    with pytest.raises(UserError, match="holds another run"):
        train_here(tiny_folders, tmp_path / "resumed", **ALIGN | {"dialogues": "own"})


def test_captions_become_dialogues_and_a_file_takes_their_place(
    tiny_folders: TinyFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = IALDataset(tiny_folders.data)
    captions = {sample.photo.image_id: sample.caption for sample in dataset.samples("train")}
    described = training_dialogues(dataset, "captions")
    assert {record.image_id: record.messages[1].content for record in described} == captions
    assert len({record.messages[0].content for record in described}) > 1, "asked for in several ways"
    photos = tiny_folders.data.with_name(f"{tiny_folders.data.name}_photos")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A painted wall."}]
    file = tmp_path / "captions.json"
    entries = [{"id": i, "image": str(photos / r.image_path), "conversations": turns} for i, r in enumerate(described)]
    file.write_text(json.dumps(entries[:3]), encoding="utf-8")
    train_here(tiny_folders, tmp_path / "out", **ALIGN | {"dialogues": file, "max_steps": 1})
    assert "3 dialogues of" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "3 dialogues about 3 photos" in card
    assert "trained alone beside an\nuntouched language model, and the vision tower" in card
    file.write_text(json.dumps(entries[:4]), encoding="utf-8")
    with pytest.raises(UserError, match="holds another run"):
        train_here(tiny_folders, tmp_path / "out", **ALIGN | {"dialogues": file, "max_steps": 1})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dialogues": "nowhere.json"}, "nowhere.json: No such file"),
        ({"hints": 3}, "--hints 3: allowed: 0 with --dialogues but 'own'"),
        ({"tune_vision_tower": "lora"}, "--tune_vision_tower lora: allowed: none, full with --lora_rank 0"),
    ],
)
def test_what_does_not_go_together_is_told(
    tiny_folders: TinyFolders, tmp_path: Path, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        train_here(tiny_folders, tmp_path / "out", **ALIGN | options)
    assert not (tmp_path / "out").exists()
