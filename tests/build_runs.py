"""Building data sets in tests: the command in this process on a hand-made town, its one line of error, its files."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_gen.build import main
from llava_ial.errors import run_command
from tests.grid_town import write_town

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def town(tmp_path: Path) -> dict[str, str]:
    return write_town(tmp_path / "town")


def arguments_of(settings: dict[str, str], output: Path) -> list[str]:
    pairs = {**settings, "output": str(output)}
    return [part for name, value in pairs.items() for part in (f"--{name}", value)]


def build_here(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], output: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["build", *arguments_of(settings, output)])
    main()


def error_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: dict[str, str], output: Path
) -> str:
    """The one line of an error; the exit code must be 2."""
    monkeypatch.setattr(sys, "argv", ["build", *arguments_of(settings, output)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def files_of(folder: Path, *, without: Sequence[str] = ("run.json",)) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name not in without}


def is_alive(process: Path) -> bool:
    """Whether a process runs, by its folder in /proc."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
