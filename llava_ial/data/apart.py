"""Several questions about one photo in one sequence, none of which sees another: a trunk and its branches.

In a dialogue an answer behind the first one may be read off those before it; it then teaches the language model to copy
rather than to look. Here each question has the prompt, the photo and the hint before it and nothing else, as when it is
asked alone, and the photo is still encoded once (message trees: Deitke et al., "Molmo and PixMo", arXiv 2409.17146).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import torch
from transformers import PreTrainedTokenizerBase

from llava_ial.conversation import IMAGE_TOKEN, Message, validate_messages
from llava_ial.data.llava import IGNORE_INDEX, EncodedDialogue, encode_dialogue
from llava_ial.records import ConversationRecord

BRANCHES = "branches"  # of a batch
NO_TOKEN = -1
_TRUNK = 0


def encode_apart(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    num_image_tokens: int,
    *,
    name: str = "",
    max_length: int | None = None,
    hint: str = "",
) -> EncodedDialogue:
    """Encodes the questions of a dialogue as if each were asked alone, with what they begin with in common.

    Arguments and errors are those of ``encode_dialogue``; the hint stands before each question. The earliest questions
    are left out where all together are too long. A dialogue of one question has no branches.
    """
    has_image = any(IMAGE_TOKEN in message.content for message in messages)
    validate_messages(messages, name, num_images=int(has_image))
    mark = f"{IMAGE_TOKEN}\n" if has_image else ""
    pairs = [
        [Message("user", mark + question.content.replace(IMAGE_TOKEN, "").strip()), answer]
        for question, answer in zip(messages[::2], messages[1::2], strict=False)
    ] or [list(messages)]
    alone = [encode_dialogue(tokenizer, pair, num_image_tokens, name=name, hint=hint) for pair in pairs]
    for num_dropped in range(len(pairs) - 1):
        joined = _joined(alone[num_dropped:])
        if max_length is None or len(joined.input_ids) <= max_length:
            return replace(joined, num_dropped_turns=num_dropped)
    last = encode_dialogue(tokenizer, pairs[-1], num_image_tokens, name=name, max_length=max_length, hint=hint)
    return replace(last, num_dropped_turns=len(pairs) - 1)


def drawn_apart(records: Sequence[ConversationRecord], share: float, seed: int) -> list[bool]:
    """Whose questions do not see each other; a dialogue is drawn by its own name, whatever stands beside it."""
    return [random.Random(f"{seed} apart {record.conversation_id}").random() < share for record in records]  # noqa: S311


def branch_positions(branches: Sequence[int]) -> list[int]:
    """Each token's place in what it sees: branches go on where the trunk ends.

    Example:
        >>> branch_positions([0, 0, 1, 1, 2])
        [0, 1, 2, 3, 2]
    """
    lengths: dict[int, int] = {}
    positions = []
    for branch in branches:
        start = lengths.get(_TRUNK, 0) if branch != _TRUNK else 0
        positions.append(start + lengths.get(branch, 0))
        lengths[branch] = lengths.get(branch, 0) + 1
    return positions


def tree_attention(branches: torch.Tensor) -> torch.Tensor:
    """Which token sees which, ``(B, 1, T, T)``, true where the row's sees the column's.

    A token sees itself and, of those before it, the trunk and its own branch. A padded one sees itself alone, so that
    its row of attention is a number.

    Args:
        branches: ``(B, T)`` int64, ``NO_TOKEN`` where it is padded, on the right.
    """
    own = torch.eye(branches.shape[1], dtype=torch.bool, device=branches.device)
    is_before = torch.ones_like(own).tril()
    is_same = branches[:, :, None] == branches[:, None, :]
    is_seen = is_before & (is_same | (branches == _TRUNK)[:, None, :]) & (branches != NO_TOKEN)[:, :, None]
    return (is_seen | own)[:, None]


def as_seen(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch as the model takes it: ``branches`` become ``attention_mask``, on the device where they are."""
    rest = {name: value for name, value in batch.items() if name != BRANCHES}
    return {**rest, "attention_mask": tree_attention(batch[BRANCHES])} if BRANCHES in batch else rest


def _joined(alone: Sequence[EncodedDialogue]) -> EncodedDialogue:
    trunk = min(_num_common([dialogue.input_ids for dialogue in alone]), *map(_latest_fork, alone))
    ids, labels = alone[0].input_ids[:trunk], alone[0].labels[:trunk]
    branches = [_TRUNK] * trunk
    for number, dialogue in enumerate(alone, start=1):
        ids = ids + dialogue.input_ids[trunk:]
        labels = labels + dialogue.labels[trunk:]
        branches += [number] * (len(dialogue.input_ids) - trunk)
    return EncodedDialogue(ids, labels, branches=branches)


def _num_common(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all begin with."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))


def _latest_fork(dialogue: EncodedDialogue) -> int:
    """Where a branch must have begun: the token that foretells the first learned one belongs to it."""
    return next(place for place, label in enumerate(dialogue.labels) if label != IGNORE_INDEX) - 1
