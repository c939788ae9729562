"""Writes the dialogues of a data set: tables and LLaVA JSON by split, training photos capped by sub-street."""

import gc
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data_gen.converse import DialogueSettings, converse
from data_gen.house_numbers import FOLDER as HOUSE_NUMBERS
from data_gen.parts import Context, Facts, file_stamp
from data_gen.photo_check import list_photo_files, read_files, reasons_with_duplicates
from data_gen.positions import num_parts, read_columns
from data_gen.settings import BuildSettings
from data_gen.surroundings import Surroundings
from data_gen.wide_dialogues import LocatedPhoto, converse_widely, refuse
from llava_ial.conversation import to_llava_json
from llava_ial.manifest import write_text
from llava_ial.prompts import stable_number
from llava_ial.records import ConversationRecord, GalleryRecord, part_name, read_records, to_table, write_part
from llava_ial.splits import SPLIT_NAMES

CAPPED = "capped"
_MOST = {"measured": 2, "all": 100}  # dialogues of a photo where the settings do not say; all: more than it can have
NUM_SHOWN = 12  # photos of the preview


class _Gallery:
    """The candidates as the dialogues need them; read once in each process."""

    def __init__(self, folder: Path) -> None:
        gallery = read_records(folder, GalleryRecord)
        self.address_of = {record.sub_street_id: record.address for record in gallery}
        self.streets = sorted({record.address.street for record in gallery})
        self.surroundings = Surroundings(gallery)


def _gallery(folder: Path) -> _Gallery:
    return _load_gallery(folder, file_stamp(folder / part_name(0)))


@lru_cache(maxsize=1)
def _load_gallery(folder: Path, stamp: object) -> _Gallery:
    del stamp  # part of the key alone
    return _Gallery(folder)


def talk_part(context: Context, part: int) -> Facts:
    """Writes a part of ``conversations/`` of every split that has photos in it; gives the numbers of each split."""
    gc.disable()  # a part is a million small objects without a cycle: looking for one costs a third of the time
    try:
        return _talk_part(context, part)
    finally:
        gc.enable()


def _talk_part(context: Context, part: int) -> Facts:
    settings, folder = context.settings, context.folder
    candidates = _gallery(folder / "gallery")
    photos = _located(context, part, candidates)
    capped_file = context.work / CAPPED
    capped = set(read_columns(capped_file, part)["image_id"].to_pylist()) if capped_file.is_dir() else set()
    dialogue_settings = DialogueSettings(settings.num_dialogues or _MOST[settings.questions], settings.seed)
    is_last = part == num_parts(folder / "addresses") - 1
    refusals = _refusals(settings, context.workers, dialogue_settings) if is_last else []
    numbers = {}
    for split in SPLIT_NAMES:
        rows = [photo for photo in photos if photo.split == split]
        dialogues: list[ConversationRecord] = []
        for photo in tqdm(rows, desc=f"writing dialogues ({split})", unit="photo", disable=None):
            if photo.image_id not in capped:
                dialogues += _talk(photo, candidates, settings, dialogue_settings)
        dialogues += [refusal for refusal in refusals if refusal.split == split]
        if not dialogues and not rows:
            continue
        write_part(folder / "conversations" / split, to_table(dialogues, ConversationRecord), part)
        if settings.llava_json:
            _write_fragment(context.work / "llava" / split, dialogues, part)
        numbers[split] = _numbers(rows, dialogues, len(capped) if split == "train" else 0)
    shown = nsmallest(NUM_SHOWN, ((stable_number(settings.seed, p.image_id, "preview"), p.image_id) for p in photos))
    return {"splits": numbers, "shown": shown}


def cap_photos(context: Context) -> Facts:
    """Notes the training photos beyond the first ``max_photos_per_sub_street`` of their sub-street."""
    most, seed = context.settings.max_photos_per_sub_street, context.settings.seed
    if not most:
        return {}
    addresses = context.folder / "addresses"
    numbers, classes, rows = [], [], []
    class_of: dict[str, int] = {}
    for part in range(num_parts(addresses)):
        names, ids = _training(addresses, part)
        rows.append(len(names))
        numbers.append(np.array([stable_number(seed, name, "cap") for name in names], dtype=np.uint64))
        classes.append(np.array([class_of.setdefault(i, len(class_of)) for i in ids], dtype=np.int64))
    is_over = over_cap(np.concatenate(numbers), np.concatenate(classes), most)
    start = 0
    for part, count in enumerate(rows):
        names, _ = _training(addresses, part)
        over = [name for name, flag in zip(names, is_over[start : start + count].tolist(), strict=True) if flag]
        write_part(context.work / CAPPED, pa.table({"image_id": pa.array(over, pa.string())}), part)
        start += count
    return {"over_cap": int(is_over.sum())}


def over_cap(numbers: np.ndarray, classes: np.ndarray, most: int) -> np.ndarray:
    """Which photos ``(N,)`` come after the first ``most`` of their class in the order of their numbers."""
    order = np.lexsort((numbers, classes))
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    is_over = np.zeros(len(order), dtype=bool)
    is_over[order[place >= most]] = True
    return is_over


