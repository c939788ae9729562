"""Builds an image address localization data set: photos + positions + map -> addresses, captions, conversations.

    python -m data_gen.build --config data_gen/configs/stuttgart_demo.yaml --output runs/stuttgart/data

Every option of the YAML file can also be given on the command line, where it wins. An interrupted build is continued by
the same command; the folder is complete once it holds manifest.json.
"""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from data_gen.caption import LeakMask, caption_photos, read_captions
from data_gen.converse import DialogueSettings, converse
from data_gen.gallery import City, PartitionSettings, build_gallery
from data_gen.geocode import METHOD, nearest_streets
from data_gen.photos import PhotoTable, group_panoramas, read_photo_csv, read_photo_folder
from data_gen.settings import BuildSettings, RunOptions
from data_gen.streets import StreetMap, load_city_name, load_street_map
from data_gen.summary import format_reasons, print_examples, report
from llava_ial.config import parse_config, save_config
from llava_ial.conversation import to_llava_json
from llava_ial.data.dataset import KIND
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, write_json
from llava_ial.records import (
    AddressRecord,
    CaptionRecord,
    ConversationRecord,
    DroppedRecord,
    GalleryRecord,
    PhotoRecord,
    read_records,
    to_table,
    write_part,
    write_records,
)
from llava_ial.splits import SPLIT_NAMES, check_leakage, split_by_panorama

RecordT = TypeVar("RecordT")


def main() -> None:
    """The command."""
    settings, options = parse_config(BuildSettings, RunOptions, description=__doc__ or "")
    build(settings, options)


def build(settings: BuildSettings, options: RunOptions) -> None:
    """Writes the data set folder ``options.output``.

    Raises:
        UserError: Wrong settings or inputs, nothing left to write, or the folder holds another build.
    """
    settings.check()
    folder, identity, started = options.output, settings.identity(), time.time()
    state = claim_folder(folder, KIND, identity)
    if state is FolderState.COMPLETE:
        print(f"{folder} is already complete: same settings, same inputs")
        return
    try:
        counts = _write_tables(settings, options, folder)
    except UserError:
        # The inputs are at fault: after they are mended this is another build, which the claim would refuse.
        if state is FolderState.NEW:
            shutil.rmtree(folder)
        raise
    if settings.split == "fractions" and settings.test_fraction and "test" not in counts["splits"]:
        print(
            f"note: no test photos: {counts['panoramas']} panoramas, {counts['ambiguous']} photos of an ambiguous "
            f"street; panorama_radius_m below {settings.panorama_radius_m:g} makes more panoramas of a dense walk"
        )
    for leftover in folder.rglob(".*.tmp"):  # of an earlier start that was killed while it wrote
        leftover.unlink()
    save_config(folder / "config.yaml", settings)
    write_json(folder / "run.json", _run_facts(started))
    image_root = os.path.relpath(settings.image_root.resolve(), folder.resolve())
    publish_manifest(folder, KIND, identity, image_root=Path(image_root).as_posix(), counts=counts)
    print_examples(folder)
    print(f"\ncomplete: {folder}")


def _write_tables(settings: BuildSettings, options: RunOptions, folder: Path) -> dict[str, Any]:
    street_map = load_street_map(settings.streets, settings.highways, settings.neighbourhoods)
    city = City(
        settings.city or load_city_name(settings.streets, street_map.frame.origin), settings.region, settings.country
    )
    photos = _reuse(folder / "photos", PhotoRecord, lambda: _make_photos(settings, options, street_map, folder))
    addresses = _reuse(
        folder / "addresses", AddressRecord, lambda: _make_addresses(settings, photos, street_map, city, folder)
    )
    captions = _reuse(folder / "captions", CaptionRecord, lambda: _make_captions(settings, addresses, street_map, city))
    gallery = read_records(folder / "gallery", GalleryRecord)
    dropped = read_records(folder / "dropped", DroppedRecord)
    num_conversations = _write_conversations(settings, photos, addresses, gallery, folder)
    return report(photos, addresses, captions, gallery, dropped, num_conversations, street_map)


def _reuse(folder: Path, record_type: type[RecordT], make: Callable[[], Sequence[RecordT]]) -> list[RecordT]:
    """The table of a step: what an interrupted build already wrote, else what ``make`` gives, written."""
    if not (folder / "part-00000.parquet").exists():
        write_records(folder, make(), record_type)
    return read_records(folder, record_type)


def _make_photos(
    settings: BuildSettings, options: RunOptions, street_map: StreetMap, folder: Path
) -> list[PhotoRecord]:
    found = _read_photos(settings, options)
    _write_dropped(folder, found.dropped, 0)
    if not found.photos:
        raise UserError(
            f"no usable photo in {settings.photos_csv or settings.image_root}: {format_reasons(found.dropped)}"
        )
    xy_m = street_map.to_xy_m([p.lat for p in found.photos], [p.lon for p in found.photos])
    return group_panoramas(found.photos, xy_m, settings.panorama_radius_m)


def _read_photos(settings: BuildSettings, options: RunOptions) -> PhotoTable:
    if settings.photos_csv is None:
        return read_photo_folder(settings.image_root, workers=options.workers)
    return read_photo_csv(
        settings.photos_csv,
        settings.image_root,
        settings.columns,
        require_images=settings.require_images,
        workers=options.workers,
    )


