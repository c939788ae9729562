"""``transformers.Trainer`` with what it lacks: a learning rate for the projector, whole checkpoints, early ends."""

import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava_ial import distributed
from llava_ial.config import save_config
from llava_ial.data.apart import as_seen
from llava_ial.data.llava_dataset import LlavaCollator
from llava_ial.errors import UserError
from llava_ial.manifest import write_json
from llava_ial.models.attention import attention_kept
from llava_ial.models.learned_logits import learned_alone
from llava_ial.models.llava_folder import copy_llava_ial, save_llava_ial
from llava_ial.models.tuned_tower import (
    load_tower_lora,
    named_as_plain,
    plain_state,
    save_tower_lora,
    set_tower_training,
)
from llava_ial.training.by_length import ByLength
from llava_ial.training.checkpoints import (
    CHECKPOINTS,
    checkpoint_folder,
    refuse_full_disk,
    remove_old_checkpoints,
)
from llava_ial.training.interruption import StopRequest
from llava_ial.training.llava_callbacks import EarlyEnd, LogFile
from llava_ial.training.llava_card import format_card
from llava_ial.training.llava_groups import optimizer_groups
from llava_ial.training.llava_identity import resolved
from llava_ial.training.llava_probe import measure_probe
from llava_ial.training.llava_run import UNFINISHED, LlavaRun
from llava_ial.training.llava_validation import Validation, answer_scores, best_so_far, dialogue_loss, is_better

BEST = "best"  # among the checkpoints


