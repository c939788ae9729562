"""The toy city: honest photos, an ordinary map, and nothing that gives a street away."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_gen.toy_city import build
from data_gen.toy_city.build import MANIFEST, CityOptions, build_city
from data_gen.toy_city.capture import TRAIN_DAYS, aim_camera, draw_movers, place_panoramas
from data_gen.toy_city.light import draw_light
from data_gen.toy_city.place import build_place
from data_gen.toy_city.plan import SIZES, Plan, build_plan
from data_gen.toy_city.render import Camera, Views, render_views
from data_gen.toy_city.scene import BUILDING, Scene, build_scene
from llava_ial.errors import UserError

SEED = 7
OPTIONS = CityOptions(SEED, "tiny", pixels=64)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny city, built in this process."""
    folder = tmp_path_factory.mktemp("toy") / "city"
    build_city(OPTIONS, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def scene() -> Scene:
    return build_scene(build_plan(SEED, "tiny"))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def shoot(scene: Scene, number: int, pixels: int = 64) -> tuple[Camera, Views]:
    panorama = place_panoramas(scene.plan, 48, 4)[number]
    camera = aim_camera(scene.seed, panorama, 4)
    light = draw_light(scene.seed, panorama.day, number)
    return camera, render_views(scene, camera, light, draw_movers(scene, panorama), pixels, number)


def metres_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances between (N, 2) and (M, 2) latitudes and longitudes, the obvious way."""
    lat = np.radians((a[:, None, 0] + b[None, :, 0]) / 2)
    north = (a[:, None, 0] - b[None, :, 0]) * 111_132.0
    east = (a[:, None, 1] - b[None, :, 1]) * 111_320.0 * np.cos(lat)
    return np.hypot(north, east)


def test_two_processes_write_the_same_bytes_as_one(city: Path, tmp_path: Path) -> None:
    build_city(OPTIONS, tmp_path / "again", workers=2)
    ours = {p.relative_to(city): p.read_bytes() for p in city.rglob("*") if p.is_file()}
    theirs = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert ours.keys() == theirs.keys()
    assert [str(name) for name in ours if ours[name] != theirs[name]] == []


def test_files_and_columns(city: Path) -> None:
    photos, captions, truth = (read_rows(city / f"{name}.csv") for name in ("photos", "captions", "truth"))
    expected = "image_path image_id panorama_id lat lon heading_deg captured_at split"
    assert " ".join(photos[0]) == expected
    assert " ".join(captions[0]) == "image_path image_id caption"
    assert " ".join(truth[0]) == "image_id street sub_street neighbourhood"
    assert len(photos) == len(captions) == len(truth) == SIZES["tiny"].photos
    assert len({row["image_id"] for row in photos}) == len(photos)
    for row in photos:
        assert re.fullmatch(r"pano\d{5}_day\d", row["panorama_id"])
        assert row["panorama_id"] in Path(row["image_path"]).name
        with Image.open(city / row["image_path"]) as image:
            assert image.size == (64, 64)
    polygons = json.loads((city / "neighbourhoods.geojson").read_text())["features"]
    assert {row["neighbourhood"] for row in truth} <= {feature["properties"]["name"] for feature in polygons}
    assert json.loads((city / MANIFEST).read_text())["num_photos"]["test"] > 0


def test_exif_agrees_with_the_table(city: Path) -> None:
    for row in read_rows(city / "photos.csv"):
        with Image.open(city / row["image_path"]) as image:
            exif = image.getexif()
        gps = exif.get_ifd(0x8825)
        lat, lon = (sum(float(part) / 60**i for i, part in enumerate(gps[tag])) for tag in (2, 4))
        lat, lon = lat * (1 if gps[1] == "N" else -1), lon * (1 if gps[3] == "E" else -1)
        here = np.array([[float(row["lat"]), float(row["lon"])]])
        assert metres_between(np.array([[lat, lon]]), here).item() < 0.1
        assert float(gps[17]) == pytest.approx(float(row["heading_deg"]), abs=0.01)
        taken = exif.get_ifd(0x8769)[0x9003].replace(":", "-", 2).replace(" ", "T")
        assert taken == row["captured_at"]


def test_a_town_of_short_streets_takes_the_photos_that_it_holds() -> None:
    plan = build_plan(39, "small")
    with pytest.raises(UserError, match="--photos 3600: a small city holds between 32 and about 3584 photos"):
        place_panoramas(plan, 3600, 8)
    panoramas = place_panoramas(plan, None, 8)
    assert sum(p.num_views for p in panoramas) == 3584
    assert {p.num_views for p in panoramas} == {8}
    shares = [sum(p.split == split for p in panoramas) / len(panoramas) for split in ("test", "val")]
    assert shares == pytest.approx([SIZES["small"].test_share, SIZES["small"].val_share], abs=0.01)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_size_has_its_own_number_of_photos(seed: int) -> None:
    plan = build_plan(seed, "small")
    usual, asked = (place_panoramas(plan, number, 8) for number in (None, SIZES["small"].photos))
    assert [(p.split, p.day, *p.position) for p in usual] == [(p.split, p.day, *p.position) for p in asked]


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("seed", [0, 7, 1003])
def test_held_out_panoramas_keep_their_distance_and_their_day(seed: int, size: str) -> None:
    plan = build_plan(seed, size)
    panoramas = place_panoramas(plan, SIZES[size].photos, SIZES[size].headings)
    place = build_place(plan)
    by_split = {
        split: place.to_lat_lon(np.array([p.position for p in panoramas if p.split == split]))
        for split in ("train", "val", "test")
    }
    assert metres_between(by_split["test"], by_split["train"]).min() > 8.0
    assert metres_between(by_split["val"], by_split["train"]).min() > 8.0
    assert metres_between(by_split["val"], by_split["test"]).min() > 8.0
    days = {split: {p.day for p in panoramas if p.split == split} for split in by_split}
    assert days["train"] <= set(TRAIN_DAYS)
    assert not days["train"] & (days["val"] | days["test"])
    assert not days["val"] & days["test"]
    assert sum(p.num_views for p in panoramas) == SIZES[size].photos


def test_captions_tell_what_is_seen_and_name_nothing(city: Path) -> None:
    place = build_place(build_plan(SEED, "tiny"))
    names = [*place.streets, *place.neighbourhoods, place.city, place.state, place.country, place.river]
    roots = {name.split()[0].lower() for name in names} - {"water", "upper", "lower", "north", "east"}
    captions = [row["caption"] for row in read_rows(city / "captions.csv")]
    assert len(set(captions)) > 0.9 * len(captions)
    for caption in captions:
        assert 10 <= len(caption.split()) <= 30, caption
        assert not roots & set(re.findall(r"[a-z]+", caption.lower())), caption
        assert not re.search(r"\b(an one|a (orange|olive))\b", caption), caption


def renumbered(plan: Plan) -> Plan:
    """The same town whose streets are numbered (and would be named) the other way round."""
    last = len(plan.streets) - 1
    parts = tuple(dataclasses.replace(part, street=last - part.street) for part in plan.sub_streets)
    return dataclasses.replace(plan, sub_streets=parts, streets=plan.streets[::-1], twins=())


def test_nothing_visible_depends_on_streets(scene: Scene) -> None:
    other = build_scene(renumbered(scene.plan))
    for number in (0, 5):
        assert np.array_equal(shoot(scene, number)[1].images, shoot(other, number)[1].images)
    looks = [dataclasses.astuple(look)[1:] for look in scene.looks]
    assert len(set(looks)) == len(looks), "two buildings look the same"


def test_nearer_walls_hide_what_is_behind(scene: Scene) -> None:
    """The obvious reference: along the ray of a pixel, no nearer wall is in the way."""
    camera, views = shoot(scene, 3, pixels=48)
    walls = views.faces.take(views.faces.kind == BUILDING)
    shown_of = np.cumsum(views.faces.kind == BUILDING) - 1
    reach = np.tan(np.radians(camera.field_of_view_deg) / 2)
    checked = 0
    for view, row, column in np.ndindex(4, 48, 48):
        if (row * 7 + column * 3 + view) % 11:
            continue
        tangent = ((2 * column + 0.5) / 96 * 2 - 1) * reach
        slope = (camera.horizons[view] * 96 - 2 * row - 0.5) / 96 * 2 * reach
        angle = np.radians(camera.headings_deg[view])
        forward, right = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
        ray = forward + tangent * right
        start, along = walls.start - camera.position, walls.end - walls.start
        det = ray[0] * along[:, 1] - ray[1] * along[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = (start[:, 0] * along[:, 1] - start[:, 1] * along[:, 0]) / det
            share = (start[:, 0] * ray[1] - start[:, 1] * ray[0]) / det
        z = camera.height_m + slope * depth
        blocks = (depth > 0.5) & (share > 0.001) & (share < 0.999) & (z > 0.05) & (z < walls.solid - 0.05)
        shown = int(views.face_ids[view, row, column])
        if shown == -2:
            assert not blocks.any(), "sky shines through a wall"
            checked += 1
        elif shown >= 0 and views.faces.kind[shown] == BUILDING:
            own = int(shown_of[shown])
            assert not (blocks & (depth < depth[own] - 0.05)).any(), "a hidden wall is drawn"
            checked += 1
    assert checked > 200


def test_a_finished_city_is_reused_and_another_one_refused(
    city: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in city.rglob("*")}
    build_city(OPTIONS, city, workers=1)
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"seed 7 instead of 8.*choose another --output"):
        build_city(dataclasses.replace(OPTIONS, seed=8), city, workers=1)
    assert before == {path: path.stat().st_mtime_ns for path in city.rglob("*")}
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no finished toy city"):
        build_city(OPTIONS, tmp_path, workers=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--photos 100000"):
        build_city(CityOptions(1, "tiny", photos=100_000), tmp_path / "city", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_has_left_is_gone_after_the_next(tmp_path: Path) -> None:
    draft = tmp_path / ".city.partial"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "write_tables", _kill)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(Killed):
            build_city(OPTIONS, tmp_path / "city", workers=1)
    assert (draft / "photos").is_dir()
    build_city(OPTIONS, tmp_path / "city", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["city"]
    assert not (tmp_path / "city" / "building.json").exists()


def test_two_builds_of_a_city_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(*_: object) -> None:
        with pytest.raises(UserError, match="another process works on it"):
            build_city(OPTIONS, tmp_path / "city", workers=1)
        raise Killed

    monkeypatch.setattr(build, "write_tables", second)
    with pytest.raises(Killed):
        build_city(OPTIONS, tmp_path / "city", workers=1)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def _kill(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--seed", "-4"], "--seed -4: must be a whole number from 0"),
        (["--sead", "4"], "the following arguments are required: --seed (see --help)"),
        (["--seed", "4", "--pixel", "9", "--fotos", "9"], "unrecognized arguments: --fotos 9 (see --help)"),
    ],
)
def test_command_line_says_in_one_line_what_is_wrong(tmp_path: Path, options: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "data_gen.toy_city", *options, "--output", str(tmp_path / "city")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == f"error: {complaint}\n"
