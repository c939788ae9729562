"""Photo sources by layout: file names, Pitts250k, Mapillary, tables of other kinds, published annotations."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import utm

from data_gen.photo_check import PhotoTable
from data_gen.photo_folders import read_mapillary, read_named_photos, read_pitts250k
from data_gen.photo_names import UtmZone, parse_photo_name, parse_zone
from data_gen.photos import PhotoColumns, group_panoramas, read_photo_table
from llava_ial.errors import UserError
from llava_ial.records import PhotoRecord
from tests.grid_town import draw_photo
from tests.named_photos import photo_name

SAN_FRANCISCO = (37.7749, -122.4194)
PITTSBURGH = UtmZone(17, True)


def _reasons(table: PhotoTable) -> dict[str, str]:
    return {record.image_id: record.reason for record in table.dropped}


def test_names_of_place_recognition_sets() -> None:
    named = parse_photo_name(photo_name(*SAN_FRANCISCO, pano="Ab-7_x", heading="-30", time="201107"))
    assert named.point == pytest.approx(SAN_FRANCISCO, abs=1e-6)
    assert (named.panorama_id, named.heading_deg, named.captured_at) == ("Ab-7_x", 330.0, "2011-07-01T00:00:00")
    bare = parse_photo_name(photo_name(*SAN_FRANCISCO, zone="", band="", lat="", lon=""), UtmZone(10, True))
    assert bare.point == pytest.approx(SAN_FRANCISCO, abs=1e-6)
    assert (bare.panorama_id, bare.heading_deg, bare.captured_at) == (None, None, None)
    short = parse_photo_name("@551217.3@4180999.9@.jpg", UtmZone(10, True))
    assert short.point is not None
    sydney = parse_photo_name(photo_name(-33.87, 151.21, zone="56", band="H"))
    assert sydney.point == pytest.approx((-33.87, 151.21), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (photo_name(*SAN_FRANCISCO, zone="11"), "wrong_utm_zone"),
        (photo_name(*SAN_FRANCISCO, lat="95"), "bad_position"),
        (photo_name(*SAN_FRANCISCO, lat="0", lon="0"), "bad_position"),
        ("@nan@4180999.9@10@S@@@.jpg", "no_position_in_name"),
        ("@5@4180999.9@10@S@@@.jpg", "bad_position"),
        (photo_name(*SAN_FRANCISCO, zone="", lat="", lon=""), "no_position_in_name"),
        ("IMG_0001.jpg", "no_position_in_name"),
    ],
)
def test_names_that_state_no_position(name: str, reason: str) -> None:
    assert parse_photo_name(name).reason == reason


def test_zone_is_a_number_and_a_hemisphere() -> None:
    assert parse_zone("56 s") == UtmZone(56, False)
    for text in ("17", "61N", "17T", ""):
        with pytest.raises(UserError, match="utm_zone"):
            parse_zone(text)


def test_folder_of_named_photos_states_the_split(tmp_path: Path) -> None:
    for number, folder in enumerate(("train", "val/database", "test/queries", "extra")):
        draw_photo(tmp_path / folder / photo_name(37.77 + number / 1000, -122.42, pano=f"p{number}"), number)
    (tmp_path / "extra" / "notes.jpg").write_text("no photo")
    table = read_named_photos(tmp_path, None)
    assert Counter((p.panorama_id, p.given_split) for p in table.photos) == Counter(
        [("p0", "train"), ("p1", "val"), ("p2", "test"), ("p3", None)]
    )
    assert _reasons(table) == {"extra/notes.jpg": "no_position_in_name"}


@pytest.mark.parametrize("rows_per_panorama", [1, 24])
def test_pitts250k_layout(tmp_path: Path, rows_per_panorama: int) -> None:
    for panorama in (0, 2):
        for view in (1, 12):
            draw_photo(tmp_path / "000" / f"{panorama:06d}_pitch1_yaw{view}.jpg", panorama * 24 + view)
    draw_photo(tmp_path / "000" / "other.jpg", 99)
    draw_photo(tmp_path / "queries_real" / "000" / "000007_pitch1_yaw1.jpg", 98)
    lines = ["utm_east,utm_north"]
    for panorama in range(3):
        lines += [f"{584_000 + 10 * panorama},4477000"] * rows_per_panorama
    (tmp_path / "utm.csv").write_text("\n".join(lines) + "\n")
    table = read_pitts250k(tmp_path, tmp_path / "utm.csv", PITTSBURGH, "utm_east", "utm_north")
    assert [(p.image_id, p.panorama_id) for p in table.photos] == [
        ("000/000000_pitch1_yaw1.jpg", "000000"),
        ("000/000000_pitch1_yaw12.jpg", "000000"),
        ("000/000002_pitch1_yaw1.jpg", "000002"),
        ("000/000002_pitch1_yaw12.jpg", "000002"),
    ]
    east = [utm.from_latlon(p.lat, p.lon)[0] for p in table.photos]
    assert east == pytest.approx([584_000, 584_000, 584_020, 584_020], abs=0.01)
    assert _reasons(table) == {
        "000/other.jpg": "not_a_pitts250k_name",
        "queries_real/000/000007_pitch1_yaw1.jpg": "no_position",
    }
    (tmp_path / "utm.csv").write_text("utm_east,utm_north\n584000,4477000\n")
    with pytest.raises(UserError, match="has 1 rows, but the photos go up to panorama 2"):
        read_pitts250k(tmp_path, tmp_path / "utm.csv", PITTSBURGH, "utm_east", "utm_north")


def test_mapillary_download(tmp_path: Path) -> None:
    def entry(number: int, **more: object) -> dict[str, object]:
        return {"id": str(number), "geometry": {"type": "Point", "coordinates": [9.18, 48.78]}, **more}

    for number in range(1, 8):
        draw_photo(tmp_path / f"{number}.jpg", number)
    (tmp_path / "7.jpg").write_bytes((tmp_path / "1.jpg").read_bytes())
    computed = {"type": "Point", "coordinates": [9.2, 48.7]}
    answer = [
        entry(1, computed_geometry=computed, computed_compass_angle=370.0, compass_angle=5, sequence="s1"),
        entry(2, captured_at=1_720_000_000_000),
        entry(3, geometry={"type": "Point", "coordinates": [0, 0]}),
        {"id": "4"},
        entry(9),
        entry(2),
        entry(7),
    ]
    (tmp_path / "answer.json").write_text(json.dumps({"data": answer}))
    (tmp_path / "5.json").write_text(json.dumps({k: v for k, v in entry(5).items() if k != "id"}))
    table = read_mapillary(tmp_path)
    by_id = {photo.image_id: photo for photo in table.photos}
    assert sorted(by_id) == ["1", "2", "5"]
    first = by_id["1"]
    assert (first.lat, first.lon, first.heading_deg, first.panorama_id) == (48.7, 9.2, 10.0, "sequence-s1")
    assert by_id["2"].captured_at == "2024-07-03T09:46:40+00:00"
    assert _reasons(table) == {
        "3": "bad_position",
        "4": "no_position",
        "9": "missing_file",
        "2": "duplicate_id",
        "6.jpg": "no_metadata",
        "7": "duplicate_content",
    }


def test_tables_of_every_kind_say_the_same(tmp_path: Path) -> None:
    rows = [{"image_path": f"{n}.jpg", "lat": 48.0 + n, "lon": 9.0, "heading_deg": None} for n in range(3)]
    rows[2]["lat"] = float("nan")
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    lines = [f"{row['image_path']},{row['lat']},{row['lon']}," for row in rows]
    (tmp_path / "t.csv").write_text("image_path,lat,lon,heading_deg\n" + "\n".join(lines) + "\n")
    tables = [
        read_photo_table(tmp_path / name, tmp_path, PhotoColumns(), require_images=False)
        for name in ("t.csv", "t.jsonl", "t.parquet")
    ]
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0].photos) == 2
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    (tmp_path / "t.jsonl").write_text("[1]\n")
    for name, message in (("t.parquet", "not a readable Parquet table"), ("t.jsonl", "line 1 is no JSON object")):
        with pytest.raises(UserError, match=message):
            read_photo_table(tmp_path / name, tmp_path, PhotoColumns())


def test_table_in_metres(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "image_path,utm_east,utm_north\n000/000829_pitch1_yaw1.jpg,584825.96,4476945.61\nb.jpg,5,5\n"
    )
    table = read_photo_table(tmp_path / "t.csv", tmp_path, PhotoColumns(), zone=PITTSBURGH, require_images=False)
    (photo,) = table.photos
    assert utm.from_latlon(photo.lat, photo.lon)[:3] == pytest.approx((584825.96, 4476945.61, 17), abs=0.01)
    assert photo.panorama_id == "000829"
    assert _reasons(table) == {"b.jpg": "bad_position"}


def test_a_dense_walk_is_many_places() -> None:
    xy_m = np.stack([np.arange(100) * 8.0, np.zeros(100)], axis=1)
    photos = [PhotoRecord(f"i{n:03d}", "x", 48.0, 9.0, None, None, None, "csv") for n in range(100)]
    names = [str(photo.panorama_id) for photo in group_panoramas(photos, xy_m, 15.0)]
    assert len(set(names)) > 30
    for name in set(names):
        members = [i for i, other in enumerate(names) if other == name]
        assert np.ptp(xy_m[members, 0]) <= 30.0


ROOT = Path(__file__).resolve().parents[1]
STREET = "Grant Street, Downtown (Third Avenue, Downtown and Fourth Avenue, Downtown)"
