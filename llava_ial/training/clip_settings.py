"""Options of stage 1: the dataclass that a YAML file and the command line fill."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_ial.data.augmentation import Augmentation, augmentation_of
from llava_ial.data.views import NUM_VIEWS, ONE, PARTS, VIEWS
from llava_ial.errors import UserError
from llava_ial.models.clip_parts import LOCKED, LORA, TUNED
from llava_ial.models.half_precision import PRECISIONS
from llava_ial.models.losses import GEOGRAPHY_READINGS, POSITIVES, LossWeights
from llava_ial.splits import SPLIT_NAMES
from llava_ial.training.optim import RateFactors

# As published (arXiv 2407.08156, section 5.1); Adam is AdamW without decay.
PAPER: dict[str, Any] = {
    "num_epochs": 100, "batch_size": 256, "learning_rate": 2.4e-5, "final_learning_rate": 2.4e-8, "weight_decay": 0.0,
    "warmup_steps": 0, "address_weight": 1.0, "caption_weight": 0.2, "geography_weight": 0.8, "street_weight": 0.0,
    "neighbourhood_weight": 0.0, "photo_weight": 0.0, "positives": "paper", "geography_reading": "stated",
    "max_per_address": 0,
    "image_rate_factor": 1.0, "text_rate_factor": 1.0, "layer_decay": 1.0, "image_tower": TUNED, "text_tower": TUNED,
    "ema_decay": 0.0, "views": ONE, "memory_weight": 0.0, "spread_addresses": False, "patch_dropout": 0.0,
}  # fmt: skip

# These say where things lie and how fast it goes, not what comes out: a run may be resumed with others. The inputs
# stand in a run's identity by their hashes.
_NOT_IDENTITY = (
    "data", "image_root", "base", "output", "cpu", "num_workers", "photos_in_memory", "checkpoint_every",
    "keep_checkpoints", "resume", "dry_run", "preset", "trackers",
)  # fmt: skip


@dataclass
class ClipSettings:
    """What to train on, how, and where the result goes; losses, schedule and batch default to the paper's values."""

    data: Path = field(metadata={"help": "data set folder, made by python -m data_gen.build"})
    base: str = field(metadata={"help": "CLIP to start from: name on the Hugging Face hub, or a folder"})
    output: Path = field(metadata={"help": "folder to write; the same settings again continue or find it done"})
    image_root: Path | None = field(
        default=None, metadata={"help": "where the photos lie, if they were moved since the data set was made"}
    )

    preset: str = field(
        default="none",
        metadata={"help": "paper: the published losses, rates, optimiser and batch, over whatever else is given"},
    )
    num_epochs: int = field(default=100, metadata={"help": "times that every photo is seen"})
    batch_size: int = field(default=256, metadata={"help": "photos of a step over all processes"})
    learning_rate: float = field(default=2.4e-5, metadata={"help": "highest learning rate"})
    final_learning_rate: float = field(default=2.4e-8, metadata={"help": "learning rate of the last step"})
    warmup_steps: int = field(default=0, metadata={"help": "steps on which the learning rate rises"})
    weight_decay: float = field(default=0.0, metadata={"help": "of matrices; 0 makes AdamW the paper's Adam"})
    chunk_size: int = field(
        default=0,
        metadata={
            "help": "photos that a process encodes at once: large batches on little memory, by two passes and with the "
            "gradient of the whole batch; 0 encodes all at once"
        },
    )
    max_gradient_norm: float = field(default=1.0, metadata={"help": "gradients are scaled down to this norm"})
    image_rate_factor: float = field(default=1.0, metadata={"help": "factor on the learning rate of the image tower"})
    text_rate_factor: float = field(default=1.0, metadata={"help": "factor on the learning rate of the text tower"})
    layer_decay: float = field(
        default=1.0, metadata={"help": "factor on the learning rate from each layer of a tower to the one below it"}
    )
    image_tower: str = field(
        default=TUNED, metadata={"help": "what is trained of the image tower: tuned (all), locked (nothing) or lora"}
    )
    text_tower: str = field(default=TUNED, metadata={"help": "what is trained of the text tower, likewise"})
    lora_rank: int = field(default=16, metadata={"help": "of the low-rank updates of a tower that is 'lora'"})
    spread_addresses: bool = field(
        default=False,
        metadata={"help": "before the first step, refit the text projection so that the city's addresses lie apart"},
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "measure and publish a moving average of the weights, for example 0.999; 0: none"},
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "compute activations again instead of keeping them: less memory, more time"}
    )
    compile: bool = field(default=False, metadata={"help": "torch.compile the encoders"})
    mixed_precision: str = field(
        default="no", metadata={"help": "no, bf16, or auto: bf16 where the processor multiplies it in hardware"}
    )

    address_weight: float = field(default=1.0, metadata={"help": "share of image_address_loss"})
    caption_weight: float = field(default=0.2, metadata={"help": "share of image_caption_loss"})
    geography_weight: float = field(default=0.8, metadata={"help": "share of image_geography_loss"})
    geography_reading: str = field(
        default="stated",
        metadata={"help": "of the geography loss: stated (near photos alike) or printed (the formula as it stands)"},
    )
    street_weight: float = field(default=0.0, metadata={"help": "share of image_street_loss, with texts of streets"})
    neighbourhood_weight: float = field(
        default=0.0, metadata={"help": "share of image_neighbourhood_loss, with texts of neighbourhoods"}
    )
    photo_weight: float = field(
        default=0.0,
        metadata={"help": "share of image_photo_loss, with photos of the same address from other panoramas"},
    )
    photo_queue: int = field(
        default=16384,
        metadata={"help": "photos of earlier steps that image_photo_loss compares with, beside those of the batch"},
    )
    positives: str = field(
        default="paper",
        metadata={
            "help": "which texts of a batch are right for a photo: paper (its own alone), multi (all of its address), "
            "geo (by distance)"
        },
    )
    sigma_m: float = field(default=50.0, metadata={"help": "decay of --positives geo in metres"})

    max_per_address: int = field(
        default=0, metadata={"help": "photos of one address in a batch, as far as the others last; 0: as they come"}
    )
    min_crop_area: float = field(
        default=1.0, metadata={"help": "random crops keep at least this share of a photo's area; 1 crops nothing"}
    )
    colour_jitter: float = field(
        default=0.0, metadata={"help": "largest relative change of brightness, contrast and saturation"}
    )
    white_balance_jitter: float = field(
        default=0.0, metadata={"help": "largest relative change of red, green and blue, each for itself"}
    )
    patch_dropout: float = field(
        default=0.0,
        metadata={"help": "share of each photo's patches that training leaves out, for example 0.5: faster"},
    )
    fast_decoding: bool = field(
        default=False,
        metadata={"help": "decode large JPEGs at a fraction of their size: other pixels, several times faster"},
    )

    photos_in_memory: int = field(
        default=0, metadata={"help": "decoded training photos that each process keeps, 3 bytes a pixel; 0 keeps none"}
    )

    views: str = field(
        default=ONE,
        metadata={
            "help": "what is seen of a photo that is located: 1 (its middle square), 3 (its left and right, too, the "
            f"features averaged), parts ({NUM_VIEWS[PARTS]} squares of five sizes, each compared alone) or pad (the "
            "whole on a square)"
        },
    )
    memory_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the likeness to training photos beside that to the address's text; 0: none"},
    )
    memory_sharpness: float = field(
        default=2.0,
        metadata={"help": "how much the most alike of an address's photos count; in units of the learnt logit scale"},
    )

    eval_splits: list[str] = field(default_factory=lambda: ["val"], metadata={"help": "splits to measure on"})
    eval_every: int = field(default=0, metadata={"help": "steps between measurements; 0 measures at the end alone"})
    publish: str = field(
        default="last",
        metadata={"help": "encoder that the output holds: last, or best by SSA@1 on the first of --eval_splits"},
    )
    trackers: list[str] = field(
        default_factory=list,
        metadata={
            "help": "where the log goes too: tensorboard, wandb, trackio, or what else accelerate finds installed"
        },
    )
    log_every: int = field(default=10, metadata={"help": "steps between lines of train_log.jsonl"})
    checkpoint_every: int = field(
        default=500, metadata={"help": "steps between checkpoints; 0 saves at the end, and on SIGTERM"}
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "newest checkpoints that are kept"})

    num_processes: int = field(
        default=1, metadata={"help": "processes that must train together; refused if the launcher started others"}
    )
    cpu: bool = field(default=False, metadata={"help": "train on the CPU"})
    num_workers: int = field(default=4, metadata={"help": "processes that decode photos, for each training process"})
    seed: int = field(default=0, metadata={"help": "of order, augmentation and dropout"})
    resume: bool = field(
        default=False,
        metadata={
            "help": "only continue: an error if --output holds nothing of these settings (a run is continued anyway)"
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "show what would be trained, and stop"})

    @property
    def loss_weights(self) -> LossWeights:
        """Shares of the losses."""
        return LossWeights(
            self.address_weight, self.caption_weight, self.geography_weight, self.street_weight,
            self.neighbourhood_weight, self.photo_weight,
        )  # fmt: skip

    @property
    def rate_factors(self) -> RateFactors:
        """Learning rates of the parts."""
        return RateFactors(self.image_rate_factor, self.text_rate_factor, self.layer_decay)

    @property
    def augmentation(self) -> Augmentation | None:
        """What a training photo goes through; None for nothing."""
        return augmentation_of(self.min_crop_area, self.colour_jitter, self.white_balance_jitter)

    def with_preset(self) -> "ClipSettings":
        """The settings with those of ``preset`` over them.

        Raises:
            UserError: An unknown preset.
        """
        _require(self.preset in ("none", "paper"), "preset", self.preset, "none, paper")
        return replace(self, **PAPER) if self.preset == "paper" else self

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_IDENTITY}

    def refuse_impossible(self) -> None:
        """Checks every value before anything expensive.

        Raises:
            UserError: Names option, value and what is allowed.
        """
        for name in ("lora_rank", "num_epochs", "batch_size", "log_every", "num_processes", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "max_gradient_norm", "sigma_m", "image_rate_factor", "text_rate_factor",
                     "memory_sharpness"):  # fmt: skip
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        not_negative = (
            "final_learning_rate", "warmup_steps", "weight_decay", "address_weight", "caption_weight",
            "geography_weight", "street_weight", "neighbourhood_weight", "chunk_size", "eval_every", "checkpoint_every",
            "num_workers", "photos_in_memory", "max_per_address", "memory_weight", "photo_weight", "photo_queue",
        )  # fmt: skip
        for name in not_negative:
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(0 < self.min_crop_area <= 1, "min_crop_area", self.min_crop_area, "above 0 and at most 1")
        for name in ("colour_jitter", "white_balance_jitter", "patch_dropout"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        _require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "above 0 and at most 1")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "at least 0 and below 1")
        for name in ("image_tower", "text_tower"):
            ways = (TUNED, LOCKED, LORA)
            _require(getattr(self, name) in ways, name, getattr(self, name), ", ".join(ways))
        _require(self.publish in ("last", "best"), "publish", self.publish, "last, best")
        _require(
            self.publish == "last" or self.eval_every > 0, "publish", self.publish,
            "last, where --eval_every 0 measures no other state",
        )  # fmt: skip
        _require(self.positives in POSITIVES, "positives", self.positives, ", ".join(POSITIVES))
        _require(
            self.geography_reading in GEOGRAPHY_READINGS, "geography_reading", self.geography_reading,
            ", ".join(GEOGRAPHY_READINGS),
        )  # fmt: skip
        _require(
            bool(self.loss_weights.text_kinds), "address_weight", self.address_weight,
            "above 0, where no other loss with texts has a weight",
        )  # fmt: skip
        _require(self.views in VIEWS, "views", self.views, ", ".join(VIEWS))
        _require(self.mixed_precision in PRECISIONS, "mixed_precision", self.mixed_precision, ", ".join(PRECISIONS))
        _require(
            not self.photo_weight or not 0 < self.photo_queue < self.batch_size, "photo_queue", self.photo_queue,
            f"0, or at least --batch_size {self.batch_size}, for whole batches are kept",
        )  # fmt: skip
        for split in self.eval_splits:
            _require(split in SPLIT_NAMES, "eval_splits", split, ", ".join(SPLIT_NAMES))
        _require(
            self.batch_size >= self.num_processes, "batch_size", self.batch_size,
            f"at least one photo for each of {self.num_processes} processes",
        )  # fmt: skip


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise UserError(f"--{name} {value}: allowed: {allowed}")
