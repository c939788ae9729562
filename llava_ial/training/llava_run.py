"""Stage 2 before the first step: everything loaded, checked and claimed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, TrainingArguments

from llava_ial import distributed
from llava_ial.conversation import IMAGE_TOKEN, chat_template_hash
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import LlavaDataset
from llava_ial.errors import UserError
from llava_ial.manifest import MANIFEST, FolderState, claim_folder, file_hash
from llava_ial.models.llava import add_adapter, attach_tower, load_address_clip, load_base, set_features
from llava_ial.models.llava_folder import KIND, base_hash
from llava_ial.training.llava_settings import DECISIVE_ARGUMENTS, LlavaSettings

CHECKPOINT_PREFIX = "checkpoint-"
TRAINER_STATE = "trainer_state.json"  # the last file that Trainer writes into a checkpoint


@dataclass
class LlavaRun:
    """A training that can start."""

    settings: LlavaSettings
    arguments: TrainingArguments
    dataset: IALDataset
    model: Any
    tokenizer: Any
    image_processor: Any
    train_set: LlavaDataset
    identity: dict[str, Any]
    parents: dict[str, str]


def refuse_missing_compiler(arguments: TrainingArguments) -> None:
    """DeepSpeed compiles a part at its first start on the CPU and dies far from the reason without a compiler.

    Raises:
        UserError: No C++ compiler or no ninja, with the package to install.
    """
    if not arguments.deepspeed or not arguments.use_cpu:
        return
    for names, package in ((("c++", "g++", "clang++"), "g++"), (("ninja",), "ninja-build")):
        if not any(shutil.which(name) for name in names):
            raise UserError(
                f"--deepspeed needs {package} on the CPU: apt-get install {package}, or leave --deepspeed out"
            )


def claim(settings: LlavaSettings, arguments: TrainingArguments) -> tuple[FolderState, dict[str, Any], dict[str, str]]:
    """Takes the output folder for this configuration and these inputs (their content, not their place)."""
    dataset = IALDataset(settings.data, settings.image_root)
    if not (settings.clip / MANIFEST).is_file():
        raise UserError(f"--clip {settings.clip}: no finished stage 1 there; run train/stage1_clip.py first")
    parents = {
        "data": dataset.identity,
        "address_clip": file_hash(settings.clip / MANIFEST),
        "base": base_hash(settings.base),
        "chat_template": chat_template_hash(),
    }
    identity = settings.identity() | {name: getattr(arguments, name) for name in DECISIVE_ARGUMENTS} | parents
    identity |= {"deepspeed": _deepspeed_identity(arguments), "world_size": arguments.world_size}
    state = claim_folder(Path(arguments.output_dir), KIND, identity)
    return state, identity, parents


def build_run(
    settings: LlavaSettings, arguments: TrainingArguments, identity: dict[str, Any], parents: dict[str, str]
) -> LlavaRun:
    """Loads the data and the models on every process.

    Raises:
        UserError: Names what does not fit and what to do.
    """
    dataset = IALDataset(settings.data, settings.image_root)
    clip = load_address_clip(settings.clip)
    llava = load_base(settings.base)
    attach_tower(llava, clip)
    count = set_features(llava, settings.vision_feature_layer, settings.vision_feature_select_strategy)
    tokenizer = AutoTokenizer.from_pretrained(settings.base)
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != llava.config.image_token_id:
        raise UserError(f"--base {settings.base}: its tokenizer does not know {IMAGE_TOKEN} as the image token")
    image_processor = AutoImageProcessor.from_pretrained(settings.clip, backend="pil")
    train_set = LlavaDataset(
        dataset,
        dataset.conversations("train"),
        tokenizer,
        image_processor,
        num_image_tokens=count,
        max_length=settings.max_length,
    )
    model = add_adapter(llava, settings.lora)
    if arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    return LlavaRun(settings, arguments, dataset, model, tokenizer, image_processor, train_set, identity, parents)


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; half-written ones are passed over."""
    found = [
        path
        for path in folder.glob(f"{CHECKPOINT_PREFIX}*")
        if (path / TRAINER_STATE).is_file() and (path / MANIFEST).is_file()
    ]
    newest = max(found, key=lambda path: int(path.name.removeprefix(CHECKPOINT_PREFIX)), default=None)
    return str(newest) if newest else None


def describe(run: LlavaRun) -> str:
    """What is about to happen, in a few lines."""
    dropped = sum(encoded.num_dropped_turns for encoded in run.train_set.encoded)
    cut = sum(encoded.is_cut for encoded in run.train_set.encoded)
    lengths = [len(encoded.input_ids) for encoded in run.train_set.encoded]
    return (
        f"{len(lengths)} dialogues of {min(lengths)} to {max(lengths)} tokens; "
        f"left out to fit max_length {run.settings.max_length}: {dropped} turns, {cut} ends of answers; "
        f"{distributed.world_size()} process(es)"
    )


def _deepspeed_identity(arguments: TrainingArguments) -> Any:
    if not arguments.deepspeed:
        return None
    if isinstance(arguments.deepspeed, dict):
        return arguments.deepspeed
    return json.loads(Path(arguments.deepspeed).read_text(encoding="utf-8"))
