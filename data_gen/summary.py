"""What a build says of itself: rows in, out and dropped at each step, and a few of its dialogues."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_gen.publish import Totals, count_dropped
from llava_ial.conversation import IMAGE_TOKEN
from llava_ial.records import GalleryRecord
from llava_ial.splits import SPLIT_NAMES

_EXAMPLES = {"train": 2, "val": 1, "test": 1}
_NUM_EXAMPLES = 3


def report(
    folder: Path,
    totals: Totals,
    gallery: Sequence[GalleryRecord],
    splits: dict[str, dict[str, Any]],
    *,
    num_photos: int,
    num_masked: int,
    num_streets: int,
) -> dict[str, Any]:
    """Prints what each step kept and dropped; gives the same as counts for the manifest."""
    steps: dict[str, Any] = {}
    num_addresses = sum(totals.rows)
    kept_of = {"photos": num_photos, "annotations": num_addresses, "addresses": num_addresses}
    for name, reasons in count_dropped(folder).items():
        if name == "annotations" and not reasons:
            continue
        kept = kept_of[name]
        steps[name] = {"in": kept + reasons.total(), "out": kept, "dropped": dict(sorted(reasons.items()))}
    print(f"{'step':<12}{'in':>9}{'out':>9}  dropped")
    for name, step in steps.items():
        why = ", ".join(f"{count} {reason}" for reason, count in step["dropped"].items()) or "-"
        print(f"{name:<12}{step['in']:>9}{step['out']:>9}  {why}")
    num_panoramas = sum(totals.panoramas_of.values())
    print(
        f"{len(gallery)} sub-streets of {len({g.address.street for g in gallery})} streets "
        f"({num_streets} on the map), {num_panoramas} panoramas, "
        f"{totals.ambiguous} photos of an ambiguous street, names masked in {num_masked} captions"
    )
    for split, numbers in splits.items():
        print(f"{split:<12}" + ", ".join(f"{count} {name}" for name, count in numbers.items() if name != "kinds"))
    return {
        "steps": steps,
        "splits": splits,
        "sub_streets": len(gallery),
        "panoramas": num_panoramas,
        "ambiguous": totals.ambiguous,
        "captions_masked": num_masked,
    }


def print_examples(folder: Path) -> None:
    """A few dialogues, so that a person sees what was made."""
    shown = []
    for split in SPLIT_NAMES:
        parts = sorted((folder / "conversations" / split).glob("part-*.parquet"))
        if parts:
            few = next(pq.ParquetFile(parts[0]).iter_batches(_EXAMPLES[split]), None)
            rows = few.to_pylist() if few is not None else []
            shown += [(split, row) for row in rows]
    for split, row in shown[:_NUM_EXAMPLES]:
        print(f"\n[{split}] {row['conversation_id']}  ({row['image_path']})")
        for message in row["messages"]:
            mark = "Q" if message["role"] == "user" else "A"
            print(f"  {mark}: {message['content'].removeprefix(IMAGE_TOKEN).strip()}")
