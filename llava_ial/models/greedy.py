"""Greedy generation of LLaVA answers: one loop for a streamed answer and for a batch of them.

Every prompt begins with the same sentence and the photo: its prefix, up to the last image token. With LLaVA-1.5's 576
image tokens that is nearly all of a prompt, so it is computed once per photo (``encode_prefixes``), and each question
about the photo goes on from there (``greedy_tokens``), without a copy of it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, LlavaForConditionalGeneration
from transformers.cache_utils import DynamicLayer

from llava_ial.models.shared_prefix import Prefixes, SharedPrefix, share_prefixes


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
    at_a_time: int | None = None,
) -> Iterator[torch.Tensor]:
    """The likeliest next token of each prompt, ``(B,)`` at a time, until each has ended or the limit is reached.

    Nothing is computed ahead: whoever stops asking stops the generation. A row that has ended goes on with its end
    mark, and once half of the rows have, they are computed no more. Questions of different lengths are padded on the
    left, masked, and counted from their own first token, so an answer does not depend on its neighbours.

    Args:
        model: In evaluation mode.
        prefixes: Of ``encode_prefixes``.
        rows: ``(B,)`` which prefix each question goes on from.
        questions: ``(B,)`` token ids of the prompts behind their prefixes.
        max_new_tokens: Most tokens of an answer, the end mark counted.
        together: The rows are views of one place and get one answer: each token is the likeliest by the mean of their
            log-probabilities, as if every view had a vote.
        at_a_time: How many questions are read together, those of similar length; all by default. The answers are
            written together in any case: beside its photo a row's own tokens take little memory.
    """
    end = end_token(model)
    speaking = _Speaking(model, prefixes, rows, questions, room=max_new_tokens)
    scores = speaking.read(questions, at_a_time or len(rows))
    said = torch.full((len(rows),), end, device=model.device)
    for step in range(1, max_new_tokens + 1):
        if together:
            scores = scores.float().log_softmax(dim=-1).mean(dim=0, keepdim=True).expand(len(scores), -1)
        tokens = scores.argmax(dim=-1).masked_fill(speaking.has_ended, end)
        said = said.index_copy(0, speaking.index, tokens)
        yield said
        speaking.has_ended |= tokens == end
        num_left = len(tokens) - int(speaking.has_ended.sum())
        if num_left == 0 or step == max_new_tokens:
            return
        if num_left <= len(tokens) // 2:
            tokens = tokens[speaking.drop_ended()]
        scores = speaking.go_on(tokens)


class _Speaking:
    """Rows that are being answered.

    Attributes:
        index: ``(B,)`` their places among all rows that were asked for.
        has_ended: ``(B,)`` which have said their end mark.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        prefixes: Prefixes,
        rows: Sequence[int],
        questions: Sequence[Sequence[int]],
        *,
        room: int,
    ) -> None:
        share_prefixes(model)
        self._model, self._prefixes, self._rows = model, prefixes, list(rows)
        self._shared = SharedPrefix(prefixes, rows)
        width = max(len(question) for question in questions)
        self._layers = [
            RoomyLayer.empty(keys, values, len(rows), width, room)
            for keys, values in zip(prefixes.keys, prefixes.values, strict=True)
        ]
        self._cache = Cache(layers=self._layers)
        lengths = torch.tensor([len(question) for question in questions], device=model.device)
        self._positions = prefixes.length + lengths[:, None] - 1  # (B, 1), of the last token
        place = torch.arange(width, device=model.device)
        is_token = place >= width - lengths[:, None]
        # (B, 1, 1, P + T)
        self._is_seen = torch.cat([is_token.new_ones(len(rows), prefixes.length), is_token], dim=1)[:, None, None]
        self.index = torch.arange(len(rows), device=model.device)
        self.has_ended = torch.zeros(len(rows), dtype=torch.bool, device=model.device)

    def read(self, questions: Sequence[Sequence[int]], at_a_time: int) -> torch.Tensor:
        """Reads the questions; returns what is expected after each, ``(B, V)``."""
        order = sorted(range(len(questions)), key=lambda row: len(questions[row]), reverse=True)
        parts = [order[start : start + at_a_time] for start in range(0, len(order), at_a_time)]
        scores = torch.cat([self._read_part([questions[row] for row in part], part) for part in parts])
        return scores[torch.tensor(order, device=scores.device).argsort()]

    def _read_part(self, questions: Sequence[Sequence[int]], part: Sequence[int]) -> torch.Tensor:
        ids, is_token = (table.to(self._model.device) for table in pad_left(questions, end_token(self._model)))
        count, width = ids.shape
        is_seen = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril() & is_token[:, None].bool()
        is_seen = torch.cat([is_seen.new_ones(count, width, self._prefixes.length), is_seen], dim=2)
        cache = DynamicCache()
        positions = self._prefixes.length + is_token.cumsum(dim=1) - 1
        shared = SharedPrefix(self._prefixes, [self._rows[row] for row in part])
        scores = self._next(ids, is_seen[:, None], positions, cache, shared)
        index = torch.tensor(part, device=ids.device)
        for own, read in zip(self._layers, cache.layers, strict=True):
            own.put(index, read.keys, read.values)
        return scores

    def go_on(self, tokens: torch.Tensor) -> torch.Tensor:
        """What is expected after one token more of each row, ``(B, V)``."""
        self._positions = self._positions + 1
        self._is_seen = torch.cat([self._is_seen, self._is_seen.new_ones(len(tokens), 1, 1, 1)], dim=3)
        return self._next(tokens[:, None], self._is_seen, self._positions, self._cache, self._shared)

    def drop_ended(self) -> torch.Tensor:
        """Forgets the rows that have ended; returns which stay."""
        kept = (~self.has_ended).nonzero()[:, 0]
        self._rows = [self._rows[row] for row in kept.tolist()]
        self._shared = SharedPrefix(self._prefixes, self._rows)
        for layer in self._layers:
            layer.batch_select_indices(kept)
        self._positions, self._is_seen = self._positions[kept], self._is_seen[kept]
        self.index, self.has_ended = self.index[kept], self.has_ended[kept]
        return kept

    def _next(
        self, ids: torch.Tensor, is_seen: torch.Tensor, positions: torch.Tensor, cache: Cache, shared: SharedPrefix
    ) -> torch.Tensor:
        output = self._model(
            inputs_embeds=self._model.get_input_embeddings()(ids),
            attention_mask=is_seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            shared_prefix=shared,
        )
        scores: torch.Tensor = output.logits[:, -1]
        return scores


