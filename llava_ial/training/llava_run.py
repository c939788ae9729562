"""Stage 2 before the first step: everything loaded, checked and claimed."""

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoImageProcessor, AutoTokenizer, BaseImageProcessor, LlavaConfig, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from llava_ial import distributed
from llava_ial.conversation import IMAGE_TOKEN, chat_template_hash
from llava_ial.data.apart import drawn_apart
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava_dataset import LlavaDataset
from llava_ial.data.llava_json import draw_mixed, hash_of_json, parse_mixture
from llava_ial.data.training_dialogues import CAPTIONS, OWN, training_dialogues
from llava_ial.errors import UserError
from llava_ial.locating import Locator, load_encoder
from llava_ial.manifest import BUILDING, MANIFEST, FolderState, claim_folder, file_hash, hold_folder, read_manifest
from llava_ial.models.attention import describe_attention
from llava_ial.models.feature_layers import set_features
from llava_ial.models.image_text import KIND as IMAGE_TEXT_KIND
from llava_ial.models.image_text import model_type
from llava_ial.models.llava import (
    ADDRESS_CLIP_KIND,
    add_adapter,
    attach_tower,
    load_address_clip,
    load_base,
)
from llava_ial.models.llava_folder import KIND, base_hash
from llava_ial.models.quantized import quantization_config, refuse_quantized_elsewhere
from llava_ial.models.tower_positions import processor_for_size
from llava_ial.models.tuned_tower import add_tower_lora, set_tower_training
from llava_ial.training.checkpoints import CHECKPOINTS, refuse_full_disk
from llava_ial.training.llava_arguments import LlavaArguments, is_measured
from llava_ial.training.llava_hints import HintPlan, TrainingHints, build_hints
from llava_ial.training.llava_identity import identity
from llava_ial.training.llava_limits import refuse_beside_other_bases, refuse_stale_workers, refuse_zero3_quantized
from llava_ial.training.llava_probe import Features, Probe, build_probe
from llava_ial.training.llava_settings import LlavaSettings
from llava_ial.training.llava_validation import Validation, build_validation

UNFINISHED = "checkpoint-"  # Trainer's own name for a checkpoint: here it is one that is being written


@dataclass(frozen=True)
class Inputs:
    """What a run is made from: its identity for ``claim_folder``, and the hashes of what it reads."""

    identity: dict[str, Any]
    parents: dict[str, str]
    kind: str = KIND


@dataclass
class LlavaRun:
    """A training that can start."""

    settings: LlavaSettings
    arguments: LlavaArguments
    inputs: Inputs
    dataset: IALDataset
    model: Any
    tokenizer: Any
    image_processor: Any
    train_set: LlavaDataset
    validation: Validation | None
    probe: Probe | None = None
    hints: TrainingHints | None = None
    attached_tower: str | None = None

    @property
    def output(self) -> Path:
        """The folder that is written."""
        return Path(self.arguments.output_dir)

    @property
    def forgetting(self) -> Path:
        """What the run measured of ``--forgetting_probe``."""
        return self.output / "forgetting.json"

    @property
    def log(self) -> Path:
        """Losses and measurements, a line each."""
        return self.output / "train_log.jsonl"


def read_inputs(settings: LlavaSettings, arguments: LlavaArguments) -> Inputs:
    """Hashes what the run reads; loads no model.

    Raises:
        UserError: Data set, stage 1 or base is not there or not finished, or stage 1 is of another data set.
    """
    refuse_zero3_quantized(settings, arguments)
    refuse_stale_workers(settings, arguments)
    settings.dtype(arguments)
    settings.attention(arguments)
    dataset = IALDataset(settings.data, settings.image_root)
    parents = {"data": dataset.identity, "base": base_hash(settings.base)}
    if settings.dialogues == CAPTIONS:
        parents["dialogues"] = CAPTIONS
    elif settings.dialogues != OWN:
        parents["dialogues"] = hash_of_json(Path(settings.dialogues))
    if model_type(settings.base) != "llava":
        refuse_beside_other_bases(settings, arguments)
        return Inputs(identity(settings, arguments) | parents, parents, IMAGE_TEXT_KIND)
    if read_manifest(settings.stage1, ADDRESS_CLIP_KIND).get("gallery_hash") != dataset.gallery_hash:
        raise UserError(
            f"--data {settings.data} has other addresses than --clip {settings.stage1}; name the stage 1 folder that "
            "was trained on it"
        )
    parents |= {"address_clip": file_hash(settings.stage1 / MANIFEST), "chat_template": chat_template_hash()}
    mixed = _mixed_hashes(settings.mix)
    return Inputs(identity(settings, arguments) | parents | mixed, parents | mixed)


