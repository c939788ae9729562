"""Positions of photos as columns: what the steps over all photos hold in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_gen.streets import StreetMap
from llava_ial.geo import GeoPoint, LocalFrame
from llava_ial.records import part_name

FloatArray = npt.NDArray[np.float64]


def read_columns(folder: Path, part: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One part of a table, or some of its columns."""
    return pq.read_table(folder / part_name(part), columns=list(columns) if columns is not None else None)


def num_parts(folder: Path) -> int:
    """How many parts a table has."""
    return len(list(folder.glob("part-*.parquet")))


def read_column(folder: Path, name: str) -> npt.NDArray[Any]:
    """A column of numbers of all parts."""
    return np.concatenate([read_columns(folder, part, [name])[name].to_numpy() for part in range(num_parts(folder))])


def frame_of(photos: Path) -> LocalFrame:
    """Metres around the middle of all photos, for a data set without a map."""
    return LocalFrame(GeoPoint(*(float(np.median(read_column(photos, name))) for name in ("lat", "lon"))))


def misplaced(
    lat: FloatArray, lon: FloatArray, is_utm: npt.NDArray[np.bool_], street_map: StreetMap
) -> npt.NDArray[np.object_]:
    """Why a position off the map is one by a mistake that is often made; "" for all others.

    Latitude and longitude swapped, or metres read in the wrong UTM zone, which moves a place by six degrees of
    longitude each.

    Args:
        lat, lon: ``(N,)`` degrees.
        is_utm: ``(N,)`` whether the source states metres.
        street_map: The map.
    """
    reasons = np.full(len(lat), "", dtype=object)
    off = np.flatnonzero(np.isnan(street_map.to_xy_m(lat, lon)).any(axis=1))

    def on_map(mended_lat: FloatArray, mended_lon: FloatArray) -> npt.NDArray[np.bool_]:
        return np.asarray(np.isfinite(street_map.to_xy_m(mended_lat, mended_lon)).all(axis=1))

    reasons[off[on_map(lon[off], lat[off])]] = "swapped_lat_lon"
    metres = off[is_utm[off]]
    for zones in (-2, -1, 1, 2):
        reasons[metres[on_map(lat[metres], lon[metres] + 6.0 * zones)]] = "wrong_utm_zone"
    return reasons
