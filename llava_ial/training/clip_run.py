"""A run of stage 1 before its first step: everything read, checked and fitted together, nothing written."""

import copy
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor

from llava_ial import distributed
from llava_ial.data.batches import GlobalBatches
from llava_ial.data.clip import ClipCollator, ClipExample, ClipPhotos, clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.data.pixels import input_side
from llava_ial.errors import UserError
from llava_ial.models.address_clip import AddressCLIP, DualEncoder, load_dual_encoder, load_tokenizer
from llava_ial.models.clip_parts import LOCKED, tune_tower
from llava_ial.models.half_precision import suit_attention
from llava_ial.models.identity import hash_tensors
from llava_ial.models.patch_dropout import drop_patches
from llava_ial.models.photo_loss import PhotoQueue
from llava_ial.models.text_spread import spread_texts
from llava_ial.training.clip_settings import ClipSettings
from llava_ial.training.optim import build_optimizer, rate_factor
from llava_ial.training.sharded import make_shardable
from llava_ial.training.weight_average import WeightAverage


@dataclass
class ClipRun:
    """What a training needs, built from the settings, and how far it has come."""

    settings: ClipSettings
    accelerator: Accelerator
    dataset: IALDataset
    examples: dict[str, list[ClipExample]]  # of train and of the splits to measure on
    model: AddressCLIP
    tokenizer: Any
    image_processor: Any
    collator: ClipCollator
    optimizer: Any
    identity: dict[str, Any]
    base_hash: str
    num_steps: int
    global_batch_size: int
    num_chunks: int  # parts in which a process encodes its photos of a step
    average: WeightAverage[AddressCLIP] | None = None
    queue: PhotoQueue | None = None  # of earlier photos, for the loss between photos
    whole: AddressCLIP | None = None  # where FSDP spreads the model: a copy in one piece, as of the last gathering
    parallel_model: Any = None  # the model under the wrapper that averages gradients over processes
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    measured_step: int = 0  # finished steps of the state that ``metrics`` are of
    best: dict[str, float] = field(default_factory=dict)  # ``step`` and ``value`` of the best state measured so far
    restored: dict[str, Any] = field(default_factory=dict)  # state of an optimiser that is yet to be spread
    skipped: dict[str, str] = field(default_factory=dict)  # photos that could not be read, and why
    started: float = field(default_factory=time.monotonic)

    def published_model(self) -> AddressCLIP:
        """The encoder that is measured and written."""
        return self.average.model if self.average else self.trained_model()

    def trained_model(self) -> AddressCLIP:
        """The encoder that is trained, in one piece."""
        return self.whole or self.model


def build_run(settings: ClipSettings, accelerator: Accelerator) -> ClipRun:
    """Reads data set and base model and checks that they fit together; writes nothing.

    Raises:
        UserError: Whatever the user can mend.
    """
    refuse_unsuited(accelerator)
    if is_sharded(accelerator) and settings.ema_decay:
        raise UserError(f"--ema_decay {settings.ema_decay}: allowed: 0 with FSDP, which spreads the weights")
    dataset = IALDataset(settings.data, settings.image_root)
    examples = {split: clip_examples(dataset, split) for split in ("train", *settings.eval_splits)}
    clip = load_dual_encoder(settings.base)
    base_hash = hash_tensors(clip.state_dict())
    suit_attention(clip, accelerator.mixed_precision, accelerator.device.type)
    tokenizer = load_tokenizer(settings.base)
    image_processor = AutoImageProcessor.from_pretrained(settings.base, backend="pil")
    if (side := input_side(image_processor)) != clip.config.vision_config.image_size:
        raise UserError(
            f"base model {settings.base}: its image processor makes {side} pixels, "
            f"its encoder takes {clip.config.vision_config.image_size}; mend its preprocessor_config.json"
        )
    model = build_model(clip, settings)
    collator = ClipCollator(tokenizer, model.max_text_length, settings.loss_weights.text_kinds, model.text_padding)
    addresses = [record.verbose for record in dataset.gallery]
    collator.refuse_long_addresses(addresses)
    if settings.spread_addresses:
        spread_texts(model, addresses, tokenizer)
    whole = None
    if is_sharded(accelerator):
        whole = copy.deepcopy(model).requires_grad_(False).to(accelerator.device)
        make_shardable(model)
    layers = {tower: len(getattr(clip, tower).encoder.layers) for tower in ("vision_model", "text_model")}
    optimizer = build_optimizer(
        model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay,
        factor_of=partial(rate_factor, num_layers=layers, factors=settings.rate_factors),
    )  # fmt: skip
    batches = shared_batches(settings, examples["train"], num_steps=0)
    model.to(accelerator.device)
    return ClipRun(
        settings=settings,
        accelerator=accelerator,
        dataset=dataset,
        examples=examples,
        model=model,
        average=WeightAverage(model, settings.ema_decay) if settings.ema_decay else None,
        queue=PhotoQueue(settings.photo_queue) if settings.photo_weight else None,
        whole=whole,
        tokenizer=tokenizer,
        image_processor=image_processor,
        collator=collator,
        optimizer=optimizer,
        identity={**settings.identity(), "data_hash": dataset.identity, "base_hash": base_hash},
        base_hash=base_hash,
        num_steps=batches.steps_per_epoch * settings.num_epochs,
        global_batch_size=batches.batch_size,
        num_chunks=num_chunks(batches.batch_size, settings.chunk_size),
    )


