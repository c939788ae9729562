"""Large contrastive batches on little memory: feature-cached accumulation (GradCache, arXiv 2101.06983).

A contrastive loss needs all rows of a batch at once, so summing the gradients of small batches is training on small
batches, with few negatives. But it needs only their features. So the batch is encoded twice, chunk by chunk: first
without a graph, for the features, the loss and its gradient at the features; then again, each chunk handing its share
of that gradient down. The gradient is that of the whole batch; the activations in memory are those of one chunk.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

Features = dict[str, torch.Tensor]
Encode = Callable[..., Features]


@dataclass(frozen=True)
class Chunk:
    """Inputs of a forward pass, and how many rows of each feature count."""

    inputs: dict[str, torch.Tensor]
    num_rows: dict[str, int]


def split_inputs(inputs: dict[str, torch.Tensor], num_chunks: int) -> list[Chunk]:
    """Photos and texts in ``num_chunks`` parts of nearly equal size.

    Where there are fewer texts than parts, a part gets the first text and does not count it: every pass then uses every
    weight, on every process, as wrappers that exchange gradients demand.

    Args:
        inputs: ``pixel_values`` and ``NAME_input_ids``, ``NAME_attention_mask``, first dimension rows.
        num_chunks: At least 1.
    """
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(num_chunks)]
    counts: list[dict[str, int]] = [{} for _ in range(num_chunks)]
    for name, tensor in inputs.items():
        for part, count, rows in zip(parts, counts, tensor.tensor_split(num_chunks), strict=True):
            part[name] = rows if len(rows) else tensor[:1]
            count[_feature_of(name)] = len(rows)
    return [Chunk(part, count) for part, count in zip(parts, counts, strict=True)]


def cached_backward(
    encode: Encode,
    chunks: list[Chunk],
    losses_of: Callable[[Features], dict[str, torch.Tensor]],
    *,
    backward: Callable[[torch.Tensor], None],
    no_sync: Callable[[], AbstractContextManager[None]],
    seed: Callable[[int], None],
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Losses of the whole batch, with the gradient of ``loss`` accumulated in the weights.

    Args:
        encode: From the inputs of a chunk to its features, ``logit_scale ()`` among them.
        chunks: Of ``split_inputs``.
        losses_of: Losses by name from the features of all chunks.
        backward: Differentiates a scalar.
        no_sync: Holds back the exchange of gradients between processes; entered for all chunks but the last.
        seed: Fixes what is random in a chunk, so that its two passes draw alike.
        scale: Factor on the loss that is differentiated.
    """
    with torch.no_grad():
        found = [_encode(encode, chunk, seed, number) for number, chunk in enumerate(chunks)]
    names = [name for name, feature in found[0].items() if feature.ndim]
    leaves = {name: torch.cat([features[name] for features in found]) for name in names}
    leaves.update({name: feature for name, feature in found[0].items() if not feature.ndim})
    for leaf in leaves.values():
        leaf.requires_grad_()
    losses = losses_of(leaves)
    backward(losses["loss"] * scale)

    starts = dict.fromkeys(leaves, 0)
    for number, chunk in enumerate(chunks):
        is_last = number == len(chunks) - 1
        if is_last:
            backward(_handed_down(_encode(encode, chunk, seed, number), leaves, starts, with_scalars=True))
        else:
            with no_sync():
                backward(_handed_down(_encode(encode, chunk, seed, number), leaves, starts, with_scalars=False))
    return losses


def _encode(encode: Encode, chunk: Chunk, seed: Callable[[int], None], number: int) -> Features:
    seed(number)
    features = encode(**chunk.inputs)
    return {name: f[: chunk.num_rows[name]] if f.ndim else f for name, f in features.items()}


def _handed_down(features: Features, leaves: Features, starts: dict[str, int], *, with_scalars: bool) -> torch.Tensor:
    """A scalar whose gradient is the chunk's share of the loss's; moves ``starts`` behind the chunk's rows.

    A scalar that every pass returns, the temperature, counts once. A feature that no loss read has no gradient.
    """
    total = torch.zeros((), device=next(iter(features.values())).device)
    for name, feature in features.items():
        gradient = leaves[name].grad
        if feature.ndim:
            start = starts[name]
            starts[name] = start + len(feature)
            share = None if gradient is None else gradient[start : starts[name]]
        else:
            share = gradient if with_scalars else None
        total = total + (feature * (0.0 if share is None else share)).sum()
    return total


def _feature_of(input_name: str) -> str:
    """``pixel_values`` to ``image_features``, ``address_input_ids`` to ``address_features``."""
    if input_name == "pixel_values":
        return "image_features"
    return input_name.removesuffix("_input_ids").removesuffix("_attention_mask") + "_features"
