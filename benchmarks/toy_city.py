"""How many photos a second the toy city's renderer takes, in one process and in one for each core.

    python -m benchmarks.toy_city

Starting the processes is timed apart. Writes benchmarks/results/toy_city.json and prints it.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import multiprocessing
import platform
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from data_gen.toy_city.capture import Panorama, place_panoramas
from data_gen.toy_city.photos import Job, shoot_panorama
from data_gen.toy_city.place import build_place
from data_gen.toy_city.plan import SIZES, build_plan
from data_gen.toy_city.scene import build_scene
from llava_ial.config import parse_config
from llava_ial.errors import run_command
from llava_ial.manifest import write_json

SEED, SIZE, PIXELS = 7, "small", 112
NUM_PANORAMAS = 200
_jobs: list[Job] = []  # one per worker process, set when it starts


@dataclass(frozen=True)
class RenderBenchmark:
    """Options."""

    output: Path = field(default=Path("benchmarks/results/toy_city.json"), metadata={"help": "JSON to write"})


def main() -> None:
    """Renders the same panoramas by one process and by several; all photos go to a temporary folder."""
    (settings,) = parse_config(RenderBenchmark, description=__doc__ or "")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        job, panoramas = prepare(Path(folder))
        num_photos = sum(panorama.num_views for panorama in panoramas)
        start_worker(job)
        shoot(panoramas[0])  # textures are painted at first sight
        started = time.perf_counter()
        for panorama in panoramas:
            shoot(panorama)
        rate = {"1": num_photos / (time.perf_counter() - started)}
        started = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(cores, initializer=start_worker, initargs=(job,)) as pool:
            pool.map(shoot, panoramas[: 4 * cores], chunksize=1)
            ready = time.perf_counter()
            pool.map(shoot, panoramas, chunksize=8)
            rate[str(cores)] = num_photos / (time.perf_counter() - ready)
    result = {
        "machine": f"{cores} CPU cores, {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "pixels": PIXELS,
        "num_photos": num_photos,
        "photos_per_second_by_processes": {processes: round(value, 1) for processes, value in rate.items()},
        "start_of_processes_s": round(ready - started, 2),
    }
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings.output, result)
    print(json.dumps(result, indent=2))


def prepare(folder: Path) -> tuple[Job, list[Panorama]]:
    """The town and the panoramas that are rendered."""
    plan, spec = build_plan(SEED, SIZE), SIZES[SIZE]
    panoramas = place_panoramas(plan, spec.photos, spec.headings)[:NUM_PANORAMAS]
    for number in {panorama.number // 100 for panorama in panoramas}:
        (folder / "photos" / f"{number:03d}").mkdir(parents=True)
    return Job(build_scene(plan), build_place(plan), spec.headings, PIXELS, folder), panoramas


def start_worker(job: Job) -> None:
    """Keeps the job where ``shoot`` finds it."""
    _jobs.append(job)


def shoot(panorama: Panorama) -> None:
    """Renders and writes one panorama."""
    shoot_panorama(_jobs[-1], panorama)


if __name__ == "__main__":
    run_command(main)
