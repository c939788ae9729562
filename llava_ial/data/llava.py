"""From a dialogue about a photo to token ids and labels: one function for training, evaluation and chat.

The prompt is rendered from ``llava_ial/chat_template.jinja`` (Vicuna v1). Its generation marks say which characters the
assistant speaks, ``</s>`` included: these alone are supervised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from llava_ial.conversation import IMAGE_TOKEN, Message, load_chat_template, validate_messages
from llava_ial.errors import UserError
from llava_ial.hints import with_hint

IGNORE_INDEX = -100  # torch's cross-entropy skips this label


@dataclass(frozen=True)
class EncodedDialogue:
    """Token ids of a dialogue.

    Attributes:
        input_ids: ``<image>`` stands ``num_image_tokens`` times where the photo's features go.
        labels: The ids where the assistant speaks, ``IGNORE_INDEX`` elsewhere; equal length.
        num_dropped_turns: Earlier question-answer pairs left out to respect the maximum length.
        is_cut: The last answer was cut, because one pair alone was too long.
        branches: For each token 0, or which question it belongs to if questions do not see each other (see ``apart``);
            empty if each token sees all before it.
    """

    input_ids: list[int]
    labels: list[int]
    num_dropped_turns: int = 0
    is_cut: bool = False
    branches: list[int] = field(default_factory=list)


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    num_image_tokens: int,
    *,
    name: str = "",
    max_length: int | None = None,
    hint: str = "",
) -> EncodedDialogue:
    """Encodes a whole dialogue for training.

    A dialogue above ``max_length`` loses its earliest pairs, and the image mark moves to the first kept question; a
    single pair that is still too long loses the end of its answer. Image tokens are never cut.

    Args:
        tokenizer: Has ``<image>`` as one token.
        messages: Alternating user and assistant.
        num_image_tokens: Features of one photo.
        name: The conversation's id, for error messages.
        max_length: Most tokens, image tokens counted.
        hint: Told before the first question; it stays when that one is left out.

    Raises:
        UserError: Nothing would be supervised.
    """
    kept = list(messages)
    has_image = any(IMAGE_TOKEN in message.content for message in kept)
    validate_messages(kept, name, num_images=int(has_image))
    ids, labels = _encode(tokenizer, with_hint(kept, hint), num_image_tokens)
    while max_length is not None and len(ids) > max_length and len(kept) > 2:
        kept = kept[2:]
        if has_image and IMAGE_TOKEN not in kept[0].content:
            kept[0] = Message("user", f"{IMAGE_TOKEN}\n{kept[0].content}")
        ids, labels = _encode(tokenizer, with_hint(kept, hint), num_image_tokens)
    is_cut = max_length is not None and len(ids) > max_length
    if is_cut:
        ids, labels = ids[:max_length], labels[:max_length]
    if all(label == IGNORE_INDEX for label in labels):
        raise UserError(f"conversation {name}: no token to learn within max_length {max_length}; raise max_length")
    return EncodedDialogue(ids, labels, (len(messages) - len(kept)) // 2, is_cut)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], num_image_tokens: int) -> list[int]:
    """Ids up to and including ``ASSISTANT:``, for generation; a prefix of what training saw for the same dialogue."""
    return _encode(tokenizer, messages, num_image_tokens, add_generation_prompt=True)[0]


def disarm(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Breaks marks such as ``</s>`` or ``<image>`` that somebody typed, so that they stay words.

    Added tokens count whether or not they are declared special: in LLaVA's folders ``<image>`` often is not.

    Example:
        A user's "what does </s> mean?" becomes "what does < /s> mean?".
    """
    for mark in sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}):
        text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def pad_batch(sequences: Sequence[Sequence[int]], value: int, *, side: str) -> torch.Tensor:
    """Pads to the longest, ``(B, T)`` int64; ``side`` is ``right`` in training and ``left`` for generation."""
    width = max(len(sequence) for sequence in sequences)
    padded = torch.full((len(sequences), width), value, dtype=torch.long)
    for row, sequence in zip(padded, sequences, strict=True):
        span = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        row[span] = torch.tensor(sequence, dtype=torch.long)
    return padded


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    num_image_tokens: int,
    *,
    add_generation_prompt: bool = False,
) -> tuple[list[int], list[int]]:
    place = next((turn for turn, message in enumerate(messages) if _has_image_mark(message)), None)
    turns = [
        {"role": message.role, "content": _content(message.content, tokenizer, has_image=turn == place)}
        for turn, message in enumerate(messages)
    ]
    rendered, spoken = render_jinja_template(
        conversations=[turns],
        chat_template=load_chat_template(),
        return_assistant_tokens_mask=True,
        add_generation_prompt=add_generation_prompt,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
    encoding = tokenizer(rendered[0], add_special_tokens=False, return_offsets_mapping=True)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    ids: list[int] = []
    labels: list[int] = []
    for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        repeat = num_image_tokens if token == image_id else 1
        is_spoken = any(first <= start and end <= last and start < end for first, last in spoken[0])
        ids += [token] * repeat
        labels += [token if is_spoken else IGNORE_INDEX] * repeat
    return ids, labels


def _has_image_mark(message: Message) -> bool:
    return message.role == "user" and IMAGE_TOKEN in message.content


def _content(text: str, tokenizer: PreTrainedTokenizerBase, *, has_image: bool) -> str:
    """The text with every typed mark disarmed; the first image mark of a dialogue alone stands for the photo.

    Wherever a data set puts that mark, it comes first on a line of its own, as in LLaVA's training.
    """
    if not has_image:
        return disarm(text, tokenizer)
    head, _, rest = text.partition(IMAGE_TOKEN)
    return f"{IMAGE_TOKEN}\n{disarm((head + rest).strip(), tokenizer)}"
