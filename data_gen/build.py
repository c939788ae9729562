"""Builds an image address localization data set: photos + positions + map -> addresses, captions, conversations.

    python -m data_gen.build --config data_gen/configs/stuttgart_demo.yaml --output runs/stuttgart/data

Every option of the YAML file can also be given on the command line, where it wins. An interrupted build is continued by
the same command; the folder is complete once it holds manifest.json.

Photos by the million: --workers 16 on one machine; --num-shards 64 --shard-index 0 ... 63 (or torchrun, or a SLURM
array) on many that share the output folder; --engine ray on a Ray cluster. The files are the same.
"""

import os
import platform
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.addressing import geocode_part, locate_photos, refuse_leak
from data_gen.annotations import hold_out_val, import_addresses, parse_sources
from data_gen.caps import cap_photos
from data_gen.caption_steps import SAID, caption_part
from data_gen.conversations import NUM_SHOWN, numbers_of_splits, talk_part, write_llava_json
from data_gen.data_card import data_card
from data_gen.gallery import City
from data_gen.house_numbers import number_part
from data_gen.parts import WORK, Context, Facts, Steps
from data_gen.photo_steps import check_part, gather_photos, list_photos
from data_gen.positions import num_parts, read_columns
from data_gen.preview import preview_page
from data_gen.publish import leakage_facts, read_placed, shown_photos
from data_gen.run_options import RunOptions
from data_gen.settings import BuildSettings
from data_gen.summary import print_examples, report
from llava_ial.config import parse_config, save_config
from llava_ial.data.dataset import KIND
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import FolderState, claim_folder, hold_folder, publish_manifest, write_json, write_text
from llava_ial.records import (
    AddressRecord,
    DroppedRecord,
    GalleryRecord,
    PhotoRecord,
    read_records,
    to_table,
    write_part,
    write_records,
)
from llava_ial.splits import SPLIT_NAMES, straddling


def main() -> None:
    """The command."""
    settings, options = parse_config(BuildSettings, RunOptions, description=__doc__ or "")
    build(settings, options)


def build(settings: BuildSettings, options: RunOptions) -> None:
    """Writes the data set folder ``options.output``, alone or with the other processes that share it.

    Raises:
        UserError: Wrong settings or inputs, nothing left to write, or the folder holds another build.
    """
    settings.check()
    folder, identity, started = options.output, settings.identity(), time.time()
    state = claim_folder(folder, KIND, identity)
    if state is FolderState.COMPLETE:
        shutil.rmtree(folder / WORK, ignore_errors=True)  # left by a kill after the manifest
        print(f"{folder} is already complete: same settings, same inputs")
        return
    context = Context(settings, folder, options.map_cache, options.workers)
    steps = Steps(context, options)
    if options.share.count > 1:
        print(f"process {options.share.index} of {options.share.count} that share {folder}", flush=True)
    is_alone = options.share.count == 1
    with hold_folder(folder) if is_alone else nullcontext():
        try:
            _run(steps, context)
        except UserError:
            # The inputs are at fault: after they are mended this is another build, which the claim would refuse.
            if state is FolderState.NEW and is_alone and not (folder / WORK / SAID).exists():
                shutil.rmtree(folder)
            raise
        if options.share.index == 0:
            _publish(context, identity, started, steps)
            print_examples(folder)
    print(f"\ncomplete: {folder}; look at {folder / 'preview.html'}")


def _run(steps: Steps, context: Context) -> None:
    """Map, reduce, map: ``each`` is done part by part, ``once`` over all of them."""
    steps.once("list", list_photos)
    steps.each("check", check_part)
    steps.once("photos", gather_photos)
    steps.each("geocode", geocode_part)
    steps.once("addresses", _import_photos if context.settings.streets is None else locate_photos)
    steps.once("caps", cap_photos)
    if context.houses.numbers:
        steps.each("house_numbers", number_part)
    steps.each("captions", caption_part, is_alone=context.settings.captioner in ("model", "server"))
    steps.each("conversations", talk_part)
    steps.once("summary", lambda context: _summarise(context, steps))


