"""Published data sets in their own layouts: annotations of other people, and builds from them."""

import json
import sys
from pathlib import Path

import pytest

from data_gen.annotations import import_addresses, parse_sources
from data_gen.build import main
from data_gen.gallery import City
from data_gen.photo_names import UtmZone
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.prompts import WHERE
from llava_ial.records import PhotoRecord, read_records
from tests.grid_town import draw_photo
from tests.named_photos import photo_name

SAN_FRANCISCO = (37.7749, -122.4194)
PITTSBURGH = UtmZone(17, True)
ROOT = Path(__file__).resolve().parents[1]
STREET = "Grant Street, Downtown (Third Avenue, Downtown and Fourth Avenue, Downtown)"


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


def _annotate(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [[f"a street view of {name[-12:]} on Grant Street", "located in the Downtown", STREET] for name in names]
    path.write_text(json.dumps(dict(zip([f"./{name}" for name in names], texts, strict=True))))


def fake_pitts(folder: Path, num_panoramas: int = 3) -> None:
    """Two crops of each panorama, all on one piece of street: one queries, one is the database, the others train."""
    names = [f"000/{n:06d}_pitch1_yaw{view}.jpg" for n in range(num_panoramas) for view in (1, 2)]
    for number, name in enumerate(names):
        draw_photo(folder / name, number)
    lines = ["utm_east,utm_north", *(f"{584_000 + 20 * n},4477000" for n in range(num_panoramas))]
    (folder / "utm.csv").write_text("\n".join(lines) + "\n")
    for part, own in (("train", names[:-4]), ("database", names[-4:-2]), ("queries", names[-2:])):
        _annotate(folder / f"pitts_{part}.json", own)


def _fake_sf(datasets: Path, size: str) -> None:
    parts: dict[str, list[str]] = {"train": [], "database": [], "queries": []}
    for number, (part, below) in enumerate(
        (("train", "train/37.77"), ("database", "test/database"), ("queries", "test/queries"))
    ):
        name = f"{below}/{photo_name(37.77 + number / 1000, -122.42, pano=f'p{number}', heading='90')}"
        draw_photo(datasets / "processed" / name, number)
        parts[part].append(name)
    for part, names in parts.items():
        _annotate(datasets / f"SF-IAL-{size.title()}" / f"sf_{size}_{part}.json", names)


@pytest.mark.parametrize("config", ["pitts_ial", "sf_ial_base", "sf_ial_large"])
def test_published_layouts_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str) -> None:
    if config == "pitts_ial":
        fake_pitts(tmp_path / "datasets" / "Pitts-IAL")
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


def test_whole_panoramas_of_train_validate_where_no_val_is_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_pitts(tmp_path / "datasets" / "Pitts-IAL")
    monkeypatch.chdir(tmp_path)
    settings = str(ROOT / "data_gen" / "configs" / "pitts_ial.yaml")

    def panoramas(name: str, *options: str) -> dict[str, set[str]]:
        monkeypatch.setattr(sys, "argv", ["build", "--config", settings, "--output", name, *options])
        main()
        data = IALDataset(tmp_path / name)
        counts = json.loads((tmp_path / name / "manifest.json").read_text())["counts"]["splits"]
        return {split: {str(s.photo.panorama_id) for s in data.samples(split)} for split in counts}

    drawn = panoramas("drawn", "--val_fraction", "0.5")
    assert sorted(drawn["train"] | drawn["val"]) == ["000000", "000001"]
    assert [len(drawn[split]) for split in ("train", "val", "test")] == [1, 1, 1]
    published = ["train=datasets/Pitts-IAL/pitts_train.json", "val=datasets/Pitts-IAL/pitts_database.json"]
    own = panoramas(
        "own", "--val_fraction", "0.5", "--annotations", *published, "test=datasets/Pitts-IAL/pitts_queries.json"
    )
    assert (own["train"], own["val"]) == ({"000000"}, {"000001"})


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
