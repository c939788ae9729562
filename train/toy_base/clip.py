"""A small CLIP of the real architecture with random weights, to start stage 1 from where no pretrained one is at hand.

    python -m train.toy_base.clip --output runs/demo/base_clip --data runs/demo/data
    python -m train.toy_base.clip --output runs/demo/base_clip --tokenizer FOLDER --image_size 224

The folder is a plain ``transformers`` one. It takes CLIP's own tokenizer where a folder of it is given; otherwise a
tokenizer of the same kind is trained on the spot, on a data set's texts or any others.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from llava_ial.config import parse_config
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import MANIFEST, FolderState, claim_folder, file_hash, publish_manifest
from llava_ial.models.address_clip import save_tokenizer
from llava_ial.records import CaptionRecord, read_records

KIND = "base_clip"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 77  # of every published CLIP
HEAD_WIDTH = 32  # half of CLIP's: towers as narrow as these would have one or two heads
EXAMPLE_TEXT = "located in the Old Town, specifically on a section of Elm Way that near Dune Road"


@dataclass
class BaseClipConfig:
    """What to build; the defaults learn a few photos in a minute on two CPU cores."""

    output: Path = field(metadata={"help": "folder to write"})
    tokenizer: Path | None = field(
        default=None, metadata={"help": "folder of CLIP's tokenizer; none: one is trained on --data and --texts"}
    )
    data: Path | None = field(default=None, metadata={"help": "data set folder to train a tokenizer on"})
    texts: list[Path] = field(
        default_factory=list, metadata={"help": "files with one text a line to train a tokenizer on"}
    )
    vocab_size: int = field(default=2048, metadata={"help": "largest vocabulary of a tokenizer trained here"})
    image_size: int = field(default=112, metadata={"help": "side of the square input in pixels"})
    patch_size: int = field(default=16, metadata={"help": "side of a patch in pixels; divides image_size"})
    vision_width: int = field(default=128, metadata={"help": "hidden size of the image encoder"})
    vision_layers: int = field(default=4, metadata={"help": "layers of the image encoder"})
    text_width: int = field(default=128, metadata={"help": "hidden size of the text encoder"})
    text_layers: int = field(default=2, metadata={"help": "layers of the text encoder"})
    embed_dim: int = field(default=64, metadata={"help": "size of the common space"})
    seed: int = field(default=0, metadata={"help": "of the weights"})


def main() -> None:
    """Reads the command line and writes the folder."""
    (config,) = parse_config(BaseClipConfig, description=__doc__ or "")
    transformers_logging.disable_progress_bar()
    state = build_base_clip(config)
    print(f"{config.output}: {'already there' if state is FolderState.COMPLETE else 'base model written'}")


def build_base_clip(config: BaseClipConfig) -> FolderState:
    """Writes the folder; the state is what was found before.

    Raises:
        UserError: Sizes that fit no model, or no source of a tokenizer.
    """
    _check_sizes(config)
    identity = {
        k: v for k, v in asdict(config).items() if k not in ("output", "tokenizer", "data", "texts", "vocab_size")
    }
    tokenizer, identity["tokenizer"] = _load_or_train_tokenizer(config)
    state = claim_folder(config.output, KIND, identity)
    if state is FolderState.COMPLETE:
        return state
    torch.manual_seed(config.seed)
    model = CLIPModel(
        build_clip_config(
            tokenizer,
            image_size=config.image_size,
            patch_size=config.patch_size,
            vision_width=config.vision_width,
            vision_layers=config.vision_layers,
            text_width=config.text_width,
            text_layers=config.text_layers,
            embed_dim=config.embed_dim,
        )
    )
    _check_pooling(model, tokenizer)
    model.save_pretrained(config.output)
    save_tokenizer(tokenizer, config.output)
    build_image_processor(config.image_size).save_pretrained(config.output)
    num_parameters = sum(p.numel() for p in model.parameters())
    publish_manifest(config.output, KIND, identity, num_parameters=num_parameters, vocab_size=len(tokenizer))
    return state


def build_clip_config(
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_size: int,
    patch_size: int,
    vision_width: int,
    vision_layers: int,
    text_width: int,
    text_layers: int,
    embed_dim: int,
    hidden_act: str = "quick_gelu",
) -> CLIPConfig:
    """The architecture: OpenAI's, smaller."""
    return CLIPConfig(
        text_config=_tower(text_width, text_layers, hidden_act)
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            # The text feature is read at the first token of this id; 2 would switch to "at the largest id", an old
            # convention, so a tokenizer must never give its end mark that id (see _check_pooling).
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=_tower(vision_width, vision_layers, hidden_act)
        | {"image_size": image_size, "patch_size": patch_size},
        projection_dim=embed_dim,
    )


