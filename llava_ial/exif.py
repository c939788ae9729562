"""Where and when a photo says it was taken: its EXIF position, direction, error and time.

Pillow reads them even from truncated directories. What a broken camera or editor wrote is treated as absent: a text
instead of a number, 0/0, (0, 0), a latitude beyond the pole.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from PIL import Image

from llava_ial.geo import GeoPoint

_GPS_IFD, _EXIF_IFD = 0x8825, 0x8769
_LAT_REF, _LAT, _LON_REF, _LON = 1, 2, 3, 4
_DIRECTION, _ERROR_M = 17, 31
_DATE_TIME_ORIGINAL = 0x9003


@dataclass(frozen=True)
class PhotoMetadata:
    """What the camera wrote into a photo; None where it wrote nothing that can be used.

    Attributes:
        point: Position, always valid where there is one.
        has_bad_position: Position fields are present but name no place on the earth.
        heading_deg: Viewing direction, clockwise from north (magnetic and true north are not told apart).
        error_m: The camera's own estimate of its horizontal error.
        captured_at: ISO 8601, local time of the camera, without a zone.
    """

    point: GeoPoint | None = None
    has_bad_position: bool = False
    heading_deg: float | None = None
    error_m: float | None = None
    captured_at: str | None = None


def read_metadata(image: Image.Image) -> PhotoMetadata:
    """EXIF of an opened photo; never raises, whatever the directory holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of corrupt directories and reads what is left of them
        try:
            exif = image.getexif()
            gps, camera = exif.get_ifd(_GPS_IFD), exif.get_ifd(_EXIF_IFD)
        except Exception:  # Pillow's parsers raise whatever the broken bytes lead them into
            return PhotoMetadata()
    lat = _degrees(gps, _LAT, _LAT_REF, "S")
    lon = _degrees(gps, _LON, _LON_REF, "W")
    is_present = _LAT in gps or _LON in gps
    point = GeoPoint(lat, lon) if lat is not None and lon is not None else None
    heading, error = _number(gps.get(_DIRECTION)), _number(gps.get(_ERROR_M))
    return PhotoMetadata(
        point=point if point and point.is_valid() else None,
        has_bad_position=is_present and not (point and point.is_valid()),
        heading_deg=heading % 360.0 if heading is not None else None,
        error_m=error if error is not None and error >= 0 else None,
        captured_at=_iso_time(camera.get(_DATE_TIME_ORIGINAL)),
    )


def _degrees(gps: Mapping[int, Any], key: int, ref_key: int, negative: str) -> float | None:
    """Degrees, minutes, seconds and a hemisphere to signed degrees; a missing hemisphere leaves the sign as it is."""
    value = gps.get(key)
    parts = [_number(part) for part in value] if isinstance(value, tuple | list) else [_number(value)]
    numbers = [part for part in parts if part is not None]
    if not numbers or len(numbers) != len(parts) or len(parts) > 3:
        return None
    degrees = sum(part / 60.0**power for power, part in enumerate(numbers))
    ref = gps.get(ref_key)
    ref_text = ref.decode("ascii", "ignore") if isinstance(ref, bytes) else str(ref or "")
    return -degrees if ref_text.strip("\0 ").upper().startswith(negative) else degrees


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _iso_time(value: Any) -> str | None:
    text = value.decode("ascii", "ignore") if isinstance(value, bytes) else str(value or "")
    try:
        return datetime.strptime(text.strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None
