"""How fast addresses are found: geocoding beside its peers, and each step of a build on generated positions.

    python -m benchmarks.data_gen --streets city.osm.pbf --neighbourhoods neighbourhoods.geojson

Positions are drawn along the streets with an error of 5 m. All ways look up the same ones in one run, the slow ones a
share of them. Writes benchmarks/results/data_gen.json and prints a table.
"""

import importlib.util
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from data_gen.blocks import BlockSettings, split_by_block
from data_gen.converse import DialogueSettings
from data_gen.gallery import City, Gallery, PartitionSettings, build_gallery
from data_gen.geocode import nearest_streets, vote_streets
from data_gen.measured_dialogues import Candidates, PhotoColumns, write_dialogues
from data_gen.streets import DEFAULT_HIGHWAYS, StreetMap, load_street_map
from data_gen.surroundings import Surroundings
from data_gen.wide_dialogues import LocatedPhoto, converse_widely
from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import file_hash, library_versions, write_json

RESULTS = Path("benchmarks/results/data_gen.json")
_ERROR_M = 5.0
_RANGE_M = 50.0


@dataclass
class BenchmarkSettings:
    """What is measured."""

    streets: Path = field(metadata={"help": "map: an .osm.pbf extract"})
    neighbourhoods: Path | None = field(default=None, metadata={"help": "GeoJSON polygons"})
    num_positions: int = field(default=1_000_000, metadata={"help": "positions that are geocoded in bulk"})
    num_looped: int = field(default=20_000, metadata={"help": "of them, those looked up one by one"})
    num_records: int = field(default=100_000, metadata={"help": "of them, those that pass through the later steps"})
    repeats: int = field(default=3, metadata={"help": "times that each is measured; the median counts"})
    output: Path = field(default=RESULTS, metadata={"help": "JSON file of the results"})


def main() -> None:
    """The command."""
    (settings,) = parse_config(BenchmarkSettings, description=__doc__ or "")
    if min(settings.num_positions, settings.num_looped, settings.num_records, settings.repeats) < 1:
        raise UserError("num_positions, num_looped, num_records, repeats: each at least 1")
    street_map = load_street_map(settings.streets, DEFAULT_HIGHWAYS, settings.neighbourhoods)
    xy_m = draw_positions(street_map, settings.num_positions)
    rows = geocoding(street_map, xy_m, settings) + steps(street_map, xy_m[: settings.num_records], settings)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'what':<44}{'records':>11}{'seconds':>10}{'records/s':>12}")
    for row in rows:
        print(f"{row['what']:<44}{row['records']:>11,}{row['seconds']:>10.2f}{row['records_per_s']:>12,.0f}")
    print(f"peak memory {peak_mb:,.0f} MB; osmnx {'is' if _has_osmnx() else 'is not'} installed")
    facts = {
        "what": "records per second on one core, the median of the repeats",
        "measured_on": datetime.now(UTC).date().isoformat(),
        "cpu_cores": os.cpu_count(),
        "load_1_min": round(os.getloadavg()[0], 2),
        "map": {"file": settings.streets.name, "sha256": file_hash(settings.streets), "lines": len(street_map.lines)},
        "position_error_m": _ERROR_M,
        "repeats": settings.repeats,
        "rows": rows,
        "peak_memory_mb": round(peak_mb),
        "osmnx": version("osmnx") if _has_osmnx() else "not installed",
        "versions": library_versions() | {"shapely": shapely.__version__},
    }
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings.output, facts)


def draw_positions(street_map: StreetMap, count: int, seed: int = 0) -> np.ndarray:
    """Positions ``(count, 2)`` along the streets by length, each off by the error of a phone."""
    draw = np.random.default_rng(seed)
    lengths = shapely.length(street_map.lines)
    lines = street_map.lines[draw.choice(len(lengths), count, p=lengths / lengths.sum())]
    points = shapely.line_interpolate_point(lines, draw.random(count), normalized=True)
    return shapely.get_coordinates(points) + draw.normal(0.0, _ERROR_M, (count, 2))


