"""The last step of a build: what is said of the whole data set, from its tables, read part by part."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_gen.blocks import nearest_train_m
from data_gen.parts import Context
from data_gen.positions import frame_of, num_parts, read_columns
from llava_ial.records import (
    AddressRecord,
    ConversationRecord,
    PhotoRecord,
    from_table,
    read_part,
)
from llava_ial.splits import SPLIT_NAMES, straddling


@dataclass
class Totals:
    """Numbers of a data set.

    Attributes:
        photos_of: Photos of each (split, sub-street).
        panoramas_of: Distinct panoramas of each split.
        ambiguous: Photos of an ambiguous street.
        rows: Addresses in each part.
    """

    photos_of: Counter[tuple[str, str]] = field(default_factory=Counter)
    panoramas_of: dict[str, int] = field(default_factory=dict)
    ambiguous: int = 0
    rows: list[int] = field(default_factory=list)

    @property
    def of_sub_streets(self) -> Counter[str]:
        """Photos of each sub-street."""
        total: Counter[str] = Counter()
        for (_, sub_street), count in self.photos_of.items():
            total[sub_street] += count
        return total


@dataclass(frozen=True)
class Placed:
    """Positions, panoramas and splits of all photos with an address, as columns.

    Photos that follow each other and have all of these in common, as the crops of a panorama do, are one entry.
    """

    panorama: npt.NDArray[np.uint64]
    split: npt.NDArray[np.int8]
    lat: npt.NDArray[np.float64]
    lon: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ShownPhoto:
    """A photo of the preview with its dialogues."""

    photo: PhotoRecord
    address: AddressRecord
    dialogues: list[ConversationRecord]


def read_placed(context: Context) -> tuple[Placed, Totals]:
    """The columns of all photos with an address, and the totals."""
    folder, totals = context.folder, Totals()
    found: list[list[npt.NDArray[Any]]] = []
    for part in range(num_parts(folder / "addresses")):
        addresses = read_columns(folder / "addresses", part, ["image_id", "split", "sub_street_id", "is_ambiguous"])
        photos = read_columns(folder / "photos", part, ["image_id", "lat", "lon"])
        panorama = read_columns(context.work / "nearest", part, ["panorama"])["panorama"].to_numpy()
        rows = pc.index_in(addresses["image_id"], value_set=photos["image_id"]).to_numpy().astype(np.int64)
        counted = addresses.group_by(["split", "sub_street_id"]).aggregate([([], "count_all")]).to_pylist()
        totals.photos_of.update({(row["split"], row["sub_street_id"]): row["count_all"] for row in counted})
        totals.ambiguous += pc.sum(addresses["is_ambiguous"]).as_py() or 0
        totals.rows.append(len(rows))
        codes = pc.index_in(addresses["split"], value_set=pa.array(SPLIT_NAMES)).to_numpy().astype(np.int8)
        columns = [panorama[rows], codes, photos["lat"].to_numpy()[rows], photos["lon"].to_numpy()[rows]]
        is_first = np.ones(len(rows), dtype=bool)
        is_first[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
        found.append([column[is_first] for column in columns])
    placed = Placed(*(np.concatenate(columns) for columns in zip(*found, strict=True)))
    for index, name in enumerate(SPLIT_NAMES):
        totals.panoramas_of[name] = len(np.unique(placed.panorama[placed.split == index]))
    return placed, totals


def leakage_facts(context: Context, placed: Placed) -> dict[str, Any]:
    """How far the test photos are from what was trained on.

    ``nearest_train_m`` is, for every test panorama, the metres to the nearest training photo.
    """
    frame = frame_of(context.folder / "photos")
    train, test = (placed.split == SPLIT_NAMES.index(name) for name in ("train", "test"))
    xy_m = frame.to_xy_m(placed.lat, placed.lon)
    by_rank = nearest_train_m(xy_m[test], placed.panorama[test].tolist(), xy_m[train])
    away_m = {name: by_rank[rank] for rank, name in _names(context, set(by_rank)).items()}
    values = np.array(sorted(away_m.values()))
    quantiles = {f"p{q}": round(float(np.percentile(values, q)), 1) for q in (0, 10, 50, 90)} if len(values) else {}
    return {
        "panoramas_in_two_splits": len(straddling(placed.panorama, placed.split)),
        "duplicate_photos_dropped": count_dropped(context.folder)["photos"]["duplicate_content"],
        "test_panoramas": len(values),
        "nearest_train_m_quantiles": quantiles,
        "share_of_test_panoramas_under_25_m": round(float((values < 25.0).mean()), 4) if len(values) else None,
        "nearest_train_m": {name: round(value, 1) for name, value in sorted(away_m.items())},
    }


def count_dropped(folder: Path) -> dict[str, Counter[str]]:
    """Reasons of each step with their counts."""
    found: dict[str, Counter[str]] = {step: Counter() for step in ("photos", "annotations", "addresses")}
    for part in range(num_parts(folder / "dropped")):
        table = read_columns(folder / "dropped", part, ["step", "reason"])
        for step, reason in zip(table["step"].to_pylist(), table["reason"].to_pylist(), strict=True):
            found[step][reason] += 1
    return found


def shown_photos(context: Context, names: list[str]) -> list[ShownPhoto]:
    """The records of a few photos, found part by part."""
    folder, found = context.folder, []
    for part in range(num_parts(folder / "addresses")):
        own = _rows(folder / "addresses", part, names)
        if not len(own):
            continue
        addresses = from_table(read_part(folder / "addresses", AddressRecord, part).take(own), AddressRecord)
        photos = from_table(
            read_part(folder / "photos", PhotoRecord, part).take(_rows(folder / "photos", part, names)), PhotoRecord
        )
        photo_of = {photo.image_id: photo for photo in photos}
        for address in addresses:
            talk = folder / "conversations" / address.split
            rows = _rows(talk, part, [address.image_id])
            table = read_part(talk, ConversationRecord, part).take(rows)
            dialogues = from_table(table, ConversationRecord)
            found.append(ShownPhoto(photo_of[address.image_id], address, dialogues))
    return sorted(found, key=lambda shown: (shown.address.split, shown.address.image_id))


def _rows(folder: Path, part: int, names: list[str]) -> pa.Array:
    wanted = set(names)
    column = read_columns(folder, part, ["image_id"])["image_id"].to_pylist()
    return pa.array([row for row, name in enumerate(column) if name in wanted], pa.int64())


def _names(context: Context, ranks: set[int]) -> dict[int, str]:
    """Names of panoramas, in the order of the photos."""
    names: dict[int, str] = {}
    wanted = np.array(sorted(ranks), dtype=np.uint64)
    for part in range(num_parts(context.work / "nearest")):
        own = read_columns(context.work / "nearest", part, ["panorama"])["panorama"].to_numpy()
        column = read_columns(context.folder / "photos", part, ["panorama_id"])["panorama_id"]
        rows = np.flatnonzero(np.isin(own, wanted))
        for rank, name in zip(own[rows].tolist(), column.take(pa.array(rows)).to_pylist(), strict=True):
            names.setdefault(rank, str(name))
    return names
