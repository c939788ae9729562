"""Which outputs of the tower LLaVA reads: one layer, as LLaVA-1.5 does, or two side by side.

AddressCLIP's image embedding is ``visual_projection(post_layernorm(c))`` of the class token ``c`` of the tower's last
layer, so ``full`` with the last layer hands the projector all that it is made of. With two layers side by side the
patches of an earlier layer come with it. ``transformers`` has both in ``LlavaConfig``: no model class of our own is
needed to open the result.
"""

from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_ial.errors import UserError

Layers = int | list[int]  # as ``LlavaConfig.vision_feature_layer``


def joined_with_last(layer: int) -> list[int]:
    """A layer and the tower's last one, whose class token the image embedding is made of.

    Raises:
        UserError: It is the last one.
    """
    if layer == -1:
        raise UserError("--join_last_layer True: --vision_feature_layer -1 is the last layer; name one before it")
    return [layer, -1]


def set_features(llava: LlavaForConditionalGeneration, layer: Layers, strategy: str) -> int:
    """Chooses which outputs of the tower LLaVA reads; returns the number of image tokens.

    Args:
        llava: Changed in place. For several layers its projector is widened, so that it computes what it did before.
        layer: Index into the tower's hidden states, or several; LLaVA-1.5 reads -2. Of layer -1 only the class token
            was trained by stage 1.
        strategy: ``default`` drops the class token, ``full`` keeps it.

    Raises:
        UserError: Unknown strategy or layer, or a base that reads several reads them alone.
    """
    vision = llava.config.vision_config
    if strategy not in ("default", "full"):
        raise UserError(f"vision_feature_select_strategy '{strategy}' is unknown; allowed: default, full")
    layers = layer if isinstance(layer, list) else [layer]
    for one in layers:
        if not -vision.num_hidden_layers - 1 <= one <= vision.num_hidden_layers:
            raise UserError(f"vision_feature_layer {one}: the tower has {vision.num_hidden_layers} layers")
    _widen_projector(llava, layers)
    llava.config.vision_feature_layer = layer
    llava.config.vision_feature_select_strategy = strategy
    count = (vision.image_size // vision.patch_size) ** 2 + (strategy == "full")
    llava.config.image_seq_length = count
    return int(count)


def num_read_layers(config: Any) -> int:
    """Layers of the tower whose outputs reach LLaVA: hidden state 0 is the embeddings' output."""
    chosen = config.vision_feature_layer
    layers = chosen if isinstance(chosen, list) else [chosen]
    return max(int(layer % (config.vision_config.num_hidden_layers + 1)) for layer in layers)


def _widen_projector(llava: LlavaForConditionalGeneration, layers: list[int]) -> None:
    """Columns for the layers that are new, of zeros: nothing changes until they are trained."""
    projector: Any = llava.model.multi_modal_projector
    narrow, width = projector.linear_1, llava.config.vision_config.hidden_size
    if narrow.in_features == len(layers) * width:
        return
    own = llava.config.vision_feature_layer
    if isinstance(own, list):
        raise UserError(
            f"the base reads layers {own} of its tower side by side, and {layers} were asked for; take "
            f"--vision_feature_layer {own[0]} --join_last_layer true, or another base"
        )
    place = (layers.index(own) if own in layers else 0) * width
    wide = nn.Linear(len(layers) * width, narrow.out_features, narrow.bias is not None, narrow.weight.device)
    wide.to(narrow.weight.dtype)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, place : place + width] = narrow.weight
        if narrow.bias is not None:
            wide.bias.copy_(narrow.bias)
    projector.linear_1 = wide
