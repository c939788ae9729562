"""Builds a whole city folder: map, photos, tables, pictures and baselines."""

import csv
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_gen.toy_city import GENERATOR_VERSION
from data_gen.toy_city.baselines import LIMIT, measure_baselines
from data_gen.toy_city.capture import place_panoramas
from data_gen.toy_city.contact_sheet import draw_contact_sheet, draw_map
from data_gen.toy_city.photos import Job, Photo, shoot_city
from data_gen.toy_city.place import Place, build_place
from data_gen.toy_city.plan import SIZES, Plan, build_plan
from data_gen.toy_city.scene import build_scene
from data_gen.toy_city.street_map import write_neighbourhoods, write_osm
from llava_ial.errors import UserError
from llava_ial.manifest import BUILDING, hold_folder

PHOTO_COLUMNS = (
    "image_path",
    "image_id",
    "panorama_id",
    "lat",
    "lon",
    "heading_deg",
    "captured_at",
    "split",
)
MANIFEST = "city.json"


@dataclass(frozen=True)
class CityOptions:
    """What decides every byte of a city.

    Attributes:
        seed: Whole number from 0; below 1000 for demos, from 1000 for pretraining.
        size: One of `SIZES`.
        pixels: Side of the photos.
        photos: Number of photos; none takes the size's own, or as many as the streets hold.
    """

    seed: int
    size: str = "small"
    pixels: int = 112
    photos: int | None = None

    def check(self) -> None:
        """Refuse values that make no city.

        Raises:
            UserError: Naming the option, the value and what is allowed.
        """
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be a whole number from 0")
        if self.size not in SIZES:
            raise UserError(f"--size {self.size}: must be one of {', '.join(SIZES)}")
        if not 32 <= self.pixels <= 512:
            raise UserError(f"--pixels {self.pixels}: must lie between 32 and 512")
        if self.photos is not None and self.photos < 1:
            raise UserError(f"--photos {self.photos}: must be at least 1")

    def parameters(self) -> dict[str, int | str]:
        """Return the parameters that a finished folder is compared by."""
        num_photos = self.photos or SIZES[self.size].photos
        return {
            "generator_version": GENERATOR_VERSION,
            "seed": self.seed,
            "size": self.size,
            "pixels": self.pixels,
            "num_photos": num_photos,
        }


