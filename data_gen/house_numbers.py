"""House numbers: where the map has them, a photo that stands close to a numbered house of its street is asked for it.

In OpenStreetMap they are sparse. They are a detail of an address, never a candidate.
"""

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import shapely

from data_gen.houses import Houses
from data_gen.parts import Context, Facts
from data_gen.positions import read_columns
from llava_ial.records import HouseNumberRecord, to_table, write_part

FOLDER = "house_numbers"


def number_part(context: Context, part: int) -> Facts:
    """Writes a part of ``house_numbers/``: of the photos that stand close enough to a numbered house."""
    houses, street_map = context.houses, context.street_map
    addresses = read_columns(context.folder / "addresses", part, ["image_id", "address"])
    photos = read_columns(context.folder / "photos", part, ["image_id", "lat", "lon"])
    row_of = {name: row for row, name in enumerate(photos["image_id"].to_pylist())}
    names = addresses["image_id"].to_pylist()
    rows = np.array([row_of[name] for name in names], dtype=np.int64)
    index = {name: number for number, name in enumerate(street_map.names)}
    streets = pc.struct_field(addresses["address"], "street").to_pylist()
    street = np.array([index[name] for name in streets], dtype=np.int64)
    xy_m = street_map.to_xy_m(photos["lat"].to_numpy()[rows], photos["lon"].to_numpy()[rows])
    house, away_m = nearest_houses(xy_m, street, houses, context.settings.house_number_m)
    records = [
        HouseNumberRecord(names[i], houses.numbers[house[i]], round(float(away_m[i]), 3))
        for i in np.flatnonzero(house >= 0).tolist()
    ]
    write_part(context.folder / FOLDER, to_table(records, HouseNumberRecord), part)
    return {"numbered": len(records)}


def nearest_houses(
    xy_m: npt.NDArray[np.float64], street: npt.NDArray[np.int64], houses: Houses, range_m: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The nearest numbered house of its own street for each position, -1 and NaN where none is in range.

    Args:
        xy_m: ``(N, 2)`` metres of the map's frame.
        street: ``(N,)`` index of each position's street.
        houses: Of the map.
        range_m: A house farther away is not the photo's.
    """
    points, places = shapely.points(xy_m), shapely.points(houses.xy_m)
    photo, house = shapely.STRtree(places).query(points, predicate="dwithin", distance=range_m)
    own = houses.street[house] == street[photo]
    photo, house = photo[own], house[own]
    away_m = shapely.distance(points[photo], places[house])
    order = np.lexsort((house, away_m, photo))
    first = order[np.flatnonzero(np.diff(photo[order], prepend=-1))]
    found, distance_m = np.full(len(xy_m), -1, dtype=np.int64), np.full(len(xy_m), np.nan)
    found[photo[first]], distance_m[photo[first]] = house[first], away_m[first]
    return found, distance_m