class LlavaTrainer(Trainer):
    """Trains a ``LlavaRun``.

    The loss is the mean over all supervised tokens of all micro-batches and processes: ``Trainer`` counts them and the
    model divides by the count.

    Attributes:
        chooses_logits: Logits are computed where the next token is learned; else everywhere, for the same loss.
    """

    chooses_logits = True

    def __init__(self, run: LlavaRun, stop_request: StopRequest) -> None:
        self._run = run
        self._is_broken = self._has_converged = False
        self._started = time.monotonic()
        super().__init__(
            model=run.model,
            args=run.arguments,
            train_dataset=run.train_set,
            eval_dataset=run.validation.dialogues if run.validation else None,
            data_collator=self._build_collator(run),
            callbacks=[EarlyEnd(self, stop_request), LogFile(run.log)],
        )

    def _build_collator(self, run: LlavaRun) -> Any:
        return LlavaCollator(run.tokenizer.pad_token_id, filler=run.train_set.filler)

    @property
    def is_finished(self) -> bool:
        """True unless somebody asked the training to end before its time."""
        return self._has_converged or bool(self.state.global_step >= self.state.max_steps)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of ``--optim``, the projector in groups with its own learning rate."""
        if self.optimizer is None:  # type: ignore[has-type]
            trained = model if model is not None else self.model
            settings = self._run.settings
            rates = (self.args.learning_rate, settings.projector_learning_rate, settings.vision_tower_learning_rate)
            groups = optimizer_groups(trained, *rates, weight_decay=self.args.weight_decay)
            build, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = build(groups, **options)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Dialogues of similar length together on request; ``Trainer``'s own way would decode every photo first."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = [len(dialogue.input_ids) for dialogue in self._run.train_set.encoded]
        return ByLength(
            self.args.train_batch_size * self.args.gradient_accumulation_steps, lengths, seed=self.args.seed
        )

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """``Trainer``'s loss from the logits of what is learned alone."""
        seen = as_seen(inputs)
        chosen = learned_alone(seen) if self.chooses_logits else seen
        return super().compute_loss(model, chosen, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """``Trainer``'s epoch; a run that was killed after its last checkpoint has no further step to take.

        ``Trainer`` asks whether to end after a step alone, and would take one more.
        """
        if self.state.global_step >= self.state.max_steps or self._had_converged():
            self.control.should_training_stop = True
            return
        self._run.train_set.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _had_converged(self) -> bool:
        """Whether ``--early_stopping`` had ended the run that this one goes on from."""
        limit, run = self._run.settings.early_stopping, self._run
        if limit and distributed.run_on_main_process(lambda: best_so_far(run.log))[1] >= limit:
            self._has_converged = True
        return self._has_converged

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``Trainer``'s step; remembers whether the loss was a number."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._is_broken |= not bool(torch.isfinite(loss))
        return loss

    def refuse_broken_loss(self, is_broken_anywhere: bool) -> None:
        """Ends all processes after a step whose loss was no number; nothing of it is saved."""

        def refuse() -> None:
            raise UserError(
                f"the loss of step {self.state.global_step} is no number; lower --learning_rate or use bf16; "
                "the last checkpoint is untouched"
            )

        if is_broken_anywhere:
            distributed.run_on_main_process(refuse)

    @property
    def has_broken_loss(self) -> bool:
        """True once a loss on this process was no number."""
        return self._is_broken

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes a whole LLaVA-IAL folder on the main process.

        ``Trainer``'s own takes any ``ValueError`` for a setting of DeepSpeed and goes on with nothing, and under ZeRO-3
        it leaves out what is frozen: the vision tower.
        """
        folder, run = Path(output_dir or self.args.output_dir), self._run
        needs_all = is_deepspeed_zero3_enabled() or distributed.is_main_process()
        state = plain_state(self.model, gathered) if needs_all else None

        @refuse_full_disk(run.output)
        def save() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            save_config(folder / "config.yaml", resolved(run.settings, run.arguments))
            save_llava_ial(
                folder,
                run.model,
                run.tokenizer,
                run.image_processor,
                base=run.settings.base,
                clip_folder=run.settings.stage1,
                config=run.inputs.identity,
                state_dict=state,
                parents=run.inputs.parents,
                is_tower_tuned=run.settings.tune_vision_tower != "none",
                attached_tower=run.attached_tower,
                hints=run.hints.settings if run.hints else None,
                card=format_card(
                    base=run.settings.base,
                    dataset=run.dataset,
                    num_dialogues=len(run.train_set),
                    num_photos=len({record.image_path for record in run.train_set.conversations} - {""}),
                    step=self.state.global_step,
                    split=run.settings.eval_split,
                    log=run.log,
                    forgetting=run.forgetting,
                    settings=run.inputs.identity,
                ),
            )

        distributed.run_on_main_process(save)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measures loss and generated answers, and keeps the model if it is the best so far."""
        run, control = self._run, self.control  # type: ignore[has-type]
        best, num_since = distributed.run_on_main_process(lambda: best_so_far(run.log))
        measured = self._measure()
        # Processes may differ in the last bit, and all of them must save or none.
        found = distributed.run_on_main_process(lambda: measured)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)  # first, because the card of what is saved takes its figures from the log
        if is_better(found, best):
            num_since = 0
            if run.settings.publish == "best":  # the probe is told of in the card, so it comes before
                self._measure_forgetting()
            self._save_best()
        else:
            num_since += 1
        if run.settings.early_stopping and num_since >= run.settings.early_stopping:
            self._has_converged = control.should_training_stop = True
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        return metrics

    def _measure(self) -> dict[str, float]:
        run, was_training = self._run, self.model.training
        validation = cast(Validation, run.validation)  # Trainer measures only where --eval_strategy says when
        base = self.model.get_base_model()
        size, everyone = self.args.per_device_eval_batch_size, is_deepspeed_zero3_enabled()
        self.model.eval()
        with self.accelerator.autocast():
            loss, _ = dialogue_loss(self.model, validation.dialogues, self.data_collator, size, everyone=everyone)
            with attention_kept(base):
                scores = answer_scores(
                    base, validation, run.tokenizer, base.config.image_seq_length, size, everyone=everyone
                )
        self.model.train(was_training)
        return {"loss": loss, **scores}

    def _save_best(self) -> None:
        folder = self._run.output / CHECKPOINTS / BEST
        temporary = folder.with_name(f".{BEST}.tmp")
        distributed.run_on_main_process(lambda: shutil.rmtree(temporary, ignore_errors=True))
        self.save_model(str(temporary))

        def publish() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)

        distributed.run_on_main_process(publish)

    def finish(self) -> None:
        """Writes the finished folder; its manifest comes last."""
        run = self._run
        if run.settings.publish != "best":
            self._measure_forgetting()
        facts = {"seconds": round(time.monotonic() - self._started, 1), "steps": self.state.global_step}

        @refuse_full_disk(run.output)
        def write() -> None:
            write_json(run.output / "run.json", facts)
            if run.settings.publish == "best":
                copy_llava_ial(run.output / CHECKPOINTS / BEST, run.output)

        distributed.run_on_main_process(write)
        if run.settings.publish != "best":
            self.save_model()

    def _measure_forgetting(self) -> None:
        """Writes ``forgetting.json``, of the weights as they are now: what is published has them."""
        probe, run, was_training = self._run.probe, self._run, self.model.training
        if probe is None:
            return
        size, everyone = self.args.per_device_eval_batch_size, is_deepspeed_zero3_enabled()
        self.model.eval()
        with self.accelerator.autocast():
            found = measure_probe(self.model, probe, run.tokenizer.pad_token_id, size, everyone=everyone)
        self.model.train(was_training)

        @refuse_full_disk(run.output)
        def write() -> None:
            write_json(run.forgetting, {"step": self.state.global_step, **found})
            print(
                f"general dialogues: loss {found['loss_before']:.3f} before, {found['loss_after']:.3f} after; "
                f"{found['token_accuracy_before']:.1%} and {found['token_accuracy_after']:.1%} of their words"
            )

        distributed.run_on_main_process(write)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._run.output / CHECKPOINTS)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint has its final name only when every process has written its part of it."""
        step, keep = self.state.global_step, self.args.save_total_limit
        final = checkpoint_folder(self._run.output, step)
        unfinished = final.parent / f"{UNFINISHED}{step}"

        def save() -> None:
            try:
                with refuse_full_disk(self._run.output):
                    Trainer._save_checkpoint(self, model, trial)
                    self._save_more(unfinished)
            except UserError:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise

        distributed.run_on_every_process(save)  # and go on when all have

        def publish() -> None:
            shutil.rmtree(final, ignore_errors=True)
            unfinished.rename(final)
            if keep:
                remove_old_checkpoints(self._run.output, keep)

        distributed.run_on_main_process(publish)

    def _save_more(self, folder: Path) -> None:
        if distributed.is_main_process() and not self.is_deepspeed_enabled:  # which saves all that trains
            save_tower_lora(self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with named_as_plain(self.model, writes=True):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_tower_lora(self.model, Path(resume_from_checkpoint))
        set_tower_training(self.model, self._run.settings.tune_vision_tower)


def gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
    """Makes parameters whole that ZeRO-3 has spread over the processes; every process must call it."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters  # its import looks for accelerators

    context: AbstractContextManager[Any] = GatheredParameters(list(parameters))
    return context
