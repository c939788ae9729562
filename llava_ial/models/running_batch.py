"""A batch of answers that questions join while others are being answered, and leave when they are."""

import itertools
from collections.abc import Sequence

import torch
from transformers import Cache, LlavaForConditionalGeneration

from llava_ial.models.greedy import RoomyLayer, continue_prefixes, end_token, pad_left
from llava_ial.models.shared_prefix import Prefixes


class RunningBatch:
    """Answers that grow together, a token of each a step, though each of them began when it came.

    Newcomers are read on their own; then their keys and values are laid beside those of the others so that all end at
    the same place. Where they lie means nothing: each key was turned by its position in its own text (rotary
    embeddings) and what lies before it is masked, so an answer does not depend on its neighbours.

    Args:
        model: In evaluation mode.
        max_new_tokens: Most tokens of an answer, the end mark counted; whoever uses the batch stops there.
    """

    def __init__(self, model: LlavaForConditionalGeneration, *, max_new_tokens: int) -> None:
        self._model = model
        self._room = max_new_tokens
        self._views: list[int] = []  # (A,) rows of each answer, which lie one after the other; they sum to B
        self._cache: Cache | None = None  # None while nobody is here
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)  # (B, T) of what is in the cache
        self._tokens = self._mask.new_zeros(0, 1)  # (B, 1), the newest, which are not in the cache yet
        self._positions = self._tokens  # (B, 1)
        self.end = end_token(model)

    def __len__(self) -> int:
        """B, the rows."""
        return len(self._mask)

    @torch.no_grad()
    def join(
        self, prefixes: Prefixes, rows: Sequence[int], questions: Sequence[Sequence[int]], views: Sequence[int]
    ) -> torch.Tensor:
        """Adds answers and returns the first token of each, ``(N,)``.

        Args:
            prefixes: Of ``encode_prefixes``.
            rows: Which prefix each question goes on from.
            questions: Token ids of the prompts behind their prefixes, as many as rows.
            views: ``(N,)`` how many rows, one after the other, are views of one place and get one answer.
        """
        ids, is_token = pad_left(questions, self.end)
        ids, is_token = ids.to(self._model.device), is_token.to(self._model.device)  # (R, T)
        mask = torch.cat([is_token.new_ones(len(ids), prefixes.length), is_token], dim=1)
        positions = (mask.cumsum(dim=1) - 1)[:, prefixes.length :]
        is_first = self._cache is None
        cache = continue_prefixes(prefixes, rows, room=ids.shape[1] + (self._room if is_first else 0))
        tokens = self._likeliest(ids, mask, positions, cache, views)  # (R, 1)
        length = max(mask.shape[1], self._mask.shape[1])
        if self._cache is not None:
            cache = _stack_rows([(self._cache, range(len(self))), (cache, range(len(ids)))], length, self._room)
        self._cache = cache
        self._mask = torch.cat([_widen(self._mask, length), _widen(mask, length)])
        self._positions = torch.cat([self._positions, positions[:, -1:]])
        self._tokens = torch.cat([self._tokens, tokens])
        self._views += views
        return _of_answers(tokens, views)

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """The next token of every answer, ``(A,)`` in the order in which they joined."""
        if self._cache is None:
            raise ValueError("nobody has joined")
        self._mask = _widen(self._mask, self._mask.shape[1] + 1, behind=True)
        self._positions = self._positions + 1
        self._tokens = self._likeliest(self._tokens, self._mask, self._positions, self._cache, self._views)
        return _of_answers(self._tokens, self._views)

    @torch.no_grad()
    def keep(self, answers: Sequence[int]) -> None:
        """Forgets all answers but these, given by their places in rising order."""
        starts = _starts(self._views)
        rows = [row for i in answers for row in range(starts[i], starts[i] + self._views[i])]
        self._views = [self._views[i] for i in answers]
        index = torch.tensor(rows, dtype=torch.long, device=self._mask.device)
        self._positions, self._tokens, self._mask = self._positions[index], self._tokens[index], self._mask[index]
        if not rows or self._cache is None:
            self._cache, self._mask = None, self._mask[:, :0]
            return
        begin = int(self._mask.any(dim=0).int().argmax())  # before it is what only those needed who left
        self._mask = self._mask[:, begin:]
        self._cache = _stack_rows([(self._cache, rows)], self._mask.shape[1], self._room)

    def _likeliest(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache, views: Sequence[int]
    ) -> torch.Tensor:
        """The likeliest token behind ``(R, T)`` ids, ``(R, 1)``; views of one place vote on it.

        What they agree on is the mean of their log-probabilities.
        """
        output = self._model(
            inputs_embeds=self._model.get_input_embeddings()(ids),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        scores: torch.Tensor = output.logits[:, -1]  # (R, V)
        tokens = scores.argmax(dim=-1)
        for start, size in zip(_starts(views), views, strict=True):
            if size > 1:
                votes = scores[start : start + size].float().log_softmax(dim=-1)
                tokens[start : start + size] = votes.mean(dim=0).argmax()
        return tokens[:, None]


def _starts(views: Sequence[int]) -> list[int]:
    """The first row of each answer."""
    return list(itertools.accumulate(views, initial=0))[:-1]


def _of_answers(tokens: torch.Tensor, views: Sequence[int]) -> torch.Tensor:
    """One token of each answer, ``(A,)``, of one of each row, ``(R, 1)``: views of a place agree on it."""
    return tokens[:, 0] if len(views) == len(tokens) else tokens[_starts(views), 0]


def _widen(mask: torch.Tensor, width: int, *, behind: bool = False) -> torch.Tensor:
    """A mask as wide as that, with zeros before it or, for tokens that were added, with ones behind it."""
    missing = width - mask.shape[1]
    if behind:
        return torch.cat([mask, mask.new_ones(len(mask), missing)], dim=1)
    return torch.cat([mask.new_zeros(len(mask), missing), mask], dim=1)


def _stack_rows(parts: Sequence[tuple[Cache, Sequence[int]]], length: int, room: int) -> Cache:
    """Rows of caches as one cache with room for more tokens.

    All rows end at ``length``: shorter ones have zeros before them, of longer ones the beginning is left out; either
    has to be masked.
    """
    layers = []
    for alike in zip(*(cache.layers for cache, _ in parts), strict=True):
        first, count = alike[0], sum(len(rows) for _, rows in parts)
        stacked = RoomyLayer.empty(first.keys, first.values, count, length, room)
        start = 0
        for layer, (_, rows) in zip(alike, parts, strict=True):
            index = torch.tensor(list(rows), device=layer.keys.device)
            place = torch.arange(start, start + len(index), device=index.device)
            stacked.put(place, layer.keys[index, :, -length:], layer.values[index, :, -length:])
            start += len(index)
        layers.append(stacked)
    return Cache(layers=layers)
