"""A build in parts: the same tables however the photos are cut, and the same files whoever makes them."""

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_gen.build import build
from data_gen.map_cache import load_compiled_map
from data_gen.run_options import RunOptions, Share
from data_gen.settings import BuildSettings
from data_gen.streets import DEFAULT_HIGHWAYS, load_city_name, load_street_map
from llava_ial.errors import UserError
from tests.grid_town import grid_lines, write_osm, write_town

ROOT = Path(__file__).resolve().parents[1]
ALL = {"questions": "all", "max_photos_per_sub_street": 3, "captioner": "csv"}


@pytest.fixture
def town(tmp_path: Path) -> dict[str, str]:
    return write_town(tmp_path / "town")


def town_settings(town: dict[str, str], **more: object) -> BuildSettings:
    values: dict[str, object] = {name: Path(value) if "/" in value else value for name, value in town.items()}
    for name in ("panorama_radius_m", "val_fraction", "test_fraction"):
        if name in values:
            values[name] = float(str(values[name]))
    for name in ("min_positions", "num_dialogues"):
        if name in values:
            values[name] = int(str(values[name]))
    return BuildSettings(**{**values, **more})  # type: ignore[arg-type]


def _files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop("run.json")
    return found


def _table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in sorted(folder.glob("*.parquet"))]).combine_chunks()


@pytest.mark.parametrize(
    "more", [{}, ALL, {"split": "blocked", "block_m": 150.0, "buffer_m": 1.0}, {"vote_radius_m": 30.0}]
)
def test_tables_do_not_depend_on_the_size_of_parts(
    town: dict[str, str], tmp_path: Path, more: dict[str, object]
) -> None:
    build(town_settings(town, **more), RunOptions(tmp_path / "whole", workers=1))
    build(town_settings(town, **more, rows_a_part=5), RunOptions(tmp_path / "parts", workers=1))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert len(list((parts / "photos").glob("*.parquet"))) == 4
    tables = [
        "photos",
        "addresses",
        "captions",
        "gallery",
        "dropped",
        *(f"conversations/{s}" for s in ("train", "test")),
    ]
    for table in tables:
        assert _table(parts / table).equals(_table(whole / table)), table
    for name in ("llava/train.json", "llava/test.json", "leakage.json", "README.md", "preview.html"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    counts = [json.loads((folder / "manifest.json").read_text())["counts"] for folder in (whole, parts)]
    assert counts[0] == counts[1]
    assert not (parts / ".work").exists()


def test_processes_that_share_a_build_make_the_files_of_one(town: dict[str, str], tmp_path: Path) -> None:
    settings = town_settings(town, **ALL, rows_a_part=3)
    build(settings, RunOptions(tmp_path / "one", workers=1))
    failed: list[BaseException] = []

    def run(index: int) -> None:
        try:
            build(settings, RunOptions(tmp_path / "three", workers=1, shard_index=index, num_shards=3, wait_s=60.0))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert _files(tmp_path / "three") == _files(tmp_path / "one")


def test_a_process_that_is_left_alone_says_so_and_goes_on_later(town: dict[str, str], tmp_path: Path) -> None:
    settings = town_settings(town, rows_a_part=5)
    build(settings, RunOptions(tmp_path / "one", workers=1))
    for index, missing in ((1, "list"), (0, "check/00001")):
        alone = RunOptions(tmp_path / "two", workers=1, shard_index=index, num_shards=2, wait_s=0.6)
        with pytest.raises(UserError, match=f"waited 0.6 s for done/{missing} of another process"):
            build(settings, alone)
    build(settings, RunOptions(tmp_path / "two", workers=1))
    assert _files(tmp_path / "two") == _files(tmp_path / "one")


def test_a_part_that_is_done_is_not_made_again(
    town: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = town_settings(town, rows_a_part=5)
    build(settings, RunOptions(tmp_path / "one", workers=1))
    from data_gen import build as module

    talk: Callable[..., object] = module.talk_part
    made: list[int] = []

    def failing(context: object, part: int) -> object:
        made.append(part)
        if made.count(2) == 1:
            raise KeyboardInterrupt
        return talk(context, part)

    monkeypatch.setattr(module, "talk_part", failing)
    with pytest.raises(KeyboardInterrupt):
        build(settings, RunOptions(tmp_path / "two", workers=1))
    made_first = list(made)
    build(settings, RunOptions(tmp_path / "two", workers=1))
    assert (made_first, made[len(made_first) :]) == ([0, 1, 2], [2, 3])
    assert _files(tmp_path / "two") == _files(tmp_path / "one")


@pytest.mark.slow
def test_a_pool_makes_the_files_of_one_process(town: dict[str, str], tmp_path: Path) -> None:
    settings = town_settings(town, **ALL, rows_a_part=5)
    build(settings, RunOptions(tmp_path / "one", workers=1))
    build(settings, RunOptions(tmp_path / "pool", workers=2))
    assert _files(tmp_path / "pool") == _files(tmp_path / "one")


@pytest.mark.slow
def test_ray_makes_the_files_of_one_process(town: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'llava-ial[ray]'")
    settings = town_settings(town, **ALL, rows_a_part=5)
    build(settings, RunOptions(tmp_path / "one", workers=1))
    # A process of its own: Ray's threads and sockets end with it.
    code = (
        "import pickle, sys; from data_gen.build import build; from data_gen.run_options import RunOptions;"
        "from pathlib import Path;"
        "build(pickle.load(open(sys.argv[1], 'rb')), RunOptions(Path(sys.argv[2]), workers=2, engine='ray'))"
    )
    import pickle

    (tmp_path / "settings").write_bytes(pickle.dumps(settings))
    command = [sys.executable, "-c", code, str(tmp_path / "settings"), str(tmp_path / "ray")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=200)
    assert _files(tmp_path / "ray") == _files(tmp_path / "one")


def test_ray_that_is_not_there_is_named(town: dict[str, str], tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("ray is installed")
    with pytest.raises(UserError, match="engine: ray is not installed"):
        build(town_settings(town), RunOptions(tmp_path / "out", engine="ray"))


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, Share(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Share(3, 8)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, Share(1, 2)),
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}
            | {"SLURM_ARRAY_TASK_STEP": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            Share(3, 4),
        ),
    ],
)
def test_launchers_name_the_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], share: Share
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert RunOptions(tmp_path).share == share
    assert RunOptions(tmp_path, shard_index=1, num_shards=2).share == Share(1, 2)
    assert [part for part in range(10) if Share(1, 3).owns(part)] == [1, 4, 7]
    with pytest.raises(UserError, match="shard_index: 2 of num_shards 2"):
        RunOptions(tmp_path, shard_index=2, num_shards=2)


