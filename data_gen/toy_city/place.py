"""Where on Earth a town lies, and what it is called."""

from dataclasses import dataclass

import numpy as np
import utm

from data_gen.toy_city.arrays import FloatArray, random_stream
from data_gen.toy_city.names import name_city, name_neighbourhoods, name_streets
from data_gen.toy_city.plan import Plan


@dataclass(frozen=True)
class Place:
    """Names and geographic position of a town.

    World metres are UTM metres less an origin near a zone's central meridian, so that north on the plan is north.

    Attributes:
        city: Name of the city.
        state: Its state.
        country: Its country.
        streets: One name per street of the plan.
        neighbourhoods: One name per neighbourhood of the plan.
        river: Name of the river.
        easting_m: UTM easting of the world's origin.
        northing_m: UTM northing of the world's origin.
        zone: UTM zone on the northern hemisphere.
    """

    city: str
    state: str
    country: str
    streets: tuple[str, ...]
    neighbourhoods: tuple[str, ...]
    river: str
    easting_m: float
    northing_m: float
    zone: int

    def to_lat_lon(self, points: FloatArray) -> FloatArray:
        """Turn (..., 2) world metres into (..., 2) latitude and longitude in degrees, rounded to 7 decimals."""
        flat = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        lat, lon = utm.to_latlon(
            flat[:, 0] + self.easting_m, flat[:, 1] + self.northing_m, self.zone, northern=True, strict=False
        )
        return np.round(np.stack([lat, lon], axis=-1), 7).reshape(np.shape(points))


def build_place(plan: Plan) -> Place:
    """Name a plan's town and put it somewhere in the latitudes of North America."""
    rng = random_stream(plan.seed, "place")
    west, _, east, _ = plan.bounds
    city, state, country = name_city(plan.seed)
    return Place(
        city=city,
        state=state,
        country=country,
        streets=tuple(name_streets(plan.seed, plan)),
        neighbourhoods=tuple(name_neighbourhoods(plan.seed, len(plan.neighbourhoods))),
        river=f"{city.split()[0]} River",
        easting_m=round(500000.0 - (west + east) / 2, 3),
        northing_m=round(float(rng.uniform(3_600_000.0, 5_300_000.0)), 3),
        zone=int(rng.integers(11, 19)),
    )
