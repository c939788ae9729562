"""What a run of stage 1 does between its steps: measure, save, show, continue, end."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_ial import distributed
from llava_ial.config import save_config
from llava_ial.errors import UserError
from llava_ial.evaluation.locate import locate_photos
from llava_ial.evaluation.retrieval import retrieval_metrics, street_classes
from llava_ial.manifest import FolderState, claim_folder, write_json
from llava_ial.training.checkpoints import checkpoint_folder, complete_checkpoints, new_folder, remove_old_checkpoints
from llava_ial.training.clip_folder import KIND, ClipFolderWriter, load_checkpoint, save_training_state
from llava_ial.training.clip_run import ClipRun, embed_gallery
from llava_ial.training.train_log import TrainLog


def claim(run: ClipRun) -> FolderState:
    """Takes the output folder for these settings, this data set and this base."""
    return distributed.run_on_main_process(lambda: claim_folder(run.settings.output, KIND, run.identity))


def resume(run: ClipRun) -> int:
    """Loads the newest complete checkpoint of this output folder, if there is one; returns its step."""
    distributed.wait_for_everyone()
    checkpoints = complete_checkpoints(run.settings.output)
    if not checkpoints:
        return 0
    step = distributed.run_on_every_process(partial(load_checkpoint, checkpoints[-1], run.model.clip, run.optimizer))
    say(f"continues from {checkpoints[-1]}")
    return step


def measure(run: ClipRun, log: TrainLog, step: int) -> None:
    """SSA@k and SA@k on each split to measure on; kept in ``run.metrics`` and logged."""
    settings, embeddings = run.settings, embed_gallery(run)
    streets = street_classes([record.address.street_key for record in run.dataset.gallery])
    for split in settings.eval_splits:
        own_ranks = distributed.run_on_every_process(
            partial(
                locate_photos, run.model, run.examples[split][distributed.rank() :: distributed.world_size()],
                run.image_processor, run.collator, embeddings, streets,
                batch_size=max(1, settings.batch_size // distributed.world_size()), num_workers=settings.num_workers,
            )
        )  # fmt: skip
        sub_street, street = (distributed.gather_with_gradient(ranks) for ranks in own_ranks)
        run.metrics[split] = retrieval_metrics(sub_street, street)
        log.write(step, {"split": split, **run.metrics[split]})
        say(f"step {step}, {split}: " + "  ".join(f"{k} {v:.2%}" for k, v in run.metrics[split].items() if "@" in k))


def save_checkpoint(run: ClipRun, step: int) -> None:
    """Writes a whole folder that can be opened, evaluated and continued."""
    folder = checkpoint_folder(run.settings.output, step)
    if distributed.is_main_process():
        with new_folder(folder) as temporary:
            save_training_state(temporary, run.optimizer, step)
            write_clip_folder(run, temporary, step, lies_in=folder)
        remove_old_checkpoints(run.settings.output, run.settings.keep_checkpoints)
    distributed.wait_for_everyone()


def finish(run: ClipRun, num_steps: int) -> None:
    """Writes the finished folder; its manifest comes last."""
    output, seconds = run.settings.output, time.monotonic() - run.started
    if distributed.is_main_process():
        images = num_steps * run.global_batch_size
        write_json(output / "run.json", {"seconds": seconds, "images_per_second": images / seconds})
        write_clip_folder(run, output, run.num_steps)
    say(f"{run.settings.output}: complete after {seconds:.0f} s")


def write_clip_folder(run: ClipRun, folder: Path, step: int, *, lies_in: Path | None = None) -> None:
    """Settings, model, processor, gallery, metrics, manifest."""
    save_config(folder / "config.yaml", run.settings)
    writer = ClipFolderWriter(
        dataset=run.dataset,
        tokenizer=run.tokenizer,
        image_processor=run.image_processor,
        identity=run.identity,
        base=run.settings.base,
        parents={"data": run.dataset.identity, "base": run.base_hash},
    )
    writer.write(folder, run.model.clip, embed_gallery(run), run.metrics, lies_in=lies_in, step=step)


def refuse_broken_batch(step: int, image_ids: list[str], values: dict[str, float]) -> None:
    """Ends the run with the photos that a loss or gradient without a value came from; nothing of it is saved."""
    everyone = [image_id for ids in distributed.gather_objects(image_ids) for image_id in ids]
    names = ", ".join(everyone[:32]) + (f" and {len(everyone) - 32} more" if len(everyone) > 32 else "")

    def refuse() -> None:
        raise UserError(
            f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}; photos of this "
            f"batch: {names}; look at them, or lower --learning_rate"
        )

    distributed.run_on_main_process(refuse)


def show(run: ClipRun, progress: Any, values: dict[str, float], num_steps: int) -> None:
    """The progress bar's line: loss with its parts, and images a second over all processes."""
    parts = {
        name.removeprefix("image_").removesuffix("_loss"): f"{value:.3f}"
        for name, value in values.items()
        if name.endswith("loss")
    }
    seconds = time.monotonic() - run.started
    progress.set_postfix({**parts, "images/s": f"{num_steps * run.global_batch_size / seconds:.1f}"}, refresh=False)
    progress.update()


def say(text: str) -> None:
    """Prints on the main process, clear of the progress bar."""
    if distributed.is_main_process():
        tqdm.write(text)


def is_due(step: int, every: int) -> bool:
    """True on every ``every``-th step; never for 0."""
    return bool(every) and step % every == 0
