"""The options of stage 2 that ``transformers.TrainingArguments`` does not have."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llava_ial.models.llava import LoraSettings


@dataclass
class LlavaSettings:
    """Data, models and what is tuned; steps, batch, learning rate, saving and DeepSpeed are TrainingArguments."""

    data: Path = field(metadata={"help": "data set folder (python -m data_gen.build)"})
    base: str = field(metadata={"help": "LLaVA by name or folder, for example llava-hf/llava-1.5-7b-hf"})
    clip: Path = field(metadata={"help": "stage 1 folder whose vision tower is used"})
    image_root: Path | None = field(default=None, metadata={"help": "where the photos are, if they were moved"})
    num_processes: int = field(default=1, metadata={"help": "processes that the launcher was asked for; checked"})
    lora_rank: int = field(default=128, metadata={"help": "rank of LoRA"})
    lora_alpha: int = field(default=256, metadata={"help": "scale of LoRA, divided by the rank"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout before LoRA"})
    projector_learning_rate: float = field(
        default=2e-5, metadata={"help": "of the projector; --learning_rate is LoRA's"}
    )
    vision_feature_layer: int = field(
        default=-2, metadata={"help": "hidden state of the tower that is read; LLaVA-1.5: -2"}
    )
    vision_feature_select_strategy: str = field(
        default="default", metadata={"help": "'default' drops the class token, 'full' keeps it"}
    )
    max_length: int = field(default=2048, metadata={"help": "most tokens of a dialogue, image tokens counted"})

    @property
    def lora(self) -> LoraSettings:
        """The LoRA part."""
        return LoraSettings(self.lora_rank, self.lora_alpha, self.lora_dropout)

    def identity(self) -> dict[str, Any]:
        """What decides the result, without where things lie."""
        return {k: v for k, v in asdict(self).items() if k not in ("data", "base", "clip", "image_root")}


# Of the TrainingArguments, what decides the weights; the rest (folders, logging, saving, workers) does not.
DECISIVE_ARGUMENTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
    "gradient_checkpointing",
)
