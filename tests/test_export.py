"""LLaVA's first layout in and out, names of transformers 4, the model card, and the hub only when it is named."""

import json
import resource
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPVisionModel

from llava_ial.errors import UserError
from llava_ial.models import hub
from llava_ial.models.llava import load_base
from llava_ial.models.llava_folder import load_llava_ial
from llava_ial.models.llava_original import from_original_name, load_original, to_original_name, tower_path
from tests.stage2_runs import merge_here, train_here
from tests.tiny_models import TinyFolders
from train import export

# As the first code names them; one of each kind.
ORIGINAL_NAMES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.input_layernorm.weight",
    "model.norm.weight",
    "model.mm_projector.0.weight",
    "model.mm_projector.0.bias",
    "model.mm_projector.2.weight",
    "model.mm_projector.2.bias",
    "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
    "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight",
)


def export_here(model: Path, output: Path, **options: object) -> Path:
    settings = {"model": model, "output": output, "dtype": "float32"} | options
    with patch.object(sys, "argv", ["export.py", *(f"--{name}={value}" for name, value in settings.items())]):
        export.main()
    return output


@pytest.fixture(scope="module")
def adapted(tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "stage2"
    return train_here(tiny_folders, out, learning_rate=5e-2, max_steps=2, tune_vision_tower="full")


@pytest.fixture(scope="module")
def original(adapted: Path) -> Path:
    return export_here(adapted, adapted.with_name("original"), format="llava")


def test_the_names_of_the_first_code_are_written_and_read(original: Path) -> None:
    written = load_file(original / "model.safetensors").keys()
    assert set(ORIGINAL_NAMES) <= set(written)
    for name in written:
        assert to_original_name(from_original_name(name)) == name
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlavaLlamaForCausalLM"]
    assert config["mm_projector_type"] == "mlp2x_gelu"
    assert (config["mm_vision_select_layer"], config["mm_vision_select_feature"]) == (-2, "patch")
    assert (config["hidden_size"], config["mm_hidden_size"]) == (64, 32)
    assert config["mm_vision_tower"] == "vision_tower", "nobody else has the maker's folders"


def test_a_tower_of_the_same_name_elsewhere_is_not_taken(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vision_tower").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tower_path(original) == str(original / "vision_tower")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_lora_of_the_first_code_is_told(original: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "llava-lora"
    folder.mkdir()
    (folder / "config.json").write_bytes((original / "config.json").read_bytes())
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 64)}, folder / name)
    with pytest.raises(UserError, match="llava-lora: LoRA alone, not a whole model; put it into its base by scripts/"):
        export_here(folder, tmp_path / "hf", format="hf")
    assert not (tmp_path / "hf").exists()