def _mixed_hashes(mix: Sequence[str]) -> dict[str, str]:
    """Of each mixture the file's hash, by its share and, as two may have one share, the place of all but the first."""
    found = {}
    for place, mixture in enumerate(map(parse_mixture, mix), start=1):
        found[f"mix {mixture.share}" + (f", number {place}" if place > 1 else "")] = hash_of_json(mixture.path)
    return found


def claim(output: Path, inputs: Inputs, held: ExitStack) -> FolderState:
    """Takes the output folder, keeps it until ``held`` ends, and clears what a killed run was about to write."""
    with refuse_full_disk(output):
        state = claim_folder(output, inputs.kind, inputs.identity)
        if state is not FolderState.COMPLETE:
            held.enter_context(hold_folder(output))
    for folder in (output / CHECKPOINTS).glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder)
    return state


def is_taken(output: Path) -> bool:
    """True if a run has begun here, this one or another."""
    return (output / MANIFEST).exists() or (output / BUILDING).exists()


def build_run(settings: LlavaSettings, arguments: LlavaArguments, inputs: Inputs) -> LlavaRun:
    """Loads the data and the models on every process; writes nothing.

    Raises:
        UserError: Names what does not fit and what to do.
    """
    dataset = IALDataset(settings.data, settings.image_root)
    model, attached_tower, base_features = _load_model(settings, arguments)
    llava = model.get_base_model()
    tokenizer, image_processor = _load_processor(settings, llava.config)
    hints = _hints(settings, arguments, dataset)
    conversations = training_dialogues(dataset, settings.dialogues)
    encoding: dict[str, Any] = {"num_image_tokens": llava.config.image_seq_length, "max_length": settings.max_length}
    train_set = LlavaDataset(
        dataset,
        [*conversations, *draw_mixed(settings.mix, len(conversations), seed=arguments.seed)],
        tokenizer,
        image_processor,
        photos_in_memory=settings.photos_in_memory,
        hints=hints.train if hints else (),
        apart=drawn_apart(conversations, settings.questions_apart, arguments.seed),
        augmentation=settings.augmentation,
        num_changed=len(conversations),
        seed=arguments.seed,
        **encoding,
    )
    validation = None
    if is_measured(arguments):
        validation = build_validation(
            dataset, settings.eval_split, settings.eval_photos, tokenizer, image_processor,
            hints=hints.own if hints else {}, questions_apart=settings.questions_apart, seed=arguments.seed, **encoding,
        )  # fmt: skip
    probe = None
    if settings.forgetting_probe:
        probe = build_probe(
            settings.forgetting_probe, dataset, model, base_features, tokenizer, image_processor,
            AutoImageProcessor.from_pretrained(settings.base, backend="pil"), max_length=settings.max_length,
        )  # fmt: skip
    if arguments.activation_checkpointing:
        model.enable_input_require_grads()
    return LlavaRun(
        settings, arguments, inputs, dataset, model, tokenizer, image_processor, train_set, validation, probe, hints,
        attached_tower,
    )  # fmt: skip


