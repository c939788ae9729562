"""One plain model from a stage 2 folder: equal to it, opened by transformers alone, refused when it is not."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.llava_merged import Agreement, refuse_disagreement
from serve.evaluate import evaluate
from serve.evaluate_settings import EvaluateConfig
from tests.stage2_runs import merge_here, train_here
from tests.tiny_models import TinyFolders


@pytest.fixture(scope="module")
def adapted(tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose LoRA really changes the model."""
    return train_here(tiny_folders, tmp_path_factory.mktemp("adapted") / "stage2", learning_rate=5e-2, max_steps=3)


def photos_of(folders: TinyFolders) -> tuple[list[Image.Image], list[list]]:
    dataset = IALDataset(folders.data)
    records = dataset.conversations("train")[:6]
    return [Image.open(dataset.image_file(r.image_path)).convert("RGB") for r in records], [
        r.messages[:1] for r in records
    ]


def test_the_merged_folder_answers_as_the_adapted_one(
    adapted: Path, tiny_folders: TinyFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = merge_here(adapted, tmp_path / "merged", data=tiny_folders.data, dtype="float32", device="cpu")
    assert "2 of 2 answers are the same" in capsys.readouterr().out
    photos, dialogues = photos_of(tiny_folders)
    theirs, ours = (AddressPredictor.from_pretrained(path) for path in (adapted, folder))
    assert ours.answer_batch(dialogues, photos) == theirs.answer_batch(dialogues, photos)
    assert ours.locate_batch(photos) == theirs.locate_batch(photos)


def test_transformers_alone_opens_it_and_gives_the_logits_of_peft(
    adapted: Path, tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    folder = merge_here(adapted, tmp_path / "merged", dtype="float32", device="cpu")
    plain = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    photos, _ = photos_of(tiny_folders)
    content = [{"type": "image"}, {"type": "text", "text": "Where was this taken?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=photos[0], text=prompt, return_tensors="pt", add_special_tokens=False)
    base = LlavaForConditionalGeneration.from_pretrained(tiny_folders.llava.parent / "base_llava", dtype=torch.float32)
    for model in (base, plain):
        model.config.vision_feature_layer = plain.config.vision_feature_layer
    with torch.no_grad():
        ours = plain(**inputs).logits
        theirs = PeftModel.from_pretrained(base, adapted).eval()(**inputs).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_second_call_finds_it_done_and_another_dtype_is_refused(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = merge_here(adapted, tmp_path / "merged", device="cpu")
    merge_here(adapted, folder, device="cpu")
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds another run"):
        merge_here(adapted, folder, dtype="float16")


def test_a_changed_weight_is_found_when_it_is_opened(adapted: Path, tmp_path: Path) -> None:
    folder = merge_here(adapted, tmp_path / "merged", device="cpu")
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match="its model is not the one it was trained with"):
        AddressPredictor.from_pretrained(folder)


def test_moved_photos_are_asked_for_and_found(adapted: Path, tiny_folders: TinyFolders, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_folders.data, tmp_path / "elsewhere" / "data")
    options = {"data": data, "dtype": "float32", "num_checks": 1, "max_new_tokens": 2}
    with pytest.raises(UserError, match=r"its photos are not at .*; name their folder with --image_root"):
        merge_here(adapted, tmp_path / "merged", **options)
    photos = tiny_folders.data.with_name(f"{tiny_folders.data.name}_photos")
    assert (merge_here(adapted, tmp_path / "merged", image_root=photos, **options) / "manifest.json").exists()


@pytest.mark.parametrize("agreement", [Agreement(0.0, 7, 8), Agreement(0.5, 8, 8), Agreement(float("nan"), 8, 8)])
def test_another_model_is_refused(agreement: Agreement) -> None:
    with pytest.raises(UserError, match="the merged model is another one"):
        refuse_disagreement(agreement, torch.float32)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dtype": "int8"}, "--dtype int8: allowed: float32, float16, bfloat16"),
        ({"num_checks": 0}, "--num_checks 0: allowed: at least 1"),
        ({"model": "/nowhere"}, "does not exist"),
    ],
)
def test_bad_settings_leave_nothing(adapted: Path, tmp_path: Path, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        merge_here(**({"model": adapted, "output": tmp_path / "merged"} | options))  # type: ignore[arg-type]
    assert not (tmp_path / "merged").exists()


def test_an_evaluation_takes_the_merged_folder_as_it_takes_the_adapted_one(
    adapted: Path, tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    folder = merge_here(adapted, tmp_path / "merged", data=tiny_folders.data, dtype="float32", device="cpu")
    names = [path.parent.name if path is adapted else path.name for path in (adapted, folder)]
    found = [
        evaluate(EvaluateConfig(tiny_folders.data, tmp_path / name / "evaluation", str(path), split="train",
                                max_new_tokens=12, shuffle_photos=False))
        for name, path in zip(names, (adapted, folder), strict=True)
    ]  # fmt: skip
    assert found[0]["answers"] == found[1]["answers"]
    assert found[0]["answers"]["num_answers"] > 0
