"""What of LLaVA trains, which tower is in it, and that a folder is whole or not there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPConfig, CLIPModel, LlavaForConditionalGeneration

from llava_ial.conversation import user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import encode_prompt
from llava_ial.data.llava_dataset import LlavaCollator, LlavaDataset
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.manifest import claim_folder, file_hash
from llava_ial.models.feature_layers import set_features
from llava_ial.models.identity import hash_tensors, tower_hash
from llava_ial.models.llava import (
    PROJECTOR,
    TOWER,
    LoraSettings,
    add_adapter,
    attach_tower,
    load_address_clip,
    load_base,
    saved_module,
)
from llava_ial.models.llava_folder import KIND, load_llava_ial, save_llava_ial
from llava_ial.models.trainable import trainable_table
from tests.tiny_models import TinyFolders


def base_of(folders: TinyFolders) -> str:
    return str(folders.llava.parent / "base_llava")


@pytest.fixture
def adapted(tiny_folders: TinyFolders) -> PeftModel:
    torch.manual_seed(0)
    llava = load_base(base_of(tiny_folders))
    attach_tower(llava, load_address_clip(tiny_folders.clip))
    return add_adapter(llava, LoraSettings(rank=2, alpha=4, dropout=0.0))


def batch_of(folders: TinyFolders, model: PeftModel, rows: int = 4) -> dict[str, torch.Tensor]:
    data = IALDataset(folders.data)
    parts = load_llava_ial(folders.llava)
    count = set_features(model.get_base_model(), -2, "default")
    photos = LlavaDataset(
        data,
        data.conversations("train"),
        parts.tokenizer,
        parts.image_processor,
        num_image_tokens=count,
        max_length=512,
    )
    return LlavaCollator(parts.tokenizer.pad_token_id)([photos[i] for i in range(rows)])


def test_lora_is_on_every_linear_map_of_the_language_model_and_nowhere_else(adapted: PeftModel) -> None:
    names = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert len(names) == 2 * 7, "two layers of four attention and three MLP maps"
    assert all("language_model.layers" in name for name in names)
    assert not any("vision_tower" in name or "multi_modal_projector" in name for name in names)


def test_what_moves_and_what_does_not_tensor_by_tensor(adapted: PeftModel, tiny_folders: TinyFolders) -> None:
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    batch = batch_of(tiny_folders, adapted)
    for _ in range(2):  # LoRA's A gets no gradient while B is zero
        optimizer.zero_grad()
        adapted(**batch).loss.backward()
        optimizer.step()
    moved = {name for name, tensor in adapted.state_dict().items() if not torch.equal(tensor, before[name])}
    should = {name for name in before if ".lora_" in name or "multi_modal_projector.modules_to_save" in name}
    assert moved == should


def test_the_table_counts_every_parameter_once(adapted: PeftModel) -> None:
    base = sum(p.numel() for p in adapted.get_base_model().parameters())
    twice = sum(p.numel() for n, p in adapted.named_parameters() if "original_module" in n)
    lines = {line[:28].strip(): line[28:].split() for line in trainable_table(adapted).splitlines()}
    assert int(lines["all"][0].replace(",", "")) == base - twice
    assert lines["vision tower"][1] == lines["language model"][1] == "0"
    assert lines["projector"][0] == lines["projector"][1]


def test_the_tower_of_stage_1_arrives_bit_for_bit(tiny_folders: TinyFolders) -> None:
    clip = load_address_clip(tiny_folders.clip)
    llava = load_base(base_of(tiny_folders))
    with torch.no_grad():
        for parameter in llava.model.vision_tower.parameters():
            parameter.zero_()
    assert attach_tower(llava, clip) == tower_hash(clip.vision_model)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        tower(pixel_values=pixels).last_hidden_state for tower in (llava.model.vision_tower, clip.vision_model)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "value"), [("hidden_size", 64), ("image_size", 48), ("hidden_act", "gelu")])
def test_another_tower_is_refused(tiny_folders: TinyFolders, name: str, value: object) -> None:
    llava = load_base(base_of(tiny_folders))
    config = CLIPConfig.from_pretrained(tiny_folders.clip)
    setattr(config.vision_config, name, value)
    with pytest.raises(UserError, match=f"the tower of stage 1 has {name} {value}"):
        attach_tower(llava, CLIPModel(config))


def test_a_swapped_tower_is_refused_by_its_hash(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    swapped = shutil.copytree(tiny_folders.clip, tmp_path / "swapped")
    state = load_file(swapped / "model.safetensors")
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    save_file({**state, name: state[name] + 0.5}, swapped / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="the vision tower is not the one its manifest names"):
        load_address_clip(swapped)


def test_bases_that_are_no_llava_are_refused(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a clip; expected a llava"):
        load_base(str(tiny_folders.clip))
    with pytest.raises(UserError, match="is no LLaVA that can be loaded"):
        load_base(str(tmp_path / "nowhere"))
    holed = shutil.copytree(base_of(tiny_folders), tmp_path / "holed")
    state = load_file(holed / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if "down_proj" not in name}
    assert len(kept) < len(state)
    save_file(kept, holed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"2 weights are missing, for example .*down_proj"):
        load_base(str(holed))


@pytest.mark.parametrize(("strategy", "count"), [("default", 16), ("full", 17)])
def test_image_tokens_follow_the_selected_features(tiny_folders: TinyFolders, strategy: str, count: int) -> None:
    llava = load_base(base_of(tiny_folders))
    assert set_features(llava, -1, strategy) == count
    features = llava.get_image_features(pixel_values=torch.zeros(1, 3, 32, 32)).pooler_output[0]
    assert features.shape[0] == count
    with pytest.raises(UserError, match="allowed: default, full"):
        set_features(llava, -1, "cls")
    with pytest.raises(UserError, match="the tower has 2 layers"):
        set_features(llava, -4, "full")


def save(folder: Path, model: PeftModel, folders: TinyFolders) -> Path:
    parts = load_llava_ial(folders.llava)
    claim_folder(folder, KIND, {})
    save_llava_ial(
        folder,
        model,
        parts.tokenizer,
        parts.image_processor,
        base=base_of(folders),
        clip_folder=folders.clip,
        config={},
    )
    return folder


def test_a_folder_restores_everything_with_peft_alone_and_merged(
    adapted: PeftModel, tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    """Tower, projector and LoRA all differ from the base's, and all come back."""
    clip = load_address_clip(tiny_folders.clip)
    batch = batch_of(tiny_folders, adapted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "projector.modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
        expected = adapted.eval()(**batch).logits
    folder = save(tmp_path / "out", adapted, tiny_folders)

    base = LlavaForConditionalGeneration.from_pretrained(base_of(tiny_folders))
    with torch.no_grad():
        for parameter in base.model.vision_tower.parameters():
            parameter.zero_()  # so that the tower can only come from the adapter
    set_features(base, -2, "default")
    alone = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        assert torch.equal(alone(**batch).logits, expected)
        merged = load_llava_ial(folder)
        torch.testing.assert_close(merged.model(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    assert tower_hash(merged.model.model.vision_tower) == tower_hash(clip.vision_model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_opens_in_every_precision(tiny_folders: TinyFolders, tmp_path: Path, dtype: torch.dtype) -> None:
    """Its tower is one of 32 bits, which float16 rounds to weights of another hash."""
    loaded = load_llava_ial(tiny_folders.llava, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    stored = load_llava_ial(tiny_folders.llava).model.state_dict()
    assert all(torch.equal(t, stored[name].to(dtype)) for name, t in loaded.model.state_dict().items() if TOWER in name)
    predictor = AddressPredictor.from_pretrained(tiny_folders.llava, dtype=dtype)
    dataset = IALDataset(tiny_folders.data)
    record = dataset.conversations("train")[0]
    answer = predictor.answer(record.messages[:1], dataset.image_file(record.image_path))
    assert answer.text == record.messages[1].content


def test_a_folder_opens_as_a_processor_with_the_same_ids(tiny_folders: TinyFolders) -> None:
    parts = load_llava_ial(tiny_folders.llava)
    processor = AutoProcessor.from_pretrained(tiny_folders.llava, backend="pil")
    dialogue = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is this?"}]}]
    text = processor.apply_chat_template(dialogue, add_generation_prompt=True)
    photo = torch.zeros(3, 32, 32, dtype=torch.uint8).permute(1, 2, 0).numpy()
    found = processor(images=photo, text=text, add_special_tokens=False)["input_ids"][0]
    assert list(found) == encode_prompt(parts.tokenizer, [user_question("Where is this?")], parts.num_image_tokens)


@pytest.mark.parametrize("part", ["tower", "projector", "adapter", "base", "template"])
def test_a_changed_part_is_refused_when_opened(tiny_folders: TinyFolders, tmp_path: Path, part: str) -> None:
    """A tool that rewrites a file and its hash is still found out by the hash of what is inside."""
    root = tmp_path / "moved"
    folder = shutil.copytree(tiny_folders.llava, root / "stage2")
    shutil.copytree(base_of(tiny_folders), root / "base_llava")
    load_llava_ial(folder)  # a moved pair opens: the base is named relative to the folder
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    name = {"tower": ".vision_tower.", "projector": ".multi_modal_projector.", "adapter": ".lora_B."}.get(part)
    if name:
        file = folder / "adapter_model.safetensors"
        state = load_file(file)
        key = next(key for key in sorted(state) if name in key)
        save_file({**state, key: state[key] + 0.5}, file, metadata={"format": "pt"})
        if part != "adapter":
            manifest["adapter_hash"] = file_hash(file)
    elif part == "base":
        file = root / "base_llava" / "model.safetensors"
        state = load_file(file)
        save_file({key: tensor * 1.5 for key, tensor in state.items()}, file, metadata={"format": "pt"})
    else:
        manifest["chat_template_hash"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="is not the one it was trained with"):
        load_llava_ial(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("part", [TOWER, PROJECTOR])
def test_a_part_that_did_not_arrive_is_refused(
    tiny_folders: TinyFolders, monkeypatch: pytest.MonkeyPatch, part: str, dtype: torch.dtype
) -> None:
    """The file is the right one, but other weights are in memory: as if PEFT read its names wrongly."""
    read = PeftModel.from_pretrained

    def misread(llava: LlavaForConditionalGeneration, folder: Path) -> PeftModel:
        model = read(llava, folder)
        with torch.no_grad():
            next(saved_module(model, part).parameters()).mul_(2)
        return model

    monkeypatch.setattr(PeftModel, "from_pretrained", misread)
    with pytest.raises(UserError, match="is not the one it was trained with"):
        load_llava_ial(tiny_folders.llava, dtype=dtype)


def test_a_moved_base_is_asked_for(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folders.llava, tmp_path / "alone")
    with pytest.raises(UserError, match=r"its base model is not at .*; name its folder with --base"):
        load_llava_ial(folder)
    assert load_llava_ial(folder, base=base_of(tiny_folders)).num_image_tokens == 16


def test_weights_that_are_no_numbers_are_not_published(
    adapted: PeftModel, tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if "lora_A" in n)[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"1 of \d+ weights are empty or no numbers.*lora_A"):
        save(tmp_path / "out", adapted, tiny_folders)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_tower_that_is_not_stage_1s_is_not_published(
    adapted: PeftModel, tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if "vision_tower.modules_to_save" in n).add_(1.0)
    with pytest.raises(UserError, match="its vision tower is not the one it was trained with"):
        save(tmp_path / "out", adapted, tiny_folders)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_torn_copy_of_the_encoder_is_not_taken_for_whole(
    adapted: PeftModel, tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    torn = tmp_path / "out" / ".address_clip.tmp"
    claim_folder(tmp_path / "out", KIND, {})
    torn.mkdir()
    shutil.copy(tiny_folders.clip / "manifest.json", torn)
    folder = save(tmp_path / "out", adapted, tiny_folders)
    assert not torn.exists()
    assert hash_tensors(load_file(folder / "address_clip" / "model.safetensors")) == hash_tensors(
        load_file(tiny_folders.clip / "model.safetensors")
    )
