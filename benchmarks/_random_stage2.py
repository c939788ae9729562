"""What stage 2 needs to start, with nothing downloaded: drawn photos, a base and a stage 1 folder of random weights."""

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from benchmarks.gpu_stage2 import model_config
from llava_ial.conversation import IMAGE_TOKEN
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import IGNORE_INDEX, encode_dialogue
from llava_ial.models.llava_folder import save_processor
from tests.tiny_models import write_stage1
from tests.tiny_world import TinyWorld, build_tiny_base_clip, build_tiny_dataset
from train.toy_base.clip import build_image_processor
from train.toy_base.llava import load_or_train_tokenizer

_WORDS = 400  # of the tokenizer; the model's vocabulary may have more
PHOTO_SIDES = {"7b": (640, 480), "tiny": (96, 72)}


@dataclass(frozen=True)
class RandomInputs:
    """Where they lie, and how much a dialogue teaches.

    Attributes:
        supervised_tokens: Mean of a dialogue's.
    """

    data: Path
    base: Path
    clip: Path
    supervised_tokens: float


def build_inputs(folder: Path, name: str, device: torch.device, *, num_dialogues: int) -> RandomInputs:
    """Writes data set, base and stage 1 folder.

    Args:
        folder: Exists.
        name: Of ``gpu_stage2.MODELS``.
        device: Where random weights are drawn: on a GPU those of 7B take seconds.
        num_dialogues: To train on.
    """
    width, height = PHOTO_SIDES[name]
    data = build_tiny_dataset(folder / "data", TinyWorld(num_train=num_dialogues, width=width, height=height))
    dataset = IALDataset(data)
    dialogues = [record.messages for record in dataset.conversations("train")]
    texts = [message.content for messages in dialogues for message in messages]
    tokenizer = load_or_train_tokenizer(None, texts, _WORDS)
    config = model_config(name)
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    _write_base(folder / "base", config, tokenizer, device)
    _write_stage1(folder / "stage1", config, dataset, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the processes that train
    encoded = [encode_dialogue(tokenizer, messages, 0) for messages in dialogues]
    supervised = sum(label != IGNORE_INDEX for dialogue in encoded for label in dialogue.labels)
    return RandomInputs(data, folder / "base", folder / "stage1", supervised / len(encoded))


def _write_base(folder: Path, config: LlavaConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
    with device:
        llava = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    llava.generation_config.eos_token_id = tokenizer.eos_token_id
    llava.generation_config.pad_token_id = tokenizer.pad_token_id
    llava.save_pretrained(folder, max_shard_size="5GB")
    save_processor(folder, tokenizer, build_image_processor(config.vision_config.image_size), config)


def _write_stage1(folder: Path, config: LlavaConfig, dataset: IALDataset, device: torch.device) -> None:
    """A tower of the base's shape with other weights; the text encoder beside it is tiny: stage 2 hardly uses it."""
    small = build_tiny_base_clip(folder.with_name("base_clip"), dataset.folder)
    text = CLIPConfig.from_pretrained(small).text_config
    with device:
        clip = CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=config.vision_config.to_dict(), projection_dim=32)
        )
    write_stage1(folder, dataset, clip.cpu(), small, build_image_processor(config.vision_config.image_size))
