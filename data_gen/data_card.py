"""``README.md`` of a data set folder: what it holds, in a form that ``datasets.load_dataset(folder)`` reads too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_gen.map_files import OSM_SUFFIXES
from data_gen.publish import Totals
from llava_ial.records import GalleryRecord
from llava_ial.splits import SPLIT_NAMES

_OPENSTREETMAP = (
    "Street names and geometry: © OpenStreetMap contributors, Open Database License (ODbL) 1.0, "
    "https://www.openstreetmap.org/copyright. Addresses derived from it are a derived database: whoever passes this "
    "table on keeps the licence and the attribution."
)
_OTHER_MAP = "Street names and geometry: as the map that was given; state its licence when you pass this on."
_IMPORTED = "Addresses and captions: as published with the annotation files; their licence applies."
# datasets calls the second split so; the files keep the project's name.
_HUB_SPLIT = {"train": "train", "val": "validation", "test": "test"}
_TABLES = ("photos", "addresses", "captions", "gallery", "house_numbers", "dropped")


def data_card(
    folder: Path,
    totals: Totals,
    gallery: Sequence[GalleryRecord],
    counts: dict[str, Any],
    leakage: dict[str, Any],
    *,
    streets: Path | None,
    photo_licence: str,
) -> str:
    """The text of the card; a function of the tables alone.

    Args:
        folder: The data set: splits and tables that it has are declared.
        totals: Its numbers.
        gallery: Its candidates.
        counts: As in the manifest.
        leakage: As in ``leakage.json``.
        streets: The map; None where addresses were imported.
        photo_licence: What the user says of the photos, "" for nothing.
    """
    splits = [split for split in SPLIT_NAMES if (folder / "conversations" / split).is_dir()]
    first = gallery[0].address
    city = ", ".join(part for part in (first.city, first.region, first.country) if part) or "a city"
    lines = [*_front_matter(folder, splits), f"# Street-level addresses of photos: {city}", ""]
    lines += [
        "Street photos, each with the address it was taken at, in words, and dialogues about it. The photos themselves "
        "are not in this folder: `image_path` is relative to the `image_root` that `manifest.json` names.",
        "",
        "    from datasets import load_dataset",
        '    dialogues = load_dataset("path/of/this/folder")            # splits: ' + ", ".join(map(_hub, splits)),
        '    photos = load_dataset("path/of/this/folder", "photos")     # and addresses, captions, gallery, dropped',
        "",
        "`llava/*.json` holds the same dialogues in LLaVA's form (`id`, `image`, `conversations`).",
        "",
        "## Splits",
        "",
        *_split_table(totals, gallery, counts, splits),
        "",
        *_leakage_lines(leakage),
        "",
        "## Kinds of questions",
        "",
        *_kinds_table(counts, splits),
        "",
        "## What was left out",
        "",
        *_dropped_table(counts),
        "",
        "## Licence and attribution",
        "",
        f"Photos: {photo_licence or 'not stated; ask their owner before you pass them on.'}",
        "",
        _attribution(streets),
        "",
        "Photos and addresses of people are sensitive: do not use this to find where private persons are.",
    ]
    return "\n".join(lines) + "\n"


def _hub(split: str) -> str:
    return _HUB_SPLIT[split]


def _front_matter(folder: Path, splits: Sequence[str]) -> list[str]:
    lines = ["---", "task_categories:", "- image-to-text", "- visual-question-answering", "configs:"]
    lines += ["- config_name: conversations", "  default: true", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {_hub(split)}", f"    path: conversations/{split}/*.parquet"]
    for table in _TABLES:
        if (folder / table).is_dir():
            lines += [f"- config_name: {table}", "  data_files:", "  - split: train", f"    path: {table}/*.parquet"]
    return [*lines, "---", ""]


def _attribution(streets: Path | None) -> str:
    if streets is None:
        return _IMPORTED
    return _OPENSTREETMAP if streets.name.endswith(OSM_SUFFIXES) else _OTHER_MAP


def _split_table(
    totals: Totals, gallery: Sequence[GalleryRecord], counts: dict[str, Any], splits: Sequence[str]
) -> list[str]:
    address_of = {record.sub_street_id: record.address for record in gallery}
    lines = ["| split | photos | panoramas | sub-streets | streets | neighbourhoods | dialogues | questions |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    sub_streets_of: dict[str, set[str]] = {split: set() for split in SPLIT_NAMES}
    for split, sub_street in totals.photos_of:
        sub_streets_of[split].add(sub_street)
    for split in splits:
        own = [address_of[sub_street] for sub_street in sub_streets_of[split]]
        numbers = [
            sum(count for (where, _), count in totals.photos_of.items() if where == split),
            totals.panoramas_of[split],
            len(own),
            len({address.street_key for address in own}),
            len({address.neighbourhood for address in own} - {""}),
            counts["splits"][split]["dialogues"],
            counts["splits"][split]["questions"],
        ]
        lines.append("| " + " | ".join([split, *(f"{number:,}" for number in numbers)]) + " |")
    unseen = sub_streets_of["test"] - sub_streets_of["train"]
    photos_of = sorted(totals.of_sub_streets.values())
    lines += ["", f"Sub-streets of test photos without a training photo: {len(unseen):,}."]
    lines += [
        f"Photos of a sub-street: {photos_of[0]:,} to {photos_of[-1]:,}, median {photos_of[len(photos_of) // 2]:,}.",
        *_cap_lines(counts),
    ]
    return [*lines, f"Photos of an ambiguous street, marked: {totals.ambiguous:,}."]


def _cap_lines(counts: dict[str, Any]) -> list[str]:
    if "cap" not in counts:
        return []
    cap = counts["cap"]
    return [
        f"Training photos of one sub-street that dialogues are about: at most {cap['photos_a_sub_street']:,}; "
        f"{cap['photos_over_cap']:,} photos of {cap['sub_streets_over_cap']:,} sub-streets are over that cap."
    ]


def _leakage_lines(leakage: dict[str, Any]) -> list[str]:
    quantiles = leakage["nearest_train_m_quantiles"]
    if not quantiles:
        return ["No panorama stands in two splits."]
    share = leakage["share_of_test_panoramas_under_25_m"]
    return [
        "No panorama stands in two splits. From a test panorama to the nearest training photo it is "
        f"{quantiles['p50']:g} m in the median (10 %: {quantiles['p10']:g} m, 90 %: {quantiles['p90']:g} m); "
        f"{100 * share:.0f} % have one within 25 m."
    ]


def _kinds_table(counts: dict[str, Any], splits: Sequence[str]) -> list[str]:
    lines = ["| split | kind | asked | opens a dialogue | given away by an earlier turn |", "|---|---|---|---|---|"]
    for split in splits:
        for kind, numbers in counts["splits"][split]["kinds"].items():
            shown = [numbers[name] for name in ("asked", "open_a_dialogue", "given_away")]
            lines.append("| " + " | ".join([split, kind, *(f"{number:,}" for number in shown)]) + " |")
    return lines


def _dropped_table(counts: dict[str, Any]) -> list[str]:
    lines = ["| step | in | out | left out |", "|---|---|---|---|"]
    for name, step in counts["steps"].items():
        why = ", ".join(f"{count:,} {reason}" for reason, count in step["dropped"].items()) or "-"
        lines.append(f"| {name} | {step['in']:,} | {step['out']:,} | {why} |")
    return lines
