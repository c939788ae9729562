r"""Stage 2: LoRA-tune LLaVA on address dialogues, with the vision tower of stage 1.

    eight GPUs  deepspeed train/stage2_llava.py --config train/configs/pitts_ial_llava.yaml \
                    --data DATA --clip STAGE1 --output_dir OUTPUT
    two CPUs    DS_ACCELERATOR=cpu deepspeed --num_gpus 2 train/stage2_llava.py \
                    --config train/configs/stage2_demo.yaml --data DATA --clip STAGE1 \
                    --base train/toy_base/models/toy-llava --output_dir OUTPUT
    one process python train/stage2_llava.py --config train/configs/stage2_demo.yaml --num_processes 1 \
                    --data DATA --clip STAGE1 --base train/toy_base/models/toy-llava --output_dir OUTPUT

Options are those below and every one of transformers.TrainingArguments. The output is a PEFT adapter folder that also
holds projector, tower, processor, prompt template and the stage 1 encoder. The same command continues an interrupted
run from its newest checkpoint.
"""

import os
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

# Read when torch is imported, so it stands above that: threads that spin for each other starve the other process.
os.environ.setdefault(
    "OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers.utils import logging as transformers_logging

from llava_ial import distributed
from llava_ial.config import parse_config
from llava_ial.errors import run_command
from llava_ial.manifest import FolderState
from llava_ial.models.trainable import trainable_table
from llava_ial.training.checkpoints import complete_checkpoints
from llava_ial.training.deepspeed_start import spread_weights
from llava_ial.training.image_text_run import (
    ImageTextRun,
    ImageTextTrainer,
    build_any_run,
    describe_image_text,
    preview_image_text,
)
from llava_ial.training.interruption import StopRequest
from llava_ial.training.llava_arguments import LlavaArguments, is_measured
from llava_ial.training.llava_preview import preview
from llava_ial.training.llava_run import LlavaRun, claim, describe, is_taken, read_inputs, refuse_unshared
from llava_ial.training.llava_settings import LlavaSettings
from llava_ial.training.llava_trainer import LlavaTrainer
from llava_ial.training.seeds import seed_everything


def main() -> None:
    """Reads the settings, checks everything, trains."""
    # DeepSpeed calls them by their old names in every step; newer releases of torch say so every time.
    warnings.filterwarnings("ignore", r".torch\.distributed\.(all_gather|reduce_scatter)\w*. is", FutureWarning)
    settings, arguments = parse_config(LlavaSettings, LlavaArguments, description=__doc__ or "")
    settings.refuse_impossible(is_measured=is_measured(arguments))
    if not settings.dry_run:  # which one process shows for as many as are planned
        distributed.refuse_wrong_world_size(settings.num_processes, arguments.world_size)
    output = Path(arguments.output_dir)
    inputs = distributed.run_on_main_process(lambda: read_inputs(settings, arguments))
    if settings.dry_run:
        transformers_logging.disable_progress_bar()
        run = distributed.run_on_every_process(lambda: build_any_run(settings, arguments, inputs))
        has_colours = sys.stdout.isatty()
        if isinstance(run, ImageTextRun):
            say(preview_image_text(run, has_colours=has_colours))
        else:
            say(preview(run, has_colours=has_colours))
        distributed.shut_down()
        return
    with ExitStack() as held:
        # A finished or foreign folder is told of before models are loaded; a new one is made only when they fit.
        state = distributed.run_on_main_process(
            lambda: claim(output, inputs, held) if is_taken(output) else FolderState.NEW
        )
        if state is FolderState.COMPLETE:
            say(f"{output}: already complete, nothing to do")
        else:
            transformers_logging.disable_progress_bar()
            seed_everything(arguments.seed)
            run = distributed.run_on_every_process(lambda: build_any_run(settings, arguments, inputs))
            if state is FolderState.NEW:
                distributed.run_on_main_process(lambda: claim(output, inputs, held))
            distributed.run_on_every_process(lambda: refuse_unshared(output))
            train(run)
    distributed.shut_down()


def train(run: LlavaRun | ImageTextRun) -> None:
    """Trains from the newest checkpoint to the end or to SIGTERM."""
    is_other = isinstance(run, ImageTextRun)
    say(f"{trainable_table(run.model)}\n{describe_image_text(run) if is_other else describe(run)}")
    checkpoints = distributed.run_on_main_process(lambda: complete_checkpoints(run.output))
    if checkpoints:
        say(f"continues from {checkpoints[-1]}")
    spread_weights(run.model, run.arguments)
    with StopRequest() as stop_request:
        trainer = (ImageTextTrainer if is_other else LlavaTrainer)(run, stop_request)
        trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    if not trainer.is_finished:
        step = f"{trainer.state.global_step} of {trainer.state.max_steps}"
        say(f"stopped at step {step} as asked; the same command continues it")
        return
    trainer.finish()
    say(f"{run.output}: complete")


def say(text: str) -> None:
    """Prints on the main process."""
    if distributed.is_main_process():
        print(text, flush=True)


if __name__ == "__main__":
    run_command(main)
