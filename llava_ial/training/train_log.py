"""The record of a training: one JSON object a line, the same bytes for the same configuration and seed."""

import json
from collections.abc import Mapping
from pathlib import Path

from llava_ial.manifest import write_text


class TrainLog:
    """Appends to ``train_log.jsonl``; no clock in it.

    Args:
        path: File, kept up to ``last_step`` if it exists: what was logged after the checkpoint that a run resumes from
            is about to be logged again.
        last_step: Step of that checkpoint, 0 for a new run.
        is_active: False on all processes but the main one.
    """

    def __init__(self, path: Path, *, last_step: int = 0, is_active: bool = True) -> None:
        self._path, self._is_active = path, is_active
        if is_active:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and last_step else []
            kept = [line for line in lines if _step(line) <= last_step]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """One line; ``step`` counts finished steps."""
        if self._is_active:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


def _step(line: str) -> float:
    """Step of a line; a line that a crash cut off belongs to no step that is kept."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
