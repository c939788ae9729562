"""`make`: set up after a kill and by two at once, a script standing for Python and pip; the demo's port."""

import os
import shutil
import socket
import subprocess
import sys
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


def test_the_demo_tells_first_that_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PORT": port, "RUN": str(tmp_path / "run"), "PATH": path}
        demo = subprocess.run(
            ["bash", "train/demo.sh"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (demo.returncode, demo.stdout) == (2, "")
    assert demo.stderr.startswith(f"error: PORT={port}: something listens there already")
    assert not (tmp_path / "run").exists()


def test_a_package_whose_installation_was_killed_is_installed_again(project: Path) -> None:
    """pip writes a package's INSTALLER after its commands, and looks at neither when it asks what is there."""
    packages = project / ".venv" / "lib" / "python3.11" / "site-packages"
    for name in ("half-1.0.dist-info/METADATA", "whole-1.0.dist-info/METADATA", "whole-1.0.dist-info/INSTALLER"):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    assert start_setup(project).wait(timeout=60) == 0
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]
