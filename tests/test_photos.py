"""Photo sources: what is usable comes out in order, what is not is named with its reason."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from data_gen import photo_check
from data_gen.nearby import group_within
from data_gen.photo_check import PhotoTable, read_file
from data_gen.photos import PhotoColumns, group_panoramas, read_photo_folder, read_photo_table
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint
from llava_ial.records import PhotoRecord
from tests.grid_town import draw_photo, photo_row, write_csv

HERE = {"lat": "48.78", "lon": "9.18"}


def _reasons(table: PhotoTable) -> dict[str, str]:
    return {record.image_id: record.reason for record in table.dropped}


def test_every_bad_row_is_named_with_its_reason(tmp_path: Path) -> None:
    draw_photo(tmp_path / "photo001.jpg", 1)
    whole = (tmp_path / "photo001.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "empty.png").write_bytes(b"")
    rows = [
        {**photo_row(1, 0, 0), "heading_deg": "-90", "captured_at": "2024-05-01 12:00:00+02:00", "split": "val"},
        {**photo_row(1, 0, 0)},
        {"image_id": "a", "image_path": "", **HERE},
        {"image_id": "b", "image_path": "gone.jpg", **HERE},
        {"image_id": "c", "image_path": "cut.jpg", **HERE},
        {"image_id": "d", "image_path": "text.jpg", **HERE},
        {"image_id": "e", "image_path": "empty.png", **HERE},
        {"image_id": "f", "image_path": "photo001.jpg", "lat": "", "lon": "9"},
        {"image_id": "g", "image_path": "photo001.jpg", "lat": "nan", "lon": "9"},
        {"image_id": "h", "image_path": "photo001.jpg", "lat": "0", "lon": "0.0"},
        {"image_id": "i", "image_path": "photo001.jpg", "lat": "91", "lon": "9"},
        {"image_id": "j", "image_path": "photo001.jpg", "lat": "north", "lon": "9"},
        {"image_id": "k", "image_path": "../photo001.jpg", **HERE},
    ]
    table = read_photo_table(write_csv(tmp_path / "photos.csv", rows), tmp_path, PhotoColumns())
    assert _reasons(table) == {
        "photo001": "duplicate_id",
        "a": "no_image",
        "b": "missing_file",
        "c": "unreadable",
        "d": "unreadable",
        "e": "unreadable",
        "f": "no_position",
        "g": "bad_position",
        "h": "bad_position",
        "i": "bad_position",
        "j": "bad_position",
        "k": "path_outside_image_root",
    }
    (photo,) = table.photos
    assert (photo.heading_deg, photo.captured_at, photo.given_split) == (270.0, "2024-05-01T12:00:00+02:00", "val")
    assert (photo.panorama_id, photo.source, photo.image_path) == (None, "csv", "photo001.jpg")


def test_columns_by_other_names_and_positions_without_pixels(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("\ufefffile,y,x\nsomewhere/1.jpg,48.7,9.1\n,48.8,9.2\n", encoding="utf-8")
    columns = PhotoColumns(image_path="file", lat="y", lon="x")
    table = read_photo_table(path, tmp_path, columns, require_images=False)
    assert [(p.image_id, p.lat) for p in table.photos] == [("somewhere/1.jpg", 48.7), ("(row without a name)", 48.8)]
    assert _reasons(read_photo_table(path, tmp_path, columns))["somewhere/1.jpg"] == "missing_file"


def test_missing_column_names_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("file,lat,lon\n")
    with pytest.raises(UserError, match="no column 'image_path'; it has: file, lat, lon"):
        read_photo_table(path, tmp_path, PhotoColumns())
    with pytest.raises(UserError, match="no column 'compass'"):
        read_photo_table(path, tmp_path, PhotoColumns(image_path="file", heading="compass"))
    path.write_bytes(b"file,lat,lon\n\xff\xfe,1,2\n")
    with pytest.raises(UserError, match="not a readable UTF-8 CSV table"):
        read_photo_table(path, tmp_path, PhotoColumns(image_path="file"))


def test_decompression_bomb_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_photo(tmp_path / "photo001.jpg", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    table = read_photo_table(write_csv(tmp_path / "photos.csv", [photo_row(1, 0, 0)]), tmp_path, PhotoColumns())
    assert _reasons(table) == {"photo001": "too_large"}


def test_pool_of_processes_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        draw_photo(tmp_path / f"photo{number:03d}.jpg", number)
    (tmp_path / "photo003.jpg").write_text("no photo")
    path = write_csv(tmp_path / "photos.csv", [photo_row(number, 0, number) for number in range(7)])
    alone = read_photo_table(path, tmp_path, PhotoColumns())
    monkeypatch.setattr(photo_check, "_POOL_FROM", 1)
    assert read_photo_table(path, tmp_path, PhotoColumns(), workers=2) == alone
    assert _reasons(alone) == {"photo003": "unreadable", "photo006": "missing_file"}


def test_folder_is_read_by_exif(tmp_path: Path) -> None:
    for name, lat in (("b/one.jpg", 48.5), ("a.JPEG", 48.6), (".hidden/x.jpg", 48.7), ("bad.jpg", 99.0)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        image = Image.new("RGB", (16, 16))
        exif = image.getexif()
        exif.get_ifd(0x8825).update({1: "N", 2: (lat, 0.0, 0.0), 3: "E", 4: (9.0, 0.0, 0.0), 17: 45.0})
        image.save(path, "JPEG", exif=exif)
    Image.new("RGB", (8, 8)).save(tmp_path / "none.png")
    (tmp_path / "notes.txt").write_text("no photo")
    table = read_photo_folder(tmp_path)
    assert [(p.image_id, p.lat, p.heading_deg) for p in table.photos] == [
        ("a.JPEG", 48.6, 45.0),
        ("b/one.jpg", 48.5, 45.0),
    ]
    assert _reasons(table) == {"bad.jpg": "bad_position", "none.png": "no_position", "notes.txt": "not_a_photo"}


def _save_with_position(path: Path, kind: str) -> None:
    image = Image.new("RGB", (32, 16), (200, 30, 30))
    exif = image.getexif()
    exif[0x010F] = "Camera"  # Pillow drops an EXIF block that holds nothing but directories
    exif.get_ifd(0x8825).update({1: "N", 2: (48.5, 0.0, 0.0), 3: "E", 4: (9.25, 0.0, 0.0), 17: 45.0, 31: 3.5})
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 12:00:00"
    image.save(path, kind, exif=exif)


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("AVIF", "avif")])
def test_every_kind_of_photo_states_its_position(tmp_path: Path, kind: str, suffix: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    _save_with_position(tmp_path / f"photo.{suffix}", kind)
    (photo,) = read_photo_folder(tmp_path).photos
    assert (photo.lat, photo.lon, photo.heading_deg, photo.position_error_m) == (48.5, 9.25, 45.0, 3.5)
    assert str(photo.captured_at).startswith("2024-05-01T12:00:00")
    whole = (tmp_path / f"photo.{suffix}").read_bytes()
    (tmp_path / f"photo.{suffix}").write_bytes(whole[: len(whole) // 2])
    assert _reasons(read_photo_folder(tmp_path)) == {f"photo.{suffix}": "unreadable"}


def test_heic_photo_states_its_position(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install 'llava-ial[heif]'")
    pillow_heif.register_heif_opener()
    _save_with_position(tmp_path / "phone.HEIC", "HEIF")
    (photo,) = read_photo_folder(tmp_path).photos
    assert (photo.image_id, photo.lat, photo.lon, photo.heading_deg) == ("phone.HEIC", 48.5, 9.25, 45.0)


def test_heic_photo_without_the_extra_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "phone.heic").write_bytes(b"whatever is in it")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert _reasons(read_photo_folder(tmp_path)) == {"phone.heic": "needs_extra_heif"}


def test_real_exif_folder_is_used_or_counted(shared_data: Path) -> None:
    table = read_photo_folder(shared_data / "exif")
    assert len(table.photos) == 10
    assert Counter(record.reason for record in table.dropped) == {"no_position": 12, "not_a_photo": 1}
    assert len(table.photos) + len(table.dropped) == len(list((shared_data / "exif").iterdir()))
    assert len(read_photo_folder(shared_data / "lund").photos) == 29


def _photos(count: int, panorama: str | None = None) -> list[PhotoRecord]:
    return [PhotoRecord(f"i{n:02d}", f"{n}.jpg", 48.0, 9.0, None, panorama, None, "csv") for n in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=25), st.sampled_from([0, 3, 9]))
def test_groups_are_the_chains_of_near_photos(places: list[tuple[int, int]], radius_m: int) -> None:
    xy_m = np.array(places, dtype=np.float64)
    groups = list(range(len(places)))  # naive: join until nothing changes
    for _ in places:
        for a, first in enumerate(xy_m):
            for b, second in enumerate(xy_m):
                if np.hypot(*(first - second)) <= radius_m:
                    groups[a] = groups[b] = min(groups[a], groups[b])
    assert group_within(xy_m, radius_m).tolist() == groups


def test_no_ungrouped_photo_is_within_the_radius() -> None:
    xy_m = np.array([[0.0, 0.0], [14.0, 0.0], [28.0, 0.0], [44.0, 0.0], [np.nan, np.nan], [np.nan, np.nan]])
    found = [photo.panorama_id for photo in group_panoramas(_photos(6), xy_m, 15.0)]
    assert found == ["near-i00", "near-i00", "near-i00", "near-i03", "near-i04", "near-i05"]


def test_given_panoramas_stay() -> None:
    mixed = [*_photos(2, "p7"), PhotoRecord("x", "x.jpg", 48.0, 9.0, None, None, None, "csv")]
    found = group_panoramas(mixed, np.zeros((3, 2)), 15.0)
    assert [photo.panorama_id for photo in found] == ["p7", "p7", "near-x"]
    assert GeoPoint(found[0].lat, found[0].lon) == GeoPoint(48.0, 9.0)


def test_a_machine_out_of_memory_is_no_damaged_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8)).save(path)
    assert read_file(path).reason == ""

    def exhausted(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", exhausted)
    with pytest.raises(MemoryError):
        read_file(path)