def _import_photos(context: Context) -> Facts:
    """Published addresses in place of derived ones."""
    settings, folder = context.settings, context.folder
    photos = read_records(folder / "photos", PhotoRecord)
    city = City(settings.city, settings.region, settings.country)
    imported = import_addresses(photos, parse_sources(settings.annotations), city)
    address_of = {address.image_id: address for address in imported.addresses}
    splits = np.array([SPLIT_NAMES.index(address_of[p.image_id].split) for p in photos if p.image_id in address_of])
    is_kept = np.array([photo.image_id in address_of for photo in photos])
    ranks = np.concatenate(
        [
            read_columns(context.work / "nearest", part)["panorama"].to_numpy()
            for part in range(num_parts(context.work / "nearest"))
        ]
    )
    if len(leaking := straddling(ranks[is_kept], splits)):
        all_splits = np.zeros(len(photos), dtype=np.int8)
        all_splits[is_kept] = splits
        refuse_leak(context, leaking, all_splits, np.where(is_kept, "", "no_annotation").astype(object))
    for name, split in zip(
        (photo.image_id for photo in photos if photo.image_id in address_of),
        hold_out_val(splits, ranks[is_kept], settings.val_fraction).tolist(),
        strict=True,
    ):
        address_of[name] = replace(address_of[name], split=SPLIT_NAMES[split])
    for part in range(num_parts(folder / "photos")):
        names = read_columns(folder / "photos", part, ["image_id"])["image_id"].to_pylist()
        own = [address_of[name] for name in names if name in address_of]
        write_part(folder / "addresses", to_table(own, AddressRecord), part)
    write_records(folder / "gallery", imported.gallery, GalleryRecord)
    write_part(folder / "dropped", to_table(imported.dropped, DroppedRecord), 1)
    return {}


def _summarise(context: Context, steps: Steps) -> Facts:
    """Everything that is said of the whole: counts, leakage, data card, preview, LLaVA JSON."""
    settings, folder = context.settings, context.folder
    placed, totals = read_placed(context)
    gallery = read_records(folder / "gallery", GalleryRecord)
    talked = steps.part_facts("conversations")
    street_map = context.compiled.street_map if context.compiled else None
    write_llava_json(context)
    leakage = leakage_facts(context, placed)
    write_json(folder / "leakage.json", leakage)
    counts = report(
        folder,
        totals,
        gallery,
        numbers_of_splits(talked),
        num_photos=sum(steps.facts("photos")["rows"]),
        num_masked=sum(facts["masked"] for facts in steps.part_facts("captions")),
        num_streets=len(street_map.names) if street_map else len({record.address.street for record in gallery}),
    )
    if caps := steps.facts("caps"):
        counts["cap"] = caps
    licence = settings.photo_licence
    card = data_card(folder, totals, gallery, counts, leakage, streets=settings.streets, photo_licence=licence)
    write_text(folder / "README.md", card)
    sampled = sorted((number, name) for facts in talked for number, name in facts["shown"])[:NUM_SHOWN]
    shown = shown_photos(context, [name for _, name in sampled])
    write_text(folder / "preview.html", preview_page(settings.image_root, shown, gallery, totals.of_sub_streets))
    if settings.split == "fractions" and settings.test_fraction and "test" not in counts["splits"]:
        print(
            f"note: no test photos: {counts['panoramas']} panoramas, {counts['ambiguous']} photos of an ambiguous "
            f"street; panorama_radius_m below {settings.panorama_radius_m:g} makes more panoramas of a dense walk"
        )
    return counts


def _publish(context: Context, identity: dict[str, Any], started: float, steps: Steps) -> None:
    """What makes the folder a finished one; the manifest is the last file."""
    settings, folder = context.settings, context.folder
    for leftover in folder.rglob(".*.tmp"):  # of an earlier start that was killed while it wrote
        if WORK not in leftover.parts:
            leftover.unlink()
    save_config(folder / "config.yaml", settings)
    write_json(folder / "run.json", {**_run_facts(started), "step_seconds": steps.seconds(started)})
    image_root = os.path.relpath(settings.image_root.resolve(), folder.resolve())
    publish_manifest(folder, KIND, identity, image_root=Path(image_root).as_posix(), counts=steps.facts("summary"))
    shutil.rmtree(context.work, ignore_errors=True)


def _run_facts(started: float) -> dict[str, Any]:
    return {
        "started_at": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "duration_s": round(time.time() - started, 1),
        "python": platform.python_version(),
        "command": sys.argv,
    }


if __name__ == "__main__":
    run_command(main)
