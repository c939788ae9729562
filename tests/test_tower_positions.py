"""A tower of stage 1 for photos of another size: fitted when asked, else refused, and plain afterwards."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, CLIPVisionModel, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava_ial.data.dataset import IALDataset
from llava_ial.data.pixels import PhotoPixels
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.address_clip import load_clip
from llava_ial.models.identity import tower_hash
from llava_ial.models.llava import TOWER, attach_tower, load_address_clip, load_base, saved_module
from llava_ial.models.llava_folder import load_llava_ial
from llava_ial.models.llava_merged import load_merged
from llava_ial.models.tower_positions import processor_for_size, state_for_size
from tests.stage2_runs import adapter, assert_same_weights, crash_at, merge_here, train_here
from tests.test_export import export_here
from tests.tiny_models import TinyFolders, write_stage1
from tests.tiny_world import build_tiny_base_clip

POSITIONS = "embeddings.position_embedding.weight"
ASKED = {"interpolate_positions": True}


@pytest.fixture(scope="module")
def folders(tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    """The tiny world with a stage 1 for photos of 48 pixels; its LLaVA takes 32."""
    folder = tmp_path_factory.mktemp("larger")
    base = build_tiny_base_clip(folder / "base_clip", tiny_folders.data, image_size=48, seed=3)
    processor = AutoImageProcessor.from_pretrained(base, backend="pil")
    write_stage1(folder / "stage1", IALDataset(tiny_folders.data), load_clip(str(base)), base, processor)
    return replace(tiny_folders, clip=folder / "stage1")


@pytest.fixture(scope="module")
def trained(folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_here(folders, tmp_path_factory.mktemp("trained") / "out", **ASKED)


def tower_of(folders: TinyFolders):
    return load_address_clip(folders.clip).vision_model


def test_its_own_size_changes_nothing(folders: TinyFolders) -> None:
    tower = tower_of(folders)
    fitted = state_for_size(tower, 48)
    assert fitted.keys() == tower.state_dict().keys()
    assert all(torch.equal(fitted[name], tensor) for name, tensor in tower.state_dict().items())


@pytest.mark.parametrize(("size", "count"), [(32, 16), (64, 64), (80, 100)])
def test_a_constant_field_stays_constant_and_the_class_token_is_kept(
    folders: TinyFolders, size: int, count: int
) -> None:
    tower = tower_of(folders)
    field = torch.linspace(-1, 1, 32)
    with torch.no_grad():
        tower.embeddings.position_embedding.weight[1:] = field
    positions = state_for_size(tower, size)[POSITIONS]
    assert positions.shape == (1 + count, 32)
    assert torch.equal(positions[0], tower.embeddings.position_embedding.weight[0])
    torch.testing.assert_close(positions[1:], field.expand(count, 32))


def cubic(distance: float) -> float:
    """Weight of a neighbour, by Keys' kernel with -0.75 as everywhere in image processing."""
    x, a = abs(distance), -0.75
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_positions_are_those_of_a_slow_cubic_interpolation(folders: TinyFolders) -> None:
    """Rows and columns are not mixed up: the grid is no symmetric one."""
    tower, before, after = tower_of(folders), 6, 4
    grid = tower.embeddings.position_embedding.weight[1:].detach().double().view(before, before, -1)
    blend = torch.zeros(after, before, dtype=torch.double)
    for i in range(after):
        place = (i + 0.5) * before / after - 0.5
        for neighbour in range(int(place) - 1, int(place) + 3):
            blend[i, min(max(neighbour, 0), before - 1)] += cubic(place - neighbour)
    expected = torch.einsum("ir,jc,rcd->ijd", blend, blend, grid)
    found = state_for_size(tower, 32)[POSITIONS][1:].view(after, after, -1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_fitted_tower_computes_what_transformers_interpolates_for_each_photo(folders: TinyFolders) -> None:
    llava = load_base(str(folders.llava.parent / "base_llava"))
    tower = tower_of(folders)
    found = attach_tower(llava, load_address_clip(folders.clip), interpolate_positions=True)
    assert found == tower_hash(llava.model.vision_tower) != tower_hash(tower)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = tower(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(llava.model.vision_tower(pixel_values=pixels).last_hidden_state, theirs)


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        CLIPImageProcessorPil(size={"shortest_edge": 60}, crop_size={"height": 48, "width": 48}),
        CLIPImageProcessorPil(size={"height": 48, "width": 48}, do_center_crop=False),
    ],
    ids=["crop", "margin", "squash"],
)
def test_the_processor_is_in_step(processor: CLIPImageProcessorPil) -> None:
    before = copy.deepcopy(processor.to_dict())
    fitted = processor_for_size(processor, 32)
    assert processor.to_dict() == before
    assert processor_for_size(processor, 48).to_dict() == before
    photo = Image.effect_noise((90, 70), 50).convert("RGB")
    assert fitted(photo, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert PhotoPixels(fitted)(photo).shape == (3, 32, 32)
    if processor.do_center_crop and processor.size["shortest_edge"] == 60:
        assert fitted.size["shortest_edge"] == 40


def test_it_is_refused_unless_asked_and_then_names_the_option(folders: TinyFolders, tmp_path: Path) -> None:
    complaint = r"has image_size 48, the base expects 32; .*fit its positions with --interpolate_positions true"
    with pytest.raises(UserError, match=complaint):
        train_here(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_asked_for_nothing_it_changes_nothing(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    plain = train_here(tiny_folders, tmp_path / "plain", max_steps=1)
    asked = train_here(tiny_folders, tmp_path / "asked", max_steps=1, **ASKED)
    assert_same_weights(plain, asked)
    assert "interpolated_tower_hash" not in load_llava_ial(asked).manifest


def test_every_way_to_open_it_brings_the_fitted_tower(trained: Path, folders: TinyFolders, tmp_path: Path) -> None:
    tower = tower_of(folders)
    expected = state_for_size(tower, 32)
    loaded = load_llava_ial(trained)
    assert loaded.manifest["tower_hash"] == tower_hash(tower), "the encoder is still stage 1's own"
    assert loaded.manifest["interpolated_tower_hash"] == tower_hash(loaded.model.model.vision_tower)
    by_peft = PeftModel.from_pretrained(load_base(str(folders.llava.parent / "base_llava")), trained)
    merged = merge_here(trained, tmp_path / "merged", dtype="float32", device="cpu", data=folders.data)
    plain = LlavaForConditionalGeneration.from_pretrained(merged, dtype=torch.float32)
    assert plain.config.vision_config.image_size == 32
    original = export_here(merged, tmp_path / "original", format="llava", dtype="float32")
    exported = CLIPVisionModel.from_pretrained(original / "vision_tower")
    assert AutoImageProcessor.from_pretrained(original / "vision_tower", backend="pil").crop_size["height"] == 32
    for found in (
        loaded.model.model.vision_tower,
        saved_module(by_peft, TOWER),
        plain.model.vision_tower,
        load_merged(merged).model.model.vision_tower,
        exported,
    ):
        assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in expected.items())


def test_processor_and_answers_are_in_step_with_the_tower(trained: Path, folders: TinyFolders, tmp_path: Path) -> None:
    merged = merge_here(trained, tmp_path / "merged", dtype="float32", device="cpu", data=folders.data)
    dataset = IALDataset(folders.data)
    records = dataset.conversations("train")[:3]
    photos = [Image.open(dataset.image_file(record.image_path)).convert("RGB") for record in records]
    content = [{"type": "image"}, {"type": "text", "text": "Where was this taken?"}]
    for folder in (trained, merged):
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=photos[0], text=prompt, return_tensors="pt", add_special_tokens=False)
        assert inputs["pixel_values"].shape == (1, 3, 32, 32)
        image = processor.tokenizer.convert_tokens_to_ids("<image>")
        assert int((inputs["input_ids"] == image).sum()) == 16
    theirs, ours = (AddressPredictor.from_pretrained(folder) for folder in (trained, merged))
    dialogues = [record.messages[:1] for record in records]
    assert ours.answer_batch(dialogues, photos) == theirs.answer_batch(dialogues, photos)
    alone = AddressPredictor.from_pretrained(folders.clip)
    assert ours.locate_batch(photos) == alone.locate_batch(photos), "the encoder still sees 48 pixels"


def test_a_swapped_fitted_tower_is_refused(trained: Path, tmp_path: Path, folders: TinyFolders) -> None:
    manifest = trained / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    try:
        manifest.write_text(text.replace(load_llava_ial(trained).manifest["interpolated_tower_hash"], "0" * 64))
        with pytest.raises(UserError, match="its vision tower is not the one it was trained with"):
            load_llava_ial(trained)
    finally:
        manifest.write_text(text, encoding="utf-8")


def test_it_is_resumed_bit_by_bit_and_may_be_tuned(
    folders: TinyFolders, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_at(monkeypatch, 3, lambda: train_here(folders, tmp_path / "resumed", **ASKED))
    assert_same_weights(trained, train_here(folders, tmp_path / "resumed", **ASKED))

    tuned = train_here(
        folders, tmp_path / "tuned", **ASKED, tune_vision_tower="lora", vision_tower_learning_rate=1e-2, max_steps=2
    )
    manifest = load_llava_ial(tuned).manifest
    hashes = [manifest[name] for name in ("tower_hash", "interpolated_tower_hash", "tuned_tower_hash")]
    assert len(set(hashes)) == 3
    name = next(name for name in adapter(tuned) if f".{TOWER}." in name and name.endswith(POSITIONS))
    assert adapter(tuned)[name].shape == (17, 32)
