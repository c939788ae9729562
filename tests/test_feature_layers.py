"""AddressCLIP's image embedding reaches LLaVA by the last layer, alone or beside another, in plain folders."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.feature_layers import num_read_layers, set_features
from llava_ial.models.llava import PROJECTOR, attach_tower, load_address_clip, load_base
from llava_ial.models.llava_folder import load_llava_ial
from tests.stage2_runs import adapter, assert_same_weights, crash_at, merge_here, train_here
from tests.test_export import export_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders

JOINED = {"join_last_layer": True, "vision_feature_select_strategy": "full"}


def base_of(folders: TinyFolders) -> str:
    return str(folders.llava.parent / "base_llava")


def pixels_of(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def prompt_of(llava: LlavaForConditionalGeneration, num_image_tokens: int) -> torch.Tensor:
    return torch.tensor([[1, *[llava.config.image_token_id] * num_image_tokens, 7, 8, 9]])


@pytest.fixture(scope="module")
def trained(tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_here(tiny_folders, tmp_path_factory.mktemp("joined") / "out", **JOINED)


@pytest.fixture(scope="module")
def merged(trained: Path, tiny_folders: TinyFolders) -> Path:
    return merge_here(trained, trained.parent / "merged", dtype="float32", device="cpu", data=tiny_folders.data)


@pytest.mark.parametrize("layers", [-1, [-2, -1]])
def test_the_projector_reads_what_the_image_embedding_is_made_of(
    tiny_folders: TinyFolders, layers: int | list[int]
) -> None:
    """The embedding is a norm and a linear map of the first token; scaled back, a linear map and an offset alone."""
    clip = load_address_clip(tiny_folders.clip).eval()
    llava = load_base(base_of(tiny_folders)).eval()
    attach_tower(llava, clip)
    assert set_features(llava, layers, "full") == 17
    read: list[torch.Tensor] = []
    llava.model.multi_modal_projector.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        llava.get_image_features(pixel_values=pixels_of())
        expected = clip.get_image_features(pixel_values=pixels_of()).pooler_output
        token = read[0][:, 0, -32:]  # (B, D), of the last layer
        found = clip.visual_projection(clip.vision_model.post_layernorm(token))
        torch.testing.assert_close(found, expected)
        norm, project = clip.vision_model.post_layernorm, clip.visual_projection.weight
        scale = (token.var(dim=1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        centred = torch.eye(32) - 1 / 32
        linear = functional.linear(token, project @ torch.diag(norm.weight) @ centred)
        torch.testing.assert_close(linear / scale + project @ norm.bias, expected, rtol=1e-4, atol=1e-5)


def test_by_default_it_is_not_there(tiny_folders: TinyFolders) -> None:
    """Another last layer makes another embedding, and the projector reads the same."""
    llava = load_base(base_of(tiny_folders)).eval()
    read: list[torch.Tensor] = []
    llava.model.multi_modal_projector.register_forward_pre_hook(lambda _, given: read.append(given[0].clone()))
    for layers, is_there in ((-2, False), ([-2, -1], True)):
        set_features(llava, layers, "full")
        with torch.no_grad():
            llava.get_image_features(pixel_values=pixels_of())
            llava.model.vision_tower.encoder.layers[-1].mlp.fc2.bias.add_(1)
            llava.get_image_features(pixel_values=pixels_of())
        assert torch.equal(read[-2], read[-1]) != is_there


@pytest.mark.parametrize("own", [-2, -1])
def test_a_wider_projector_starts_as_what_the_base_computes(tiny_folders: TinyFolders, own: int) -> None:
    llava = load_base(base_of(tiny_folders)).eval()
    count = set_features(llava, own, "full")
    ids = prompt_of(llava, count)
    with torch.no_grad():
        before = llava(input_ids=ids, pixel_values=pixels_of(1)).logits
        set_features(llava, [-2, -1], "full")
        assert llava.model.multi_modal_projector.linear_1.in_features == 64
        torch.testing.assert_close(llava(input_ids=ids, pixel_values=pixels_of(1)).logits, before)
    assert num_read_layers(llava.config) == 2, "a tower that is tuned is tuned up to the last layer"
    with pytest.raises(UserError, match=r"the base reads layers \[-2, -1\] of its tower side by side"):
        set_features(llava, -2, "full")
    with pytest.raises(UserError, match="vision_feature_layer 5: the tower has 2 layers"):
        set_features(llava, [5, -1], "full")


def test_the_new_columns_are_learned_and_resumed_bit_by_bit(
    trained: Path, tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(name for name in adapter(trained) if PROJECTOR in name and name.endswith("linear_1.weight"))
    columns = adapter(trained)[name]
    assert columns.shape == (64, 64)
    assert columns[:, 32:].abs().max() > 0, "they started as zeros"

    crash_at(monkeypatch, 3, lambda: train_here(tiny_folders, tmp_path / "resumed", **JOINED))
    assert_same_weights(trained, train_here(tiny_folders, tmp_path / "resumed", **JOINED))


def test_every_way_to_open_it_gives_the_same_logits(trained: Path, merged: Path, tiny_folders: TinyFolders) -> None:
    """PEFT alone by the lines of the model card, and ``transformers`` alone after a merge."""
    loaded = load_llava_ial(trained)
    assert loaded.num_image_tokens == 17
    assert loaded.manifest["vision_feature_layer"] == [-2, -1]
    card = (trained / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(base = .*\nmodel = .*\n)```", card)
    assert lines
    named = {"BASE": base_of(tiny_folders), "FOLDER": trained}
    exec(lines[1], {"LlavaForConditionalGeneration": LlavaForConditionalGeneration, "PeftModel": PeftModel}, named)
    plain = LlavaForConditionalGeneration.from_pretrained(merged, dtype=torch.float32)
    ids = prompt_of(plain, 17)
    with torch.no_grad():
        expected = loaded.model(input_ids=ids, pixel_values=pixels_of(1)).logits
        for model in (plain.eval(), named["model"].eval()):
            found = model(input_ids=ids, pixel_values=pixels_of(1)).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    dataset = IALDataset(tiny_folders.data)
    records = dataset.conversations("train")[:3]
    asked = [record.messages[:1] for record in records], [dataset.image_file(record.image_path) for record in records]
    ours, theirs = (AddressPredictor.from_pretrained(folder).answer_batch(*asked) for folder in (merged, trained))
    assert ours == theirs


def test_the_next_run_goes_on_from_a_merged_base(merged: Path, tiny_folders: TinyFolders, tmp_path: Path) -> None:
    run = run_of(tiny_folders, tmp_path / "out", base=merged, **JOINED)
    with pytest.raises(UserError, match=r"take --vision_feature_layer -2 --join_last_layer true"):
        run_of(tiny_folders, tmp_path / "out", base=merged)
    ours = run.model.get_base_model().model.multi_modal_projector.linear_1.weight
    assert torch.equal(ours, load_base(str(merged)).model.multi_modal_projector.linear_1.weight)


def test_what_it_was_before_is_measured_by_the_base_itself(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    entries = json.loads((tiny_folders.data / "llava" / "train.json").read_text(encoding="utf-8"))
    photos = tiny_folders.data.with_name(f"{tiny_folders.data.name}_photos")
    probe = tmp_path / "probe.json"
    probe.write_text(json.dumps([{**entry, "image": str(photos / entry["image"])} for entry in entries[:3]]))
    losses = []
    for name, options in (("plain", {}), ("joined", JOINED)):
        out = train_here(tiny_folders, tmp_path / name, forgetting_probe=probe, max_steps=1, **options)
        losses.append(json.loads((out / "forgetting.json").read_text(encoding="utf-8"))["loss_before"])
    assert losses[0] == pytest.approx(losses[1])


def test_it_is_refused_where_it_cannot_be(
    trained: Path, merged: Path, tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--join_last_layer True: --vision_feature_layer -1 is the last layer"):
        train_here(tiny_folders, tmp_path / "out", vision_feature_layer=-1, **JOINED)
    for folder in (trained, merged):
        with pytest.raises(UserError, match=r"reads layers \[-2, -1\] of its tower side by side, and LLaVA's first"):
            export_here(folder, tmp_path / "out", format="llava")
    assert not (tmp_path / "out").exists()