def build_image_processor(image_size: int) -> CLIPImageProcessorPil:
    """CLIP's resize and centre crop to a square of ``image_size`` pixels; channels are scaled to [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def train_clip_tokenizer(texts: Iterable[str], vocab_size: int) -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's kind: lower case, ``</w>`` at word ends, marks of beginning and end."""
    blank = CLIPTokenizer()  # for its rules: how text is normalised and cut into words
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            end_of_word_suffix="</w>",
            special_tokens=_byte_pieces(),
            show_progress=False,
        ),
    )
    return _as_clip_tokenizer(learner)


def _byte_pieces() -> list[str]:
    """Every byte inside and at the end of a word, so that no text is unknown.

    Given to the trainer in a fixed order: left to itself it numbers word ends in the order of a hash table, another one
    each time, and breaks ties between pairs by these numbers.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*alphabet, *(f"{character}</w>" for character in alphabet)]


def _as_clip_tokenizer(learner: Tokenizer) -> CLIPTokenizer:
    """The learnt pieces under CLIP's own class, with the marks behind them as in OpenAI's vocabulary."""
    model = json.loads(learner.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for mark in (BEGIN, END):
        vocabulary[mark] = len(vocabulary)
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)


def _load_or_train_tokenizer(config: BaseClipConfig) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """The tokenizer, and what identifies it."""
    if config.tokenizer is not None:
        file = config.tokenizer / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"--tokenizer {config.tokenizer}: no tokenizer.json there")
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer, model_max_length=CONTEXT_LENGTH)
        return tokenizer, {"file_hash": file_hash(file)}
    texts = list(_data_set_texts(config.data)) if config.data is not None else []
    texts += [text for source in config.texts for text in _read_texts(source)]
    if not texts:
        raise UserError("no text to train a tokenizer on; give --data or --texts, or --tokenizer with a folder of one")
    sources = [file_hash(path) for path in (*([config.data / MANIFEST] if config.data else []), *config.texts)]
    return train_clip_tokenizer(texts, config.vocab_size), {"texts_hash": sources, "vocab_size": config.vocab_size}


def _data_set_texts(folder: Path) -> Iterator[str]:
    for record in IALDataset(folder).gallery:
        yield from (record.verbose, record.canonical, record.spoken)
    for caption in read_records(folder / "captions", CaptionRecord):
        yield caption.caption


def _read_texts(source: Path) -> Iterator[str]:
    try:
        yield from (line for line in source.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts {source}: {error}") from error


def _tower(width: int, layers: int, hidden_act: str) -> dict[str, Any]:
    heads = max(1, width // HEAD_WIDTH)
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "hidden_act": hidden_act,
        "num_attention_heads": heads,
    }


def _check_sizes(config: BaseClipConfig) -> None:
    if config.image_size % config.patch_size:
        raise UserError(f"patch_size {config.patch_size} does not divide image_size {config.image_size}")
    for name in ("vision_width", "text_width"):
        value = getattr(config, name)
        if value < 1 or value % max(1, value // HEAD_WIDTH):
            raise UserError(f"{name} {value}: give a multiple of {HEAD_WIDTH}, or less than {HEAD_WIDTH}")
    for name in ("vision_layers", "text_layers", "embed_dim"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} {getattr(config, name)}: must be at least 1")


def _check_pooling(model: CLIPModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The text feature must come from the end mark: another position would ignore the last words of every address."""
    ids = tokenizer([EXAMPLE_TEXT], padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model.text_model(input_ids=ids)
    end = int((ids[0] == tokenizer.eos_token_id).int().argmax())
    if model.config.text_config.eos_token_id == 2 or not torch.equal(
        output.pooler_output[0], output.last_hidden_state[0, end]
    ):
        raise AssertionError(f"CLIP does not read its text feature at {END} with id {tokenizer.eos_token_id}")


if __name__ == "__main__":
    run_command(main)