def continue_prefixes(prefixes: Prefixes, rows: Sequence[int], *, room: int) -> Cache:
    """A cache that begins with a copy of the prefix of each row and has room for so many tokens more."""
    index = torch.tensor(list(rows), device=prefixes.keys[0].device)
    layers = []
    for keys, values in zip(prefixes.keys, prefixes.values, strict=True):
        layers.append(RoomyLayer.empty(keys, values, len(index), prefixes.length, room))
        layers[-1].put(torch.arange(len(index), device=index.device), keys[index], values[index])
    return Cache(layers=layers)


class RoomyLayer(DynamicLayer):
    """Keys and values with room at the end: ``DynamicLayer`` would copy all of them for every token.

    Args:
        keys, values: ``(B, heads, length + room, D_head)``.
        length: How many tokens are there.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self._all_keys, self._all_values, self._length = keys, values, length
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._show()

    @classmethod
    def empty(cls, keys: torch.Tensor, values: torch.Tensor, count: int, length: int, room: int) -> "RoomyLayer":
        """Zeros for ``count`` rows, of the kind of ``keys`` and ``values``; what is masked must still be a number."""
        shape = (count, keys.shape[1], length + room, keys.shape[3])
        return cls(keys.new_zeros(shape), values.new_zeros(shape), length)

    def put(self, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Fills in the last tokens of some rows."""
        span = slice(self._length - keys.shape[2], self._length)
        self._all_keys[index, :, span] = keys
        self._all_values[index, :, span] = values

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

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps some rows."""
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self._show()

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
