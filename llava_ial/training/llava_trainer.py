"""``transformers.Trainer`` with what it lacks here: a learning rate for the projector, and complete checkpoints."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_ial import distributed
from llava_ial.data.llava import LlavaCollator
from llava_ial.errors import UserError
from llava_ial.manifest import BUILDING, write_json
from llava_ial.models.llava import PROJECTOR
from llava_ial.models.llava_folder import save_llava_ial
from llava_ial.training.llava_run import LlavaRun
from llava_ial.training.train_log import TrainLog

_LOGGED = ("loss", "grad_norm", "learning_rate")


class LlavaTrainer(Trainer):
    """Trains a ``LlavaRun``.

    The loss is the mean over all supervised tokens of all micro-batches and processes: ``Trainer`` counts them and the
    model divides by the count.
    """

    def __init__(self, run: LlavaRun) -> None:
        super().__init__(
            model=run.model,
            args=run.arguments,
            train_dataset=run.train_set,
            data_collator=LlavaCollator(run.tokenizer.pad_token_id),
            callbacks=[_Guard(Path(run.arguments.output_dir))],
        )
        self._run = run

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with the projector in groups of its own learning rate; biases and norms are not decayed."""
        optimizer: torch.optim.Optimizer | None = self.optimizer  # type: ignore[has-type]
        if optimizer is None:
            arguments = self.args
            groups: list[dict[str, Any]] = []
            for is_projector in (False, True):
                rate = self._run.settings.projector_learning_rate if is_projector else arguments.learning_rate
                named = [
                    (name, parameter)
                    for name, parameter in self.model.named_parameters()
                    if parameter.requires_grad and (PROJECTOR in name) == is_projector
                ]
                for is_decayed in (True, False):
                    chosen = [parameter for name, parameter in named if (not name.endswith("bias")) == is_decayed]
                    if chosen:
                        decay = arguments.weight_decay if is_decayed else 0.0
                        groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
            betas = (arguments.adam_beta1, arguments.adam_beta2)
            self.optimizer = optimizer = torch.optim.AdamW(groups, betas=betas, eps=arguments.adam_epsilon)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Called by ``Trainer`` for every checkpoint and for the end, weights gathered; under DeepSpeed on every rank."""
        if not self.args.should_save:
            return
        run = self._run
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_llava_ial(
            folder,
            run.model,
            run.tokenizer,
            run.image_processor,
            base=run.settings.base,
            clip_folder=run.settings.clip,
            config=run.identity,
            state_dict=state_dict,
            parents=run.parents,
        )


class _Guard(TrainerCallback):
    """Keeps the log, and stops on a loss that is not a number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log: TrainLog | None = None
        self._started = time.time()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._log = TrainLog(
            self._folder / "train_log.jsonl",
            last_step=state.global_step,
            is_active=distributed.is_main_process(),
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {name: float(logs[name]) for name in _LOGGED if logs and name in logs}
        if "loss" in values and not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is {values['loss']} at step {state.global_step}; lower --learning_rate or use bf16; "
                "the last checkpoint is untouched"
            )
        if values and self._log:
            self._log.write(state.global_step, values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if distributed.is_main_process() and (self._folder / BUILDING).exists():
            write_json(
                self._folder / "run.json",
                {"seconds": round(time.time() - self._started), "steps": state.global_step},
            )