def build_model(clip: DualEncoder, settings: ClipSettings) -> AddressCLIP:
    """The encoder with the parts to train and the ways to save memory and time that were asked for."""
    tune_tower(clip, "image", settings.image_tower, settings.lora_rank)
    tune_tower(clip, "text", settings.text_tower, settings.lora_rank)
    if settings.patch_dropout:
        drop_patches(clip.vision_model, settings.patch_dropout)
    if settings.gradient_checkpointing:
        clip.activation_checkpointing_enable()
    if settings.compile:
        clip.vision_model.compile()
        clip.text_model.compile(dynamic=True)  # the texts of a batch are as long as its longest
    return AddressCLIP(clip)


def is_sharded(accelerator: Accelerator) -> bool:
    """True where FSDP spreads the model over processes."""
    return accelerator.distributed_type is DistributedType.FSDP


def refuse_unsuited(accelerator: Accelerator) -> None:
    """Stops launcher settings under which something else would be trained, without a word.

    Raises:
        UserError: Plain accumulation of gradients, FSDP without a GPU, or FSDP of the first version.
    """
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise UserError(
            f"gradient_accumulation_steps {steps}: a contrastive loss needs the whole batch at once, gradients summed "
            "over small batches are those of few negatives; use --batch_size N --chunk_size M instead"
        )
    if (is_sharded(accelerator) or _was_asked_for_fsdp()) and accelerator.device.type == "cpu":
        raise UserError("FSDP shards nothing on the CPU; train without it: --cpu true needs --multi_gpu alone")
    if is_sharded(accelerator) and not accelerator.is_fsdp2:
        raise UserError("fsdp_version 1: allowed: 2; launch with --config_file train/configs/fsdp2.yaml")


def _was_asked_for_fsdp() -> bool:
    """On the CPU accelerate forgets what its launcher was asked for and trains data parallel."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1", "yes")


def refuse_missing_trackers(names: Sequence[str]) -> None:
    """Stops for a tracker that is not installed: accelerate would log nothing, without a word.

    Raises:
        UserError: Names what is installed.
    """
    installed = [str(tracker.value if isinstance(tracker, Enum) else tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in installed:
            raise UserError(f"--trackers {name}: not installed; installed: {', '.join(installed) or 'none'}")


def num_chunks(global_batch_size: int, chunk_size: int) -> int:
    """Parts of at most ``chunk_size`` photos in the largest share that a process has of a batch; 0 means one part."""
    share = math.ceil(global_batch_size / distributed.world_size())
    return math.ceil(share / chunk_size) if chunk_size else 1


def shared_batches(
    settings: ClipSettings, rows: Sequence[ClipExample], *, num_steps: int, start_step: int = 0
) -> GlobalBatches:
    """Which photos stand in which batch."""
    return GlobalBatches(
        len(rows), settings.batch_size, num_steps=num_steps, start_step=start_step,
        rank=distributed.rank(), world=distributed.world_size(), seed=settings.seed,
        class_of_row=[row.address_id for row in rows], max_per_class=settings.max_per_address,
    )  # fmt: skip


def build_loader(run: ClipRun, start_step: int) -> DataLoader[dict[str, Any]]:
    """This process's share of all batches from ``start_step`` on."""
    settings, rows = run.settings, run.examples["train"]
    photos = ClipPhotos(
        rows, run.image_processor,
        augmentation=settings.augmentation, seed=settings.seed, fast_decoding=settings.fast_decoding,
        replace_broken=True,
    )  # fmt: skip
    photos.keep_decoded(settings.photos_in_memory, progress=distributed.is_main_process())
    return DataLoader(
        photos,
        batch_sampler=shared_batches(settings, rows, num_steps=run.num_steps, start_step=start_step),
        collate_fn=run.collator,
        num_workers=settings.num_workers,
        pin_memory=run.accelerator.device.type == "cuda",
    )


