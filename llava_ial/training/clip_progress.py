"""What a run of stage 1 does between its steps: measure, save, show, continue, end."""

import shutil
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_ial import distributed
from llava_ial.calibration import Calibration
from llava_ial.config import save_config
from llava_ial.data.views import ONE
from llava_ial.errors import UserError
from llava_ial.manifest import FolderState, claim_folder, hold_folder, is_claimed, read_manifest, write_json
from llava_ial.models.address_clip import AddressCLIP, DualEncoder, load_dual_encoder
from llava_ial.models.clip_parts import has_adapters, merged_copy
from llava_ial.models.photo_memory import PhotoMemory
from llava_ial.training.checkpoints import (
    CHECKPOINTS,
    checkpoint_folder,
    complete_checkpoints,
    new_folder,
    remove_old_checkpoints,
)
from llava_ial.training.clip_card import Measured
from llava_ial.training.clip_folder import KIND, ClipFolderWriter, load_training_state, save_training_state
from llava_ial.training.clip_measure import (
    JUDGED_BY,
    calibrate_located,
    features_of_split,
    measure_located,
    measure_splits,
    remember_photos,
)
from llava_ial.training.clip_run import ClipRun
from llava_ial.training.sharded import gather_optimizer, gather_weights, load_weights, spread_optimizer
from llava_ial.training.train_log import TrainLog

BEST = Path(CHECKPOINTS) / "best"
# In the metrics: of one view and the addresses' texts alone, as it was measured while training.
PLAIN = "plain "
# A photo that cannot be read is an accident; many of them are a broken data set.
MAX_SKIPPED_SHARE = 0.01
# Photos it is not trained on, and which no result is stated of: test photos are left alone, as for any other choice.
CALIBRATED_ON = "val"


def claim(run: ClipRun, held: ExitStack) -> FolderState:
    """Takes the output folder for these settings, this data set and this base, and keeps it until ``held`` ends."""

    def take() -> FolderState:
        output = run.settings.output
        if run.settings.resume and not is_claimed(output):
            raise UserError(f"--resume true: nothing to continue in {output}; leave it out to start there")
        state = claim_folder(output, KIND, run.identity)
        if state is not FolderState.COMPLETE:
            held.enter_context(hold_folder(output))
        return state

    return distributed.run_on_main_process(take)


def resume(run: ClipRun) -> int:
    """Loads the newest complete checkpoint of this output folder, if there is one; returns its step."""
    distributed.wait_for_everyone()
    checkpoints = complete_checkpoints(run.settings.output)
    if not checkpoints:
        return 0
    step = distributed.run_on_every_process(partial(_load_checkpoint, run, checkpoints[-1]))
    say(f"continues from {checkpoints[-1]}")
    return step


def _load_checkpoint(run: ClipRun, folder: Path) -> int:
    state = load_training_state(folder)
    if state.get("is_sharded", False) != (run.whole is not None):
        raise UserError(
            f"{folder}: written {'without' if run.whole else 'with'} FSDP; continue it so, or delete this checkpoint"
        )
    published = load_dual_encoder(str(folder.resolve())).state_dict()
    load_weights(run.model.clip, published if state["weights"] is None else state["weights"])
    if run.average:
        run.average.model.clip.load_state_dict(state["average"])
    if run.whole:
        run.restored = state["optimizer"]
    else:
        run.optimizer.load_state_dict(state["optimizer"])
    if run.queue:
        run.queue.load(state["queue"], run.accelerator.device)
    run.skipped, run.best = dict(state["skipped"]), dict(state["best"])
    run.metrics, run.measured_step = dict(state.get("metrics", {})), int(state.get("measured_step", 0))
    return int(state["step"])


def prepare(run: ClipRun) -> None:
    """Wraps model and optimiser for several processes."""
    run.parallel_model, run.optimizer = run.accelerator.prepare(run.model, run.optimizer)
    if run.restored:
        spread_optimizer(run.model, run.optimizer.optimizer, run.restored)
        run.restored = {}


def measure(run: ClipRun, log: TrainLog, step: int) -> None:
    """Measures the splits, keeps the result in ``run.metrics``, and writes ``checkpoints/best`` if it is."""
    if run.whole:
        gather_weights(run.model, run.whole)
    run.metrics, run.measured_step = measure_splits(run), step
    for split, metrics in run.metrics.items():
        log.write(step, {"split": split, **metrics})
        run.accelerator.log({f"{split}/{name}": value for name, value in metrics.items()}, step=step)
        shown = (name for name in metrics if name.startswith(("SSA@", "SA@")))
        say(f"step {step}, {split}: " + "  ".join(f"{name} {metrics[name]:.2%}" for name in shown))
    value = run.metrics[run.settings.eval_splits[0]][JUDGED_BY] if run.settings.eval_splits else 0.0
    if run.settings.eval_every and value > run.best.get("value", -1.0):
        run.best = {"step": step, "value": value}
        if distributed.is_main_process():
            with new_folder(run.settings.output / BEST) as temporary:
                write_clip_folder(run, temporary, step, lies_in=run.settings.output / BEST)
        distributed.wait_for_everyone()