def _make_addresses(
    settings: BuildSettings, photos: Sequence[PhotoRecord], street_map: StreetMap, city: City, folder: Path
) -> list[AddressRecord]:
    xy_m = street_map.to_xy_m([p.lat for p in photos], [p.lon for p in photos])
    nearest = nearest_streets(xy_m, street_map, settings.max_distance_m, settings.ambiguous_margin_m)
    is_ambiguous = nearest.margin_m < settings.ambiguous_margin_m  # false for NaN: no second street near
    reasons = ["no_street" if street < 0 else "" for street in nearest.street.tolist()]
    splits = _splits(settings, photos, is_ambiguous.tolist(), reasons)
    kept = np.array([i for i, reason in enumerate(reasons) if not reason], dtype=np.int64)
    dropped = [DroppedRecord(p.image_id, "addresses", r) for p, r in zip(photos, reasons, strict=True) if r]
    if not len(kept):
        raise UserError(
            f"no photo got an address: {format_reasons(dropped)}; is {settings.streets} the map of their city?"
        )
    gallery = build_gallery(
        street_map,
        xy_m[kept],
        nearest.street[kept],
        [str(photos[i].panorama_id) for i in kept.tolist()],
        PartitionSettings(settings.min_piece_m, settings.min_positions, settings.snap_m),
        city,
    )
    write_records(folder / "gallery", gallery.records, GalleryRecord)
    _write_dropped(folder, dropped, 1)
    records = []
    for i, number in zip(kept.tolist(), gallery.photo_class.tolist(), strict=True):
        margin = float(nearest.margin_m[i])
        records.append(
            AddressRecord(
                image_id=photos[i].image_id,
                sub_street_id=gallery.records[number].sub_street_id,
                address=gallery.records[number].address,
                split=splits[i],
                distance_m=round(float(nearest.distance_m[i]), 3),
                street_margin_m=None if np.isnan(margin) else round(margin, 3),
                is_ambiguous=bool(is_ambiguous[i]),
                method=METHOD,
            )
        )
    return records


def _splits(
    settings: BuildSettings, photos: Sequence[PhotoRecord], is_ambiguous: Sequence[bool], reasons: list[str]
) -> list[str]:
    """A split for each photo; adds to ``reasons`` where the given split cannot be kept."""
    if settings.split == "given":
        for i, photo in enumerate(photos):
            if not reasons[i] and photo.given_split is None:
                reasons[i] = "no_split"
            elif not reasons[i] and photo.given_split == "test" and is_ambiguous[i]:
                reasons[i] = "ambiguous_in_test"
        splits = [photo.given_split or "train" for photo in photos]
    kept = [i for i, reason in enumerate(reasons) if not reason]
    panoramas = [str(photos[i].panorama_id) for i in kept]
    if settings.split == "fractions":
        drawn = split_by_panorama(
            panoramas,
            [is_ambiguous[i] for i in kept],
            val_fraction=settings.val_fraction,
            test_fraction=settings.test_fraction,
            seed=settings.seed,
        )
        by_photo = dict(zip(kept, drawn, strict=True))
        splits = [by_photo.get(i, "train") for i in range(len(photos))]
    check_leakage(panoramas, [splits[i] for i in kept])
    return splits


def _make_captions(
    settings: BuildSettings, addresses: Sequence[AddressRecord], street_map: StreetMap, city: City
) -> list[CaptionRecord]:
    image_ids = [address.image_id for address in addresses]
    areas = [*street_map.neighbourhoods, city.name, city.region, city.country]
    captions = None
    if settings.captioner == "csv" and settings.captions_file is not None:
        captions = read_captions(settings.captions_file, image_ids, settings.image_id_column, settings.caption_column)
    return caption_photos(image_ids, captions, settings.caption, LeakMask(street_map.names, areas))


def _write_conversations(
    settings: BuildSettings,
    photos: Sequence[PhotoRecord],
    addresses: Sequence[AddressRecord],
    gallery: Sequence[GalleryRecord],
    folder: Path,
) -> dict[str, dict[str, int]]:
    """Tables and LLaVA JSON of every split that has photos; gives the numbers of photos, dialogues and questions."""
    path_of = {photo.image_id: photo.image_path for photo in photos}
    streets = sorted({record.address.street for record in gallery})
    dialogue_settings = DialogueSettings(settings.num_dialogues, settings.seed)
    numbers = {}
    for split in SPLIT_NAMES:
        rows = [address for address in addresses if address.split == split]
        if not rows:
            continue
        dialogues: list[ConversationRecord] = []
        for row in tqdm(rows, desc=f"writing dialogues ({split})", unit="photo", disable=None):
            dialogues += converse(
                row.image_id, path_of[row.image_id], row.sub_street_id, split, row.address, streets, dialogue_settings
            )
        write_records(folder / "conversations" / split, dialogues, ConversationRecord)
        (folder / "llava").mkdir(exist_ok=True)
        entries = [to_llava_json(d.conversation_id, d.image_path, d.messages) for d in dialogues]
        write_json(folder / "llava" / f"{split}.json", entries)
        numbers[split] = {
            "photos": len(rows),
            "dialogues": len(dialogues),
            "questions": sum(len(dialogue.tasks) for dialogue in dialogues),
        }
    return numbers


def _write_dropped(folder: Path, dropped: Sequence[DroppedRecord], index: int) -> None:
    write_part(folder / "dropped", to_table(dropped, DroppedRecord), index)


def _run_facts(started: float) -> dict[str, Any]:
    return {
        "started_at": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "duration_s": round(time.time() - started, 1),
        "python": platform.python_version(),
        "command": sys.argv,
    }


if __name__ == "__main__":
    run_command(main)
