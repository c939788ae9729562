"""Attention of many rows that go on from a few prefixes, each of which is in memory once.

The questions about a photo share the keys and values of the photo. Written out for every row they would be read from
memory once per row and token; here the queries of all rows of a photo meet them in one matrix product (Hydragen, arXiv
2402.05099). The softmax is over the photo's and the row's own tokens, so nothing is approximated.

``share_prefixes(model)`` makes a model of ``transformers`` take ``model(..., shared_prefix=SharedPrefix(...))``: its
cache holds the rows' own tokens alone, and its mask (``(B, 1, T, P + S)``, true where seen) is over both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "llava_ial_shared_prefix"


@dataclass(frozen=True)
class Prefixes:
    """What the language model remembers of photos: keys and values of every layer, each ``(K, heads, P, D_head)``."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def length(self) -> int:
        """P, the tokens of a prefix."""
        return int(self.keys[0].shape[2])

    def only(self, which: Sequence[int]) -> "Prefixes":
        """Some of them, in this order."""
        if list(which) == list(range(len(self.keys[0]))):
            return self
        index = torch.tensor(list(which), device=self.keys[0].device)
        return Prefixes([layer[index] for layer in self.keys], [layer[index] for layer in self.values])


class SharedPrefix:
    """Which prefix each row of a batch goes on from.

    Args:
        prefixes: Of photos.
        rows: ``(B,)`` which of them.

    Attributes:
        prefixes: Those that are used.
        photos: ``(B,)`` which of these.
    """

    def __init__(self, prefixes: Prefixes, rows: Sequence[int]) -> None:
        used = sorted(set(rows))
        self.prefixes = prefixes.only(used)
        place = {photo: k for k, photo in enumerate(used)}
        count = [0] * len(used)
        numbers = []
        for row in rows:
            numbers.append(count[place[row]])
            count[place[row]] += 1
        self._shape = (len(used), max(count))  # (K, R): places for rows of each photo, some of which stay empty
        device = prefixes.keys[0].device
        self.photos = torch.tensor([place[row] for row in rows], device=device)  # (B,)
        self._slots = self.photos * max(count) + torch.tensor(numbers, device=device)  # (B,)
        self._is_in_order = self._slots.tolist() == list(range(len(used) * max(count)))

    def by_photo(self, rows: torch.Tensor) -> torch.Tensor:
        """``(B, heads, T, D)`` to ``(K, heads, R * T, D)``."""
        _, heads, length, size = rows.shape
        photos, most = self._shape
        if self._is_in_order:
            slots = rows
        else:
            slots = rows.new_zeros(photos * most, heads, length, size)
            slots[self._slots] = rows
        return slots.view(photos, most, heads, length, size).transpose(1, 2).reshape(photos, heads, most * length, size)

    def by_row(self, photos: torch.Tensor) -> torch.Tensor:
        """The way back."""
        count, heads, together, size = photos.shape
        most = self._shape[1]
        slots = photos.view(count, heads, most, together // most, size).transpose(1, 2)
        slots = slots.reshape(count * most, heads, together // most, size)
        return slots if self._is_in_order else slots[self._slots]


def share_prefixes(model: PreTrainedModel) -> None:
    """Makes a model ready for it, once and for all; its other passes are those of ``sdpa`` as before."""
    model.config.get_text_config()._attn_implementation = _NAME


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    shared_prefix: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as ``transformers`` asks for it.

    Args:
        module: The layer.
        query: ``(B, heads, T, D)``.
        key, value: ``(B, key heads, S, D)``, the rows' own tokens.
        attention_mask: ``(B, 1, T, P + S)``, true where seen.
        shared_prefix: What comes before. Without it this is any other pass of the model.
        kwargs: Of ``transformers``.

    Returns:
        ``(B, T, heads, D)``, and no weights.
    """
    if shared_prefix is None:
        found: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
        return found, None
    layer = cast(int, module.layer_idx)
    keys, values = shared_prefix.prefixes.keys[layer], shared_prefix.prefixes.values[layer]
    rows, heads, length, size = query.shape
    if length > 1:  # a question: read once, and faster by the kernel that never writes the weights down
        key = torch.cat([keys[shared_prefix.photos], key], dim=2)
        value = torch.cat([values[shared_prefix.photos], value], dim=2)
        return _attention(module, query, key, value, attention_mask, **kwargs)
    query = (query * kwargs["scaling"]).view(rows, key.shape[1], -1, size)
    before = shared_prefix.by_row(shared_prefix.by_photo(query) @ keys.transpose(2, 3))
    scores = torch.cat([before, query @ key.transpose(2, 3)], dim=3)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=3, dtype=torch.float32).to(query.dtype)
    seen = shared_prefix.by_row(shared_prefix.by_photo(weights[..., : keys.shape[2]]) @ values)
    output = seen + weights[..., keys.shape[2] :] @ value
    return output.view(rows, 1, heads, size), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
