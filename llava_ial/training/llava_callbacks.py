"""What happens between the steps of stage 2: agreeing whether to end, and keeping the log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_ial import distributed
from llava_ial.training.checkpoints import refuse_full_disk
from llava_ial.training.interruption import StopRequest
from llava_ial.training.train_log import TrainLog

_LOGGED = ("loss", "grad_norm", "learning_rate")


class WatchesItsLoss(Protocol):
    """A trainer that knows whether a loss was no number."""

    @property
    def has_broken_loss(self) -> bool:
        """True once a loss on this process was no number."""

    def refuse_broken_loss(self, is_broken_anywhere: bool) -> None:
        """Ends all processes if one had such a loss."""


class EarlyEnd(TrainerCallback):
    """After each step all processes agree whether to end: on a loss that is no number, or after SIGTERM."""

    def __init__(self, trainer: WatchesItsLoss, stop_request: StopRequest) -> None:
        self._trainer, self._stop_request = trainer, stop_request

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops everywhere, and saves, if anywhere there is a reason to."""
        is_broken, must_stop = distributed.any_rank(
            self._trainer.has_broken_loss, bool(self._stop_request), device=args.device
        )
        self._trainer.refuse_broken_loss(is_broken)
        if must_stop and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class LogFile(TrainerCallback):
    """Keeps ``train_log.jsonl``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log: TrainLog | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the file, cut to the checkpoint that the run goes on from."""

        def opened() -> TrainLog:
            return TrainLog(self._path, last_step=state.global_step, is_active=distributed.is_main_process())

        self._log = distributed.run_on_every_process(refuse_full_disk(self._path.parent)(opened))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps a line."""
        values = {name.removeprefix("eval_"): float((logs or {})[name]) for name in _logged_names(logs or {})}
        if values and (log := self._log):
            write = refuse_full_disk(self._path.parent)(lambda: log.write(state.global_step, values))
            distributed.run_on_every_process(write)  # all end where the one that writes cannot


def _logged_names(logs: Mapping[str, Any]) -> list[str]:
    """Of a training step what is worth keeping, of a measurement everything."""
    measured = [name for name in logs if name.startswith("eval_")]
    return measured or [name for name in _LOGGED if name in logs]
