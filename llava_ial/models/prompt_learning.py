"""Prompt learners, the paper's peers: a CLIP that stays as it is, and a few learnt vectors among its tokens.

    CoOp    vectors before every address, the same for all photos (arXiv 2109.01134)
    CoCoOp  the same plus a shift that a small network reads off the photo (arXiv 2203.05557): texts are encoded again
            for every photo, which costs as many times more
    MaPLe   vectors in the first layers of both towers, the image's made from the text's (arXiv 2210.03117)

All classify among a closed list of addresses. The texts of thousands of addresses do not fit into memory with their
activations, so they are encoded in chunks whose activations are computed again on the way back.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel, PreTrainedTokenizerBase
from transformers.masking_utils import create_causal_mask

from llava_ial.errors import UserError

METHODS = ("coop", "cocoop", "maple")
_REDUCTION = 16  # of CoCoOp's network, as published


class CoOp(nn.Module):
    """Learnt vectors between the beginning mark and the words of every address.

    Args:
        clip: Frozen here, all of it.
        tokenizer: Of the CLIP.
        addresses: The classes, in order.
        first_words: Their embeddings are the first values of the vectors; their number of tokens is the vectors'.
        class_chunk: Texts that are encoded at once.

    Raises:
        UserError: An address and the vectors are longer than the text encoder reads.
    """

    _ids: torch.Tensor
    _mask: torch.Tensor

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        addresses: Sequence[str],
        *,
        first_words: str = "a street view of",
        class_chunk: int = 256,
    ) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False).eval()
        self._class_chunk = class_chunk
        words = tokenizer(first_words, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        self.context = nn.Parameter(self._embed(words).clone())  # (n, W)
        tokens = tokenizer(list(addresses), padding=True, return_tensors="pt")
        length = tokens["input_ids"].shape[1] + len(words)
        if length > (limit := clip.config.text_config.max_position_embeddings):
            raise UserError(
                f"an address with {len(words)} prompt vectors has {length} tokens, the encoder reads {limit}"
            )
        ids, mask = tokens["input_ids"].to(clip.device), tokens["attention_mask"].to(clip.device)
        self.register_buffer("_ids", ids, persistent=False)  # (C, T)
        self.register_buffer("_mask", torch.cat([mask[:, :1].expand(-1, len(words)), mask], dim=1), persistent=False)
        self._end = mask.sum(dim=1) - 1 + len(words)  # place of the end mark, whose output is the text's

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, C)`` of the addresses of photos ``(B, 3, H, W)``."""
        return self._logits(self.image_features(pixel_values) @ self.class_features(self.context).T)

    def train(self, mode: bool = True) -> "CoOp":
        """The CLIP stays as it is evaluated."""
        super().train(mode)
        self.clip.eval()
        return self

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``(B, D)`` of length one."""
        with torch.no_grad():
            return normalize(self.clip.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1)

    def class_features(self, context: torch.Tensor, deeper: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Features of all addresses behind the vectors, ``(C, D)`` of length one.

        Args:
            context: ``(n, W)``.
            deeper: Vectors that take the places of the first ones in the next layers.
        """
        chunks = []
        for start in range(0, len(self._ids), self._class_chunk):
            rows = slice(start, start + self._class_chunk)
            if torch.is_grad_enabled() and len(self._ids) > self._class_chunk:
                chunks.append(checkpoint(self._encode_classes, context, rows, *deeper, use_reentrant=False))
            else:
                chunks.append(self._encode_classes(context, rows, *deeper))
        return torch.cat(chunks)

    def _encode_classes(self, context: torch.Tensor, rows: slice, *deeper: torch.Tensor) -> torch.Tensor:
        text, words = self.clip.text_model, self._embed(self._ids[rows])
        num, length = len(context), len(context) + words.shape[1]
        middle = context.expand(len(words), -1, -1)
        hidden = torch.cat([words[:, :1], middle, words[:, 1:]], dim=1)
        hidden = hidden + text.embeddings.position_embedding.weight[:length]
        mask = create_causal_mask(
            config=text.config, inputs_embeds=hidden, attention_mask=self._mask[rows], past_key_values=None
        )
        for number, layer in enumerate(text.encoder.layers):
            if 0 < number <= len(deeper):
                middle = deeper[number - 1].expand(len(hidden), -1, -1)
                hidden = torch.cat([hidden[:, :1], middle, hidden[:, 1 + num :]], dim=1)
            hidden = layer(hidden, mask, is_causal=True)
        ends = self._end[rows].to(hidden.device)
        pooled = text.final_layer_norm(hidden)[torch.arange(len(hidden), device=hidden.device), ends]
        return normalize(self.clip.text_projection(pooled), dim=-1)

    def _logits(self, cosines: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.clip.logit_scale.exp() * cosines
        return scaled

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.clip.text_model.embeddings.token_embedding(ids.to(self.clip.device)).detach()
        return embedded


class CoCoOp(CoOp):
    """CoOp whose vectors a photo shifts."""

    def __init__(
        self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, addresses: Sequence[str], **options: Any
    ) -> None:
        super().__init__(clip, tokenizer, addresses, **options)
        width, text_width = clip.config.projection_dim, clip.config.text_config.hidden_size
        hidden = max(1, width // _REDUCTION)
        self.shift = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, text_width)).to(clip.device)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, C)``; the texts are encoded for every photo."""
        images = self.image_features(pixel_values)
        shifts = self.shift(images)  # (B, W)
        rows = [
            image @ self.class_features(self.context + shift).T for image, shift in zip(images, shifts, strict=True)
        ]
        return self._logits(torch.stack(rows))


class MaPLe(CoOp):
    """Vectors in the first ``depth`` layers of both towers; a matrix a layer makes the image's from the text's."""

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        addresses: Sequence[str],
        *,
        depth: int = 9,
        **options: Any,
    ) -> None:
        super().__init__(clip, tokenizer, addresses, **options)
        text, vision = clip.config.text_config, clip.config.vision_config
        layers = min(depth, text.num_hidden_layers, vision.num_hidden_layers)
        self.deeper = nn.ParameterList([nn.Parameter(0.02 * torch.randn_like(self.context)) for _ in range(layers - 1)])
        self.coupling = nn.ModuleList([nn.Linear(text.hidden_size, vision.hidden_size) for _ in range(layers)])
        self.to(clip.device)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, C)``."""
        classes = self.class_features(self.context, list(self.deeper))
        return self._logits(self.image_features(pixel_values) @ classes.T)

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``(B, D)`` of length one, of the tower with its vectors behind the patches."""
        vision = self.clip.vision_model
        prompts = [couple(text) for couple, text in zip(self.coupling, [self.context, *self.deeper], strict=True)]
        patches = vision.embeddings(pixel_values)
        num_own = patches.shape[1]
        hidden = vision.pre_layrnorm(torch.cat([patches, prompts[0].expand(len(patches), -1, -1)], dim=1))
        for number, layer in enumerate(vision.encoder.layers):
            if 0 < number < len(prompts):
                hidden = torch.cat([hidden[:, :num_own], prompts[number].expand(len(hidden), -1, -1)], dim=1)
            hidden = layer(hidden, None)
        return normalize(self.clip.visual_projection(vision.post_layernorm(hidden[:, 0])), dim=-1)


def build_prompt_learner(
    method: str, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, addresses: Sequence[str], **options: Any
) -> CoOp:
    """A learner by its name, one of ``METHODS``."""
    learners: dict[str, type[CoOp]] = {"coop": CoOp, "cocoop": CoCoOp, "maple": MaPLe}
    return learners[method](clip, tokenizer, addresses, **options)
