"""Stage 2: LoRA-tune LLaVA on address dialogues, with the vision tower of stage 1.

    GPUs        deepspeed train/stage2_llava.py --config train/configs/pitts_ial_llava.yaml --num_processes 8
    two CPUs    DS_ACCELERATOR=cpu deepspeed --num_gpus 2 train/stage2_llava.py --config train/configs/stage2_demo.yaml
    one process python train/stage2_llava.py --config train/configs/stage2_demo.yaml --num_processes 1

Options are those below and every one of transformers.TrainingArguments. The output is a PEFT adapter folder that also
holds projector, tower, processor, prompt template and the stage 1 encoder. The same command continues an interrupted
run from its newest checkpoint.
"""

import os

# Read when torch is imported, so it stands above that: threads that spin for each other starve the other process.
os.environ.setdefault(
    "OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

from transformers import TrainingArguments

from llava_ial import distributed
from llava_ial.config import parse_config, save_config
from llava_ial.errors import run_command
from llava_ial.manifest import FolderState
from llava_ial.models.llava import trainable_table
from llava_ial.training.llava_run import build_run, claim, describe, newest_checkpoint, refuse_missing_compiler
from llava_ial.training.llava_settings import LlavaSettings
from llava_ial.training.llava_trainer import LlavaTrainer
from llava_ial.training.seeds import seed_everything


def main() -> None:
    """Reads the settings, checks everything, trains, saves."""
    settings, arguments = parse_config(LlavaSettings, TrainingArguments, description=__doc__ or "")
    refuse_missing_compiler(arguments)
    distributed.refuse_wrong_world_size(settings.num_processes)
    state, identity, parents = distributed.run_on_main_process(lambda: claim(settings, arguments))
    if state is FolderState.COMPLETE:
        if distributed.is_main_process():
            print(f"{arguments.output_dir}: already complete, nothing to do")
        return
    seed_everything(arguments.seed)
    run = distributed.run_on_every_process(lambda: build_run(settings, arguments, identity, parents))
    if distributed.is_main_process():
        print(trainable_table(run.model), describe(run), sep="\n")
        save_config(Path(arguments.output_dir) / "config.yaml", settings)
    trainer = LlavaTrainer(run)
    trainer.train(resume_from_checkpoint=newest_checkpoint(Path(arguments.output_dir)))
    trainer.save_model()
    if distributed.is_main_process():
        print(f"{arguments.output_dir}: complete")


if __name__ == "__main__":
    run_command(main)