def test_a_compiled_map_is_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = write_osm(tmp_path / "town.osm.pbf", grid_lines(), city="Gridville")
    plain = load_street_map(extract, DEFAULT_HIGHWAYS)
    compiled = load_compiled_map(extract, DEFAULT_HIGHWAYS, None, tmp_path / "cache")
    from data_gen import map_cache

    monkeypatch.setattr(map_cache, "load_street_map", lambda *_: pytest.fail("read the extract again"))
    again = load_compiled_map(extract, DEFAULT_HIGHWAYS, None, tmp_path / "cache")
    for found in (compiled.street_map, again.street_map):
        assert (found.names, found.bounds, found.neighbourhoods) == (plain.names, plain.bounds, plain.neighbourhoods)
        assert [line.wkb for line in found.lines] == [line.wkb for line in plain.lines]
        assert (found.street == plain.street).all()
        assert (found.rank == plain.rank).all()
        assert found.frame.origin == plain.frame.origin
    assert compiled.city_name == again.city_name == load_city_name(extract, plain.frame.origin) == "Gridville"
    monkeypatch.undo()
    write_osm(extract, grid_lines()[:-1], city="Elsewhere")
    assert load_compiled_map(extract, DEFAULT_HIGHWAYS, None, tmp_path / "cache").city_name == "Elsewhere"
    fewer = load_compiled_map(extract, ["secondary"], None, tmp_path / "cache").street_map
    assert set(fewer.names) < set(plain.names)
    assert len(list((tmp_path / "cache").iterdir())) == 3
