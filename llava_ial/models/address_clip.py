"""AddressCLIP: CLIP whose image encoder knows places and whose text encoder knows addresses (arXiv 2407.08156).

No parameter is added: this is a ``transformers`` CLIP with the three texts of a training step (address, caption) going
through its one text encoder. What is saved is a plain ``CLIPModel`` folder.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, CLIPModel, PreTrainedTokenizerBase, SiglipModel

from llava_ial.distributed import to_number
from llava_ial.errors import UserError

# CLIP (arXiv 2103.00020, section 2.5) keeps logits from being scaled by more than 100.
MAX_LOG_LOGIT_SCALE = math.log(100)
_IDS = "_input_ids"
DualEncoder: TypeAlias = CLIPModel | SiglipModel


class AddressCLIP(nn.Module):
    """A dual encoder and the features that a training step needs of it.

    Args:
        clip: The encoder that is tuned.
    """

    def __init__(self, clip: DualEncoder) -> None:
        super().__init__()
        self.clip = clip
        if isinstance(clip, SiglipModel):
            clip.logit_bias.requires_grad_(False)  # of its own pairwise loss; a softmax does not see it

    @property
    def max_text_length(self) -> int:
        """Longest text in tokens, marks of beginning and end included."""
        return int(self.clip.config.text_config.max_position_embeddings)

    @property
    def text_padding(self) -> bool | str:
        """How a tokenizer pads: to the longest text, or, as SigLIP learnt, to the full length and without a mask."""
        return "max_length" if isinstance(self.clip, SiglipModel) else True

    @property
    def feature_width(self) -> int:
        """``D`` of the features."""
        return int(getattr(self.clip.config, "projection_dim", None) or self.clip.config.vision_config.hidden_size)

    @property
    def logit_scale(self) -> float:
        """The factor on cosines."""
        return math.exp(to_number(self.clip.logit_scale))

    def forward(self, pixel_values: torch.Tensor, **texts: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features of photos and texts, each of length one, and the factor ``logit_scale ()`` on their cosines.

        Args:
            pixel_values: ``(B, 3, H, W)``.
            texts: ``NAME_input_ids`` and ``NAME_attention_mask (U, T)`` of each kind of text, each different text once.

        Returns:
            ``image_features (B, D)``, ``NAME_features (U, D)``, ``logit_scale``.
        """
        names = [key.removesuffix(_IDS) for key in texts if key.endswith(_IDS)]
        return {
            "image_features": self.encode_images(pixel_values),
            **{f"{n}_features": self.encode_texts(texts[n + _IDS], texts[f"{n}_attention_mask"]) for n in names},
            "logit_scale": self.clip.logit_scale.exp().sum(),  # of one element; FSDP wants no views from a forward
        }

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` to ``(B, D)`` of length one."""
        features: torch.Tensor = self.clip.get_image_features(pixel_values=pixel_values).pooler_output
        return normalize(features, dim=-1)

    def encode_views(self, pixel_values: torch.Tensor, *, apart: bool = False) -> torch.Tensor:
        """Features of photos from several views of each.

        Args:
            pixel_values: ``(B, V, 3, H, W)``, or ``(B, 3, H, W)`` of one view.
            apart: Whether each view keeps its own.

        Returns:
            ``(B, D)``, the mean of the views, of length one; ``(B, V, D)`` where they are kept apart.
        """
        if pixel_values.ndim == 4:
            return self.encode_images(pixel_values)
        features = self.encode_images(pixel_values.flatten(0, 1)).reshape(*pixel_values.shape[:2], -1)
        if apart:
            return features
        return features[:, 0] if pixel_values.shape[1] == 1 else normalize(features.mean(dim=1), dim=-1)

    def encode_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """``(B, T)`` to ``(B, D)`` of length one."""
        mask = None if self.text_padding == "max_length" else attention_mask
        features: torch.Tensor = self.clip.get_text_features(input_ids=input_ids, attention_mask=mask).pooler_output
        return normalize(features, dim=-1)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Holds the learnt temperature where CLIP holds it; called after every optimiser step."""
        self.clip.logit_scale.clamp_(max=MAX_LOG_LOGIT_SCALE)

    @torch.no_grad()
    def embed_texts(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 256, progress: bool = False
    ) -> torch.Tensor:
        """Features of any texts, ``(N, D)`` float32 of length one: the gallery, or candidates in a user's own words."""
        device = self.clip.device
        rows = []
        for start in tqdm(range(0, len(texts), batch_size), desc="texts", disable=not progress, leave=False):
            part = list(texts[start : start + batch_size])
            tokens = tokenizer(
                part, padding=self.text_padding, truncation=True, max_length=self.max_text_length, return_tensors="pt",
                return_attention_mask=True,
            )  # fmt: skip
            rows.append(self.encode_texts(tokens["input_ids"].to(device), tokens["attention_mask"].to(device)).float())
        return torch.cat(rows)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves a tokenizer as it was made.

    A tokenizer remembers the padding and truncation of its last call and would save them as its habit: every later user
    would pad to that length.
    """
    if backend := getattr(tokenizer, "backend_tokenizer", None):  # SigLIP's own has none, and no such memory
        backend.no_padding()
        backend.no_truncation()
    tokenizer.save_pretrained(folder)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a CLIP or a SigLIP by hub name or folder.

    Raises:
        UserError: It is not there, or needs a package that is not installed.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except ImportError as error:
        raise UserError(f"{name}: its tokenizer needs a package: pip install 'llava-ial[siglip]'") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: no tokenizer there: {str(error).splitlines()[0]}") from error
    return tokenizer


def load_clip(name: str) -> CLIPModel:
    """A CLIP by hub name or folder, in float32.

    Raises:
        UserError: It is not there, is no CLIP, or its file lacks weights (they would be random without a word).
    """
    clip = load_dual_encoder(name)
    if not isinstance(clip, CLIPModel):
        raise UserError(f"base model {name}: a {type(clip).__name__}, but a CLIP is needed here")
    return clip


def load_dual_encoder(name: str) -> DualEncoder:
    """A CLIP or a SigLIP by hub name or folder, in float32; stage 1 tunes both.

    Raises:
        UserError: As of ``load_clip``.
    """
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise UserError(f"base model {name}: no such folder")
    try:
        kind = SiglipModel if AutoConfig.from_pretrained(name).model_type == "siglip" else CLIPModel
        clip, info = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"base model {name}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"base model {name}: {len(missing)} weights are missing, for example {missing[0]}: no CLIP")
    return clip
