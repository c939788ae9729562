"""Checkpoint folders ``checkpoints/step-000123``: whole or absent, the newest few are kept."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_ial.manifest import MANIFEST

CHECKPOINTS = "checkpoints"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name, renamed to ``folder`` when the block ends without an error."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def checkpoint_folder(output: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return output / CHECKPOINTS / f"step-{step:06d}"


def complete_checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = (output / CHECKPOINTS).glob("step-*")
    return sorted((path for path in found if (path / MANIFEST).exists()), key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """Finished steps, from a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def remove_old_checkpoints(output: Path, keep: int) -> None:
    """Deletes all but the newest ``keep``."""
    for folder in complete_checkpoints(output)[:-keep]:
        shutil.rmtree(folder)
