"""Rows that share a prefix in memory say what each would say alone."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_ial.models.greedy import encode_prefixes, greedy_tokens, image_features, split_prompt
from llava_ial.models.shared_prefix import Prefixes, SharedPrefix, share_prefixes

IMAGE, END, NUM_IMAGE_TOKENS = 1, 2, 4
# Photos of different numbers of questions, out of order, and one about which nobody asks.
ROWS = [0, 2, 0, 4, 0, 2, 0, 1]


@pytest.fixture(params=[4, 2], ids=["as many key heads", "half as many key heads"])
def model(request) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=request.param, eos_token_id=END, pad_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=NUM_IMAGE_TOKENS
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 9, (len(ROWS),), generator=generator).tolist()
    questions = [torch.randint(3, 40, (length,), generator=generator).tolist() for length in lengths]
    return [[5, *[IMAGE] * NUM_IMAGE_TOKENS, *question] for question in questions]


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def _prefixes(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> Prefixes:
    return encode_prefixes(model, [5, *[IMAGE] * NUM_IMAGE_TOKENS], image_features(model, pixels))


def _alone(model, prompt, photo, limit: int) -> list[int]:
    """What ``generate`` says, its end mark repeated."""
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=photo[None], do_sample=False,
        max_new_tokens=limit, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return made + [END] * (limit - len(made))


@pytest.mark.parametrize("at_a_time", [None, 1, 3])
def test_every_row_says_what_it_says_alone(model, prompts, pixels, at_a_time) -> None:
    expected = [_alone(model, prompt, pixels[row], 16) for prompt, row in zip(prompts, ROWS, strict=True)]
    questions = [split_prompt(model, prompt)[1] for prompt in prompts]
    steps = list(
        greedy_tokens(model, _prefixes(model, pixels), ROWS, questions, max_new_tokens=16, at_a_time=at_a_time)
    )
    said = torch.stack(steps, dim=1).tolist()
    assert [answer + [END] * (16 - len(answer)) for answer in said] == expected
    assert len({tuple(answer) for answer in expected}) > 4


def test_rows_that_have_ended_are_computed_no_more(model, prompts, pixels, monkeypatch) -> None:
    questions = [split_prompt(model, prompt)[1] for prompt in prompts]
    with torch.no_grad():
        model.lm_head.weight[0] = 0
    model.config.text_config.eos_token_id = 0  # nobody says it
    expected = torch.stack(
        list(greedy_tokens(model, _prefixes(model, pixels), ROWS, questions, max_new_tokens=24)), dim=1
    )
    # The token that the most rows say at some time, but not all at once, is made the end mark.
    assert not (expected == 0).any()
    ends = [(expected == token).any(dim=1).sum().item() for token in range(40)]
    end = max(range(3, 40), key=lambda token: ends[token])
    assert ends[end] >= 5
    model.config.text_config.eos_token_id = end
    sizes = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **k: sizes.append(len(k["inputs_embeds"])) or forward(self, **k)
    )
    said = torch.stack(
        list(greedy_tokens(model, _prefixes(model, pixels), ROWS, questions, max_new_tokens=24)), dim=1
    ).tolist()
    for answer, full in zip(said, expected.tolist(), strict=True):
        stop = full.index(end) if end in full else len(full)
        assert answer == [*full[:stop], *[end] * (len(answer) - stop)]
    assert sizes[0] == len(ROWS)
    assert sizes[-1] <= len(ROWS) // 2
    assert sizes == sorted(sizes, reverse=True)


def test_other_passes_of_the_model_are_as_before(model, prompts, pixels) -> None:
    ids = torch.tensor([prompts[0], prompts[0]])
    mask = torch.ones_like(ids)
    mask[1, 0] = 0
    before = model(input_ids=ids, attention_mask=mask, pixel_values=pixels[:2]).logits
    share_prefixes(model)
    torch.testing.assert_close(
        model(input_ids=ids, attention_mask=mask, pixel_values=pixels[:2]).logits, before, rtol=0, atol=0
    )
    assert "shared_prefix" not in str(model.config.to_dict())


def test_rows_of_a_photo_come_together_and_back(model, pixels) -> None:
    prefixes = _prefixes(model, pixels)
    for rows in (ROWS, [0, 0, 1, 1], [3], [1, 0]):
        shared = SharedPrefix(prefixes, rows)
        values = torch.randn(len(rows), 2, 3, 4)
        assert torch.equal(shared.by_row(shared.by_photo(values)), values)
        assert len(shared.prefixes.keys[0]) == len(set(rows))
