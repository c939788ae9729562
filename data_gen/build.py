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
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from data_gen.addressing import (
    Located,
    drop_misplaced,
    leakage_facts,
    locate_photos,
    positions_m,
    with_utm_source,
)
from data_gen.annotations import import_addresses, parse_sources
from data_gen.caption import LeakMask, caption_photos, model_captions, read_captions
from data_gen.conversations import write_conversations
from data_gen.data_card import data_card
from data_gen.gallery import City
from data_gen.photo_check import PhotoTable, format_reasons
from data_gen.photo_folders import read_mapillary, read_named_photos, read_pitts250k
from data_gen.photos import group_panoramas, read_photo_folder, read_photo_table
from data_gen.preview import preview_page
from data_gen.settings import BuildSettings, RunOptions
from data_gen.streets import StreetMap, load_city_name, load_street_map
from data_gen.summary import print_examples, report
from llava_ial.config import parse_config, save_config
from llava_ial.data.dataset import KIND
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, write_json, write_text
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

RecordT = TypeVar("RecordT")
_UNMASKED = ".captions"  # what a model said so far, until the table is published


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
        if state is FolderState.NEW and not (folder / _UNMASKED).exists():
            shutil.rmtree(folder)
        raise
    if settings.split == "fractions" and settings.test_fraction and "test" not in counts["splits"]:
        print(
            f"note: no test photos: {counts['panoramas']} panoramas, {counts['ambiguous']} photos of an ambiguous "
            f"street; panorama_radius_m below {settings.panorama_radius_m:g} makes more panoramas of a dense walk"
        )
    shutil.rmtree(folder / _UNMASKED, ignore_errors=True)
    for leftover in folder.rglob(".*.tmp"):  # of an earlier start that was killed while it wrote
        leftover.unlink()
    save_config(folder / "config.yaml", settings)
    write_json(folder / "run.json", _run_facts(started))
    image_root = os.path.relpath(settings.image_root.resolve(), folder.resolve())
    publish_manifest(folder, KIND, identity, image_root=Path(image_root).as_posix(), counts=counts)
    print_examples(folder)
    print(f"\ncomplete: {folder}; look at {folder / 'preview.html'}")


def _write_tables(settings: BuildSettings, options: RunOptions, folder: Path) -> dict[str, Any]:
    street_map, city = None, City(settings.city, settings.region, settings.country)
    if settings.streets is not None:
        street_map = load_street_map(settings.streets, settings.highways, settings.neighbourhoods)
        city = replace(city, name=city.name or load_city_name(settings.streets, street_map.frame.origin))
    photos = _reuse(folder / "photos", PhotoRecord, lambda: _make_photos(settings, options, street_map, folder))
    addresses = _reuse(
        folder / "addresses", AddressRecord, lambda: _make_addresses(settings, photos, street_map, city, folder)
    )
    gallery = read_records(folder / "gallery", GalleryRecord)
    captions = _reuse(
        folder / "captions",
        CaptionRecord,
        lambda: _make_captions(settings, photos, addresses, gallery, street_map, city, folder),
    )
    dropped = read_records(folder / "dropped", DroppedRecord)
    numbers = write_conversations(settings, options.workers, photos, addresses, gallery, folder)
    leakage = leakage_facts(photos, addresses, dropped)
    write_json(folder / "leakage.json", leakage)
    num_streets = len(street_map.names) if street_map else len({record.address.street for record in gallery})
    counts = report(photos, addresses, captions, gallery, dropped, numbers, num_streets)
    card = data_card(
        folder,
        photos,
        addresses,
        gallery,
        counts,
        leakage,
        streets=settings.streets,
        photo_licence=settings.photo_licence,
    )
    write_text(folder / "README.md", card)
    dialogues = [d for split in numbers for d in read_records(folder / "conversations" / split, ConversationRecord)]
    page = preview_page(settings.image_root, photos, addresses, gallery, dialogues, settings.seed)
    write_text(folder / "preview.html", page)
    return counts