def is_complete(options: CityOptions, output: Path) -> bool:
    """Tell whether `output` already holds this very city.

    Raises:
        UserError: If it holds anything else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    mend = "choose another --output or delete it first"
    try:
        found = json.loads((output / MANIFEST).read_text())["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--output {output}: exists and holds no finished toy city; {mend}") from None
    wanted = options.parameters()
    if found != wanted:
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        other = ", ".join(f"{key} {found.get(key)} instead of {wanted[key]}" for key in differing)
        raise UserError(f"--output {output}: holds another toy city ({other}); {mend}")
    return True


def build_city(options: CityOptions, output: Path, workers: int, clip: Path | None = None) -> None:
    """Build a city, or find it already complete.

    Everything is written under a temporary name beside `output` and renamed at the end; one process at a time does so.

    Args:
        options: What to build.
        output: The city's folder.
        workers: Number of rendering processes.
        clip: Folder of an untuned CLIP to measure beside the baselines without learning.

    Raises:
        UserError: For impossible options, for an output that holds something else or that another process builds.
    """
    options.check()
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    if is_complete(options, output):
        print(f"{output}: already complete (seed {options.seed}, {options.size}), nothing to do")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.parent / f".{output.name}.partial"
    draft.mkdir(exist_ok=True)
    (draft / BUILDING).touch()
    with hold_folder(draft):
        try:
            _remove_leftovers(draft)
            _fill_folder(options, draft, workers, clip)
            (draft / BUILDING).unlink()
            draft.replace(output)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    print(f"city: {output}")


def _remove_leftovers(draft: Path) -> None:
    """Empties what a killed build has left, but for the mark that is held."""
    for path in draft.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != BUILDING:
            path.unlink()


def _fill_folder(options: CityOptions, folder: Path, workers: int, clip: Path | None) -> None:
    start = time.perf_counter()
    spec = SIZES[options.size]
    plan = build_plan(options.seed, options.size)
    panoramas = place_panoramas(plan, options.photos, spec.headings)
    place, scene = build_place(plan), build_scene(plan)
    write_osm(folder / "city.osm.pbf", plan, place)
    write_neighbourhoods(folder / "neighbourhoods.geojson", plan, place)
    print(
        f"{place.city}, {place.state}: {len(plan.streets)} streets, {len(plan.sub_streets)} sub-streets, "
        f"{len(plan.neighbourhoods)} neighbourhoods, {len(scene.looks)} buildings, {len(panoramas)} panoramas"
    )
    job = Job(scene, place, spec.headings, options.pixels, folder)
    photos, rate = shoot_city(job, panoramas, min(workers, len(panoramas) // 8 + 1))
    if options.photos is None and len(photos) < spec.photos:
        print(f"its streets hold {len(photos)} photos; {spec.photos} are usual for {options.size}")
    print(f"{len(photos)} photos at {options.pixels} px, {rate:.0f} photos/s with {workers} workers")
    write_tables(folder, photos, plan, place)
    draw_contact_sheet(folder, photos, options.seed).save(folder / "contact_sheet.png", optimize=True)
    draw_map(plan, place).quantize(128).save(folder / "map.png", optimize=True)
    figures = measure_baselines(folder, photos)
    if clip is not None:
        from data_gen.toy_city.clip_baselines import measure_clip  # torch: workers and cities without it do not need it

        figures |= measure_clip(folder, photos, plan, place, clip)
    _write_json(folder / "baselines.json", figures)
    _print_baselines(figures)
    _write_json(folder / MANIFEST, _describe_city(options, plan, place, photos))
    print(f"built in {time.perf_counter() - start:.1f} s")


def write_tables(folder: Path, photos: list[Photo], plan: Plan, place: Place) -> None:
    """Write `photos.csv`, `captions.csv` and `truth.csv`."""
    _write_csv(folder / "photos.csv", PHOTO_COLUMNS, ([_cell(p, name) for name in PHOTO_COLUMNS] for p in photos))
    captions = ((p.image_path, p.image_id, p.caption) for p in photos)
    _write_csv(folder / "captions.csv", ("image_path", "image_id", "caption"), captions)
    truth = []
    for photo in photos:
        part = plan.sub_streets[photo.sub_street]
        names = place.streets[part.street], place.neighbourhoods[part.neighbourhood]
        truth.append((photo.image_id, names[0], part.index, names[1]))
    _write_csv(folder / "truth.csv", ("image_id", "street", "sub_street", "neighbourhood"), truth)


def _cell(photo: Photo, name: str) -> str:
    value = getattr(photo, name)
    if name in ("lat", "lon"):
        return f"{value:.7f}"
    return f"{value:.2f}" if name == "heading_deg" else str(value)


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _describe_city(options: CityOptions, plan: Plan, place: Place, photos: list[Photo]) -> dict[str, object]:
    counts = {split: sum(photo.split == split for photo in photos) for split in ("train", "val", "test")}
    return {
        "city": place.city,
        "state": place.state,
        "country": place.country,
        "parameters": options.parameters(),
        "bounds": _bounds(plan, place),
        "utm_zone": place.zone,
        "num_streets": len(plan.streets),
        "num_sub_streets": len(plan.sub_streets),
        "num_neighbourhoods": len(plan.neighbourhoods),
        "num_photos": counts,
    }


def _bounds(plan: Plan, place: Place) -> dict[str, float]:
    corners = np.array(plan.bounds).reshape(2, 2)
    (low_lat, low_lon), (high_lat, high_lon) = place.to_lat_lon(corners).tolist()
    return {"south": low_lat, "west": low_lon, "north": high_lat, "east": high_lon}


def _print_baselines(figures: dict[str, float | int]) -> None:
    print("without learning in this city, SSA@1 on the test photos:")
    for name, label in (
        ("pixels_16x16_1nn", "nearest photo by 16 x 16 pixels"),
        ("colour_histogram_1nn", "nearest photo by colour histogram"),
        ("clip_1nn", "nearest photo by untuned CLIP"),
        ("clip_zero_shot", "nearest address by untuned CLIP"),
        ("chance", "chance"),
    ):
        accuracy = figures.get(f"{name}_ssa_at_1")
        if accuracy is None:
            continue
        is_limited = name in ("pixels_16x16_1nn", "colour_histogram_1nn")
        note = f"  above the limit of {LIMIT:.0%}: this city is too easy" if is_limited and accuracy > LIMIT else ""
        print(f"  {label:34} {accuracy:6.1%}{note}")
