"""Addresses and captions that others published: AddressCLIP's annotation files.

A file is a JSON object ``{image path: [caption, verbose address, canonical address]}``, one for each split; paths may
begin with ``./``. It holds no positions: those come from the photos' source. The streets' geometry is not in it either,
so a candidate is drawn as the line along its photos.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from data_gen.gallery import City, gallery_record, sub_street_id
from data_gen.tables import load_json
from llava_ial.address import Address, parse_canonical
from llava_ial.errors import UserError
from llava_ial.records import AddressRecord, DroppedRecord, GalleryRecord, PhotoRecord
from llava_ial.splits import SPLIT_NAMES, split_by_rank

STEP = "annotations"
METHOD = "imported"


@dataclass(frozen=True)
class Annotation:
    """What is published of one photo."""

    split: str
    caption: str
    address: Address


@dataclass(frozen=True)
class Imported:
    """Photos with published addresses, the candidates among them, captions by image id, and what was left out."""

    addresses: list[AddressRecord]
    gallery: list[GalleryRecord]
    captions: dict[str, str]
    dropped: list[DroppedRecord]


def parse_sources(entries: Sequence[str]) -> list[tuple[str, Path]]:
    """Settings of the form ``split=file``.

    Raises:
        UserError: Another form, or an unknown split.
    """
    found = []
    for entry in entries:
        split, mark, path = entry.partition("=")
        if not mark or split not in SPLIT_NAMES or not path:
            raise UserError(f"annotations: '{entry}'; give SPLIT=FILE.json with a split of {', '.join(SPLIT_NAMES)}")
        found.append((split, Path(path).expanduser()))
    return found


def import_addresses(photos: Sequence[PhotoRecord], sources: Sequence[tuple[str, Path]], city: City) -> Imported:
    """Joins published annotations with photos that have positions.

    A photo is found by its path below the image root, else by the end of it where only one photo ends so.

    Raises:
        UserError: A file is not of the published form, or no photo has an annotation.
    """
    annotations, dropped = _read(sources, city)
    by_path = {photo.image_path: photo for photo in photos}
    by_name: dict[str, list[PhotoRecord]] = defaultdict(list)
    for photo in photos:
        by_name[PurePosixPath(photo.image_path).name].append(photo)
    found: dict[str, Annotation] = {}
    for path, annotation in annotations.items():
        match = by_path.get(path) or _by_end(path, by_name)
        if match is None:
            dropped.append(DroppedRecord(path, STEP, "no_photo"))
        elif match.image_id in found:
            dropped.append(DroppedRecord(path, STEP, "duplicate_id"))
        else:
            found[match.image_id] = annotation
    dropped += [DroppedRecord(p.image_id, "addresses", "no_annotation") for p in photos if p.image_id not in found]
    if not found:
        raise UserError(f"annotations: none of {len(annotations)} paths is that of a photo, as {min(annotations)!r}")
    kept = [photo for photo in photos if photo.image_id in found]
    gallery = _gallery([(photo, found[photo.image_id].address) for photo in kept])
    addresses = [
        AddressRecord(
            image_id=photo.image_id,
            sub_street_id=sub_street_id(found[photo.image_id].address),
            address=found[photo.image_id].address,
            split=found[photo.image_id].split,
            distance_m=0.0,
            street_margin_m=None,
            is_ambiguous=False,
            method=METHOD,
        )
        for photo in kept
    ]
    return Imported(addresses, gallery, {i: a.caption for i, a in found.items() if a.caption}, dropped)


def hold_out_val(
    splits: npt.NDArray[np.int8], panoramas: npt.NDArray[np.uint64], val_fraction: float
) -> npt.NDArray[np.int8]:
    """Splits of photos ``(N,)``, with validation panoramas drawn from training where the publishers name none.

    Hints, calibration and the choice of the best checkpoint need photos that were neither trained on nor are judged by.
    """
    if (splits == SPLIT_NAMES.index("val")).any():
        return splits
    held_out, is_train = splits.copy(), splits == SPLIT_NAMES.index("train")
    held_out[is_train] = split_by_rank(
        panoramas[is_train], np.zeros(is_train.sum(), dtype=bool), val_fraction=val_fraction, test_fraction=0.0
    )
    return held_out


def _read(sources: Sequence[tuple[str, Path]], city: City) -> tuple[dict[str, Annotation], list[DroppedRecord]]:
    annotations: dict[str, Annotation] = {}
    dropped: list[DroppedRecord] = []
    for split, path in sources:
        loaded = load_json(path, "annotations")
        if not isinstance(loaded, dict) or not loaded:
            raise UserError(f"annotations: {path}: expected an object {{image path: [caption, verbose, canonical]}}")
        for name, texts in loaded.items():
            key = PurePosixPath(name).as_posix()
            is_published_form = isinstance(texts, list) and len(texts) == 3 and all(isinstance(t, str) for t in texts)
            try:
                address = parse_canonical(texts[2]) if is_published_form else None
            except UserError:
                address = None
            if address is None:
                dropped.append(DroppedRecord(key, STEP, "bad_annotation"))
            elif key in annotations:
                dropped.append(DroppedRecord(key, STEP, "duplicate_id"))
            else:
                here = replace(address, city=city.name, region=city.region, country=city.country)
                annotations[key] = Annotation(split, texts[0].strip(), here)
    if not annotations:
        raise UserError(f"annotations: no usable entry in {', '.join(str(path) for _, path in sources)}")
    return annotations, dropped


def _by_end(path: str, by_name: Mapping[str, list[PhotoRecord]]) -> PhotoRecord | None:
    """The one photo whose path and the given one have the longest end in common, if it is one."""
    parts = PurePosixPath(path).parts
    near = by_name.get(parts[-1], [])
    for length in range(len(parts), 0, -1):
        same = [photo for photo in near if PurePosixPath(photo.image_path).parts[-length:] == parts[-length:]]
        if same:
            return same[0] if len(same) == 1 else None
    return None


def _gallery(located: Sequence[tuple[PhotoRecord, Address]]) -> list[GalleryRecord]:
    places: dict[Address, set[tuple[float, float]]] = defaultdict(set)
    panoramas: dict[Address, set[str]] = defaultdict(set)
    by_street: dict[tuple[str, str], list[Address]] = defaultdict(list)
    for photo, address in located:
        places[address].add((photo.lon, photo.lat))
        panoramas[address].add(str(photo.panorama_id))
    for address in sorted(places):
        by_street[address.street_key].append(address)
    records = []
    for address in sorted(places):
        ends = set(address.cross_streets)
        beside = [a for a in by_street[address.street_key] if a != address and ends & set(a.cross_streets)]
        line = _line_along(np.array(sorted(places[address])))
        records.append(
            gallery_record(address, [line], len(panoramas[address]), [sub_street_id(other) for other in beside])
        )
    return records


def _line_along(lon_lat: np.ndarray) -> list[list[float]]:
    """Points in the order along their main direction; a single one becomes a line of about a metre."""
    if len(lon_lat) == 1:
        lon_lat = lon_lat + np.array([[0.0, 0.0], [0.0, 1e-5]])
    centred = (lon_lat - lon_lat.mean(axis=0)) * [np.cos(np.radians(lon_lat[0, 1])), 1.0]
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    order = np.argsort(centred @ direction, kind="stable")
    return [[round(x, 7), round(y, 7)] for x, y in lon_lat[order].tolist()]
