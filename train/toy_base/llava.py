"""A small LLaVA of the real architecture, to start stage 2 from where no pretrained one is at hand.

    python -m train.toy_base.llava --clip runs/demo/base_clip --data runs/demo/data --output runs/demo/base_llava

Tower as in the given CLIP, projector of two layers, a small LLaMA. A random LLaMA knows no words and LoRA needs a
language model to tune, so its weights are first trained on the text of the data set's questions and answers, without
any photo. What is learned from it afterwards shows that the chain is connected; it is no result.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # read once, when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llava_ial.config import parse_config
from llava_ial.conversation import IMAGE_TOKEN, Message, load_chat_template
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import encode_dialogue, pad_batch
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import FolderState, claim_folder, file_hash, publish_manifest
from llava_ial.models.identity import hash_tensors
from llava_ial.models.llava_folder import save_processor

KIND = "base_llava"
BEGIN, END, UNKNOWN, PAD = "<s>", "</s>", "<unk>", "<pad>"


@dataclass
class BaseLlavaConfig:
    """What to build; the defaults take about a minute on two CPU cores."""

    output: Path = field(metadata={"help": "folder to write"})
    clip: Path = field(metadata={"help": "CLIP folder whose tower shape and image processor are taken"})
    data: Path = field(metadata={"help": "data set whose questions and answers the language model is trained on"})
    tokenizer: Path | None = field(
        default=None, metadata={"help": "folder of LLaMA's tokenizer; without it one is trained on the data set's text"}
    )
    vocab_size: int = field(default=1024, metadata={"help": "largest vocabulary of a tokenizer trained here"})
    width: int = field(default=128, metadata={"help": "hidden size of the language model"})
    layers: int = field(default=4, metadata={"help": "layers of the language model"})
    steps: int = field(default=150, metadata={"help": "optimiser steps of the text pretraining"})
    batch_size: int = field(default=8, metadata={"help": "dialogues a step"})
    learning_rate: float = field(default=2e-3, metadata={"help": "peak of the cosine"})
    seed: int = field(default=0, metadata={"help": "of weights and order"})


def main() -> None:
    """Builds, pretrains on text and writes the folder."""
    (config,) = parse_config(BaseLlavaConfig, description=__doc__ or "")
    _check_paths(config)
    dataset = IALDataset(config.data)
    dialogues = [record.messages for record in dataset.conversations("train")]
    try:
        clip = CLIPModel.from_pretrained(config.clip)
        image_processor = AutoImageProcessor.from_pretrained(config.clip, backend="pil")
    except (OSError, ValueError) as error:
        raise UserError(f"--clip {config.clip}: no CLIP there: {str(error).splitlines()[0]}") from error
    identity = {k: v for k, v in asdict(config).items() if k not in ("output", "clip", "data", "tokenizer")}
    identity |= {"data": dataset.identity, "clip": hash_tensors(clip.state_dict())}
    if config.tokenizer:
        identity["tokenizer"] = file_hash(config.tokenizer / "tokenizer.json")
    if claim_folder(config.output, KIND, identity) is FolderState.COMPLETE:
        print(f"{config.output}: already there")
        return
    tokenizer = load_or_train_tokenizer(config.tokenizer, _texts(dialogues), config.vocab_size)
    torch.manual_seed(config.seed)
    model = build_llava(clip, tokenizer, width=config.width, layers=config.layers)
    print(f"the language model is random: pretraining it on the text of {len(dialogues)} dialogues, without photos")
    loss = pretrain_on_text(model, tokenizer, dialogues, config)
    model.save_pretrained(config.output)
    save_processor(config.output, tokenizer, image_processor, model.config)
    publish_manifest(config.output, KIND, identity, pretrained_on="text of the data set's dialogues", last_loss=loss)
    print(f"{config.output}: base model written, last text loss {loss:.3f}")


def build_llava(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, *, width: int, layers: int
) -> LlavaForConditionalGeneration:
    """LLaVA-1.5's architecture, smaller, with the weights of the CLIP's tower."""
    vision = clip.config.vision_config
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=2048,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict(), strict=True)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def pretrain_on_text(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    dialogues: list[list[Message]],
    config: BaseLlavaConfig,
) -> float:
    """Next-token training of the language model on whole dialogues; returns the last loss."""
    ids = [encode_dialogue(tokenizer, messages, 0).input_ids for messages in dialogues]
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    generator = torch.Generator().manual_seed(config.seed)
    model.train()
    last = float("nan")
    for _ in (bar := tqdm(range(config.steps), desc="language model on text", unit="step")):
        rows = torch.randint(len(ids), (config.batch_size,), generator=generator).tolist()
        batch = pad_batch([ids[row] for row in rows], tokenizer.pad_token_id, side="right")
        mask = pad_batch([[1] * len(ids[row]) for row in rows], 0, side="right")
        loss = model(input_ids=batch, attention_mask=mask, labels=batch.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        last = loss.item()
        bar.set_postfix(loss=f"{last:.3f}")
    return last


def load_or_train_tokenizer(folder: Path | None, texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """LLaMA's tokenizer with marks for padding and images added, or a byte-level one trained on the texts."""
    if folder is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"pad_token": PAD, "additional_special_tokens": [IMAGE_TOKEN]})
        return tokenizer
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[UNKNOWN, BEGIN, END, PAD, IMAGE_TOKEN],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
    )


def _check_paths(config: BaseLlavaConfig) -> None:
    if not (config.clip / "config.json").is_file():
        raise UserError(
            f"--clip {config.clip}: no CLIP there (no config.json); python -m train.toy_base.clip makes one"
        )
    if config.tokenizer and not (config.tokenizer / "tokenizer.json").is_file():
        raise UserError(f"--tokenizer {config.tokenizer}: no tokenizer.json there")


def _texts(dialogues: list[list[Message]]) -> Iterator[str]:
    yield load_chat_template()  # holds the system sentence and the names of the speakers
    for messages in dialogues:
        for message in messages:
            yield message.content.replace(IMAGE_TOKEN, "").strip()


if __name__ == "__main__":
    run_command(main)