def save_checkpoint(run: ClipRun, step: int) -> None:
    """Writes a whole folder that can be opened, evaluated and continued.

    That of the last step is there while the finished folder is being made, and takes no older one's place.
    """
    folder = checkpoint_folder(run.settings.output, step)
    if run.whole:
        gather_weights(run.model, run.whole)
        optimizer = gather_optimizer(run.model, run.optimizer.optimizer)
    else:
        optimizer = run.optimizer.state_dict()
    if distributed.is_main_process():
        # Where what is published is not what is trained, the state holds that too.
        differs = run.average is not None or has_adapters(run.model)
        with new_folder(folder) as temporary:
            save_training_state(
                temporary, optimizer, step, skipped=run.skipped, best=run.best, is_sharded=run.whole is not None,
                weights=run.trained_model().clip.state_dict() if differs else None,
                average=run.average.model.clip.state_dict() if run.average else None,
                queue=run.queue.state() if run.queue else None, metrics=run.metrics, measured_step=run.measured_step,
            )  # fmt: skip
            write_clip_folder(run, temporary, step, lies_in=folder)
        if step < run.num_steps:
            remove_old_checkpoints(run.settings.output, run.settings.keep_checkpoints)
    distributed.wait_for_everyone()


def finish(run: ClipRun, num_steps: int) -> None:
    """Writes the finished folder; its manifest comes last."""
    settings = run.settings
    clip, step = None, run.num_steps
    if settings.publish == "best":
        best = settings.output / BEST
        clip, step = load_dual_encoder(str(best.resolve())), int(run.best["step"])
        run.measured_step = step
        run.metrics = read_manifest(best, KIND)["metrics"]
    memory, calibration = None, None
    model = AddressCLIP(clip).to(run.accelerator.device) if clip else run.published_model()
    if settings.memory_weight:
        memory = distributed.run_on_every_process(partial(remember_photos, run, model))
    is_located_otherwise = settings.views != ONE or memory is not None
    needed = [split for split in settings.eval_splits if is_located_otherwise or split == CALIBRATED_ON]
    photos = {split: features_of_split(run, split, model=model, views=settings.views) for split in needed}
    if CALIBRATED_ON in photos:
        calibration = calibrate_located(run, model, memory, photos[CALIBRATED_ON])
    if is_located_otherwise:
        for split, found in measure_located(run, model, memory, photos).items():
            plain = {PLAIN + name: value for name, value in run.metrics[split].items() if "@" in name and name in found}
            run.metrics[split] = run.metrics[split] | plain | found
            shown = "  ".join(f"{name} {found[name]:.2%}" for name in found if "@" in name)
            say(f"{split}, views '{settings.views}'{' and the training photos' if memory else ''}: {shown}")
    output, seconds = run.settings.output, time.monotonic() - run.started
    if distributed.is_main_process():
        images = num_steps * run.global_batch_size
        took = {"seconds": seconds, "images_per_second": images / seconds}
        write_json(output / "run.json", {**took, "mixed_precision": run.accelerator.mixed_precision})
        write_clip_folder(run, output, step, clip=clip, memory=memory, calibration=calibration)
        shutil.rmtree(checkpoint_folder(output, run.num_steps), ignore_errors=True)
    if run.skipped:
        say(f"{len(run.skipped)} of {len(run.examples['train'])} photos could not be read; manifest.json names them")
    say(f"{run.settings.output}: complete after {seconds:.0f} s")


def end_trackers(run: ClipRun) -> None:
    """Lets the trackers write what they still hold."""
    # Not end_training(), which also leaves the process group, while the DDP wrapper still holds it: see shut_down.
    for tracker in run.accelerator.trackers:
        tracker.finish()


def write_clip_folder(
    run: ClipRun,
    folder: Path,
    step: int,
    *,
    clip: DualEncoder | None = None,
    lies_in: Path | None = None,
    memory: PhotoMemory | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Settings, model, processor, gallery, metrics, card, manifest."""
    save_config(folder / "config.yaml", run.settings)
    writer = ClipFolderWriter(
        dataset=run.dataset,
        tokenizer=run.tokenizer,
        image_processor=run.image_processor,
        identity=run.identity,
        base=run.settings.base,
        num_photos=len(run.examples["train"]),
        parents={"data": run.dataset.identity, "base": run.base_hash},
    )
    clip = clip if clip is not None else merged_copy(run.published_model().clip)
    embeddings = AddressCLIP(clip).embed_texts([record.verbose for record in run.dataset.gallery], run.tokenizer)
    measured = Measured(run.metrics, run.measured_step, calibration)
    writer.write(
        folder, clip, embeddings, measured, lies_in=lies_in, step=step, skipped=sorted(run.skipped), memory=memory
    )


def note_skipped(run: ClipRun, log: TrainLog, step: int, found: dict[str, str]) -> None:
    """Takes up photos that any process could not read; a few are reported, many end the run.

    Raises:
        UserError: More than ``MAX_SKIPPED_SHARE`` of all training photos.
    """
    everyone = {name: why for part in distributed.gather_objects(found) for name, why in part.items()}
    for name in sorted(everyone.keys() - run.skipped.keys()):
        run.skipped[name] = everyone[name]
        log.write(step, {"skipped": name, "num_skipped": len(run.skipped)})
        say(f"skipped, another photo in its place: {everyone[name]}")
    num_photos = len(run.examples["train"])

    def refuse() -> None:
        reasons = "; ".join(list(run.skipped.values())[:3])
        raise UserError(
            f"{len(run.skipped)} of {num_photos} training photos could not be read, more than {MAX_SKIPPED_SHARE:.0%}: "
            f"{reasons}; mend or remove them and build the data set again"
        )

    if len(run.skipped) > MAX_SKIPPED_SHARE * num_photos:
        distributed.run_on_main_process(refuse)


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
