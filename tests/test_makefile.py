"""`make setup` when it was killed before, and when two of them run at once; a script stands for Python and pip."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip"*) echo begun >> pip.log; sleep 0.2; echo ended >> pip.log ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def start_setup(project: Path) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.Popen(["make", "PYTHON=./python", "setup"], cwd=project, env=inherited)


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock: two of them are not kept apart")
def test_of_two_at_once_one_installs(project: Path) -> None:
    both = [start_setup(project) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert (project / "pip.log").read_text().split() == ["begun", "ended"] * 2, "once: pip itself, then the project"
    assert start_setup(project).wait(timeout=60) == 0
    assert len((project / "pip.log").read_text().split()) == 4


def test_a_package_whose_installation_was_killed_is_installed_again(project: Path) -> None:
    """pip writes a package's INSTALLER after its commands, and looks at neither when it asks what is there."""
    packages = project / ".venv" / "lib" / "python3.11" / "site-packages"
    for name in ("half-1.0.dist-info/METADATA", "whole-1.0.dist-info/METADATA", "whole-1.0.dist-info/INSTALLER"):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    assert start_setup(project).wait(timeout=60) == 0
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]