def describe(run: ClipRun) -> None:
    """What ``--dry_run`` prints."""
    items = ClipPhotos(run.examples["train"], run.image_processor, augmentation=run.settings.augmentation)
    batch = run.collator([items[0]])
    if "error" in batch:
        raise UserError(batch["error"])
    texts = {kind: run.tokenizer.decode(batch[f"{kind}_input_ids"][0]) for kind in run.settings.loss_weights.text_kinds}
    text_lines = "".join(f"{kind:<12}{text}\n" for kind, text in texts.items())
    print(
        f"photos      {', '.join(f'{len(rows)} {split}' for split, rows in run.examples.items())}; "
        f"{len(run.dataset.gallery)} addresses in the gallery\n"
        f"first photo {batch['image_id'][0]}: {tuple(batch['pixel_values'].shape[1:])}, "
        f"{batch['xy_m'][0].tolist()} m from the origin\n"
        f"{text_lines}"
        f"{_trainable_table(run)}"
        f"steps       {run.num_steps} of {run.global_batch_size} photos on {distributed.world_size()} process(es)"
    )


def _trainable_table(run: ClipRun) -> str:
    """Weights by part, and what memory a process needs: with gradients, both moments of Adam, and activations."""
    model = run.model
    counts: dict[str, list[int]] = {}
    for name, parameter in model.clip.named_parameters():
        total = counts.setdefault(name.split(".")[0], [0, 0])
        total[0] += parameter.numel() * parameter.requires_grad
        total[1] += parameter.numel()
    trained, held = (sum(count[i] for count in counts.values()) for i in (0, 1))
    rows = "".join(f"  {part:<18}{own:>14,} of {every:>14,}\n" for part, (own, every) in counts.items())
    # Float32: a weight, and for a trained one its gradient and two moments.
    megabytes = 4 * (held * (2 if run.average else 1) + 3 * trained) / 1e6
    at_once = math.ceil(math.ceil(run.global_batch_size / distributed.world_size()) / run.num_chunks)
    kept = at_once * _activation_bytes(run) / 1e6
    return (
        f"trained     {trained:,} of {held:,} weights; {megabytes:,.0f} MB with gradients and moments"
        f"{' and the average' if run.average else ''}\n{rows}"
        f"activations some {kept:,.0f} MB for {at_once} photos and their texts at once in each process\n"
    )


def _activation_bytes(run: ClipRun) -> float:
    """Of a photo and its texts, kept for the way back.

    34 bytes a token, channel and layer in 16 bits without the matrices of attention, 2 where they are computed again
    (Korthikanti et al., arXiv 2205.05198, section 4); twice that in 32 bits.
    """
    settings, config = run.settings, run.model.clip.config
    vision, text = config.vision_config, config.text_config
    num_patches = (vision.image_size // vision.patch_size) ** 2 * (1 - settings.patch_dropout)
    sizes = [(settings.image_tower, vision, num_patches + 1)]
    sizes += [(settings.text_tower, text, run.model.max_text_length)] * len(settings.loss_weights.text_kinds)
    bytes_each = (2 if settings.gradient_checkpointing else 34) * (
        1 if run.accelerator.mixed_precision == "bf16" else 2
    )
    return sum(
        float(bytes_each * tokens * tower.hidden_size * tower.num_hidden_layers)
        for how, tower, tokens in sizes
        if how != LOCKED
    )
