"""The identity of a finished folder: what made it, from what, and that it is complete.

A folder under construction holds ``building.json`` (the hash of its configuration). ``manifest.json`` is written last,
so that its presence means "complete"; readers refuse a folder without one. Clock, host and durations stand in
``run.json`` alone: every other published file is a function of inputs, configuration and seed.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from llava_ial.errors import UserError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
BUILDING = "building.json"
# What a refusal says of settings that differ: so many of them, and so much of each value.
_MAX_NAMED, _MAX_VALUE = 4, 24
_VERSIONED = ("torch", "transformers", "peft", "accelerate", "deepspeed", "datasets", "numpy", "pyarrow", "pillow")


class FolderState(Enum):
    """What ``claim_folder`` found."""

    NEW = "new"
    PARTIAL = "partial"
    COMPLETE = "complete"


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of a configuration, independent of the order of its keys."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes to a temporary name in the same folder, then renames: a reader sees the old file or the new one whole."""
    # Machines that share a folder may run it under the same process number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Atomic JSON with sorted keys, so that equal content has equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def relative_path(path: Path, folder: Path) -> str:
    """``path`` as ``folder / ...`` finds it; links are followed first, as the system does before it goes up."""
    return os.path.relpath(path.resolve(), folder.resolve())


def claim_folder(folder: Path, kind: str, config: Mapping[str, Any]) -> FolderState:
    """Takes an output folder for one configuration.

    A folder of the same configuration is resumed (PARTIAL) or already done (COMPLETE).

    Raises:
        UserError: The folder holds another run, or files that no command of this project wrote.
    """
    mine = {"kind": kind, "config_hash": config_hash(config), "schema_version": SCHEMA_VERSION}
    for name, state in ((MANIFEST, FolderState.COMPLETE), (BUILDING, FolderState.PARTIAL)):
        path = folder / name
        if not path.exists():
            continue
        found = _load_json(path)
        if {key: found.get(key) for key in mine} != mine:
            raise UserError(
                f"output folder {folder} holds another run ({_difference(found, mine | {'config': config})}); "
                "choose another folder or delete it"
            )
        if state is FolderState.COMPLETE:
            (folder / BUILDING).unlink(missing_ok=True)  # left by a kill between the manifest and its removal
        return state
    # A kill while the mark itself was written leaves a temporary file and nothing else.
    if folder.exists() and (not folder.is_dir() or any(not _is_temporary_mark(path) for path in folder.iterdir())):
        if (folder / BUILDING).exists() or (folder / MANIFEST).exists():
            return claim_folder(folder, kind, config)  # a process that shares the run took it between two looks
        raise UserError(f"output folder {folder} is not empty and was not made by this command; choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / BUILDING, {**mine, "config": config})
    return FolderState.NEW


def is_claimed(folder: Path) -> bool:
    """True where a run has begun in ``folder``, or is complete."""
    return (folder / BUILDING).exists() or (folder / MANIFEST).exists()


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder that was claimed and is not complete; a kill lets go of it too.

    Raises:
        UserError: Another process works on it.
    """
    import fcntl  # not on Windows, where everything else here can be read

    with (folder / BUILDING).open("rb") as mark:
        os.register_at_fork(after_in_child=mark.close)  # workers may outlive a killed run for seconds
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"output folder {folder}: another process works on it; wait for it, or stop it") from error
        except OSError as error:  # a file system that knows no locks: better unguarded than not at all
            print(f"warning: {folder} cannot be locked ({error}); start no second run in it", file=sys.stderr)
        yield


def publish_manifest(
    folder: Path, kind: str, config: Mapping[str, Any], *, parents: Mapping[str, str] | None = None, **facts: Any
) -> dict[str, Any]:
    """Writes ``manifest.json``, the last file of a folder, and removes the building mark.

    Args:
        folder: The finished folder.
        kind: What the folder is, for example ``ial_dataset`` or ``address_clip``.
        config: The configuration that ``claim_folder`` was given.
        parents: Name of each input folder and the hash of its manifest.
        facts: Further entries: counts, hashes, names.
    """
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "config": dict(config),
        "config_hash": config_hash(config),
        "parents": dict(parents or {}),
        "versions": library_versions(),
        **facts,
    }
    write_json(folder / MANIFEST, manifest)
    (folder / BUILDING).unlink(missing_ok=True)
    return manifest


def read_manifest(folder: Path, *kinds: str) -> dict[str, Any]:
    """The manifest of a finished folder of one of these kinds.

    Raises:
        UserError: No folder, unfinished, of another kind, or of an unknown schema version.
    """
    path = folder / MANIFEST
    if not path.exists():
        why = "is unfinished: run the command that makes it again" if (folder / BUILDING).exists() else "has none"
        raise UserError(f"{folder}: no {MANIFEST}; the folder {why if folder.exists() else 'does not exist'}")
    manifest = _load_json(path)
    if manifest.get("kind") not in kinds:
        expected = "' or '".join(kinds)
        raise UserError(f"{folder} is a folder of kind '{manifest.get('kind')}', expected '{expected}'")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version {manifest.get('schema_version')}, this version reads {SCHEMA_VERSION}")
    return manifest


def library_versions() -> dict[str, str]:
    """Versions of this project and of the libraries that decide results."""
    versions = {}
    for name in ("llava-ial", *_VERSIONED):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """In what two runs differ: ``learning_rate 0.1 there, 0.2 here``."""
    for name in ("kind", "schema_version"):
        if theirs.get(name) != mine[name]:
            return f"{name} {theirs.get(name)} there, {mine[name]} here"
    there, here = theirs.get("config", {}), json.loads(json.dumps(mine["config"], default=str))
    names = [name for name in sorted({*there, *here}) if _short(there, name, None) != _short(here, name, None)]
    said = [f"{name} {_short(there, name)} there, {_short(here, name)} here" for name in names[:_MAX_NAMED]]
    return "; ".join(said) + (f"; and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")


def _short(config: Mapping[str, Any], name: str, length: int | None = _MAX_VALUE) -> str:
    if name not in config:
        return "unset"
    text = json.dumps(config[name], sort_keys=True, ensure_ascii=False)
    return text if length is None or len(text) <= length else f"{text[:length]}..."


def _is_temporary_mark(path: Path) -> bool:
    return path.name.startswith(f".{BUILDING}.") and path.suffix == ".tmp"


def _load_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected a JSON object")
    return loaded
