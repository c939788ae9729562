"""What the file names of place recognition data sets say.

SF-XL and most data sets of visual place recognition write everything into the name, in fields between ``@`` (CosPlace):

    @utm_east@utm_north@zone@band@lat@lon@panorama@tile@heading@pitch@roll@height@time@note@.jpg

UTM metres are always there and exact; degrees are rounded, every other field may be empty. The letter is the latitude
band (``S`` is San Francisco's, in the north), not the hemisphere. Pitts250k names a crop ``PPPPPP_pitch1_yaw12.jpg``.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

import utm

from data_gen.tables import parse_number
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint, distance_m

_ZONE = re.compile(r"(\d{1,2})\s*([NS])", re.IGNORECASE)
_PITTS = re.compile(r"(\d{6})_pitch\d+_yaw\d+$")
_THOUSAND = re.compile(r"\d{3}")  # the folder of a thousand panoramas
_ZONE_ERROR_M = 5_000.0  # degrees in names are rounded, but never by kilometres; the next zone is hundreds away
_NUM_FIELDS = 15  # without the suffix


@dataclass(frozen=True)
class UtmZone:
    """A zone of the UTM grid; ``is_north`` is the hemisphere."""

    number: int
    is_north: bool

    def to_point(self, east_m: float, north_m: float) -> GeoPoint | None:
        """Degrees of a position in metres; None outside of what the grid covers."""
        try:
            lat, lon = utm.to_latlon(east_m, north_m, self.number, northern=self.is_north)
        except utm.OutOfRangeError:
            return None
        return GeoPoint(float(lat), float(lon))


def parse_zone(text: str) -> UtmZone:
    """A zone as users write it.

    Raises:
        UserError: No zone.

    Example:
        >>> parse_zone("17N")
        UtmZone(number=17, is_north=True)
    """
    match = _ZONE.fullmatch(text.strip())
    if not match or not 1 <= int(match[1]) <= 60:
        raise UserError(f"utm_zone: '{text}'; give a number from 1 to 60 and the hemisphere, as in 17N")
    return UtmZone(int(match[1]), match[2].upper() == "N")


def pitts_panorama(image_path: str) -> str | None:
    """The panorama that a Pitts250k file name states, None for any other name.

    The queries were captured apart and are numbered from zero again: the folder is part of the name.

    Example:
        >>> pitts_panorama("000/000829_pitch1_yaw12.jpg")
        '000829'
        >>> pitts_panorama("queries_real/000/000829_pitch1_yaw12.jpg")
        'queries_real/000829'
    """
    path = PurePosixPath(image_path)
    match = _PITTS.search(path.stem)
    if not match:
        return None
    folders = [part for part in path.parts[:-1] if not _THOUSAND.fullmatch(part)]
    return "/".join([*folders, match[1]])


@dataclass(frozen=True)
class NamedPhoto:
    """The fields of a file name that a data set needs; ``reason`` is "" where the position can be used."""

    reason: str
    point: GeoPoint | None = None
    panorama_id: str | None = None
    heading_deg: float | None = None
    captured_at: str | None = None


def parse_photo_name(name: str, zone: UtmZone | None = None) -> NamedPhoto:
    """Reads a file name of ``@`` fields.

    Args:
        name: File name without its folder.
        zone: Used where the name leaves its zone empty.
    """
    fields = PurePosixPath(name).name.split("@")
    if len(fields) < 3 or fields[0]:
        return NamedPhoto("no_position_in_name")
    if fields[-1].startswith("."):
        fields.pop()
    fields += [""] * (_NUM_FIELDS - len(fields))
    east_m, north_m = parse_number(fields[1]), parse_number(fields[2])
    lat, lon = parse_number(fields[5]), parse_number(fields[6])
    stated = GeoPoint(lat, lon) if lat is not None and lon is not None else None
    if stated is not None and not stated.is_valid():
        return NamedPhoto("bad_position")
    own = _zone_of(fields[3], fields[4], stated) or zone
    if east_m is None or north_m is None or own is None:
        return NamedPhoto("no_position_in_name")
    point = own.to_point(east_m, north_m)
    if point is None or not point.is_valid():
        return NamedPhoto("bad_position")
    if stated is not None and distance_m(point, stated) > _ZONE_ERROR_M:
        return NamedPhoto("wrong_utm_zone")
    heading = parse_number(fields[9])
    panorama = fields[7] or pitts_panorama(fields[13]) or pitts_panorama(fields[8])
    return NamedPhoto("", point, panorama, None if heading is None else heading % 360.0, _time(fields[13]))


def _zone_of(number: str, band: str, stated: GeoPoint | None) -> UtmZone | None:
    if not number.isdigit() or not 1 <= int(number) <= 60:
        return None
    is_north = band.upper() >= "N" if band else stated is None or stated.lat >= 0
    return UtmZone(int(number), is_north)


def _time(text: str) -> str | None:
    """Times in names are written in several ways: 20110708, 201107 or ISO 8601."""
    for form in ("%Y%m%d", "%Y%m", "%Y%m%d%H%M%S"):
        try:
            found = datetime.strptime(text, form)
        except ValueError:
            continue
        if len(text) == len(found.strftime(form)):
            return found.isoformat()
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return None
