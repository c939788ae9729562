"""One measurement in a process of its own: memory and threads of another one would count otherwise."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_ial.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def run_fresh(name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a command, run in the repository, prints as JSON in its last line.

    Raises:
        UserError: It failed; ``name`` and the end of what it said.
    """
    environment = os.environ if environment is None else environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{name} failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
