"""Reverse geocoding by web services, instead of the nearest street of the map: Nominatim, Photon, Pelias, Google.

A service names the street; the map still gives its geometry, where it is cut and what it crosses. Positions leave this
machine: use a server of your own for photos of people.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_gen.map_files import plain_name
from data_gen.web import AnswerCache, JsonClient, Manners
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint

SERVICES = ("nominatim", "photon", "pelias", "google")
_RADIUS_KM = 0.05
_RING_M = 8.0
_METRES_PER_DEGREE = 111_195.0
_PUBLIC = {
    "nominatim": "https://nominatim.openstreetmap.org",
    "photon": "https://photon.komoot.io",
    "pelias": "",
    "google": "https://maps.googleapis.com",
}


@dataclass
class ServiceSettings:
    """The options of geocoding by a service."""

    geocoder: str = field(
        default="map",
        metadata={"help": f"who names the street: map (offline), or a web service: {', '.join(SERVICES)}"},
    )
    geocoder_url: str = field(default="", metadata={"help": "address of the service; default: the public server"})
    geocoder_key_variable: str = field(
        default="", metadata={"help": "environment variable that holds the service's key, if it needs one"}
    )
    geocoder_contact: str = field(
        default="", metadata={"help": "mail or web address by which the service's operator can reach you"}
    )
    geocoder_rate: float = field(default=1.0, metadata={"help": "requests a second (public servers: 1)"})
    geocoder_quota: int = field(default=0, metadata={"help": "requests of one run, then stop; 0: any number"})
    geocoder_cache: Path = field(
        default=Path("~/.cache/llava_ial/geocodes.sqlite"), metadata={"help": "answers are kept here (never Google's)"}
    )
    i_accept_google_terms: bool = field(
        default=False,
        metadata={"help": "you have the right to store Google's addresses and train on them, which its terms forbid"},
    )

    def check_service(self) -> None:
        """Refuses what cannot work or must not be done.

        Raises:
            UserError: Names the field and the mend.
        """
        if self.geocoder == "map":
            return
        if self.geocoder not in SERVICES:
            raise UserError(f"geocoder: '{self.geocoder}'; allowed: map, {', '.join(SERVICES)}")
        if self.geocoder == "google" and not self.i_accept_google_terms:
            raise UserError(
                "geocoder: google; its terms forbid storing its addresses and training models on them, so no data set "
                "is written without --i-accept-google-terms true"
            )
        if not (self.geocoder_url or _PUBLIC[self.geocoder]):
            raise UserError(f"geocoder_url: {self.geocoder} has no public server; give the address of yours")
        if not self.geocoder_url and not self.geocoder_contact and self.geocoder != "google":
            raise UserError("geocoder_contact: a public server wants to know who asks; give a mail or web address")
        if self.geocoder_rate <= 0 or self.geocoder_quota < 0:
            raise UserError("geocoder_rate: above 0; geocoder_quota: at least 0")
        if self.geocoder_key_variable and self.geocoder_key_variable not in os.environ:
            raise UserError(f"geocoder_key_variable: {self.geocoder_key_variable} is not set in the environment")


class ServiceGeocoder:
    """Names of streets by position."""

    def __init__(self, settings: ServiceSettings, client: JsonClient | None = None) -> None:
        self._kind = settings.geocoder
        self._url = (settings.geocoder_url or _PUBLIC[self._kind]).rstrip("/")
        self._key = os.environ.get(settings.geocoder_key_variable, "") if settings.geocoder_key_variable else ""
        agent = f"llava-ial data_gen ({settings.geocoder_contact or 'own server'})"
        manners = Manners(settings.geocoder_rate, settings.geocoder_quota, user_agent=agent)
        self._client = client or JsonClient(manners)
        # Google's terms forbid keeping its answers.
        self._cache = AnswerCache(None if self._kind == "google" else settings.geocoder_cache.expanduser())

    def streets(self, points: Sequence[GeoPoint]) -> list[list[str]]:
        """Street names of each position, the likeliest first; [] where the service knows none.

        Positions are asked at five decimals, about a metre, each once. Nominatim gives one answer: it is asked on a
        small ring too, and the answers vote.

        Raises:
            UserError: The service fails or the quota is used up; answers so far are kept.
        """
        found: dict[tuple[str, str], list[str]] = {}
        for point in tqdm(points, desc=f"asking {self._kind}", unit="photo", disable=None):
            key = _rounded(point)
            if key not in found:
                places = _ring(point) if self._kind == "nominatim" else [point]
                votes = Counter(name for place in places for name in self._ask(place))
                found[key] = [name for name, _ in votes.most_common()]
        return [found[_rounded(point)] for point in points]

    def _ask(self, point: GeoPoint) -> list[str]:
        lat, lon = _rounded(point)
        path, parameters = _REQUESTS[self._kind](lat, lon)
        key = f"{self._url}{path} {sorted(parameters.items())}"
        answer = self._cache.get(key)
        if answer is None:
            secret = {"key" if self._kind == "google" else "api_key": self._key} if self._key else {}
            answer = self._client.get(self._url + path, parameters | secret)
            _refuse_error(self._kind, answer)
            self._cache.put(key, answer)
        names = (plain_name(name) for name in _READERS[self._kind](answer) if name)
        return list(dict.fromkeys(name for name in names if name))


def match_streets(
    named: Sequence[Sequence[str]], near: Mapping[int, Sequence[tuple[int, float]]], names: Sequence[str]
) -> list[tuple[int, float]]:
    """The street of the map that each position's service answer means: (street, distance), (-1, NaN) for none.

    Args:
        named: Names of each position, the likeliest first.
        near: Of each position, the streets of the map in range with their distances.
        names: Of the map's streets.
    """
    matched = []
    for position, wanted in enumerate(named):
        by_name = {names[street].casefold(): (street, away_m) for street, away_m in near.get(position, ())}
        hits = [by_name[name.casefold()] for name in wanted if name.casefold() in by_name]
        matched.append(hits[0] if hits else (-1, float("nan")))
    return matched


def _rounded(point: GeoPoint) -> tuple[str, str]:
    return f"{point.lat:.5f}", f"{point.lon:.5f}"


def _ring(point: GeoPoint) -> list[GeoPoint]:
    north = _RING_M / _METRES_PER_DEGREE
    east = north / max(float(np.cos(np.radians(point.lat))), 0.01)
    steps = ((0.0, 0.0), (north, 0.0), (0.0, east), (-north, 0.0), (0.0, -east))
    return [GeoPoint(point.lat + up, point.lon + right) for up, right in steps]


def _nominatim_request(lat: str, lon: str) -> tuple[str, dict[str, str]]:
    # Zoom 17 is the street; 18 snaps to shops.
    return "/reverse", {"format": "jsonv2", "lat": lat, "lon": lon, "zoom": "17", "addressdetails": "1"}


def _photon_request(lat: str, lon: str) -> tuple[str, dict[str, str]]:
    return "/reverse", {"lat": lat, "lon": lon, "limit": "10", "radius": str(_RADIUS_KM)}


def _pelias_request(lat: str, lon: str) -> tuple[str, dict[str, str]]:
    more = {"size": "10", "layers": "street,address", "boundary.circle.radius": str(_RADIUS_KM)}
    return "/v1/reverse", {"point.lat": lat, "point.lon": lon, **more}


def _google_request(lat: str, lon: str) -> tuple[str, dict[str, str]]:
    return "/maps/api/geocode/json", {"latlng": f"{lat},{lon}"}


def _nominatim_streets(answer: Any) -> list[str]:
    address = answer.get("address", {})
    return [address.get(kind, "") for kind in ("road", "pedestrian", "footway", "path", "cycleway") if kind in address]


def _photon_streets(answer: Any) -> list[str]:
    found = [feature.get("properties", {}) for feature in answer.get("features", [])]
    return [p.get("name", "") if p.get("osm_key") == "highway" else p.get("street", "") for p in found]


def _pelias_streets(answer: Any) -> list[str]:
    found = [feature.get("properties", {}) for feature in answer.get("features", [])]
    return [p.get("street") or (p.get("name", "") if p.get("layer") == "street" else "") for p in found]


def _google_streets(answer: Any) -> list[str]:
    parts = [part for result in answer.get("results", []) for part in result.get("address_components", [])]
    return [part.get("long_name", "") for part in parts if "route" in part.get("types", [])]


def _refuse_error(kind: str, answer: Any) -> None:
    """Errors that come with status 200; a true "nothing here" passes."""
    if not isinstance(answer, dict):
        raise UserError(f"geocoder: {kind} answered no JSON object; is geocoder_url its address?")
    if kind == "google" and answer.get("status") not in ("OK", "ZERO_RESULTS"):
        raise UserError(f"geocoder: google refuses: {answer.get('status')} {answer.get('error_message', '')}".strip())


_REQUESTS: dict[str, Callable[[str, str], tuple[str, dict[str, str]]]] = {
    "nominatim": _nominatim_request,
    "photon": _photon_request,
    "pelias": _pelias_request,
    "google": _google_request,
}
_READERS: dict[str, Callable[[Any], list[str]]] = {
    "nominatim": _nominatim_streets,
    "photon": _photon_streets,
    "pelias": _pelias_streets,
    "google": _google_streets,
}
