"""What a model has forgotten: the same general dialogues before and after it was tuned for a city."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava_dataset import LlavaCollator, LlavaDataset
from llava_ial.data.llava_json import read_llava_json
from llava_ial.models.feature_layers import Layers, set_features
from llava_ial.training.llava_validation import dialogue_loss


@dataclass(frozen=True)
class Features:
    """Which outputs of the tower LLaVA reads, as of ``set_features``."""

    layer: Layers
    strategy: str


@dataclass(frozen=True)
class Probe:
    """General dialogues, encoded for the base as it came and for the model that is made of it."""

    before: LlavaDataset
    after: LlavaDataset
    base_features: Features


def build_probe(
    path: Path,
    dataset: IALDataset,
    model: PeftModel,
    base_features: Features,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    base_image_processor: BaseImageProcessor,
    *,
    max_length: int,
) -> Probe:
    """Reads a file of LLaVA's form.

    Args:
        path: The file.
        dataset: Opens its photos.
        model: Its features are those that are trained with.
        base_features: That the base reads as it came.
        tokenizer: Of both.
        image_processor: Of stage 1's tower.
        base_image_processor: Of the base's own tower.
        max_length: Most tokens of a dialogue.

    Raises:
        UserError: As of ``read_llava_json``, or a photo is missing.
    """
    records, llava = read_llava_json(path), model.get_base_model()
    own = Features(llava.config.vision_feature_layer, llava.config.vision_feature_select_strategy)

    def encoded(features: Features, photos: BaseImageProcessor) -> LlavaDataset:
        count = set_features(llava, features.layer, features.strategy)
        return LlavaDataset(dataset, records, tokenizer, photos, num_image_tokens=count, max_length=max_length)

    before = encoded(base_features, base_image_processor)
    return Probe(before, encoded(own, image_processor), base_features)


def measure_probe(
    model: PeftModel, probe: Probe, pad_token_id: int, batch_size: int, *, everyone: bool
) -> dict[str, Any]:
    """Loss and share of tokens found likeliest, of the base as it came and of the model as it is now.

    Args:
        model: In evaluation mode.
        probe: The dialogues.
        pad_token_id: Of the tokenizer.
        batch_size: Dialogues at a time.
        everyone: As of ``dialogue_loss``.
    """
    llava, collator = model.get_base_model(), LlavaCollator(pad_token_id)
    own = Features(llava.config.vision_feature_layer, llava.config.vision_feature_select_strategy)
    # PEFT marks all of a module as trained when it switches it on again: a frozen tower, too.
    is_trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        set_features(llava, probe.base_features.layer, probe.base_features.strategy)
        with model.disable_adapter():  # the base's own projector and tower, too
            loss, share = dialogue_loss(model, probe.before, collator, batch_size, everyone=everyone)
    finally:
        set_features(llava, own.layer, own.strategy)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained[name])
    loss_after, share_after = dialogue_loss(model, probe.after, collator, batch_size, everyone=everyone)
    return {
        "num_dialogues": len(probe.after),
        "loss_before": loss,
        "loss_after": loss_after,
        "token_accuracy_before": share,
        "token_accuracy_after": share_after,
    }
