"""The compiled map: what a build needs of an extract, as Parquet tables that load in a moment.

Reading an extract takes seconds to minutes, and every process of a build needs its streets. So it is compiled once,
into a folder named by the hash of the inputs, the highway classes and the form of the tables; whoever needs it next
reads the tables. Another extract is another folder: nothing is ever out of date.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from data_gen.houses import Houses, load_houses
from data_gen.streets import StreetMap, load_city_name, load_street_map
from llava_ial.geo import GeoPoint, LocalFrame
from llava_ial.manifest import file_hash, write_json

_FORM = 2  # of the tables: another number, and every map is compiled anew
_FACTS = "map.json"


@dataclass(frozen=True)
class CompiledMap:
    """A map with the city that its extract names, "" for none, and its numbered houses."""

    street_map: StreetMap
    city_name: str
    houses: Houses


def load_compiled_map(
    streets: Path, highways: Collection[str], neighbourhoods: Path | None, cache: Path
) -> CompiledMap:
    """The map of an extract, from the cache if it was compiled before, else compiled and kept there.

    Args:
        streets, highways, neighbourhoods: As ``load_street_map`` takes them.
        cache: Folder of compiled maps.

    Raises:
        UserError: The inputs are no map.
    """
    folder = cache / _key(streets, highways, neighbourhoods)
    if (folder / _FACTS).is_file():
        return _read(folder)
    street_map = load_street_map(streets, highways, neighbourhoods)
    city = load_city_name(streets, street_map.frame.origin)
    compiled = CompiledMap(street_map, city, load_houses(streets, street_map.names, street_map.frame))
    _write(compiled, folder)
    return compiled


def _key(streets: Path, highways: Collection[str], neighbourhoods: Path | None) -> str:
    parts: dict[str, Any] = {
        "form": _FORM,
        "streets": file_hash(streets),
        "kind": "".join(streets.suffixes[-2:]).lower(),
        "highways": sorted(set(highways)),
        "neighbourhoods": file_hash(neighbourhoods) if neighbourhoods is not None else "",
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _write(compiled: CompiledMap, folder: Path) -> None:
    """Writes into a folder of another name first: what is found under the key is whole."""
    street_map = compiled.street_map
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    made.mkdir(parents=True)
    _save(made / "names.parquet", name=street_map.names)
    _save(
        made / "lines.parquet",
        street=street_map.street,
        rank=street_map.rank,
        geometry=shapely.to_wkb(street_map.lines).tolist(),
    )
    areas = shapely.to_wkb(street_map.polygons).tolist()
    _save(made / "areas.parquet", name=pa.array(street_map.neighbourhoods, pa.string()), geometry=areas)
    houses = compiled.houses
    _save(
        made / "houses.parquet",
        x_m=houses.xy_m[:, 0],
        y_m=houses.xy_m[:, 1],
        street=houses.street,
        number=pa.array(houses.numbers, pa.string()),
    )
    origin = street_map.frame.origin
    facts = {
        "origin": [origin.lat, origin.lon],
        "bounds": list(street_map.bounds),
        "neighbourhood_source": street_map.neighbourhood_source,
        "city_name": compiled.city_name,
    }
    write_json(made / _FACTS, facts)
    try:
        os.rename(made, folder)
    except OSError:  # another process compiled the same map meanwhile
        if not (folder / _FACTS).is_file():
            raise
        shutil.rmtree(made)


def _read(folder: Path) -> CompiledMap:
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    lines = pq.read_table(folder / "lines.parquet")
    areas = pq.read_table(folder / "areas.parquet")
    polygons = _geometries(areas)
    shapely.prepare(polygons)
    south, west, north, east = facts["bounds"]
    street_map = StreetMap(
        names=pq.read_table(folder / "names.parquet")["name"].to_pylist(),
        lines=_geometries(lines),
        street=lines["street"].to_numpy(),
        rank=lines["rank"].to_numpy(),
        neighbourhoods=areas["name"].to_pylist(),
        polygons=polygons,
        frame=LocalFrame(GeoPoint(*facts["origin"])),
        bounds=(south, west, north, east),
        neighbourhood_source=facts["neighbourhood_source"],
    )
    houses = pq.read_table(folder / "houses.parquet")
    xy_m = np.stack([houses["x_m"].to_numpy(), houses["y_m"].to_numpy()], axis=1)
    numbered = Houses(xy_m, houses["street"].to_numpy(), houses["number"].to_pylist())
    return CompiledMap(street_map, facts["city_name"], numbered)


def _geometries(table: pa.Table) -> npt.NDArray[np.object_]:
    found: npt.NDArray[np.object_] = shapely.from_wkb(np.array(table["geometry"].to_pylist(), dtype=object))
    return found


def _save(path: Path, **columns: Any) -> None:
    columns["geometry"] = pa.array(columns["geometry"], pa.binary()) if "geometry" in columns else None
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), path)