def geocoding(street_map: StreetMap, xy_m: np.ndarray, settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """Ours in bulk beside one lookup after another."""
    few = xy_m[: settings.num_looped]

    def nearest() -> object:
        return nearest_streets(xy_m, street_map, _RANGE_M)

    def vote() -> object:
        return vote_streets(few, street_map, _RANGE_M, 5.0, 25.0)

    rows = [
        _measure("geocode, nearest and second street", len(xy_m), settings, nearest),
        _measure("geocode, vote within 25 m", len(few), settings, vote),
        _measure("shapely query_nearest, one by one", len(few), settings, lambda: _loop(few, street_map)),
    ]
    if _has_osmnx():
        rows.append(_measure("osmnx nearest_edges", len(few), settings, _osmnx(few, street_map)))
    _check_same(few, street_map)
    return rows


def steps(street_map: StreetMap, xy_m: np.ndarray, settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """The steps after geocoding, each on the whole of its input."""
    street = nearest_streets(xy_m, street_map, _RANGE_M).street
    names = [f"p{i}" for i in range(len(xy_m))]

    def partition() -> Gallery:
        return build_gallery(street_map, xy_m, street, names, PartitionSettings(), City("City"))

    gallery = partition()
    records, classes = gallery.records, gallery.photo_class
    surroundings = Surroundings(records)
    located = [i for i in range(len(xy_m)) if classes[i] >= 0]
    talk = DialogueSettings(2, 0)
    blocks = BlockSettings(300.0, 50.0, 0.1, 0.1, 0)

    def measured() -> pa.Table:
        classes_of = classes[located].astype(np.int64)
        ids = [records[i].sub_street_id for i in classes_of.tolist()]
        columns = ([names[i] for i in located], [""] * len(located), ids)
        photos = PhotoColumns(*(pa.array(column, pa.string()) for column in columns), classes_of)
        return write_dialogues(photos, "train", Candidates([record.address for record in records]), talk)

    def every_kind() -> int:
        photos = (
            LocatedPhoto(names[i], "", records[classes[i]].sub_street_id, "train", records[classes[i]].address, False)
            for i in located
        )
        return sum(1 for photo in photos for _ in converse_widely(photo, surroundings, talk))

    count = len(xy_m)
    return [
        _measure("partition into sub-streets, gallery", count, settings, partition),
        _measure("split by area", count, settings, lambda: split_by_block(xy_m, names, [False] * count, blocks)),
        _measure("dialogues, measured kinds", len(located), settings, measured),
        _measure("dialogues, all kinds", len(located), settings, every_kind),
    ]


def _measure(what: str, count: int, settings: BenchmarkSettings, function: Callable[[], object]) -> dict[str, Any]:
    seconds = []
    for _ in range(settings.repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    median = float(np.median(seconds))
    return {
        "what": what,
        "records": count,
        "seconds": round(median, 4),
        "slowest_s": round(max(seconds), 4),
        "fastest_s": round(min(seconds), 4),
        "records_per_s": round(count / median),
    }


def _loop(xy_m: np.ndarray, street_map: StreetMap) -> np.ndarray:
    tree = shapely.STRtree(street_map.lines)
    found = np.full(len(xy_m), -1)
    for i, point in enumerate(shapely.points(xy_m)):
        lines = tree.query_nearest(point, max_distance=_RANGE_M, all_matches=False)
        if len(lines):
            found[i] = street_map.street[lines[0]]
    return found


def _check_same(xy_m: np.ndarray, street_map: StreetMap) -> None:
    """Speeds of different answers would compare nothing; equally near streets may differ."""
    same = np.mean(_loop(xy_m, street_map) == nearest_streets(xy_m, street_map, _RANGE_M).street)
    if same < 0.99:
        raise RuntimeError(f"only {same:.1%} of the positions get the same street")


def _has_osmnx() -> bool:
    return importlib.util.find_spec("osmnx") is not None


def _osmnx(xy_m: np.ndarray, street_map: StreetMap) -> Callable[[], object]:
    """The nearest edges of a graph that has every line of the map as an edge."""
    import networkx
    import osmnx

    graph = networkx.MultiDiGraph(crs=f"EPSG:326{street_map.frame.zone:02d}")
    for number, line in enumerate(street_map.lines):
        for end, (x, y) in enumerate((line.coords[0], line.coords[-1])):
            graph.add_node(2 * number + end, x=x, y=y)
        graph.add_edge(2 * number, 2 * number + 1, geometry=line)
    return lambda: osmnx.distance.nearest_edges(graph, xy_m[:, 0], xy_m[:, 1])


if __name__ == "__main__":
    run_command(main)
