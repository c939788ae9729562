"""Writes the dialogues of a data set: tables and LLaVA JSON by split, without the training photos over the cap."""

import gc
import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_gen.caps import CAPPED
from data_gen.converse import DialogueSettings
from data_gen.house_numbers import FOLDER as HOUSE_NUMBERS
from data_gen.measured_dialogues import Candidates, NamedNumbers, PhotoColumns, write_dialogues
from data_gen.parts import Context, Facts, file_stamp
from data_gen.photo_check import list_photo_files, read_files, reasons_with_duplicates
from data_gen.positions import num_parts, read_columns
from data_gen.settings import BuildSettings
from data_gen.surroundings import Surroundings
from data_gen.wide_dialogues import LocatedPhoto, converse_widely, refuse
from llava_ial.conversation import Message, to_llava_json
from llava_ial.manifest import write_text
from llava_ial.prompts import stable_number
from llava_ial.records import ConversationRecord, GalleryRecord, part_name, read_records, to_table, write_part
from llava_ial.splits import SPLIT_NAMES

_MOST = {"measured": 2, "all": 100}  # dialogues of a photo where the settings do not say; all: more than it can have
NUM_SHOWN = 12  # photos of the preview


class _Gallery:
    """The candidates as the dialogues need them; read once in each process."""

    def __init__(self, folder: Path) -> None:
        self.records = read_records(folder, GalleryRecord)
        self.ids = pa.array([record.sub_street_id for record in self.records], pa.string())

    @cached_property
    def candidates(self) -> Candidates:
        """For the measured kinds."""
        return Candidates([record.address for record in self.records])

    @cached_property
    def surroundings(self) -> Surroundings:
        """For all kinds."""
        return Surroundings(self.records)


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
    gallery = _gallery(folder / "gallery")
    photos = _located(context, part)
    capped_file = context.work / CAPPED
    capped = (
        read_columns(capped_file, part)["image_id"] if capped_file.is_dir() else pa.chunked_array([[]], pa.string())
    )
    dialogue_settings = DialogueSettings(settings.num_dialogues or _MOST[settings.questions], settings.seed)
    is_last = part == num_parts(folder / "addresses") - 1
    refusals = _refusals(settings, context.workers, dialogue_settings) if is_last else []
    numbers = {}
    for split in SPLIT_NAMES:
        rows = photos.filter(pc.equal(photos["split"], split))
        own = [refusal for refusal in refusals if refusal.split == split]
        if not len(rows) and not own:
            continue
        talked_about = rows.filter(pc.invert(pc.is_in(rows["image_id"], value_set=capped)))
        dialogues = _talk(talked_about, split, gallery, settings, dialogue_settings)
        if own:
            dialogues = pa.concat_tables([dialogues, to_table(own, ConversationRecord)]).combine_chunks()
        write_part(folder / "conversations" / split, dialogues, part)
        if settings.llava_json:
            _write_fragment(context.work / "llava" / split, dialogues, part)
        numbers[split] = _numbers(len(rows), dialogues, len(capped) if split == "train" else 0)
    names = photos["image_id"].to_pylist()
    shown = nsmallest(NUM_SHOWN, zip(NamedNumbers(settings.seed, names).of("preview").tolist(), names, strict=True))
    return {"splits": numbers, "shown": shown}


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


def _located(context: Context, part: int) -> pa.Table:
    """What the dialogues need to know of the photos of a part that have an address."""
    columns = ["image_id", "sub_street_id", "split", "is_ambiguous"]
    addresses = read_columns(context.folder / "addresses", part, columns)
    photos = read_columns(context.folder / "photos", part, ["image_id", "image_path"])
    rows = pc.index_in(addresses["image_id"], value_set=photos["image_id"])
    table = addresses.append_column("image_path", photos["image_path"].take(rows))
    numbers = context.folder / HOUSE_NUMBERS
    houses = pa.nulls(len(table), pa.string())
    if numbers.is_dir():
        found = read_columns(numbers, part, ["image_id", "house_number"])
        houses = found["house_number"].take(pc.index_in(table["image_id"], value_set=found["image_id"]))
    return table.append_column("house_number", pc.fill_null(houses, "")).combine_chunks()


def _talk(
    photos: pa.Table, split: str, gallery: _Gallery, settings: BuildSettings, dialogues: DialogueSettings
) -> pa.Table:
    """The dialogues about photos of one split."""
    candidate = pc.index_in(photos["sub_street_id"], value_set=gallery.ids).to_numpy().astype(np.int64)
    if not len(photos):
        return to_table([], ConversationRecord)
    if settings.questions == "measured":
        image_id, path, sub_street = (
            photos[name].combine_chunks() for name in ("image_id", "image_path", "sub_street_id")
        )
        columns = PhotoColumns(image_id, path, sub_street, candidate)
        return write_dialogues(columns, split, gallery.candidates, dialogues)
    records: list[ConversationRecord] = []
    rows = photos.to_pylist()
    for row, index in zip(
        tqdm(rows, desc=f"writing dialogues ({split})", unit="photo"), candidate.tolist(), strict=True
    ):
        photo = LocatedPhoto(**row, address=gallery.records[index].address)
        records += converse_widely(photo, gallery.surroundings, dialogues)
    return to_table(records, ConversationRecord)


def _write_fragment(folder: Path, dialogues: pa.Table, part: int) -> None:
    """Entries of LLaVA JSON as they stand in the whole file, without its brackets."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = dialogues.select(["conversation_id", "image_path", "messages"]).to_pylist()
    entries = [
        to_llava_json(row["conversation_id"], row["image_path"], [Message(**turn) for turn in row["messages"]])
        for row in rows
    ]
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


def _numbers(num_photos: int, dialogues: pa.Table, num_capped: int) -> dict[str, Any]:
    tasks = dialogues["tasks"].combine_chunks()
    asked = _counts(tasks.flatten())
    numbers: dict[str, Any] = {
        "photos": num_photos,
        "dialogues": len(dialogues),
        "questions": asked.total(),
    }
    if num_capped:
        numbers["photos_over_cap"] = num_capped
    opened = _counts(pc.list_element(tasks, 0))
    given = _counts(tasks.flatten().filter(dialogues["is_given_away"].combine_chunks().flatten()))
    numbers["kinds"] = {
        task: {"asked": asked[task], "open_a_dialogue": opened[task], "given_away": given[task]}
        for task in sorted(asked)
    }
    return numbers


def _counts(texts: pa.Array) -> Counter[str]:
    counted = texts.value_counts()
    return Counter(dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)))
