"""EXIF positions: what a camera wrote comes back, what a broken one wrote is absent."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from llava_ial.exif import PhotoMetadata, read_metadata
from llava_ial.geo import GeoPoint

Rational = TiffImagePlugin.IFDRational


def _image(gps: dict[int, Any], camera: dict[int, Any] | None = None) -> Image.Image:
    """An image whose EXIF directories are these, without the detour over a file."""
    image = Image.new("RGB", (8, 8))
    exif = image.getexif()
    exif._ifds[0x8825] = gps
    exif._ifds[0x8769] = camera or {}
    return image


def _dms(degrees: float) -> tuple[float, float, float]:
    whole = int(degrees)
    minutes = int((degrees - whole) * 60)
    return float(whole), float(minutes), (degrees - whole - minutes / 60) * 3600


@settings(max_examples=100, deadline=None)
@given(st.floats(-89.9, 89.9), st.floats(-179.9, 179.9))
def test_position_comes_back(lat: float, lon: float) -> None:
    gps = {1: "N" if lat >= 0 else "S", 2: _dms(abs(lat)), 3: "E" if lon >= 0 else "W", 4: _dms(abs(lon))}
    found = read_metadata(_image(gps)).point
    if (lat, lon) == (0.0, 0.0):
        assert found is None
    else:
        assert found == pytest.approx((lat, lon), abs=1e-9)


def test_written_file_comes_back_with_direction_error_and_time(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    exif = image.getexif()
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 30.0, 0.0), 3: "W", 4: (70.0, 15.0, 0.0), 17: 370.0, 31: 4.5})
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 12:30:00"
    image.save(tmp_path / "photo.jpg", exif=exif)
    with Image.open(tmp_path / "photo.jpg") as written:
        found = read_metadata(written)
    assert found == PhotoMetadata(GeoPoint(-33.5, -70.25), False, pytest.approx(10.0), 4.5, "2024-05-01T12:30:00")


@pytest.mark.parametrize(
    ("gps", "is_bad"),
    [
        ({}, False),
        ({2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}, True),
        ({1: "N", 2: (95.0, 0.0, 0.0), 3: "E", 4: (9.0, 0.0, 0.0)}, True),
        ({1: "N", 2: (Rational(0, 0), 0.0, 0.0), 3: "E", 4: (9.0, 0.0, 0.0)}, True),
        ({1: "N", 2: "somewhere", 3: "E", 4: (9.0, 0.0, 0.0)}, True),
        ({1: "N", 2: (48.0, 0.0, 0.0)}, True),
        ({1: "N", 2: (), 3: "E", 4: ()}, True),
    ],
)
def test_no_place_on_earth_is_no_position(gps: dict[int, Any], is_bad: bool) -> None:
    found = read_metadata(_image(gps))
    assert (found.point, found.has_bad_position) == (None, is_bad)


@pytest.mark.parametrize("ref", [b"N\0", "N", "n ", None])
def test_hemisphere_may_be_bytes_or_missing(ref: Any) -> None:
    gps = {1: ref, 2: (48.0, 30.0, 0.0), 3: b"W", 4: (9.0, 0.0, 0.0)}
    assert read_metadata(_image({k: v for k, v in gps.items() if v is not None})).point == GeoPoint(48.5, -9.0)


def test_wrong_time_and_direction_are_absent() -> None:
    found = read_metadata(_image({17: "north", 31: -3.0}, {0x9003: "yesterday"}))
    assert (found.heading_deg, found.error_m, found.captured_at) == (None, None, None)


def test_real_broken_files(shared_data: Path) -> None:
    with_position = {
        "DSCN0025.jpg": (43.46837, 11.88163),
        "DSCN0029.jpg": (43.46824, 11.88017),
        "DSCN0038.jpg": (43.46726, 11.87921),
        "DSCN0040.jpg": (43.46601, 11.87911),
        "DSCN0042.jpg": (43.46446, 11.88148),
        "corrupt_exif.jpg": (48.08105, -1.66784),
        "corrupt_exif_2.jpg": (48.08105, -1.66784),
        "fixed_exif.jpg": (48.08105, -1.66784),
        "map_exif_image.jpg": (47.72550, 10.31551),
        "test_exif.jpg": (35.91252, 14.49881),
    }
    found = {}
    for path in sorted((shared_data / "exif").iterdir()):
        if path.suffix in (".jpg", ".png"):
            with Image.open(path) as image:
                metadata = read_metadata(image)
            if metadata.point:
                found[path.name] = metadata.point
    assert found.keys() == with_position.keys()
    for name, point in with_position.items():
        assert found[name] == pytest.approx(point, abs=1e-5)


def test_real_walk_is_one_street_long(shared_data: Path) -> None:
    points = []
    for path in sorted((shared_data / "lund").glob("*.jpg")):
        with Image.open(path) as image:
            points.append(read_metadata(image).point)
    assert len(points) == 29
    assert all(point and abs(point.lat - 55.698) < 0.002 and abs(point.lon - 13.195) < 0.002 for point in points)
