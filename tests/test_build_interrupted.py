"""A build that is killed, repeated or refused: the same files in the end, or one line that says what to mend."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_gen import build
from data_gen.parts import Context, Facts
from llava_ial.config import load_yaml
from llava_ial.errors import UserError
from llava_ial.manifest import hold_folder
from tests.build_runs import ROOT, arguments_of, build_here, error_of, files_of, is_alive, town
from tests.grid_town import photo_row, write_csv

__all__ = ["town"]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_files_depend_on_inputs_settings_and_seed_alone(
    monkeypatch: pytest.MonkeyPatch, town: dict[str, str], tmp_path: Path
) -> None:
    build_here(monkeypatch, town, tmp_path / "one")
    build_here(monkeypatch, {**town, "workers": "1"}, tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    build_here(monkeypatch, {**town, "seed": "1"}, tmp_path / "three")
    assert files_of(tmp_path / "one")["llava/train.json"] != files_of(tmp_path / "three")["llava/train.json"]
    saved = load_yaml(tmp_path / "one" / "config.yaml")
    assert saved["seed"] == 0
    assert not {"output", "workers"} & saved.keys()


def test_a_running_build_keeps_others_out_of_its_folder(
    monkeypatch: pytest.MonkeyPatch, town: dict[str, str], tmp_path: Path
) -> None:
    """Who is done first takes away what the other still reads."""
    refused, cap_photos = [], build.cap_photos

    def second(context: Context) -> Facts:
        with pytest.raises(UserError, match="another process works on it"), hold_folder(tmp_path / "data"):
            pass
        refused.append(True)
        return cap_photos(context)

    monkeypatch.setattr(build, "cap_photos", second)
    build_here(monkeypatch, town, tmp_path / "data")
    assert refused


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_write_and_started_again(
    monkeypatch: pytest.MonkeyPatch, town: dict[str, str], tmp_path: Path, when: str
) -> None:
    build_here(monkeypatch, town, tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    replace = os.replace
    for step in range(1, 100):
        calls = 0

        def killing(source: object, target: object, step: int = step) -> None:
            nonlocal calls
            calls += 1
            if calls == step and when == "before":
                raise Killed
            replace(source, target)  # type: ignore[call-overload]
            if calls == step:
                raise Killed

        output = tmp_path / f"step{step}"
        monkeypatch.setattr(os, "replace", killing)
        try:
            build_here(monkeypatch, town, output)
        except Killed:
            monkeypatch.setattr(os, "replace", replace)
        else:
            assert step > 12  # every write of the build was interrupted once
            return
        assert not (output / "manifest.json").exists() or when == "after"
        build_here(monkeypatch, town, output)
        assert files_of(output) == expected, step
    raise AssertionError("the build never came to its end")


@pytest.mark.slow
def test_killed_at_random_moments(monkeypatch: pytest.MonkeyPatch, town: dict[str, str], tmp_path: Path) -> None:
    town = {**town, "rows_a_part": "2", "workers": "1"}  # ten parts: most kills hit one
    build_here(monkeypatch, town, tmp_path / "whole")
    command = [sys.executable, "-m", "data_gen.build", *arguments_of(town, tmp_path / "killed")]
    draw = random.Random(0)
    for workers in ("1", "2") * 6:
        process = subprocess.Popen(
            [*command, "--workers", workers], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(draw.uniform(0.2, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_workers_end_with_the_process_that_was_killed(town: dict[str, str], tmp_path: Path) -> None:
    town = {**town, "rows_a_part": "1", "workers": "2"}
    command = [sys.executable, "-m", "data_gen.build", *arguments_of(town, tmp_path / "data")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not any((tmp_path / "data" / ".work" / "done").glob("check/*.json")):
        time.sleep(0.02)  # until the pool works
    workers = [Path(f"/proc/{pid}") for pid in children.read_text().split()]
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 30
    while any(map(is_alive, workers)):
        assert time.monotonic() < until, workers
        time.sleep(0.1)


def test_finished_folder_is_left_alone_and_another_build_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], town: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "data"
    build_here(monkeypatch, town, output)
    before = files_of(output, without=())
    build_here(monkeypatch, town, output)
    assert "already complete" in capsys.readouterr().out
    assert "holds another run" in error_of(monkeypatch, capsys, {**town, "seed": "7"}, output)
    table = Path(town["photos_csv"])
    table.write_text(table.read_text().replace("photo003", "photo333"))
    assert "holds another run" in error_of(monkeypatch, capsys, town, output)
    assert files_of(output, without=()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"streets": "nowhere.osm.pbf"}, "streets: there is no file nowhere.osm.pbf; mend the path"),
        ({"image_root": "~/nowhere"}, "image_root: there is no folder /"),
        ({"photos_csv": "gone.csv"}, "photos_csv: there is no file gone.csv"),
        ({"captioner": "blop"}, "captioner: 'blop'; allowed: constant, csv, annotation, model, server"),
        ({"split": "random"}, "split: 'random'; allowed: fractions, given, blocked"),
        ({"max_distance_m": "0"}, "max_distance_m: 0.0; above 0"),
        ({"snap_m": "nan"}, "snap_m: nan; at least 0"),
        ({"num_dialogues": "-1"}, "num_dialogues: -1; at least 0"),
        ({"city": "Paris, Texas"}, "city: 'Paris, Texas' holds a comma"),
        ({"workers": "0"}, "workers: 0; at least 1"),
        ({"lat_column": "y"}, "no column 'y'; it has: image_path, image_id"),
        ({"test_fraction": "1"}, "together below 1"),
        ({"split": "given", "ambiguous_margin_m": "0"}, "no photo got an address: 17 no_split, 1 no_street"),
        ({"highways": "motorway"}, "holds no named street of the accepted kinds"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    town: dict[str, str],
    tmp_path: Path,
    change: dict[str, str],
    message: str,
) -> None:
    assert message in error_of(monkeypatch, capsys, {**town, **change}, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_nothing_left_names_the_reasons(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], town: dict[str, str], tmp_path: Path
) -> None:
    rows = [photo_row(i, 5000.0, 0.0) for i in (0, 1)] + [{"image_id": "x", "image_path": "gone.jpg", "lat": "1"}]
    write_csv(tmp_path / "town" / "photos.csv", rows)
    line = error_of(monkeypatch, capsys, {**town, "captioner": "constant"}, tmp_path / "data")
    assert "no photo got an address: 2 no_street; is" in line
    write_csv(tmp_path / "town" / "photos.csv", rows[2:])
    line = error_of(monkeypatch, capsys, {**town, "captioner": "constant"}, tmp_path / "data")
    assert "no usable photo in" in line
    assert "1 no_position" in line
    assert not (tmp_path / "data").exists()
