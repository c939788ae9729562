"""How a command ends."""

import subprocess
import sys

import pytest

PROGRAM = """
from llava_ial.errors import UserError, run_command
def main():
    {body}
run_command(main)
"""


def _run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True, check=False
    )


def test_what_a_user_can_mend_is_one_line_and_exit_code_2() -> None:
    ended = _run("raise UserError('split: found\\n  x; allowed: y')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "error: split: found x; allowed: y\n")


def test_ctrl_c_ends_without_a_traceback() -> None:
    ended = _run("raise KeyboardInterrupt")
    assert ended.returncode == 130
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("interrupted")


@pytest.mark.parametrize("body", ["raise ValueError('x')", "raise KeyError('x')"])
def test_a_defect_keeps_its_traceback(body: str) -> None:
    ended = _run(body)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_a_reader_that_stops_reading_is_no_error() -> None:
    program = PROGRAM.format(body="for i in range(100000): print(i)")
    ended = subprocess.run(
        f"{sys.executable} -c '{program}' | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert (ended.stdout, ended.stderr) == ("0\n", "")
