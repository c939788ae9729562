"""Questions apart: one sequence, and to the last digit what each question alone would be."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_ial.config import parse_config
from llava_ial.conversation import Message, user_question
from llava_ial.data.apart import NO_TOKEN, as_seen, branch_positions, encode_apart, tree_attention
from llava_ial.data.llava import IGNORE_INDEX, EncodedDialogue, encode_dialogue, pad_batch
from llava_ial.data.llava_dataset import LlavaCollator
from llava_ial.errors import UserError
from llava_ial.models import attention
from llava_ial.models.learned_logits import learned_alone
from llava_ial.models.llava_folder import LoadedLlava, load_llava_ial
from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_identity import identity
from llava_ial.training.llava_preview import rendered
from llava_ial.training.llava_settings import LlavaSettings
from tests.stage2_runs import adapter, arguments_of, assert_same_weights, crash_at, train_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders

HINT = "Likely addresses: Oak Road, Hill 41%."
TALK = [
    user_question("Where was this taken?"),
    Message("assistant", "On Oak Road."),
    Message("user", "Which district?"),
    Message("assistant", "Hill."),
    Message("user", "Which district, please?"),
    Message("assistant", "It is Hill."),
]
ALONE = [[user_question(q.content.replace("<image>\n", "")), a] for q, a in zip(TALK[::2], TALK[1::2], strict=True)]


@pytest.fixture(scope="module")
def llava(tiny_folders: TinyFolders) -> LoadedLlava:
    loaded = load_llava_ial(tiny_folders.llava)
    loaded.model.eval()
    return loaded


def branch(dialogue: EncodedDialogue, number: int) -> tuple[list[int], list[int]]:
    """Ids and labels of what one question sees."""
    kept = [place for place, branch in enumerate(dialogue.branches) if branch in (0, number)]
    return [dialogue.input_ids[place] for place in kept], [dialogue.labels[place] for place in kept]


def sample(dialogue: EncodedDialogue, pixels: torch.Tensor | None) -> dict[str, object]:
    ids, labels = dialogue.input_ids, dialogue.labels
    return {"input_ids": ids, "labels": labels, "branches": dialogue.branches, "pixel_values": pixels}


def photo(llava: LoadedLlava, seed: int = 0) -> torch.Tensor:
    size = llava.model.config.vision_config.image_size
    return torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed))


def losses(llava: LoadedLlava, samples: Sequence[dict[str, object]]) -> torch.Tensor:
    """Of each learned token, in the order of the samples."""
    chosen = learned_alone(as_seen(LlavaCollator(llava.tokenizer.pad_token_id)(samples)))
    labels = chosen.pop("shift_labels")
    del chosen["labels"]
    return torch.nn.functional.cross_entropy(llava.model(**chosen).logits.float(), labels, reduction="none")


@pytest.mark.parametrize("hint", ["", HINT])
def test_each_branch_is_the_question_asked_alone(llava: LoadedLlava, hint: str) -> None:
    joined = encode_apart(llava.tokenizer, TALK, 16, hint=hint)
    for number, messages in enumerate(ALONE, start=1):
        alone = encode_dialogue(llava.tokenizer, messages, 16, hint=hint)
        assert branch(joined, number) == (alone.input_ids, alone.labels)
    image = llava.tokenizer.convert_tokens_to_ids("<image>")
    assert joined.input_ids.count(image) == 16, "the photo is there once"
    assert set(joined.branches) == {0, 1, 2, 3}
    text = rendered(llava.tokenizer, joined, has_colours=False)
    assert text.count("\n  | ") == 3
    assert text.count(HINT[:10]) == (1 if hint else 0), "what all have in common is written once"


def test_the_same_question_twice_forks_before_its_answer(llava: LoadedLlava) -> None:
    """The logits that foretell the first learned token are its own branch's, not the end of the branch before."""
    twice = [*TALK[:2], Message("user", "Where was this taken?"), Message("assistant", "On Elm Lane.")]
    joined = encode_apart(llava.tokenizer, twice, 16)
    first = joined.branches.index(1)
    assert joined.labels[first] == IGNORE_INDEX
    assert joined.labels[first + 1] != IGNORE_INDEX
    assert joined.labels[joined.branches.index(2)] == IGNORE_INDEX


