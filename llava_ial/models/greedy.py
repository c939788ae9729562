"""Greedy generation of LLaVA answers: one loop for a streamed answer and for a batch of them.

Every prompt begins with the same sentence and the photo: its prefix, up to the last image token. With LLaVA-1.5's 576
image tokens that is nearly all of a prompt, so it is computed once per photo (``encode_prefixes``), and each question
about the photo goes on from there (``greedy_tokens``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, LlavaForConditionalGeneration
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Prefixes:
    """What the language model remembers of photos: keys and values of every layer, each ``(K, heads, P, D_head)``."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def length(self) -> int:
        """P, the tokens of a prefix."""
        return int(self.keys[0].shape[2])


@torch.no_grad()
def image_features(model: LlavaForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the language model sees of photos: ``(N, 3, H, W)`` to ``(N, T_image, D)``."""
    found = model.get_image_features(pixel_values=pixel_values.to(model.device, model.dtype)).pooler_output
    return torch.stack(list(found))


def split_prompt(model: LlavaForConditionalGeneration, prompt: Sequence[int]) -> tuple[list[int], list[int]]:
    """A prompt as its prefix, which ends with the last image token, and the rest, which is never empty."""
    image = model.config.image_token_id
    end = len(prompt) - next(i for i, token in enumerate(reversed(prompt)) if token == image)
    return list(prompt[:end]), list(prompt[end:])


@torch.no_grad()
def encode_prefixes(model: LlavaForConditionalGeneration, prefix: Sequence[int], photos: torch.Tensor) -> Prefixes:
    """Reads the beginning of the prompt with each photo in it.

    Args:
        model: In evaluation mode.
        prefix: Token ids of ``split_prompt``, the same for all photos.
        photos: ``(K, T_image, D)`` of ``image_features``.
    """
    ids = torch.tensor([list(prefix)] * len(photos), device=model.device)  # (K, P)
    embeds = model.get_input_embeddings()(ids)
    is_image = ids == model.config.image_token_id
    embeds = embeds.masked_scatter(is_image[:, :, None], photos.to(embeds.device, embeds.dtype))
    layers = model.model(inputs_embeds=embeds, use_cache=True).past_key_values.layers
    return Prefixes([layer.keys for layer in layers], [layer.values for layer in layers])


@torch.no_grad()
def greedy_tokens(
    model: LlavaForConditionalGeneration,
    prefixes: Prefixes,
    rows: Sequence[int],
    questions: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    together: bool = False,
) -> Iterator[torch.Tensor]:
    """The likeliest next token of each prompt, ``(B,)`` at a time, until each has ended or the limit is reached.

    Nothing is computed ahead: whoever stops asking stops the generation. A row that has ended goes on with its end
    mark. Questions of different lengths are padded on the left, masked, and counted from their own first token, so an
    answer does not depend on its neighbours.

    Args:
        model: In evaluation mode.
        prefixes: Of ``encode_prefixes``.
        rows: ``(B,)`` which prefix each question goes on from.
        questions: ``(B,)`` token ids of the prompts behind their prefixes.
        max_new_tokens: Most tokens of an answer, the end mark counted.
        together: The rows are views of one place and get one answer: each token is the likeliest by the mean of their
            log-probabilities, as if every view had a vote.
    """
    end = end_token(model)
    ids, is_token = pad_left(questions, end)
    ids, is_token = ids.to(model.device), is_token.to(model.device)  # (B, T)
    mask = torch.cat([is_token.new_ones(len(ids), prefixes.length), is_token], dim=1)
    positions = (mask.cumsum(dim=1) - 1)[:, prefixes.length :]
    cache = continue_prefixes(prefixes, rows, room=ids.shape[1] + max_new_tokens)
    has_ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        output = model(
            inputs_embeds=model.get_input_embeddings()(ids),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        scores = output.logits[:, -1]  # (B, V)
        if together:
            scores = scores.float().log_softmax(dim=-1).mean(dim=0, keepdim=True).expand(len(scores), -1)
        tokens = scores.argmax(dim=-1).masked_fill(has_ended, end)  # (B,)
        yield tokens
        has_ended |= tokens == end
        if bool(has_ended.all()):
            return
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
        ids = tokens[:, None]


def continue_prefixes(prefixes: Prefixes, rows: Sequence[int], *, room: int) -> Cache:
    """A cache that begins with the prefix of each row and has room for so many tokens more."""
    index = torch.tensor(list(rows), device=prefixes.keys[0].device)
    return Cache(
        layers=[
            _RoomyLayer(keys, values, index, room) for keys, values in zip(prefixes.keys, prefixes.values, strict=True)
        ]
    )


class _RoomyLayer(DynamicLayer):
    """Keys and values with room at the end: ``DynamicLayer`` would copy the photo's part for every token."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, index: torch.Tensor, room: int) -> None:
        super().__init__()
        _, heads, self._length, size = keys.shape
        shape = (len(index), heads, self._length + room, size)
        self._all_keys, self._all_values = keys.new_empty(shape), values.new_empty(shape)
        self._all_keys[:, :, : self._length] = keys[index]
        self._all_values[:, :, : self._length] = values[index]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds tokens in place; returns everything so far, as views."""
        span = slice(self._length, self._length + key_states.shape[2])
        self._all_keys[:, :, span] = key_states
        self._all_values[:, :, span] = value_states
        self._length = span.stop
        self._show()
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets so many tokens at the end, given as a negative number like everywhere in ``transformers``."""
        self._length -= abs(tokens_to_remove)
        self._show()

    def _show(self) -> None:
        self.keys = self._all_keys[:, :, : self._length]
        self.values = self._all_values[:, :, : self._length]


def end_token(model: LlavaForConditionalGeneration) -> int:
    """Id of ``</s>``, which training supervises at the end of every answer."""
    end = model.config.text_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end)


def pad_left(sequences: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, ``(B, T)`` each; the mask is 0 where ``value`` was filled in."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[value] * (width - len(sequence)) + list(sequence) for sequence in sequences])
    mask = torch.tensor([[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences])
    return ids, mask
