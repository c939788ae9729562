"""``transformers.TrainingArguments`` as stage 2 takes them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from llava_ial.errors import UserError
from llava_ial.training.deepspeed_start import be_one_process_without_launcher, load_cpu_communication


@dataclass
class LlavaArguments(TrainingArguments):
    """``TrainingArguments`` with LLaVA-1.5's schedule as defaults, refused in one line where they cannot work."""

    learning_rate: float = field(default=2e-4, metadata={"help": "of LoRA; the projector has its own"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "schedule of both learning rates"})
    warmup_steps: float = field(default=0.03, metadata={"help": "steps of warm-up, or their share if below 1"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "times that every dialogue is seen"})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "dialogues of a process and micro-batch"})
    # The others wait while the main process downloads, hashes and saves: half an hour is too little for a large base,
    # and a day is too long for processes that hang.
    ddp_timeout: int = field(default=7200, metadata={"help": "seconds that processes wait for each other"})
    # A wrong loss must be seen, and the columns of this data set are not those of the model's signature.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "must stay false: a broken loss is shown"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "must stay false: the collator needs all"})

    def __post_init__(self) -> None:
        """Checks first, because the parent opens process groups and starts DeepSpeed's compiler."""
        require(self.output_dir is not None, "output_dir", None, "the folder to write")
        require(self.learning_rate >= 0, "learning_rate", self.learning_rate, "at least 0")
        for name in ("logging_nan_inf_filter", "remove_unused_columns"):
            require(not getattr(self, name), name, getattr(self, name), "false")
        require(not self.load_best_model_at_end, "load_best_model_at_end", True, "false; take --publish best")
        mend = "0; transformers would smooth the loss of each word's own position, not of the next one"
        require(not self.label_smoothing_factor, "label_smoothing_factor", self.label_smoothing_factor, mend)
        mend = "false with --deepspeed, which makes another tower of stage 1's by it; take --bf16 true"
        require(not (self.fp16 and self.deepspeed), "fp16", True, mend)
        mend = "false; python -m train.merge --push_to_hub OWNER/NAME uploads what is finished"
        require(not self.push_to_hub, "push_to_hub", True, mend)
        allowed = ("random", "sequential", "group_by_length")
        name = "train_sampling_strategy"
        require(getattr(self, name) in allowed, name, getattr(self, name), ", ".join(allowed))
        require(not self.fsdp, "fsdp", self.fsdp, "nothing: shard with --deepspeed train/configs/zero3.json")
        if self.deepspeed:
            self.deepspeed_content()
            if self.use_cpu or not torch.cuda.is_available():
                load_cpu_communication()
            be_one_process_without_launcher()
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(str(error)) from error
        if self.n_gpu > 1:  # transformers would split every batch over copies of the model, and count steps as before
            raise UserError(
                f"one process sees {self.n_gpu} GPUs: start one for each (accelerate launch, deepspeed, torchrun), or "
                "choose one by CUDA_VISIBLE_DEVICES=0"
            )

    def deepspeed_content(self) -> dict[str, Any] | None:
        """The DeepSpeed settings themselves, wherever they stand.

        Raises:
            UserError: No such file, or it is not JSON.
        """
        if not self.deepspeed or isinstance(self.deepspeed, dict):
            return self.deepspeed or None
        try:
            content: dict[str, Any] = json.loads(Path(self.deepspeed).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--deepspeed {self.deepspeed}: {error.strerror or error}") from error
        except ValueError as error:
            raise UserError(f"--deepspeed {self.deepspeed}: not JSON: {error}") from error
        return content


def is_measured(arguments: TrainingArguments) -> bool:
    """True if ``--eval_strategy`` names a time to measure."""
    return str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy)) != "no"


def require(is_good: bool, name: str, value: object, allowed: str) -> None:
    """Refuses an option's value, and says which are allowed.

    Raises:
        UserError: ``is_good`` is not true.
    """
    if not is_good:
        raise UserError(f"--{name} {value}: allowed: {allowed}")
