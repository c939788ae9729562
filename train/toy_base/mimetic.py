"""Starts a small vision tower where training brings large ones: attention that looks nearby and at like tokens.

"Mimetic Initialization of Self-Attention Layers" (Trockman and Kolter, arXiv 2305.09828): in pretrained transformers
the product of query and key weights resembles the identity, the product of value and output weights its negative.
Starting there, with sinusoidal positions, lets a small transformer learn from few pictures.
"""

import math

import torch
from torch import nn

_QUERY_KEY = (0.7, 0.7)  # shares of noise and of the identity, as in the paper
_VALUE_OUT = (0.4, -0.4)
_POSITION_AMPLITUDE = 0.3  # the patches' own features have a deviation of about one half at the start


@torch.no_grad()
def initialise_mimetic(vision_model: nn.Module, generator: torch.Generator) -> None:
    """Rewrites attention weights and position embeddings of a ``CLIPVisionModel``'s transformer in place."""
    config = vision_model.config
    width, heads = config.hidden_size, config.num_attention_heads
    for layer in vision_model.encoder.layers:
        attention = layer.self_attn
        for head in range(heads):
            rows = slice(head * width // heads, (head + 1) * width // heads)
            queries, keys = _factors(width, width // heads, *_QUERY_KEY, generator)
            attention.q_proj.weight[rows], attention.k_proj.weight[rows] = queries.T, keys.T
        values, outs = _factors(width, width, *_VALUE_OUT, generator)
        attention.v_proj.weight.copy_(outs.T)
        attention.out_proj.weight.copy_(values)
    positions = sinusoidal_positions(config.image_size // config.patch_size, width)
    vision_model.embeddings.position_embedding.weight[1:] = _POSITION_AMPLITUDE * positions


def sinusoidal_positions(grid: int, width: int) -> torch.Tensor:
    """``(grid * grid, width)``: sine and cosine of column and row at a quarter of the width each."""
    frequency = 1 / 10000 ** (torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid).float(), torch.arange(grid).float(), indexing="ij")
    waves = [wave(place.reshape(-1, 1) * frequency) for place in (column, row) for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=1)


def _factors(
    width: int, rank: int, noise: float, identity: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """``A, B (width, rank)`` with ``A @ B.T`` close to ``noise * Z + identity * I``, from its singular vectors."""
    target = noise * torch.randn(width, width, generator=generator) / math.sqrt(width) + identity * torch.eye(width)
    left, values, right = torch.linalg.svd(target)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, right[:rank].T * root