def test_the_tower_and_the_tokenizer_have_names_that_transformers_4_knows(original: Path) -> None:
    """It would go on with a random tower."""
    names = load_file(next((original / "vision_tower").glob("*.safetensors")))
    assert all(name.startswith("vision_model.") for name in names)
    _, info = CLIPVisionModel.from_pretrained(original / "vision_tower", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    settings = json.loads((original / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_there_and_back_is_the_same_model(adapted: Path, original: Path, tmp_path: Path) -> None:
    back = export_here(original, tmp_path / "hf", format="hf")
    ours, theirs = load_llava_ial(adapted).model, load_base(str(back)).eval()
    image = theirs.config.image_token_id
    ids = torch.tensor([[1, *[image] * 16, 7, 8, 9]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ours(input_ids=ids, pixel_values=pixels).logits
        torch.testing.assert_close(theirs(input_ids=ids, pixel_values=pixels).logits, expected)
    assert AutoTokenizer.from_pretrained(back).convert_tokens_to_ids("<image>") == image
    tower = CLIPVisionModel.from_pretrained(original / "vision_tower")
    with torch.no_grad():
        seen = ours.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(tower(pixels, output_hidden_states=True).hidden_states[-2], seen)
    with pytest.raises(UserError, match=r"first code; convert it: python -m train.export --format hf"):
        load_base(str(original))


def test_a_converted_base_trains(original: Path, tiny_folders: TinyFolders, tmp_path: Path) -> None:
    base = export_here(original, tmp_path / "hf", format="hf")
    assert load_llava_ial(train_here(tiny_folders, tmp_path / "out", base=base, max_steps=1)).num_image_tokens == 16


def test_a_checkpoint_without_tower_takes_the_one_that_it_names(original: Path, tmp_path: Path) -> None:
    """As LLaVA-1.5 is published: language model and projector, the tower by its name on the hub."""
    folder = tmp_path / "published"
    folder.mkdir()
    for file in original.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    state = load_file(original / "model.safetensors")
    # Without the tower, and without the last token, which stands for a mark that this code adds itself.
    state = {name: tensor for name, tensor in state.items() if "vision_tower" not in name}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    named = config | {"mm_vision_tower": str(original / "vision_tower")}
    (folder / "config.json").write_text(json.dumps(named), encoding="utf-8")
    ours, theirs = (load_original(path, dtype=torch.float32)[0].state_dict() for path in (original, folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'; only LLaVA-1.5's mlp2x_gelu"),
        ({"mm_vision_tower": "./nowhere"}, "its mm_vision_tower ./nowhere cannot be loaded"),
        ({"lm_head.weight": "left out"}, "no lm_head.weight among its weights; it holds a part of a model"),
        ({"hidden_size": 96}, "its weights do not fit its config.json"),
    ],
)
def test_a_bad_original_is_told(original: Path, tmp_path: Path, change: dict, complaint: str) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for file in original.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["mm_vision_tower"] = str(original / "vision_tower")
    (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    if "lm_head.weight" in change:
        state = load_file(folder / "model.safetensors")
        del state["lm_head.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=complaint):
        load_original(folder, dtype=torch.float32)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"format": "gguf"}, "--format gguf: allowed: llava, hf"),
        ({"format": "llava", "dtype": "int8"}, "--dtype int8: allowed"),
        ({"format": "hf"}, "not in the layout of LLaVA's first code; a folder of stage 2 becomes a plain model by"),
    ],
)
def test_bad_settings_leave_nothing(adapted: Path, tmp_path: Path, options: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        export_here(adapted, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [100_000, 10_000], ids=["the weights", "the tokenizer"])
@pytest.mark.parametrize("command", ["merge", "llava", "hf"])
def test_a_full_disk_is_told_in_one_line_and_the_command_begins_anew(
    adapted: Path, original: Path, tmp_path: Path, command: str, size: int
) -> None:
    """Files may not grow beyond a size, which the system answers like a full disk."""

    def write() -> Path:
        if command == "merge":
            return merge_here(adapted, tmp_path / "out", dtype="float32", num_checks=1, max_new_tokens=2)
        return export_here(original if command == "hf" else adapted, tmp_path / "out", format=command)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(UserError, match=r"out: there is no room to write .*; make room .* again: it begins anew"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert (write() / "manifest.json").exists()


@pytest.mark.parametrize("has_prefix", [False, True], ids=["4.40", "4.52"])
def test_names_of_transformers_4_load_with_nothing_missing(
    tiny_folders: TinyFolders, tmp_path: Path, has_prefix: bool
) -> None:
    """``language_model.model.layers`` and ``vision_tower.vision_model``, later with ``model.`` in front of both."""
    source, folder = tiny_folders.llava.parent / "base_llava", tmp_path / "old"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    renamed = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        old = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        if has_prefix:
            old = old.replace("language_model.lm_head", "lm_head").replace("language_model.model.", "language_model.")
            old = old if old.startswith("lm_head") else f"model.{old}"
        renamed[old] = tensor
    assert any("vision_model" in name for name in renamed)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    ours, theirs = load_base(str(source)).state_dict(), load_base(str(folder)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_card_says_what_was_trained_measured_and_allowed(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    licence = "## Licence and attribution\n\nPhotos: CC BY 4.0.\n\n## Another\n"
    (tiny_folders.data / "README.md").write_text(licence, encoding="utf-8")
    out = train_here(tiny_folders, tmp_path / "out", eval_strategy="steps", eval_steps=2, eval_split="train")
    (tiny_folders.data / "README.md").unlink()
    for folder, step in ((out, 4), (out / "checkpoints" / "step-000002", 2)):
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlibrary_name: peft\n")
        assert f"## Measured after step {step}\n" in card
        assert "- street_accuracy: " in card
        assert "- loss of the training: " in card
        assert "8 dialogues about 8 photos; 8 addresses." in card
        assert "> Photos: CC BY 4.0." in card
        assert "- lora_rank: 2" in card
    merged = merge_here(out, tmp_path / "merged", dtype="float32", num_checks=1, max_new_tokens=4)
    plain = (merged / "README.md").read_text(encoding="utf-8")
    assert "is `config.yaml` of the adapter's folder;" in plain
    assert "library_name: transformers" in plain
    assert "PeftModel" in card
    assert "peft" not in plain.lower()
    assert "model = LlavaForConditionalGeneration.from_pretrained(FOLDER)\n" in plain


def test_nothing_is_uploaded_unless_a_repository_is_named(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict]] = []

    class Api:
        def create_repo(self, name: str, **options: object) -> str:
            calls.append((name, options))
            return f"https://hub.example/{name}"

        def upload_folder(self, **options: object) -> None:
            calls.append(("upload", options))

    monkeypatch.setattr(hub, "HfApi", Api)
    quick = {"dtype": "float32", "num_checks": 1, "max_new_tokens": 2}
    merged = merge_here(adapted, tmp_path / "merged", **quick)
    assert calls == []
    merge_here(adapted, merged, push_to_hub="me/town", **quick)
    assert calls[0] == ("me/town", {"private": True, "exist_ok": True})
    assert calls[1][1]["folder_path"] == merged
    with pytest.raises(UserError, match="unfinished, nothing is uploaded"):
        hub.push_folder(tmp_path, "me/town")
