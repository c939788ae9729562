"""Logits where the loss needs them: a dialogue is mostly its photo's tokens, and a vocabulary is large.

Of LLaVA-1.5's positions six in a hundred are learned, and a position's logits are 32,064 numbers that are kept for the
backward pass. ``transformers``' models compute those of chosen positions alone.
"""

from collections.abc import Mapping

import torch
from torch.nn import functional

IGNORED = -100


def learned_alone(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch that gives the same loss and gradients, but for the order of sums, without the logits they do not need.

    Args:
        batch: Of ``LlavaForConditionalGeneration.forward``, with ``labels`` ``(B, T)``.

    Returns:
        With ``logits_to_keep`` ``(B, T)``, true where the next token is learned, and ``shift_labels`` ``(learned,)``,
        those tokens. The output's logits are ``(learned, V)``, row after row.
    """
    targets = functional.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
    is_learned = targets != IGNORED
    return {**batch, "logits_to_keep": is_learned, "shift_labels": targets[is_learned]}
