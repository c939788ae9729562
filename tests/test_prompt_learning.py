"""Prompt learners against the plain CLIP that they sit on."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoTokenizer, CLIPModel

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.models.address_clip import load_clip
from llava_ial.models.prompt_learning import METHODS, CoOp, MaPLe, build_prompt_learner
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset

WORDS = "a street view of"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory):
    """CLIP, tokenizer, addresses, photos."""
    folder: Path = tmp_path_factory.mktemp("prompts")
    dataset = IALDataset(build_tiny_dataset(folder / "data"))
    base = build_tiny_base_clip(folder / "base", folder / "data")
    config = load_clip(str(base)).config
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 2
    torch.manual_seed(0)
    clip = CLIPModel(config).double().eval()
    side = clip.config.vision_config.image_size
    photos = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return clip, AutoTokenizer.from_pretrained(base), [record.verbose for record in dataset.gallery], photos


def build(parts, method: str, **options):
    clip, tokenizer, addresses, _ = parts
    torch.manual_seed(1)
    return build_prompt_learner(method, copy.deepcopy(clip), tokenizer, addresses, **options).double()


def plain_logits(parts) -> torch.Tensor:
    clip, tokenizer, addresses, photos = parts
    tokens = tokenizer([f"{WORDS} {address}" for address in addresses], padding=True, return_tensors="pt")
    with torch.no_grad():
        return clip(**tokens, pixel_values=photos).logits_per_image


@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_vectors_that_are_words_make_the_plain_clip(parts, method: str):
    learner = build(parts, method)
    if method == "cocoop":
        torch.nn.init.zeros_(learner.shift[-1].weight)
        torch.nn.init.zeros_(learner.shift[-1].bias)
    torch.testing.assert_close(learner(parts[3]), plain_logits(parts))


def test_maple_of_one_layer_is_the_plain_text_tower_and_without_vectors_the_plain_clip(parts):
    clip, tokenizer, addresses, photos = parts
    one = build(parts, "maple", depth=1)
    expected = build(parts, "coop").class_features(build(parts, "coop").context)
    torch.testing.assert_close(one.class_features(one.context), expected)
    bare = build(parts, "maple", depth=2, first_words="")
    tokens = tokenizer(addresses, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(bare(photos), clip(**tokens, pixel_values=photos).logits_per_image)


def test_maple_replaces_its_vectors_from_layer_to_layer(parts):
    learner, photos = build(parts, "maple", depth=2), parts[3]
    assert isinstance(learner, MaPLe)
    seen = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in
             learner.clip.vision_model.encoder.layers]  # fmt: skip
    learner.image_features(photos)
    for hook in hooks:
        hook.remove()
    num = len(learner.context)
    expected = learner.coupling[1](learner.deeper[0])
    torch.testing.assert_close(seen[1][:, -num:], expected.expand(len(photos), -1, -1))
    assert {hidden.shape[1] for hidden in seen} == {seen[0].shape[1]}


@pytest.mark.parametrize("method", METHODS)
def test_chunks_of_classes_change_no_value_and_no_gradient(parts, method: str):
    results = []
    for class_chunk in (256, 3):
        learner = build(parts, method, class_chunk=class_chunk)
        if method == "cocoop":
            torch.nn.init.ones_(learner.shift[0].bias)  # no unit is dead for these photos
        logits = learner(parts[3])
        cross_entropy(logits, torch.tensor([0, 4, 7])).backward()
        results.append(
            {"logits": logits.detach(), **{n: p.grad for n, p in learner.named_parameters() if p.requires_grad}}
        )
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, msg=name)
        assert expected.abs().max() > 0, name


@pytest.mark.parametrize("method", METHODS)
def test_only_the_prompts_move_and_the_photos_are_learnt(parts, method: str):
    learner, before = build(parts, method), copy.deepcopy(parts[0].state_dict())
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer, truth = torch.optim.AdamW(trained, lr=0.02), torch.tensor([0, 4, 7])
    losses = []
    for _ in range(25):
        loss = cross_entropy(learner.train()(parts[3]), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    clip: CLIPModel = learner.clip
    assert not clip.training
    for name, tensor in clip.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert {n.split(".")[0] for n, p in learner.named_parameters() if p.requires_grad} == {
        "coop": {"context"},
        "cocoop": {"context", "shift"},
        "maple": {"context", "deeper", "coupling"},
    }[method]


def test_a_text_that_leaves_no_room_is_refused(parts):
    clip, tokenizer, addresses, _ = parts
    with pytest.raises(UserError, match=r"prompt vectors has \d+ tokens, the encoder reads"):
        CoOp(copy.deepcopy(clip), tokenizer, [*addresses, "elm way " * 60])


def test_features_have_length_one(parts):
    for method in METHODS:
        learner = build(parts, method)
        features = learner.image_features(parts[3])
        torch.testing.assert_close(features, normalize(features, dim=-1))