def numbers_of_splits(parts: Sequence[Facts]) -> dict[str, dict[str, Any]]:
    """The numbers of each split over all parts."""
    total: dict[str, dict[str, Any]] = {}
    for split in SPLIT_NAMES:
        found = [part["splits"][split] for part in parts if split in part["splits"]]
        if found:
            total[split] = _sum(found)
    return total


def write_llava_json(context: Context) -> None:
    """``llava/*.json`` of the fragments that the parts left; none is held in memory."""
    for split in SPLIT_NAMES:
        fragments = sorted((context.work / "llava" / split).glob("*.json"))
        if not fragments:
            continue
        folder = context.folder / "llava"
        folder.mkdir(exist_ok=True)
        temporary = folder / f".{split}.json.{os.getpid()}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            file.write("[")
            mark = "\n"
            for fragment in fragments:
                if text := fragment.read_text(encoding="utf-8"):
                    file.write(mark + text)
                    mark = ",\n"
            file.write("]\n" if mark == "\n" else "\n]\n")
        os.replace(temporary, folder / f"{split}.json")


def _located(context: Context, part: int, gallery: _Gallery) -> list[LocatedPhoto]:
    columns = ["image_id", "sub_street_id", "split", "is_ambiguous"]
    addresses = read_columns(context.folder / "addresses", part, columns)
    photos = read_columns(context.folder / "photos", part, ["image_id", "image_path"])
    path_of = dict(zip(photos["image_id"].to_pylist(), photos["image_path"].to_pylist(), strict=True))
    address_of = gallery.address_of
    numbers = context.folder / HOUSE_NUMBERS
    house_of: dict[str, str] = {}
    if numbers.is_dir():
        table = read_columns(numbers, part, ["image_id", "house_number"])
        house_of = dict(zip(table["image_id"].to_pylist(), table["house_number"].to_pylist(), strict=True))
    rows = zip(*(addresses[name].to_pylist() for name in columns), strict=True)
    return [
        LocatedPhoto(i, path_of[i], sub, split, address_of[sub], unsure, house_of.get(i, ""))
        for i, sub, split, unsure in rows
    ]


def _talk(
    photo: LocatedPhoto, gallery: _Gallery, settings: BuildSettings, dialogues: DialogueSettings
) -> Iterator[ConversationRecord]:
    if settings.questions == "all":
        return converse_widely(photo, gallery.surroundings, dialogues)
    return converse(
        photo.image_id,
        photo.image_path,
        photo.sub_street_id,
        photo.split,
        photo.address,
        gallery.streets,
        dialogues,
    )


def _training(addresses: Path, part: int) -> tuple[list[str], list[str]]:
    """Names of the training photos of a part, and their sub-streets."""
    table = read_columns(addresses, part, ["image_id", "sub_street_id", "split"])
    table = table.filter(pa.array([split == "train" for split in table["split"].to_pylist()], pa.bool_()))
    return table["image_id"].to_pylist(), table["sub_street_id"].to_pylist()


def _write_fragment(folder: Path, dialogues: Sequence[ConversationRecord], part: int) -> None:
    """Entries of LLaVA JSON as they stand in the whole file, without its brackets."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [to_llava_json(d.conversation_id, d.image_path, d.messages) for d in dialogues]
    text = json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False)
    write_text(folder / f"{part:05d}.json", text.removeprefix("[").removesuffix("]").strip("\n"))


def _sum(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    total: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    for numbers in found:
        for kind, count in numbers["kinds"].items():
            kinds.setdefault(kind, Counter()).update(count)
        total.update({name: count for name, count in numbers.items() if name != "kinds"})
    return {**total, "kinds": {kind: dict(kinds[kind]) for kind in sorted(kinds)}}


def _refusals(settings: BuildSettings, workers: int, dialogues: DialogueSettings) -> list[ConversationRecord]:
    """A refusal for each readable photo of elsewhere: one in ten judges, the others teach."""
    if settings.negatives is None:
        return []
    files = list_photo_files(settings.negatives)
    reports = read_files(files, "reading photos of elsewhere", workers)
    found = []
    for file, reason in zip(files, reasons_with_duplicates(reports), strict=True):
        if not reason:
            name = f"elsewhere/{file.relative_to(settings.negatives).as_posix()}"
            split = "test" if stable_number(settings.seed, name, "split") % 10 == 0 else "train"
            # The photos of a data set share one root; these lie beside it.
            path = Path(os.path.relpath(file.resolve(), settings.image_root.resolve())).as_posix()
            found.append(refuse(name, path, split, dialogues))
    return found


def _numbers(rows: Sequence[LocatedPhoto], dialogues: Sequence[ConversationRecord], num_capped: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "photos": len(rows),
        "dialogues": len(dialogues),
        "questions": sum(len(dialogue.tasks) for dialogue in dialogues),
    }
    if num_capped:
        numbers["photos_over_cap"] = num_capped
    asked = Counter(task for dialogue in dialogues for task in dialogue.tasks)
    opened = Counter(dialogue.tasks[0] for dialogue in dialogues)
    given = Counter(
        task
        for dialogue in dialogues
        for task, is_given_away in zip(dialogue.tasks, dialogue.is_given_away, strict=True)
        if is_given_away
    )
    numbers["kinds"] = {
        task: {"asked": asked[task], "open_a_dialogue": opened[task], "given_away": given[task]}
        for task in sorted(asked)
    }
    return numbers
