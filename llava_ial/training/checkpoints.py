"""Checkpoint folders ``checkpoints/step-000123``: whole or absent, the newest few are kept."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_ial.errors import UserError
from llava_ial.manifest import MANIFEST

CHECKPOINTS = "checkpoints"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What safetensors, tokenizers and shutil say of the same, and torch.save (second line): they hide the system's number.
_NO_ROOM_TEXT = re.compile(
    rf"(?i)\b(os error|errno) ({'|'.join(map(str, _NO_ROOM))})\b"
    r"|PytorchStreamWriter failed|basic_ios::clear: iostream error|inline_container\.cc:\d+\] \. unexpected pos"
)

_CONTINUES = "the last complete checkpoint is untouched and it continues from there"


@contextmanager
def refuse_full_disk(folder: Path, then: str = _CONTINUES) -> Iterator[None]:
    """Says in one line that there is no room to write, whoever finds it out.

    Args:
        folder: That is written.
        then: What starting the same command again does.

    Raises:
        UserError: No space left, a quota or the largest size of a file reached.
    """
    try:
        yield
    except Exception as error:  # tokenizers raises nothing finer
        number = error.errno if isinstance(error, OSError) else None
        if number not in _NO_ROOM and not _NO_ROOM_TEXT.search(str(error)):
            raise
        raise UserError(
            f"{folder}: there is no room to write (the disk is full, or a quota reached); make room and start the same "
            f"command again: {then}"
        ) from error


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
