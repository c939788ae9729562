"""Folders: claimed, resumed, refused, published."""

from pathlib import Path

import pytest

from llava_ial.errors import UserError
from llava_ial.manifest import (
    FolderState,
    claim_folder,
    config_hash,
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
def test_another_configuration_is_refused(tmp_path: Path, finished: bool) -> None:
    claim_folder(tmp_path / "out", "kind", {"a": 1})
    if finished:
        publish_manifest(tmp_path / "out", "kind", {"a": 1})
    with pytest.raises(UserError, match="holds another run"):
        claim_folder(tmp_path / "out", "kind", {"a": 2})


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