def test_losses_and_gradients_are_those_of_the_questions_alone(llava: LoadedLlava) -> None:
    joined = encode_apart(llava.tokenizer, TALK, 16, hint=HINT)
    alone = [encode_dialogue(llava.tokenizer, messages, 16, hint=HINT) for messages in ALONE]
    text_only = encode_dialogue(llava.tokenizer, [Message("user", "What?"), Message("assistant", "That.")], 16)
    whole = encode_dialogue(llava.tokenizer, TALK, 16)
    pixels, other = photo(llava), photo(llava, 1)
    # One batch of all kinds, the joined one padded and beside others, against one by one.
    long = encode_apart(llava.tokenizer, [*TALK, *TALK[2:]], 16, hint=HINT)
    batch = [sample(joined, pixels), sample(text_only, None), sample(whole, other), sample(long, other)]
    together = losses(llava, batch)
    single = torch.cat([
        *[losses(llava, [sample(each, pixels)]) for each in alone],
        losses(llava, [sample(text_only, None)]),
        losses(llava, [sample(whole, other)]),
        *[losses(llava, [sample(each, other)]) for each in [*alone, *alone[1:]]],
    ])  # fmt: skip
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, single, atol=2e-5, rtol=1e-5)
    trained = [*llava.model.model.multi_modal_projector.parameters(), *llava.model.lm_head.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    ours = torch.autograd.grad(losses(llava, batch).sum(), trained)
    parts = [[sample(each, pixels)] for each in alone] + [batch[1:2], batch[2:3]]
    parts += [[sample(each, other)] for each in [*alone, *alone[1:]]]
    theirs = torch.autograd.grad(torch.cat([losses(llava, part) for part in parts]).sum(), trained)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()) + 1e-7, rtol=1e-3)


def test_what_one_question_is_answered_changes_nothing_for_another(llava: LoadedLlava) -> None:
    other = [*TALK[:1], Message("assistant", "By Elm Lane!"), *TALK[2:]]
    found = [encode_apart(llava.tokenizer, talk, 16) for talk in (TALK, other)]
    lengths = [sum(b == 1 and label != IGNORE_INDEX for b, label in zip(d.branches, d.labels, strict=True))
               for d in found]  # fmt: skip
    a, b = (losses(llava, [sample(d, photo(llava))])[n:] for d, n in zip(found, lengths, strict=True))
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
    whole = [encode_dialogue(llava.tokenizer, talk, 16) for talk in (TALK, other)]
    a, b = (losses(llava, [sample(d, photo(llava))])[n:] for d, n in zip(whole, lengths, strict=True))
    assert not torch.allclose(a, b, atol=1e-3), "in a dialogue it does"


def test_too_long_leaves_out_the_earliest_and_one_question_needs_no_branch(llava: LoadedLlava) -> None:
    two = encode_apart(llava.tokenizer, [user_question(TALK[2].content), *TALK[3:]], 16)
    cut = encode_apart(llava.tokenizer, TALK, 16, max_length=len(two.input_ids))
    assert cut == replace(two, num_dropped_turns=1)
    last = encode_dialogue(llava.tokenizer, ALONE[2], 16)
    assert encode_apart(llava.tokenizer, TALK, 16, max_length=len(last.input_ids)) == replace(last, num_dropped_turns=2)
    assert encode_apart(llava.tokenizer, ALONE[1], 16) == encode_dialogue(llava.tokenizer, ALONE[1], 16)
    dangling = encode_apart(llava.tokenizer, [*TALK, Message("user", "And?")], 16)
    assert dangling == encode_apart(llava.tokenizer, TALK, 16), "a question without an answer teaches nothing"


def test_an_early_question_that_is_too_long_is_left_out_and_a_late_one_is_cut(llava: LoadedLlava) -> None:
    long = user_question("Where was this taken, " + "and when, " * 30 + "and why?")
    last = encode_dialogue(llava.tokenizer, ALONE[2], 16)
    limit = len(last.input_ids)
    found = encode_apart(llava.tokenizer, [long, TALK[1], *TALK[4:]], 16, max_length=limit)
    assert found == replace(last, num_dropped_turns=1)
    cut = encode_apart(llava.tokenizer, TALK, 16, max_length=limit - 2)
    assert (cut.is_cut, cut.num_dropped_turns) == (True, 2)
    assert cut.input_ids == last.input_ids[:-2]


