"""Greedy generation of LLaVA answers: one loop for a streamed answer and for a batch of them."""

from collections.abc import Iterator, Sequence

import torch
from transformers import LlavaForConditionalGeneration


@torch.no_grad()
def image_features(model: LlavaForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the language model sees of photos: ``(N, 3, H, W)`` to ``(N, T_image, D)``."""
    found = model.get_image_features(pixel_values=pixel_values.to(model.device, model.dtype)).pooler_output
    return torch.stack(list(found))


@torch.no_grad()
def greedy_tokens(
    model: LlavaForConditionalGeneration,
    prompts: Sequence[Sequence[int]],
    photos: torch.Tensor,
    *,
    max_new_tokens: int,
) -> Iterator[torch.Tensor]:
    """The likeliest next token of each prompt, ``(B,)`` at a time, until each has ended or the limit is reached.

    Nothing is computed ahead: whoever stops asking stops the generation. A row that has ended goes on with its end
    mark. Prompts of different lengths are padded on the left, masked, and counted from their own first token, so an
    answer does not depend on its neighbours.

    Args:
        model: In evaluation mode.
        prompts: Token ids, ``<image>`` as often as a photo has features.
        photos: ``(B, T_image, D)`` of ``image_features``.
        max_new_tokens: Most tokens of an answer, the end mark counted.
    """
    end = end_token(model)
    ids, mask = _pad_left(prompts, end)  # (B, T)
    ids, mask = ids.to(model.device), mask.to(model.device)
    embeds = model.get_input_embeddings()(ids)  # (B, T, D)
    is_image = (ids == model.config.image_token_id) & mask.bool()
    embeds = embeds.masked_scatter(is_image[:, :, None], photos.to(embeds.device, embeds.dtype))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = None
    has_ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        output = model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = output.logits[:, -1].argmax(dim=-1).masked_fill(has_ended, end)  # (B,)
        yield tokens
        has_ended |= tokens == end
        if bool(has_ended.all()):
            return
        cache = output.past_key_values
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
        embeds = model.get_input_embeddings()(tokens[:, None])


def end_token(model: LlavaForConditionalGeneration) -> int:
    """Id of ``</s>``, which training supervises at the end of every answer."""
    end = model.config.text_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end)


def _pad_left(prompts: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, ``(B, T)`` each; the mask is 0 where ``value`` was filled in."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[value] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
