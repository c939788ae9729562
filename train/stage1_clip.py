r"""Stage 1: tune CLIP with the three losses of AddressCLIP (arXiv 2407.08156), so that photos find their addresses.

    eight GPUs  accelerate launch --multi_gpu --num_processes 8 --num_machines 1 --mixed_precision no \
                    --dynamo_backend no train/stage1_clip.py --config train/configs/pitts_ial.yaml \
                    --data DATA --output OUTPUT
    one GPU     python train/stage1_clip.py --config train/configs/pitts_ial.yaml --num_processes 1 \
                    --data DATA --output OUTPUT
    two CPUs    accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \
                    --dynamo_backend no train/stage1_clip.py --config train/configs/stage1_demo.yaml \
                    --data DATA --base train/toy_base/models/toy-clip --output OUTPUT
    one CPU     python train/stage1_clip.py --config train/configs/stage1_demo.yaml --num_processes 1 \
                    --data DATA --base train/toy_base/models/toy-clip --output OUTPUT

The launcher's --mixed_precision decides nothing here: the precision is that of the configuration. The output is a plain
CLIPModel folder with its gallery of addresses. The same command continues an interrupted run.
"""

import os

# Read when torch is imported, so it stands above that. Left to itself every process takes all cores, and threads that
# spin while they wait for each other take them from whoever has work: on a busy machine a step then lasts many times
# as long as with passive waiting.
os.environ.setdefault(
    "OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer runs in forked workers

import contextlib
import math
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from llava_ial import distributed
from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import FolderState
from llava_ial.models.half_precision import choose_precision
from llava_ial.training.checkpoints import refuse_full_disk
from llava_ial.training.clip_progress import (
    claim,
    end_trackers,
    finish,
    is_due,
    measure,
    note_skipped,
    prepare,
    refuse_broken_batch,
    resume,
    save_checkpoint,
    say,
    show,
)
from llava_ial.training.clip_run import ClipRun, build_loader, build_run, describe, refuse_missing_trackers
from llava_ial.training.clip_settings import ClipSettings
from llava_ial.training.clip_step import batch_losses, losses_of_everyone, model_inputs, to_device
from llava_ial.training.feature_cache import cached_backward, split_inputs
from llava_ial.training.interruption import LeaveOnRequest, StopRequest
from llava_ial.training.optim import learning_rate_at, set_learning_rate
from llava_ial.training.seeds import seed_everything, seed_step
from llava_ial.training.train_log import TrainLog


def main() -> None:
    """Reads the settings, checks everything, trains."""
    (given,) = parse_config(ClipSettings, description=__doc__ or "")
    settings = given.with_preset()
    settings.refuse_impossible()
    accelerator = start_processes(settings)
    distributed.refuse_wrong_world_size(settings.num_processes, accelerator.num_processes)
    run = distributed.run_on_every_process(lambda: build_run(settings, accelerator))
    if settings.dry_run:
        distributed.run_on_main_process(lambda: describe(run))
    else:
        with refuse_full_disk(settings.output), contextlib.ExitStack() as held:
            if claim(run, held) is FolderState.COMPLETE:
                say(f"{settings.output}: already complete, nothing to do")
            else:
                train(run)
    run.parallel_model = None
    accelerator.free_memory()
    distributed.shut_down()


def train(run: ClipRun) -> None:
    """The loop over batches, from the newest checkpoint to the end or to SIGTERM."""
    settings, num_steps = run.settings, run.num_steps
    start_step = resume(run)
    prepare(run)
    is_main = distributed.is_main_process()
    log = TrainLog(settings.output / "train_log.jsonl", last_step=start_step, is_active=is_main)
    run.accelerator.init_trackers("address_clip", config={name: str(value) for name, value in run.identity.items()})
    progress = tqdm(total=num_steps, initial=start_step, unit="step", disable=not is_main)
    run.model.train()
    with StopRequest() as stop_request, progress:
        for step, batch in enumerate(build_loader(run, start_step), start=start_step):
            values = train_step(run, batch, step)
            done = step + 1
            must_stop, is_broken, has_skipped = distributed.any_rank(
                bool(stop_request), not math.isfinite(values["loss"] + values["gradient_norm"]),
                bool(batch["broken"].keys() - run.skipped.keys()), device=run.accelerator.device,
            )  # fmt: skip
            if has_skipped:
                note_skipped(run, log, done, batch["broken"])
            if is_broken:
                refuse_broken_batch(done, batch["image_id"], values)
            show(run, progress, values, done - start_step)
            if done % settings.log_every == 0 or done == num_steps:
                log.write(done, values)
                run.accelerator.log(values, step=done)
            if done == num_steps or is_due(done, settings.eval_every):
                measure(run, log, done)
            if done == num_steps or must_stop or is_due(done, settings.checkpoint_every):
                save_checkpoint(run, done)
            if must_stop and done < num_steps:
                say(f"stopped at step {done} of {num_steps} as asked; the same command continues it")
                end_trackers(run)
                return
    with LeaveOnRequest(f"stopped while finishing {settings.output}; the same command continues it" * is_main):
        finish(run, num_steps - start_step)
    end_trackers(run)


def train_step(run: ClipRun, batch: dict[str, Any], step: int) -> dict[str, float]:
    """One step on one batch of all processes; returns what there is to log of it."""
    if "error" in batch:
        raise UserError(batch["error"])
    settings, device = run.settings, run.accelerator.device
    seed_step(settings.seed, step, distributed.rank())
    learning_rate = learning_rate_at(
        step, num_steps=run.num_steps, warmup_steps=settings.warmup_steps,
        peak=settings.learning_rate, final=settings.final_learning_rate,
    )  # fmt: skip
    set_learning_rate(run.optimizer, learning_rate)

    tensors = to_device(batch, device)
    inputs, world = model_inputs(tensors), distributed.world_size()
    # A process's loss is its part of the batch's; the wrapper takes the mean of gradients over processes, not the sum.
    if run.num_chunks == 1:
        losses = batch_losses(run.parallel_model(**inputs), tensors, settings, run.queue)
        run.accelerator.backward(losses["loss"] * world)
    else:
        losses = cached_backward(
            run.parallel_model, split_inputs(inputs, run.num_chunks),
            lambda features: batch_losses(features, tensors, settings, run.queue),
            backward=run.accelerator.backward, no_sync=lambda: run.accelerator.no_sync(run.parallel_model),
            seed=lambda chunk: seed_step(settings.seed, step, distributed.rank(), chunk), scale=world,
        )  # fmt: skip
    gradient_norm = run.accelerator.clip_grad_norm_(run.model.parameters(), settings.max_gradient_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.model.clamp_logit_scale()
    if run.average:
        run.average.update(run.model, step)
    return {
        **losses_of_everyone(losses),
        "chance_level": math.log(run.global_batch_size),  # of the contrastive losses with --positives paper
        "logit_scale": run.model.logit_scale,
        "gradient_norm": distributed.to_number(gradient_norm),
        "learning_rate": learning_rate,
    }


def start_processes(settings: ClipSettings) -> Accelerator:
    """Joins the processes that the launcher started, quietly."""
    if settings.cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers imports DeepSpeed, which would warn of no GPU
    transformers_logging.disable_progress_bar()
    seed_everything(settings.seed)
    refuse_missing_trackers(settings.trackers)
    precision = choose_precision(settings.mixed_precision, cpu=settings.cpu)
    return Accelerator(
        cpu=settings.cpu, mixed_precision=precision, log_with=settings.trackers or None, project_dir=settings.output
    )


if __name__ == "__main__":
    run_command(main)
