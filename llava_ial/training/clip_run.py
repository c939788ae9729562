"""A run of stage 1 before its first step: everything read, checked and fitted together, nothing written."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoTokenizer

from llava_ial import distributed
from llava_ial.data.clip import ClipCollator, ClipExample, ClipPhotos, GlobalBatches, clip_examples, input_side
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.models.address_clip import AddressCLIP, load_clip
from llava_ial.models.identity import hash_tensors
from llava_ial.training.clip_settings import ClipSettings
from llava_ial.training.optim import build_optimizer


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
    parallel_model: Any = None  # the model under the wrapper that averages gradients over processes
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)


def build_run(settings: ClipSettings, accelerator: Accelerator) -> ClipRun:
    """Reads data set and base model and checks that they fit together; writes nothing.

    Raises:
        UserError: Whatever the user can mend.
    """
    dataset = IALDataset(settings.data, settings.image_root)
    examples = {split: clip_examples(dataset, split) for split in ("train", *settings.eval_splits)}
    clip = load_clip(settings.base)
    base_hash = hash_tensors(clip.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(settings.base)
    image_processor = AutoImageProcessor.from_pretrained(settings.base, backend="pil")
    if (side := input_side(image_processor)) != clip.config.vision_config.image_size:
        raise UserError(
            f"base model {settings.base}: its image processor makes {side} pixels, "
            f"its encoder takes {clip.config.vision_config.image_size}; mend its preprocessor_config.json"
        )
    model = AddressCLIP(clip)
    collator = ClipCollator(tokenizer, model.max_text_length)
    collator.refuse_long_addresses([record.verbose for record in dataset.gallery])
    optimizer = build_optimizer(model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
    steps_per_epoch = shared_batches(settings, len(examples["train"]), num_steps=0).steps_per_epoch
    return ClipRun(
        settings=settings,
        accelerator=accelerator,
        dataset=dataset,
        examples=examples,
        model=model.to(accelerator.device),
        tokenizer=tokenizer,
        image_processor=image_processor,
        collator=collator,
        optimizer=optimizer,
        identity={**settings.identity(), "data_hash": dataset.identity, "base_hash": base_hash},
        base_hash=base_hash,
        num_steps=steps_per_epoch * settings.num_epochs,
    )


def shared_batches(settings: ClipSettings, num_rows: int, *, num_steps: int, start_step: int = 0) -> GlobalBatches:
    """Which photos stand in which batch."""
    return GlobalBatches(
        num_rows, settings.batch_size, num_steps=num_steps, start_step=start_step,
        rank=distributed.rank(), world=distributed.world_size(), seed=settings.seed,
    )  # fmt: skip


def build_loader(run: ClipRun, start_step: int) -> DataLoader[dict[str, Any]]:
    """This process's share of all batches from ``start_step`` on."""
    settings, rows = run.settings, run.examples["train"]
    photos = ClipPhotos(
        rows, run.image_processor,
        augmentation=settings.augmentation, seed=settings.seed, fast_decoding=settings.fast_decoding,
    )  # fmt: skip
    photos.keep_decoded(settings.photos_in_memory, progress=distributed.is_main_process())
    return DataLoader(
        photos,
        batch_sampler=shared_batches(settings, len(rows), num_steps=run.num_steps, start_step=start_step),
        collate_fn=run.collator,
        num_workers=settings.num_workers,
        pin_memory=run.accelerator.device.type == "cuda",
    )


def embed_gallery(run: ClipRun) -> torch.Tensor:
    """Features of all candidate addresses, ``(C, D)``."""
    return run.model.embed_texts([record.verbose for record in run.dataset.gallery], run.tokenizer)


def describe(run: ClipRun) -> None:
    """What ``--dry_run`` prints."""
    items = ClipPhotos(run.examples["train"], run.image_processor, augmentation=run.settings.augmentation)
    batch = run.collator([items[0]])
    if "error" in batch:
        raise UserError(batch["error"])
    texts = {name: run.tokenizer.decode(batch[f"{name}_input_ids"][0]) for name in ("address", "caption")}
    batch_size = min(run.settings.batch_size, len(run.examples["train"]))
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    print(
        f"photos      {', '.join(f'{len(rows)} {split}' for split, rows in run.examples.items())}; "
        f"{len(run.dataset.gallery)} addresses in the gallery\n"
        f"first photo {batch['image_id'][0]}: {tuple(batch['pixel_values'].shape[1:])}, "
        f"{batch['xy_m'][0].tolist()} m from the origin\n"
        f"address     {texts['address']}\ncaption     {texts['caption']}\n"
        f"trained     {trained:,} of {sum(p.numel() for p in run.model.parameters()):,} weights\n"
        f"steps       {run.num_steps} of {batch_size} photos on {distributed.world_size()} process(es)"
    )
