"""Photo sources by layout: file names, Pitts250k, Mapillary, tables of other kinds, published annotations."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import utm

from data_gen.annotations import import_addresses, parse_sources
from data_gen.build import main
from data_gen.gallery import City
from data_gen.photo_check import PhotoTable
from data_gen.photo_folders import read_mapillary, read_named_photos, read_pitts250k
from data_gen.photo_names import UtmZone, parse_photo_name, parse_zone
from data_gen.photos import PhotoColumns, group_panoramas, read_photo_table
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.prompts import WHERE
from llava_ial.records import PhotoRecord, read_records
from tests.grid_town import draw_photo

SAN_FRANCISCO = (37.7749, -122.4194)
PITTSBURGH = UtmZone(17, True)


def _name(lat: float, lon: float, /, *, zone: str = "10", band: str = "S", **fields: str) -> str:
    east, north, _, _ = utm.from_latlon(lat, lon)
    more = [fields.get(key, "") for key in ("pano", "tile", "heading", "pitch", "roll", "height", "time", "note")]
    degrees = [fields.get("lat", f"{lat:.5f}"), fields.get("lon", f"{lon:.5f}")]
    return "@".join(["", f"{east:.2f}", f"{north:.2f}", zone, band, *degrees, *more, ".jpg"])


def _reasons(table: PhotoTable) -> dict[str, str]:
    return {record.image_id: record.reason for record in table.dropped}


def test_names_of_place_recognition_sets() -> None:
    named = parse_photo_name(_name(*SAN_FRANCISCO, pano="Ab-7_x", heading="-30", time="201107"))
    assert named.point == pytest.approx(SAN_FRANCISCO, abs=1e-6)
    assert (named.panorama_id, named.heading_deg, named.captured_at) == ("Ab-7_x", 330.0, "2011-07-01T00:00:00")
    bare = parse_photo_name(_name(*SAN_FRANCISCO, zone="", band="", lat="", lon=""), UtmZone(10, True))
    assert bare.point == pytest.approx(SAN_FRANCISCO, abs=1e-6)
    assert (bare.panorama_id, bare.heading_deg, bare.captured_at) == (None, None, None)
    short = parse_photo_name("@551217.3@4180999.9@.jpg", UtmZone(10, True))
    assert short.point is not None
    sydney = parse_photo_name(_name(-33.87, 151.21, zone="56", band="H"))
    assert sydney.point == pytest.approx((-33.87, 151.21), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (_name(*SAN_FRANCISCO, zone="11"), "wrong_utm_zone"),
        (_name(*SAN_FRANCISCO, lat="95"), "bad_position"),
        (_name(*SAN_FRANCISCO, lat="0", lon="0"), "bad_position"),
        ("@nan@4180999.9@10@S@@@.jpg", "no_position_in_name"),
        ("@5@4180999.9@10@S@@@.jpg", "bad_position"),
        (_name(*SAN_FRANCISCO, zone="", lat="", lon=""), "no_position_in_name"),
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
        draw_photo(tmp_path / folder / _name(37.77 + number / 1000, -122.42, pano=f"p{number}"), number)
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


def _located(count: int) -> list[PhotoRecord]:
    return [
        PhotoRecord(f"000/00000{n}.jpg", f"000/00000{n}.jpg", 40.44, -80.0 + n / 1e4, None, f"p{n}", None, "vpr")
        for n in range(count)
    ]


def test_published_annotations_become_addresses(tmp_path: Path) -> None:
    first = "Grant Street, Downtown (Third Avenue, Downtown and Fourth Avenue, Downtown)"
    second = "Grant Street, Downtown (Fourth Avenue, Downtown)"
    (tmp_path / "train.json").write_text(
        json.dumps(
            {
                "./000/000000.jpg": ["a wide street", "located in ...", first],
                "database/000/000001.jpg": ["", "located in ...", second],
                "./000/000009.jpg": ["gone", "located in ...", first],
                "./000/000002.jpg": ["broken", "x"],
            }
        )
    )
    # The order of the crossings is the publishers'.
    (tmp_path / "test.json").write_text(json.dumps({"000/000003.jpg": ["t", "located", first]}))
    sources = parse_sources([f"train={tmp_path / 'train.json'}", f"test={tmp_path / 'test.json'}"])
    found = import_addresses(_located(4), sources, City("Pittsburgh", "PA", "USA"))
    assert [(a.image_id[-5], a.split, a.address.city) for a in found.addresses] == [
        ("0", "train", "Pittsburgh"),
        ("1", "train", "Pittsburgh"),
        ("3", "test", "Pittsburgh"),
    ]
    assert {record.canonical for record in found.gallery} == {first, second}
    assert {a.sub_street_id for a in found.addresses} == {record.sub_street_id for record in found.gallery}
    assert all(record.adjacent_ids for record in found.gallery)
    assert sorted(record.num_positions for record in found.gallery) == [1, 2]
    assert all(len(record.lines[0]) >= 2 for record in found.gallery)
    assert found.captions == {"000/000000.jpg": "a wide street", "000/000003.jpg": "t"}
    assert {(d.image_id, d.step, d.reason) for d in found.dropped} == {
        ("000/000009.jpg", "annotations", "no_photo"),
        ("000/000002.jpg", "annotations", "bad_annotation"),
        ("000/000002.jpg", "addresses", "no_annotation"),
    }


@pytest.mark.parametrize("entry", ["train.json", "dev=x.json", "train="])
def test_annotations_name_split_and_file(entry: str) -> None:
    with pytest.raises(UserError, match="annotations"):
        parse_sources([entry])


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


def _annotate(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [[f"a street view of {name[-12:]} on Grant Street", "located in the Downtown", STREET] for name in names]
    path.write_text(json.dumps(dict(zip([f"./{name}" for name in names], texts, strict=True))))


def _fake_pitts(folder: Path) -> None:
    names = [f"000/{n:06d}_pitch1_yaw{view}.jpg" for n in range(3) for view in (1, 2)]
    for number, name in enumerate(names):
        draw_photo(folder / name, number)
    lines = ["utm_east,utm_north", *(f"{584_000 + 20 * n},4477000" for n in range(3))]
    (folder / "utm.csv").write_text("\n".join(lines) + "\n")
    for part, own in (("train", names[:2]), ("database", names[2:4]), ("queries", names[4:])):
        _annotate(folder / f"pitts_{part}.json", own)


def _fake_sf(datasets: Path, size: str) -> None:
    parts: dict[str, list[str]] = {"train": [], "database": [], "queries": []}
    for number, (part, below) in enumerate(
        (("train", "train/37.77"), ("database", "test/database"), ("queries", "test/queries"))
    ):
        name = f"{below}/{_name(37.77 + number / 1000, -122.42, pano=f'p{number}', heading='90')}"
        draw_photo(datasets / "processed" / name, number)
        parts[part].append(name)
    for part, names in parts.items():
        _annotate(datasets / f"SF-IAL-{size.title()}" / f"sf_{size}_{part}.json", names)


@pytest.mark.parametrize("config", ["pitts_ial", "sf_ial_base", "sf_ial_large"])
def test_published_layouts_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str) -> None:
    if config == "pitts_ial":
        _fake_pitts(tmp_path / "datasets" / "Pitts-IAL")
    else:
        _fake_sf(tmp_path / "datasets", config.removeprefix("sf_ial_"))
    monkeypatch.chdir(tmp_path)
    settings = str(ROOT / "data_gen" / "configs" / f"{config}.yaml")
    monkeypatch.setattr(sys, "argv", ["build", "--config", settings, "--output", "data"])
    main()
    data = IALDataset(tmp_path / "data")
    train, test = data.samples("train"), data.samples("test")
    assert (len(train), len(test)) == ((4, 2) if config == "pitts_ial" else (2, 1))
    assert {record.canonical for record in data.gallery} == {STREET}
    assert all(sample.photo.panorama_id and sample.address.method == "imported" for sample in train + test)
    assert all("a street view of" in s.caption and "on the street" in s.caption for s in train + test)
    turns = [
        (d.tasks[i], d.messages[2 * i + 1].content) for d in data.conversations("test") for i in range(len(d.tasks))
    ]
    answer = next(text for task, text in turns if task == WHERE)
    city = "Pittsburgh, PA, USA" if config == "pitts_ial" else "San Francisco, CA, USA"
    assert answer == (
        "The address of this photo might be Grant Street, between Third Avenue and Fourth Avenue, Downtown, "
        + city
        + "."
    )
    leakage = json.loads((tmp_path / "data" / "leakage.json").read_text())
    assert (leakage["panoramas_in_two_splits"], leakage["test_panoramas"]) == (0, 1)


def test_pittsburgh_names_become_addresses(monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "pittsburgh"
    settings = {
        "image_root": folder, "photos_csv": folder / "pitts30k_test_positions.csv", "image_path_column": "image",
        "utm_zone": "17N", "require_images": "false", "streets": folder / "pittsburgh.osm.pbf",
        "neighbourhoods": folder / "neighbourhoods.geojson", "city": "Pittsburgh", "region": "PA", "country": "USA",
        "split": "blocked", "output": tmp_path / "data",
    }  # fmt: skip
    arguments = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["build", *arguments])
    main()
    counts = IALDataset(tmp_path / "data").manifest["counts"]
    assert counts["steps"]["photos"] == {"in": 16816, "out": 16816, "dropped": {}}
    assert set(counts["steps"]["addresses"]["dropped"]) == {"in_buffer", "ambiguous_in_test"}
    photos = read_records(tmp_path / "data" / "photos", PhotoRecord)
    places: dict[str | None, set[tuple[float, float]]] = {}
    for photo in photos:
        places.setdefault(photo.panorama_id, set()).add((photo.lat, photo.lon))
    # Queries and database have numbers in common, which are no panoramas in common.
    assert all(len(found) == 1 for found in places.values())
    assert len({place for found in places.values() for place in found}) == 700
    assert json.loads((tmp_path / "data" / "leakage.json").read_text())["nearest_train_m_quantiles"]["p0"] > 50