def test_flash_attention_is_not_chosen_where_it_could_run(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_obstacle_to_flash", lambda *_: "")
    for share, kernel in ((0.0, "flash_attention_2"), (0.5, "sdpa")):
        argv = arguments_of(tiny_folders, tmp_path / "out", questions_apart=share)
        settings, arguments = parse_config(LlavaSettings, LlavaArguments, description="", argv=argv)
        assert settings.attention(arguments) == kernel


def test_a_run_begun_before_these_options_is_still_itself(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    argv = arguments_of(tiny_folders, tmp_path / "out")
    found = identity(*parse_config(LlavaSettings, LlavaArguments, description="", argv=argv))
    assert not {"questions_apart", "min_crop_area", "colour_jitter", "white_balance_jitter"} & found.keys()


def test_what_is_measured_is_seen_as_in_training(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_split": "train", "questions_apart": 0.5}
    run = run_of(tiny_folders, tmp_path / "out", **options)
    assert run.validation is not None
    ours, theirs = (
        {r.conversation_id: bool(d.branches) for r, d in zip(rows.conversations, rows.encoded, strict=True)}
        for rows in (run.train_set, run.validation.dialogues)
    )
    assert ours == theirs


def test_checkpointed_activations_give_the_same_weights(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    plain = {"questions_apart": 1, "max_steps": 2, "lora_dropout": 0}
    ours = adapter(train_here(tiny_folders, tmp_path / "plain", **plain))
    theirs = adapter(train_here(tiny_folders, tmp_path / "checked", activation_checkpointing=True, **plain))
    for name, weights in ours.items():
        torch.testing.assert_close(theirs[name], weights, atol=1e-6, rtol=1e-5)


def test_bad_dialogues_are_told_as_elsewhere(llava: LoadedLlava) -> None:
    with pytest.raises(UserError, match="conversation c-1: turn 2 is empty"):
        encode_apart(llava.tokenizer, [TALK[0], Message("assistant", " ")], 16, name="c-1")
    with pytest.raises(UserError, match="conversation c-1: no token to learn"):
        encode_apart(llava.tokenizer, TALK[:1], 16, name="c-1")
    with pytest.raises(UserError, match="conversation c-1: no messages"):
        encode_apart(llava.tokenizer, [], 16, name="c-1")


@given(st.lists(st.lists(st.integers(1, 4), max_size=5).map(lambda sizes: _tree(sizes)), min_size=1, max_size=3))
def test_the_mask_is_that_of_the_naive_reading(rows: list[list[int]]) -> None:
    width = max(map(len, rows))
    mask = tree_attention(pad_batch(rows, NO_TOKEN, side="right"))
    assert mask.shape == (len(rows), 1, width, width)
    for row, found in zip(rows, mask[:, 0].tolist(), strict=True):
        for seeing in range(width):
            for seen in range(width):
                is_own = max(seeing, seen) < len(row) and seen <= seeing and row[seen] in (0, row[seeing])
                assert found[seeing][seen] == (is_own or seeing == seen)
        for place in range(len(row)):  # what a token sees are the positions before its own, each once
            seen_places = [branch_positions(row)[seen] for seen in range(len(row)) if found[place][seen]]
            assert sorted(seen_places) == list(range(branch_positions(row)[place] + 1))


def _tree(sizes: list[int]) -> list[int]:
    return [0, 0] + [number for number, size in enumerate(sizes, start=1) for _ in range(size)]


def test_a_share_of_the_dialogues_is_drawn_by_name(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    def apart(share: float, **options: object) -> list[bool]:
        run = run_of(tiny_folders, tmp_path / "out", questions_apart=share, **options)
        return [bool(dialogue.branches) for dialogue in run.train_set.encoded]

    assert apart(0.0) == [False] * 8
    assert apart(1.0) == [True] * 8
    some = apart(0.5)
    assert 0 < sum(some) < 8
    assert apart(0.5) == some
    assert all(more for more, fewer in zip(apart(0.8), some, strict=True) if fewer), (
        "a larger share has the smaller one"
    )
    assert apart(0.5, seed=3) != some or apart(0.5, seed=4) != some


def test_it_learns_whole_and_is_resumed_bit_by_bit(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"questions_apart": 0.5, "eval_strategy": "steps", "eval_steps": 2, "eval_split": "train"}
    straight = train_here(tiny_folders, tmp_path / "straight", **options)
    assert "of them apart" in capsys.readouterr().out

    crash_at(monkeypatch, 3, lambda: train_here(tiny_folders, tmp_path / "resumed", **options))
    assert_same_weights(train_here(tiny_folders, tmp_path / "resumed", **options), straight)
    whole = adapter(train_here(tiny_folders, tmp_path / "whole", **(options | {"questions_apart": 0})))
    assert any(not torch.equal(whole[name], weights) for name, weights in adapter(straight).items())


def test_one_loss_however_the_batch_is_cut(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    plain = {"questions_apart": 0.5, "max_steps": 2, "optim": "sgd", "lora_dropout": 0, "max_grad_norm": 0}
    whole = train_here(tiny_folders, tmp_path / "whole", per_device_train_batch_size=4, **plain)
    parts = train_here(
        tiny_folders, tmp_path / "parts", per_device_train_batch_size=1, gradient_accumulation_steps=4, **plain
    )
    ours, theirs = adapter(whole), adapter(parts)
    for name, weights in ours.items():
        torch.testing.assert_close(theirs[name], weights, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"questions_apart": 1.5}, "--questions_apart 1.5: allowed: from 0 to 1"),
        ({"questions_apart": 1, "attn_implementation": "eager"}, "--attn_implementation eager: allowed: auto, sdpa"),
        ({"questions_apart": 1, "attn_implementation": "flash_attention_2"}, "allowed: auto, sdpa with --questions"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_folders: TinyFolders, tmp_path: Path, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        train_here(tiny_folders, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
