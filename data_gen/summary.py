"""What a build says of itself: rows in, out and dropped at each step, and a few of its dialogues."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_ial.records import AddressRecord, CaptionRecord, DroppedRecord, GalleryRecord, PhotoRecord
from llava_ial.splits import SPLIT_NAMES

_EXAMPLES = {"train": 2, "val": 1, "test": 1}
_NUM_EXAMPLES = 3


def report(
    photos: Sequence[PhotoRecord],
    addresses: Sequence[AddressRecord],
    captions: Sequence[CaptionRecord],
    gallery: Sequence[GalleryRecord],
    dropped: Sequence[DroppedRecord],
    splits: dict[str, dict[str, Any]],
    num_streets: int,
) -> dict[str, Any]:
    """Prints what each step kept and dropped; gives the same as counts for the manifest."""
    steps: dict[str, Any] = {}
    for name, kept in (("photos", photos), ("annotations", addresses), ("addresses", addresses)):
        reasons = Counter(record.reason for record in dropped if record.step == name)
        if name == "annotations" and not reasons:
            continue
        steps[name] = {"in": len(kept) + reasons.total(), "out": len(kept), "dropped": dict(sorted(reasons.items()))}
    print(f"{'step':<12}{'in':>9}{'out':>9}  dropped")
    for name, step in steps.items():
        why = ", ".join(f"{count} {reason}" for reason, count in step["dropped"].items()) or "-"
        print(f"{name:<12}{step['in']:>9}{step['out']:>9}  {why}")
    num_ambiguous = sum(address.is_ambiguous for address in addresses)
    num_masked = sum(caption.num_masked > 0 for caption in captions)
    panoramas = {photo.image_id: photo.panorama_id for photo in photos}
    num_panoramas = len({panoramas[address.image_id] for address in addresses})
    print(
        f"{len(gallery)} sub-streets of {len({g.address.street for g in gallery})} streets "
        f"({num_streets} on the map), {num_panoramas} panoramas, "
        f"{num_ambiguous} photos of an ambiguous street, names masked in {num_masked} captions"
    )
    for split, numbers in splits.items():
        print(f"{split:<12}" + ", ".join(f"{count} {name}" for name, count in numbers.items() if name != "kinds"))
    return {
        "steps": steps,
        "splits": splits,
        "sub_streets": len(gallery),
        "panoramas": num_panoramas,
        "ambiguous": num_ambiguous,
        "captions_masked": num_masked,
    }


def print_examples(folder: Path) -> None:
    """A few dialogues, so that a person sees what was made."""
    shown = []
    for split in SPLIT_NAMES:
        path = folder / "llava" / f"{split}.json"
        if path.exists():
            entries = json.loads(path.read_text(encoding="utf-8"))
            shown += [(split, entry) for entry in entries[: _EXAMPLES[split]]]
    for split, entry in shown[:_NUM_EXAMPLES]:
        print(f"\n[{split}] {entry['id']}  ({entry['image']})")
        for turn in entry["conversations"]:
            print(f"  {'Q' if turn['from'] == 'human' else 'A'}: {turn['value'].removeprefix('<image>').strip()}")
