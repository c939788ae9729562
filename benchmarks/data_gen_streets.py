"""How often a position gets the street it was taken on: the nearest one, or a vote of the positions around it.

    python -m benchmarks.data_gen_streets --streets streets.geojson --positions positions.csv --street_column osm_street
    python -m benchmarks.data_gen_streets --streets city.osm.pbf --positions positions.csv --utm_zone 17N
    python -m benchmarks.data_gen_streets --streets city.osm.pbf

With a column of published streets, each disagreement is listed with its reason. Without one, a position is taken for
exact and what a camera's error does to its street is measured; without a table of positions they are drawn along the
streets. Prints a table and writes a JSON file.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from data_gen.geocode import NearestStreets, nearest_streets, vote_streets
from data_gen.photo_names import parse_zone
from data_gen.streets import DEFAULT_HIGHWAYS, StreetMap, listed_texts, load_street_map
from data_gen.tables import parse_number, read_rows
from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.geo import GeoPoint
from llava_ial.manifest import file_hash, write_json

FloatArray = npt.NDArray[np.float64]
_SAME_LINE_M = 0.01
_MEET_M = 3.0


@dataclass
class StreetsSettings:
    """What is compared."""

    streets: Path = field(metadata={"help": "map: an .osm.pbf extract or GeoJSON lines"})
    output: Path = field(metadata={"help": "JSON file of the results"})
    positions: Path | None = field(default=None, metadata={"help": "table of positions: CSV, JSON Lines or Parquet"})
    street_column: str = field(
        default="", metadata={"help": "its column of published streets; rows without are left out"}
    )
    snap_column: str = field(default="snap_dist_m", metadata={"help": "its column of metres to the published line"})
    id_column: str = field(default="image_id", metadata={"help": "its column of names"})
    utm_zone: str = field(
        default="", metadata={"help": "positions are utm_east, utm_north of this zone; else lat, lon"}
    )
    highways: list[str] = field(default_factory=lambda: list(DEFAULT_HIGHWAYS), metadata={"help": "kinds of street"})
    spacing_m: float = field(default=10.0, metadata={"help": "without positions: one is drawn each so many metres"})
    drawn: int = field(
        default=40_000, metadata={"help": "without positions: how many of them, those nearest the middle"}
    )
    errors_m: list[float] = field(default_factory=lambda: [0, 3, 5, 10], metadata={"help": "errors, one sigma an axis"})
    vote_radii_m: list[float] = field(default_factory=lambda: [10, 25, 50], metadata={"help": "radii of the vote"})
    max_distance_m: float = field(default=50.0, metadata={"help": "as in a build"})
    ambiguous_margin_m: float = field(default=5.0, metadata={"help": "as in a build"})


@dataclass(frozen=True)
class Published:
    """A position with the street that its source names, and the metres to the line it was taken to be on."""

    name: str
    streets: frozenset[str]
    snap_m: float | None


def main() -> None:
    """The command."""
    (settings,) = parse_config(StreetsSettings, description=__doc__ or "")
    street_map = load_street_map(settings.streets, settings.highways)
    xy_m, published = load_positions(settings, street_map)
    if published:
        rightly = [row.streets for row in published]
    else:
        exact = nearest_streets(xy_m, street_map, settings.max_distance_m)
        xy_m = xy_m[exact.street >= 0]
        rightly = [frozenset({street_map.names[street]}) for street in exact.street[exact.street >= 0]]
    rows = compare(xy_m, rightly, street_map, settings)
    print(f"{'error_m':>8}  {'way':<18}{'right':>8}{'sure':>8}{'right of sure':>15}")
    for row in rows:
        shares = f"{row['right']:>8.2%}{row['sure']:>8.2%}{row['right_of_sure']:>15.2%}"
        print(f"{row['error_m']:>8g}  {row['way']:<18}{shares}")
    found = nearest_streets(xy_m, street_map, settings.max_distance_m, settings.ambiguous_margin_m)
    listed = disagreements(xy_m, found, published, street_map) if published else []
    for row in listed:
        print(f"{row['name']}: {row['found']} ({row['found_m']} m), published: {row['published']}; {row['reason']}")
    facts = {
        "what": "share of positions that get the street they were taken on",
        "measured_on": datetime.now(UTC).date().isoformat(),
        "cpu_cores": os.cpu_count(),
        "map": {"file": settings.streets.name, "sha256": file_hash(settings.streets)},
        "positions": len(xy_m),
        "truth": settings.street_column or "nearest street of the position without error",
        "rows": rows,
        "disagreements": listed,
    }
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings.output, facts)


def load_positions(settings: StreetsSettings, street_map: StreetMap) -> tuple[FloatArray, list[Published]]:
    """Positions ``(N, 2)`` in metres of the map and what is published of each, nothing without a column of streets."""
    if settings.positions is None:
        return _draw(street_map, settings.spacing_m, settings.drawn), []
    zone = parse_zone(settings.utm_zone) if settings.utm_zone else None
    axes = ("utm_east", "utm_north") if zone else ("lat", "lon")
    points, published = [], []
    needed = [*axes, *([settings.street_column] if settings.street_column else [])]
    for row in read_rows(settings.positions, needed):
        pair = [parse_number(row[axis]) for axis in axes]
        if pair[0] is None or pair[1] is None or (settings.street_column and not row[settings.street_column]):
            continue
        point = zone.to_point(pair[0], pair[1]) if zone else GeoPoint(pair[0], pair[1])
        if point is None:
            continue
        points.append(point)
        if settings.street_column:
            streets = frozenset(listed_texts(row[settings.street_column]))
            snap_m = parse_number(row.get(settings.snap_column, ""))
            published.append(Published(row.get(settings.id_column, str(len(points))), streets, snap_m))
    xy_m = street_map.to_xy_m([point.lat for point in points], [point.lon for point in points])
    on_map = np.isfinite(xy_m).all(axis=1)
    if not on_map.any():
        raise UserError(f"positions: none of the {len(points)} of {settings.positions} is on the map")
    published = [row for row, flag in zip(published, on_map.tolist(), strict=True) if flag] if published else []
    return (xy_m[on_map], published) if published else (np.unique(xy_m[on_map], axis=0), [])


def compare(
    xy_m: FloatArray, rightly: Sequence[frozenset[str]], street_map: StreetMap, settings: StreetsSettings
) -> list[dict[str, Any]]:
    """For each error and each way: the share that gets a right street, of all and of those with a clear margin."""
    rows = []
    ranges = (settings.max_distance_m, settings.ambiguous_margin_m)
    for error_m in settings.errors_m:
        moved = xy_m + np.random.default_rng(0).normal(0.0, error_m, xy_m.shape)
        ways = {"nearest street": nearest_streets(moved, street_map, *ranges)}
        for radius_m in settings.vote_radii_m:
            ways[f"vote within {radius_m:g} m"] = vote_streets(moved, street_map, *ranges, radius_m)
        for way, found in ways.items():
            names = [street_map.names[street] if street >= 0 else "" for street in found.street.tolist()]
            right = np.array([name in streets for name, streets in zip(names, rightly, strict=True)])
            sure = (found.street >= 0) & ~(found.margin_m < settings.ambiguous_margin_m)
            of_sure = round(float(right[sure].mean()), 4) if sure.any() else 0.0
            shares = {"right": round(float(right.mean()), 4), "sure": round(float(sure.mean()), 4)}
            rows.append({"error_m": error_m, "way": way, **shares, "right_of_sure": of_sure})
    return rows


def disagreements(
    xy_m: FloatArray, found: NearestStreets, published: Sequence[Published], street_map: StreetMap
) -> list[dict[str, Any]]:
    """Positions whose nearest street is not the published one, and why."""
    listed = []
    for place, row, street, away_m in zip(
        xy_m, published, found.street.tolist(), found.distance_m.tolist(), strict=True
    ):
        if street >= 0 and street_map.names[street] in row.streets:
            continue
        listed.append(
            {
                "name": row.name,
                "found": street_map.names[street] if street >= 0 else "",
                "found_m": round(away_m, 2) if street >= 0 else None,
                "published": " / ".join(sorted(row.streets)),
                "reason": _reason(shapely.Point(place), row, street, away_m, street_map),
            }
        )
    return listed


def _reason(place: shapely.Point, row: Published, street: int, away_m: float, street_map: StreetMap) -> str:
    if street < 0:
        return "no street in range"
    others = [street_map.names.index(name) for name in sorted(row.streets) if name in street_map.names]
    reasons = []
    if row.snap_m is not None and abs(row.snap_m - away_m) < _SAME_LINE_M:
        reasons.append("the published distance is the one to this very line: the source calls it by another name")
    if not others:
        return "; ".join([*reasons, "the map has no street of that name"])
    theirs = shapely.union_all(street_map.lines[np.isin(street_map.street, others)])
    ours = shapely.union_all(street_map.lines[street_map.street == street])
    if not reasons:
        reasons.append(f"the published street is {place.distance(theirs) - away_m:.1f} m farther")
    meeting = shapely.intersection(shapely.buffer(ours, _MEET_M), shapely.buffer(theirs, _MEET_M))
    if meeting.is_empty:
        reasons.append("the two do not meet")
    else:
        reasons.append(f"the two meet {place.distance(meeting):.0f} m away")
    return "; ".join(reasons)


def _draw(street_map: StreetMap, spacing_m: float, count: int) -> FloatArray:
    """A place each ``spacing_m`` along the streets, those nearest to the middle of the map."""
    lengths = shapely.length(street_map.lines)
    numbers = np.maximum((lengths / spacing_m).astype(int), 1)
    line = np.repeat(np.arange(len(lengths)), numbers)
    along = (np.arange(len(line)) - np.repeat(np.cumsum(numbers) - numbers, numbers) + 0.5) * spacing_m
    points = shapely.line_interpolate_point(street_map.lines[line], np.minimum(along, lengths[line]))
    xy_m = shapely.get_coordinates(points)
    return np.asarray(xy_m[np.argsort(np.hypot(*xy_m.T), kind="stable")[:count]])


if __name__ == "__main__":
    run_command(main)
