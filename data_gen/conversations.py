"""Writes the dialogues of a data set: tables and LLaVA JSON by split, training photos capped by sub-street."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_gen.converse import DialogueSettings, converse
from data_gen.photo_check import list_photo_files, read_files, reasons_with_duplicates
from data_gen.settings import BuildSettings
from data_gen.surroundings import Surroundings
from data_gen.wide_dialogues import LocatedPhoto, converse_widely, refuse
from llava_ial.conversation import to_llava_json
from llava_ial.manifest import write_json
from llava_ial.prompts import stable_number
from llava_ial.records import AddressRecord, ConversationRecord, GalleryRecord, PhotoRecord, write_records
from llava_ial.splits import SPLIT_NAMES


def write_conversations(
    settings: BuildSettings,
    workers: int,
    photos: Sequence[PhotoRecord],
    addresses: Sequence[AddressRecord],
    gallery: Sequence[GalleryRecord],
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """Tables and LLaVA JSON of every split that has photos; gives the numbers of photos, dialogues and questions."""
    path_of = {photo.image_id: photo.image_path for photo in photos}
    streets = sorted({record.address.street for record in gallery})
    surroundings = Surroundings(gallery)
    dialogue_settings = DialogueSettings(settings.num_dialogues, settings.seed)
    refusals = _refusals(settings, workers, dialogue_settings)
    numbers = {}
    for split in SPLIT_NAMES:
        rows = [address for address in addresses if address.split == split]
        if not rows:
            continue
        capped = set() if split != "train" else over_cap(rows, settings.max_photos_per_sub_street, settings.seed)
        dialogues: list[ConversationRecord] = []
        for row in tqdm(rows, desc=f"writing dialogues ({split})", unit="photo", disable=None):
            path = path_of[row.image_id]
            if row.image_id in capped:
                continue
            if settings.questions == "all":
                photo = LocatedPhoto(row.image_id, path, row.sub_street_id, split, row.address, row.is_ambiguous)
                dialogues += converse_widely(photo, surroundings, dialogue_settings)
            else:
                dialogues += converse(
                    row.image_id, path, row.sub_street_id, split, row.address, streets, dialogue_settings
                )
        dialogues += [refusal for refusal in refusals if refusal.split == split]
        write_records(folder / "conversations" / split, dialogues, ConversationRecord)
        (folder / "llava").mkdir(exist_ok=True)
        entries = [to_llava_json(d.conversation_id, d.image_path, d.messages) for d in dialogues]
        write_json(folder / "llava" / f"{split}.json", entries)
        numbers[split] = _numbers(rows, dialogues, len(capped))
    return numbers


def over_cap(rows: Sequence[AddressRecord], most: int, seed: int) -> set[str]:
    """Photos beyond the first ``most`` of their sub-street, in an order fixed by name and seed; none for 0."""
    taken: Counter[str] = Counter()
    capped = set()
    for row in sorted(rows, key=lambda row: stable_number(seed, row.image_id, "cap")) if most else ():
        taken[row.sub_street_id] += 1
        if taken[row.sub_street_id] > most:
            capped.add(row.image_id)
    return capped


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


def _numbers(rows: Sequence[AddressRecord], dialogues: Sequence[ConversationRecord], num_capped: int) -> dict[str, Any]:
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
