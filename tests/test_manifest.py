"""Folders: claimed, resumed, refused, published."""

import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from llava_ial.errors import UserError
from llava_ial.manifest import (
    FolderState,
    claim_folder,
    config_hash,
    hold_folder,
    publish_manifest,
    read_manifest,
    write_text,
)


def test_a_folder_is_new_then_partial_then_complete(tmp_path: Path) -> None:
    out, config = tmp_path / "out", {"a": 1}
    assert claim_folder(out, "kind", config) is FolderState.NEW
    assert claim_folder(out, "kind", config) is FolderState.PARTIAL
    with pytest.raises(UserError, match="unfinished"):
        read_manifest(out, "kind")
    publish_manifest(out, "kind", config, counts={"in": 3})
    assert claim_folder(out, "kind", config) is FolderState.COMPLETE
    assert read_manifest(out, "kind")["counts"] == {"in": 3}


@pytest.mark.parametrize("finished", [False, True])
def test_another_configuration_is_refused_with_what_differs(tmp_path: Path, finished: bool) -> None:
    theirs = {"rate": 0.1, "data": "a" * 64, "same": {"x": 1, "y": 2}, "old": True}
    claim_folder(tmp_path / "out", "kind", theirs)
    if finished:
        publish_manifest(tmp_path / "out", "kind", theirs)
    with pytest.raises(UserError, match="holds another run") as refused:
        claim_folder(
            tmp_path / "out", "kind", {"rate": 0.2, "data": "a" * 63 + "b", "same": {"y": 2, "x": 1}, "new": "n"}
        )
    said = str(refused.value)
    for difference in (
        "rate 0.1 there, 0.2 here",
        'data "aaaa',
        'new unset there, "n" here',
        "old true there, unset here",
    ):
        assert difference in said
    assert "same" not in said
    assert len(said) < 400


def test_of_many_differences_a_few_are_named(tmp_path: Path) -> None:
    claim_folder(tmp_path / "out", "kind", {f"option_{i}": 1 for i in range(9)})
    with pytest.raises(UserError, match=r"option_3 1 there, 2 here; and 5 more\)"):
        claim_folder(tmp_path / "out", "kind", {f"option_{i}": 2 for i in range(9)})
    with pytest.raises(UserError, match="kind kind there, other here"):
        claim_folder(tmp_path / "out", "other", {})


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError, match="not made by this command"):
        claim_folder(tmp_path, "kind", {})
    assert [p.name for p in tmp_path.iterdir()] == ["diary.txt"]


def test_missing_folder_and_wrong_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(tmp_path / "no", "kind")
    claim_folder(tmp_path / "out", "kind", {})
    publish_manifest(tmp_path / "out", "kind", {})
    with pytest.raises(UserError, match="of kind 'kind', expected 'other'"):
        read_manifest(tmp_path / "out", "other")


def test_hash_ignores_the_order_of_keys_and_sees_every_value() -> None:
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"


def test_a_worker_that_outlives_a_killed_run_keeps_nobody_out(tmp_path: Path) -> None:
    claim_folder(tmp_path / "out", "thing", {})
    with hold_folder(tmp_path / "out"):
        fork = multiprocessing.get_context("fork")
        is_there = fork.Event()
        worker = fork.Process(target=_work, args=(is_there,))
        worker.start()
        assert is_there.wait(10)
    try:
        with hold_folder(tmp_path / "out"):
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def _work(is_there: Event) -> None:
    is_there.set()
    time.sleep(60)
