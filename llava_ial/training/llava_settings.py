"""Options of stage 2: data, models and what is tuned; everything else is ``transformers.TrainingArguments``."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments

from llava_ial.data.augmentation import Augmentation, augmentation_of
from llava_ial.data.llava_json import parse_mixture
from llava_ial.data.training_dialogues import OWN
from llava_ial.errors import UserError
from llava_ial.models.attention import ATTENTIONS, AUTO, SDPA, choose_attention
from llava_ial.models.feature_layers import Layers, joined_with_last
from llava_ial.models.llava import LoraSettings
from llava_ial.models.quantized import QUANTIZATIONS
from llava_ial.models.tuned_tower import TOWER_TUNING
from llava_ial.training.llava_arguments import require

_ALLOWED = {
    "quantize": QUANTIZATIONS,
    "base_dtype": ("auto", "float32", "bfloat16"),
    "tune_vision_tower": TOWER_TUNING,
    "publish": ("last", "best"),
    "hint_misses": ("keep", "leave_out"),
    "attn_implementation": ATTENTIONS,
}


@dataclass
class LlavaSettings:
    """What to tune on what; the LoRA and projector defaults are LLaVA-1.5's recipe for a task."""

    data: Path = field(metadata={"help": "data set folder, made by python -m data_gen.build"})
    base: str = field(
        metadata={
            "help": "LLaVA-1.5 by name or folder, for example llava-hf/llava-1.5-7b-hf; or another image-text model"
        }
    )
    clip: Path | None = field(
        default=None, metadata={"help": "stage 1 folder whose vision tower LLaVA-1.5 gets; other models keep their own"}
    )
    image_root: Path | None = field(
        default=None, metadata={"help": "where the photos lie, if they were moved since the data set was made"}
    )
    num_processes: int = field(
        default=1, metadata={"help": "processes that must train together; refused if the launcher started others"}
    )
    lora_rank: int = field(
        default=128, metadata={"help": "rank of LoRA; 0: the projector alone, the language model stays as it is"}
    )
    lora_alpha: int = field(default=256, metadata={"help": "scale of LoRA, divided by the rank"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout before LoRA"})
    use_rslora: bool = field(
        default=False, metadata={"help": "divide the scale by the root of the rank (arXiv 2312.03732)"}
    )
    use_dora: bool = field(
        default=False, metadata={"help": "learn the weights' lengths apart from their directions (arXiv 2402.09353)"}
    )
    quantize: str = field(
        default="none", metadata={"help": "hold the language model at four bits, 'nf4' (QLoRA), or at eight, 'int8'"}
    )
    base_dtype: str = field(
        default="auto", metadata={"help": "of the frozen weights: float32 or bfloat16; 'auto' goes with --bf16"}
    )
    projector_learning_rate: float = field(
        default=2e-5, metadata={"help": "of the projector; --learning_rate is LoRA's"}
    )
    tune_vision_tower: str = field(
        default="none", metadata={"help": "'none', 'lora' (rank, scale and dropout as above), or 'full'"}
    )
    vision_tower_learning_rate: float = field(
        default=2e-6, metadata={"help": "of the tower; LoRA in it wants a higher one, such as 2e-5"}
    )
    interpolate_positions: bool = field(
        default=False,
        metadata={"help": "fit a tower of stage 1 for photos of another size to the base's, by interpolating its "
                          "positions; else it is refused"},
    )  # fmt: skip
    vision_feature_layer: int = field(
        default=-2, metadata={"help": "hidden state of the tower that is read; LLaVA-1.5: -2"}
    )
    vision_feature_select_strategy: str = field(
        default="default", metadata={"help": "'default' drops the class token, 'full' keeps it"}
    )
    join_last_layer: bool = field(
        default=False,
        metadata={"help": "read the tower's last layer beside --vision_feature_layer; with 'full' its class token is "
                          "there, which AddressCLIP's image embedding is made of"},
    )  # fmt: skip
    hints: int = field(
        default=0, metadata={"help": "likeliest addresses of AddressCLIP that stand before the first question; 0: none"}
    )
    hint_dropout: float = field(default=0.1, metadata={"help": "share of the training dialogues without hints"})
    hint_shuffle: float = field(default=0.05, metadata={"help": "share with the hints of another photo"})
    hint_misses: str = field(
        default="leave_out",
        metadata={"help": "hints of training photos among which the truth is not: keep, or leave_out"},
    )
    questions_apart: float = field(
        default=0.0,
        metadata={"help": "share of the data set's dialogues whose questions do not see each other, so that no answer "
                          "can be read off an earlier one; the photo is still encoded once"},
    )  # fmt: skip
    min_crop_area: float = field(
        default=1.0,
        metadata={"help": "smallest share of a training photo of the data set that a random crop keeps; 1: whole"},
    )
    colour_jitter: float = field(
        default=0.0, metadata={"help": "largest change of brightness, contrast and saturation of a training photo"}
    )
    white_balance_jitter: float = field(
        default=0.0, metadata={"help": "largest change of its red, green and blue, each for itself: another hour"}
    )
    max_length: int = field(default=2048, metadata={"help": "most tokens of a dialogue, image tokens counted"})
    attn_implementation: str = field(
        default="auto",
        metadata={"help": "attention's kernel: 'sdpa' (PyTorch's), 'flash_attention_2', 'eager'; 'auto' takes "
                          "flash_attention_2 where it can run, else sdpa"},
    )  # fmt: skip
    photos_in_memory: int = field(
        default=0,
        metadata={
            "help": "decoded photos that each process keeps (at the tower's size, or larger where they are changed); "
            "for data sets of a few hundred photos"
        },
    )

    dialogues: str = field(
        default=OWN,
        metadata={"help": "what is trained on: 'own', the data set's questions and answers; 'captions', its captions; "
                          "or LLaVA JSON, whose photos lie relative to the file"},
    )  # fmt: skip
    mix: list[str] = field(
        default_factory=list,
        metadata={"help": "general dialogues as LLaVA JSON and their number as a share of the data set's, so that less "
                          "is forgotten, for example general.json:0.1; photos lie relative to the file"},
    )  # fmt: skip
    forgetting_probe: Path | None = field(
        default=None,
        metadata={
            "help": "general dialogues as LLaVA JSON that the base and the tuned model are measured on at the end"
        },
    )
    eval_split: str = field(
        default="val", metadata={"help": "split that is measured on, at every --eval_strategy steps or epoch"}
    )
    eval_photos: int = field(
        default=64, metadata={"help": "photos of it, always the same, whose loss and generated answers are measured"}
    )
    publish: str = field(
        default="last", metadata={"help": "what the finished folder holds: the 'last' step, or the 'best' measured one"}
    )
    early_stopping: int = field(
        default=0, metadata={"help": "end after so many measurements without a better one; 0: never"}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "show what would be trained, on what and in how much memory; write nothing"}
    )

    @property
    def stage1(self) -> Path:
        """The folder of stage 1.

        Raises:
            UserError: None is named.
        """
        if self.clip is None:
            raise UserError(f"--clip: name the stage 1 folder whose tower {self.base} shall have")
        return self.clip

    @property
    def lora(self) -> LoraSettings:
        """The LoRA part."""
        return LoraSettings(self.lora_rank, self.lora_alpha, self.lora_dropout, self.use_rslora, self.use_dora)

    @property
    def augmentation(self) -> Augmentation | None:
        """What a training photo goes through; None for nothing."""
        return augmentation_of(self.min_crop_area, self.colour_jitter, self.white_balance_jitter)

    @property
    def feature_layers(self) -> Layers:
        """Which layers of the tower are read."""
        return joined_with_last(self.vision_feature_layer) if self.join_last_layer else self.vision_feature_layer

    def dtype(self, arguments: TrainingArguments) -> torch.dtype:
        """Of the frozen weights.

        Raises:
            UserError: 16 bits without --bf16, by which the trained ones, at 32, fit to them.
        """
        require(arguments.bf16 or self.base_dtype != "bfloat16", "base_dtype", self.base_dtype, "with --bf16 true")
        is_half = self.base_dtype == "bfloat16" or (self.base_dtype == "auto" and arguments.bf16)
        return torch.bfloat16 if is_half else torch.float32

    def attention(self, arguments: TrainingArguments) -> str:
        """The attention kernel.

        Raises:
            UserError: As of ``choose_attention``.
        """
        halves = ((arguments.bf16, torch.bfloat16), (arguments.fp16, torch.float16))
        dtype = next((half for is_used, half in halves if is_used), torch.float32)
        if self.questions_apart:  # the other kernels know no mask but "all before"
            allowed = f"{AUTO}, {SDPA} with --questions_apart"
            require(self.attn_implementation in (AUTO, SDPA), "attn_implementation", self.attn_implementation, allowed)
            return SDPA
        return choose_attention(self.attn_implementation, device=arguments.device.type, dtype=dtype)

    def refuse_impossible(self, *, is_measured: bool) -> None:
        """Checks every value before anything expensive.

        Args:
            is_measured: ``--eval_strategy`` says when.

        Raises:
            UserError: Names option, value and what is allowed.
        """
        needs_measuring = "nothing else without --eval_strategy steps or epoch"
        require(is_measured or self.publish != "best", "publish", self.publish, needs_measuring)
        require(is_measured or self.early_stopping == 0, "early_stopping", self.early_stopping, needs_measuring)
        for name in ("num_processes", "lora_alpha", "max_length", "eval_photos"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("lora_rank", "projector_learning_rate", "vision_tower_learning_rate", "photos_in_memory",
                     "early_stopping", "hints", "hint_dropout", "hint_shuffle"):  # fmt: skip
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name, allowed in _ALLOWED.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), ", ".join(allowed))
        needs_rank = "none, full with --lora_rank 0"
        require(
            self.lora_rank > 0 or self.tune_vision_tower != "lora",
            "tune_vision_tower",
            self.tune_vision_tower,
            needs_rank,
        )
        needs_own = "0 with --dialogues but 'own': hints are for questions about an address"
        require(self.dialogues == OWN or not self.hints, "hints", self.hints, needs_own)
        as_they_are = "nothing with --dialogues but 'own': what a caption tells of a photo may be cut off it"
        for name, plain in asdict(Augmentation()).items():
            value = getattr(self, name)
            require(self.dialogues == OWN or value == plain, name, value, as_they_are)
        needs_own = "0 with --dialogues but 'own': other questions may ask about the answers before"
        require(self.dialogues == OWN or not self.questions_apart, "questions_apart", self.questions_apart, needs_own)
        _ = self.feature_layers
        for text in self.mix:
            parse_mixture(text)
        both = self.hint_dropout + self.hint_shuffle
        require(0 <= self.questions_apart <= 1, "questions_apart", self.questions_apart, "from 0 to 1")
        require(0 < self.min_crop_area <= 1, "min_crop_area", self.min_crop_area, "above 0 and at most 1")
        for name in ("colour_jitter", "white_balance_jitter"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        require(both <= 1, "hint_dropout", f"with --hint_shuffle {both}", "together at most 1")
        require(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "at least 0 and below 1")