def _reuse(folder: Path, record_type: type[RecordT], make: Callable[[], Sequence[RecordT]]) -> list[RecordT]:
    """The table of a step: what an interrupted build already wrote, else what ``make`` gives, written."""
    if not (folder / "part-00000.parquet").exists():
        write_records(folder, make(), record_type)
    return read_records(folder, record_type)


def _make_photos(
    settings: BuildSettings, options: RunOptions, street_map: StreetMap | None, folder: Path
) -> list[PhotoRecord]:
    found = _read_photos(settings, options)
    photos, dropped = found.photos, found.dropped
    if street_map is not None and photos:
        photos, misplaced = drop_misplaced(photos, street_map)
        dropped = dropped + misplaced
    _write_dropped(folder, dropped, 0)
    if not photos:
        raise UserError(f"no usable photo in {settings.photos_csv or settings.image_root}: {format_reasons(dropped)}")
    return group_panoramas(photos, positions_m(photos, street_map), settings.panorama_radius_m)


def _read_photos(settings: BuildSettings, options: RunOptions) -> PhotoTable:
    zone, workers = settings.zone, options.workers
    source, columns = settings.photo_source, settings.columns
    if source == "vpr":
        return read_named_photos(settings.image_root, zone, require_images=settings.require_images, workers=workers)
    if source == "mapillary":
        return read_mapillary(settings.image_root, workers=workers)
    if source == "exif" or settings.photos_csv is None:
        return read_photo_folder(settings.image_root, workers=workers)
    if source == "pitts250k" and zone is not None:
        table = settings.photos_csv
        return read_pitts250k(settings.image_root, table, zone, columns.utm_east, columns.utm_north, workers=workers)
    found = read_photo_table(
        settings.photos_csv,
        settings.image_root,
        columns,
        zone=zone,
        require_images=settings.require_images,
        workers=workers,
    )
    return found if zone is None else PhotoTable(with_utm_source(found.photos), found.dropped)


def _make_addresses(
    settings: BuildSettings, photos: Sequence[PhotoRecord], street_map: StreetMap | None, city: City, folder: Path
) -> list[AddressRecord]:
    if street_map is None:
        imported = import_addresses(photos, parse_sources(settings.annotations), city)
        located = Located(imported.addresses, imported.gallery, imported.dropped)
    else:
        located = locate_photos(settings, photos, street_map, city)
    write_records(folder / "gallery", located.gallery, GalleryRecord)
    _write_dropped(folder, located.dropped, 1)
    return located.addresses


def _make_captions(
    settings: BuildSettings,
    photos: Sequence[PhotoRecord],
    addresses: Sequence[AddressRecord],
    gallery: Sequence[GalleryRecord],
    street_map: StreetMap | None,
    city: City,
    folder: Path,
) -> list[CaptionRecord]:
    image_ids = [address.image_id for address in addresses]
    names = street_map.names if street_map else {record.address.street for record in gallery}
    regions = street_map.neighbourhoods if street_map else {record.address.neighbourhood for record in gallery}
    areas = [*sorted(regions), city.name, city.region, city.country]
    captions, captioner = None, settings.captioner
    if captioner in ("model", "server"):
        path_of = {photo.image_id: photo.image_path for photo in photos}
        files = [settings.image_root / path_of[image_id] for image_id in image_ids]
        captions = model_captions(settings, image_ids, files, folder / _UNMASKED)
    elif captioner == "annotation":
        captions = import_addresses(photos, parse_sources(settings.annotations), city).captions
    if settings.captioner == "csv" and settings.captions_file is not None:
        captions = read_captions(settings.captions_file, image_ids, settings.image_id_column, settings.caption_column)
    return caption_photos(image_ids, captions, settings.caption, LeakMask(sorted(names), areas), captioner)


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