def _load_model(settings: LlavaSettings, arguments: LlavaArguments) -> tuple[PeftModel, str, Features]:
    """The base with stage 1's tower and what is trained, that tower's hash, and what the base alone reads of it."""
    with whole_tensors(arguments):
        clip = load_address_clip(settings.stage1)
        dtype = settings.dtype(arguments)
        quantization = quantization_config(settings.quantize, dtype)
        attention = settings.attention(arguments)
        llava = load_base(settings.base, dtype=dtype, quantization=quantization, attention=attention)
        if quantization:
            refuse_quantized_elsewhere(llava)
        own_tower = copy.deepcopy(llava.model.vision_tower.state_dict()) if settings.forgetting_probe else None
        attached_tower = attach_tower(llava, clip, interpolate_positions=settings.interpolate_positions)
        base_features = Features(llava.config.vision_feature_layer, llava.config.vision_feature_select_strategy)
        set_features(llava, settings.feature_layers, settings.vision_feature_select_strategy)
        if settings.join_last_layer:  # the base's own projector is widened, too, and computes what it did before
            base_features = replace(base_features, layer=settings.feature_layers)
        model = add_adapter(llava, settings.lora)
        if own_tower:  # what the model sees with its adapter off
            model.get_base_model().model.vision_tower.original_module.load_state_dict(own_tower, strict=True)
        if settings.tune_vision_tower == "lora":
            add_tower_lora(model, settings.lora)
        set_tower_training(model, settings.tune_vision_tower)
        for parameter in model.parameters():
            if parameter.requires_grad:  # steps of 1e-5 are lost in 16 bits
                parameter.data = parameter.data.float()
    return model, attached_tower, base_features


def _load_processor(settings: LlavaSettings, config: LlavaConfig) -> tuple[PreTrainedTokenizerBase, BaseImageProcessor]:
    """The base's tokenizer, and the preparation of photos for stage 1's tower at the base's image size."""
    tokenizer = AutoTokenizer.from_pretrained(settings.base)
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != config.image_token_id:
        raise UserError(f"--base {settings.base}: its tokenizer does not know {IMAGE_TOKEN} as the image token")
    image_processor = AutoImageProcessor.from_pretrained(settings.stage1, backend="pil")
    return tokenizer, processor_for_size(image_processor, config.vision_config.image_size)


def _hints(settings: LlavaSettings, arguments: LlavaArguments, dataset: IALDataset) -> TrainingHints | None:
    """What AddressCLIP says of the photos, None if nobody asked; all processes share the work."""
    if not settings.hints:
        return None
    with whole_tensors(arguments):
        device = "cpu" if arguments.device.type == "cpu" else str(arguments.device)
        locator = Locator(load_encoder(settings.stage1, device))
    plan = HintPlan(
        settings.hints, settings.hint_dropout, settings.hint_shuffle, settings.hint_misses == "keep", arguments.seed
    )
    return build_hints(locator, dataset, plan, settings.eval_split if is_measured(arguments) else None)


def refuse_unshared(output: Path) -> None:
    """Each process looks for the folder that the main one has claimed.

    Raises:
        UserError: It is not there: this process would write its part of a checkpoint to another disk.
    """
    if not (output / BUILDING).exists():
        raise UserError(
            f"--output_dir {output}: process {distributed.rank()} does not see it; all machines must share that folder"
        )


@contextmanager
def whole_tensors(arguments: LlavaArguments) -> Iterator[None]:
    """Models are built with whole tensors here, and DeepSpeed partitions them when training starts.

    Under ZeRO-3 ``from_pretrained`` otherwise hands out empty ones, which can neither be hashed nor loaded strictly.
    Every process holds the whole model in main memory for that while.
    """
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if arguments.deepspeed:
            set_hf_deepspeed_config(arguments.hf_deepspeed_config)


def describe(run: LlavaRun) -> str:
    """What is about to happen, in a few lines."""
    encoded = run.train_set.encoded
    dropped = sum(dialogue.num_dropped_turns for dialogue in encoded)
    cut = sum(dialogue.is_cut for dialogue in encoded)
    num_apart = sum(bool(dialogue.branches) for dialogue in encoded)
    lengths = [len(dialogue.input_ids) for dialogue in encoded]
    apart = f", the questions of {num_apart} of them apart" if num_apart else ""
    return (
        f"{len(lengths)} dialogues of {min(lengths)} to {max(lengths)} tokens{apart}; "
        f"left out to fit max_length {run.settings.max_length}: {dropped} turns, {cut} ends of answers; "
        f"{run.settings.num_processes} process(es); {describe_attention(run.model)}"
        + (f"\n{run.hints.describe()}" if run.hints else "")
    )
