"""Renders panoramas into JPEG files with EXIF, in a pool of worker processes."""

import datetime
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data_gen.toy_city.arrays import ByteArray, random_stream
from data_gen.toy_city.captions import describe_view, has_crossing_ahead
from data_gen.toy_city.capture import Panorama, aim_camera, draw_movers
from data_gen.toy_city.light import draw_light
from data_gen.toy_city.place import Place
from data_gen.toy_city.render import render_views
from data_gen.toy_city.scene import Scene
from data_gen.workers import worker_pool

JPEG_QUALITY = 88
_GPS_IFD, _EXIF_IFD, _DATE_TIME_ORIGINAL = 0x8825, 0x8769, 0x9003


@dataclass(frozen=True)
class Photo:
    """A row of `photos.csv`, `captions.csv` and `truth.csv`.

    Attributes:
        image_path: Relative to the city's folder.
        image_id: The file's name without its ending.
        panorama_id: Name of the panorama.
        lat: Latitude in degrees.
        lon: Longitude in degrees.
        heading_deg: Direction of the view, clockwise from north.
        captured_at: Local date and time, ISO 8601.
        split: train, val or test.
        caption: What the view shows.
        sub_street: Number of the sub-street, for baselines and tests only.
    """

    image_path: str
    image_id: str
    panorama_id: str
    lat: float
    lon: float
    heading_deg: float
    captured_at: str
    split: str
    caption: str
    sub_street: int


@dataclass(frozen=True)
class Job:
    """What every worker needs.

    Attributes:
        scene: The town.
        place: Names and position.
        num_headings: Views of a full panorama.
        pixels: Side of the pictures.
        folder: The city's folder.
    """

    scene: Scene
    place: Place
    num_headings: int
    pixels: int
    folder: Path


def capture_time(seed: int, day: int, hour: float) -> datetime.datetime:
    """Return the local time of a capture; days of a city lie about six weeks apart."""
    rng = random_stream(seed, "calendar", day)
    date = datetime.datetime(2023, 3, 1) + datetime.timedelta(days=42 * (day - 1) + int(rng.integers(20)))
    return date + datetime.timedelta(seconds=round(hour * 3600))


def _degrees_parts(value: float) -> tuple[Fraction, Fraction, Fraction]:
    """Split degrees into degrees, minutes and seconds; seconds to a millionth."""
    micro = round(abs(value) * 3600 * 10**6)
    degrees, rest = divmod(micro, 3600 * 10**6)
    minutes, micro_seconds = divmod(rest, 60 * 10**6)
    return Fraction(degrees), Fraction(minutes), Fraction(micro_seconds, 10**6)


def encode_jpeg(image: ByteArray, lat: float, lon: float, heading_deg: float, when: datetime.datetime) -> bytes:
    """Encode a (P, P, 3) picture with its position, direction and time in EXIF."""
    exif = Image.Exif()
    gps = exif.get_ifd(_GPS_IFD)
    gps[1], gps[2] = "N" if lat >= 0 else "S", _degrees_parts(lat)
    gps[3], gps[4] = "E" if lon >= 0 else "W", _degrees_parts(lon)
    gps[16], gps[17] = "T", Fraction(round(heading_deg * 100), 100)
    exif.get_ifd(_EXIF_IFD)[_DATE_TIME_ORIGINAL] = when.strftime("%Y:%m:%d %H:%M:%S")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, exif=exif)
    return buffer.getvalue()


def shoot_panorama(job: Job, panorama: Panorama) -> list[Photo]:
    """Render one panorama, write its files and return their rows."""
    scene = job.scene
    light = draw_light(scene.seed, panorama.day, panorama.number)
    camera = aim_camera(scene.seed, panorama, job.num_headings)
    views = render_views(scene, camera, light, draw_movers(scene, panorama), job.pixels, panorama.number)
    lat, lon = job.place.to_lat_lon(panorama.position).tolist()
    photos = []
    for number in range(panorama.num_views):
        heading = round(float(camera.headings_deg[number]), 2) % 360.0
        panorama_id = f"pano{panorama.number:05d}_day{panorama.day}"
        image_id = f"{panorama_id}_view{number:02d}"
        path = f"photos/{panorama.number // 100:03d}/{image_id}.jpg"
        when = capture_time(scene.seed, panorama.day, light.hour) + datetime.timedelta(seconds=number)
        crossing = has_crossing_ahead(scene.plan, panorama.position, heading)
        wording = random_stream(scene.seed, "caption", panorama.number, number)
        caption = describe_view(views, number, scene.looks, light, crossing, wording)
        (job.folder / path).write_bytes(encode_jpeg(views.images[number], lat, lon, heading, when))
        stamp = when.isoformat(timespec="seconds")
        row = Photo(path, image_id, panorama_id, lat, lon, heading, stamp, panorama.split, caption, panorama.sub_street)
        photos.append(row)
    return photos


_jobs: list[Job] = []  # one per worker process, set when it starts


def _start_worker(job: Job) -> None:
    _jobs.append(job)


def _shoot_in_worker(panorama: Panorama) -> list[Photo]:
    return shoot_panorama(_jobs[-1], panorama)


def _shoot_all(job: Job, panoramas: list[Panorama], workers: int) -> Iterator[list[Photo]]:
    if workers <= 1:
        yield from (shoot_panorama(job, panorama) for panorama in panoramas)
        return
    with worker_pool(workers, _start_worker, job) as pool:
        yield from pool.map(_shoot_in_worker, panoramas, chunksize=8)


def shoot_city(job: Job, panoramas: list[Panorama], workers: int) -> tuple[list[Photo], float]:
    """Render all panoramas.

    Args:
        job: What to render and where to write.
        panoramas: In the order of their numbers; neighbours lie together, so that workers share few textures.
        workers: Number of processes; 1 renders in this process.

    Returns:
        All rows in order, and the rate in photos per second.
    """
    for number in sorted({panorama.number // 100 for panorama in panoramas}):
        (job.folder / "photos" / f"{number:03d}").mkdir(parents=True)
    photos: list[Photo] = []
    start = time.perf_counter()
    with tqdm(total=sum(p.num_views for p in panoramas), desc="photos", unit="photo", disable=None) as progress:
        for rows in _shoot_all(job, panoramas, workers):
            photos.extend(rows)
            progress.update(len(rows))
    return photos, len(photos) / (time.perf_counter() - start)
