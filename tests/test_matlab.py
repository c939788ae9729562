"""MATLAB files: what scipy 1.17 wrote, read without it; Pitts250k's positions from them."""

import base64
from pathlib import Path

import numpy as np
import pytest

from data_gen.matlab import read_mat
from data_gen.photo_folders import read_pitts250k
from data_gen.photo_names import parse_zone
from data_gen.utm_tables import read_utm_table
from llava_ial.errors import UserError
from tests.grid_town import draw_photo

# scipy.io.savemat, deflated: a structure of image names (cells) and positions (2 x N), as NetVLAD publishes Pitts250k.
STRUCTURE = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFNhdCBOb3YgMjEgMTM6MDI6MjggMjAyNgAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAA6AAAAHic42NgYFBgZmBgA9Ic"
    "QMzEAAGsUD4jEgbxU5KCS4pKk0tYGVgYuKHi5kBcnpGZnBGcWgJW4pmbmJ7qllfMUFqS65IEMbAQLggSDYRaw8AHxAYMCPtZsNjP"
    "AqVBQADIK0ktLgHrY0ToY0TTx4zkbpg9AQTskUKxB8I3MDDQNwCD+ILMkuQMw/jKxHJDvayCdCqZa0gjc41wm5uAZC4bmrlMSGEH"
    "ApzQ+Nkh1/r68w1Fx0JbrnQWkUBHkNzum4ogWkAIyg+4BeYraAP5IHsaGHDHD3K6onX8OBDwL7I7OKFmo/sPAK11R1w="
)
# The same positions as an array, not deflated, behind another variable.
ARRAY = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFNhdCBOb3YgMjEgMTM6MDI6MjggMjAyNgAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0OAAAAMAAAAAYAAAAIAAAACgAAAAAA"
    "AAAFAAAACAAAAAEAAAACAAAAAQAEAG5vdGUDAAQAAQACAA4AAABgAAAABgAAAAgAAAAGAAAAAAAAAAUAAAAIAAAAAgAAAAMAAAAB"
    "AAMAdXRtAAkAAAAwAAAAuB6F6/PYIUFxPQpnBBRRQQAAAAC72SFBAAAAEBIUUUEAAAAAUNohQQAAACArFFFB"
)
UTM = [(584825.96, 4476945.61), (584925.5, 4477000.25), (585000.0, 4477100.5)]
NAMES = [f"000/{n:06d}_pitch1_yaw1.jpg" for n in range(3)]


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_structures_cells_texts_and_numbers(tmp_path: Path) -> None:
    structure = read_mat(_write(tmp_path / "a.mat", STRUCTURE))["dbStruct"]
    assert (structure["whichSet"], structure["dbImageFns"], structure["qImageFns"]) == ("test", NAMES, NAMES[:1])
    assert structure["utmDb"].T.tolist() == [list(place) for place in UTM]
    variables = read_mat(_write(tmp_path / "b.mat", ARRAY))
    assert variables["note"].tolist() == [[1, 2]]
    assert variables["note"].dtype == np.int16
    assert variables["utm"].shape == (2, 3)


def test_tables_by_name_and_by_row(tmp_path: Path) -> None:
    named = read_utm_table(_write(tmp_path / "a.mat", STRUCTURE), "", "")
    assert named.by_name == {(NAMES[i], False): UTM[i] for i in range(3)} | {(NAMES[0], True): UTM[1]}
    assert read_utm_table(_write(tmp_path / "b.mat", ARRAY), "", "").rows == UTM
    (tmp_path / "c.csv").write_text("e,n\n1,2\nx,4\n")
    (first, second) = read_utm_table(tmp_path / "c.csv", "e", "n").rows
    assert first == (1.0, 2.0)
    assert np.isnan(second[0])


@pytest.mark.parametrize("table", [STRUCTURE, ARRAY])
def test_pitts250k_with_a_matlab_table(tmp_path: Path, table: bytes) -> None:
    for number, name in enumerate([*NAMES, f"queries_real/{NAMES[0]}"]):
        draw_photo(tmp_path / "photos" / name, number)
    path = _write(tmp_path / "utm.mat", table)
    found = read_pitts250k(tmp_path / "photos", path, parse_zone("17N"), "", "")
    zone = parse_zone("17N")
    expected = {name: zone.to_point(*place) for name, place in zip(NAMES, UTM, strict=True)}
    if table is STRUCTURE:  # it names the queries too
        expected[f"queries_real/{NAMES[0]}"] = zone.to_point(*UTM[1])
    assert {p.image_id: (p.lat, p.lon) for p in found.photos} == expected
    assert len({p.panorama_id for p in found.photos}) == len(expected)
    assert [d.reason for d in found.dropped] == ["no_position"] * (4 - len(expected))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (STRUCTURE[:200], "not a readable MATLAB file"),
        (b"", "not a readable MATLAB file"),
        (b"MATLAB 7.3 MAT-file" + bytes(200), "save it again with -v7, or export it to CSV"),
        (ARRAY[:-8], "it is cut off"),
        (ARRAY[:128], "holds neither an array of two columns nor a structure with dbImageFns"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_utm_table(_write(tmp_path / "bad.mat", data), "", "")
