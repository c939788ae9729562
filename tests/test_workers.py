"""Pools of processes when one is killed, be it one that works or the one that shares out the work."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_gen.toy_city.capture import Panorama, place_panoramas
from data_gen.toy_city.photos import Job, shoot_city
from data_gen.toy_city.place import build_place
from data_gen.toy_city.plan import build_plan
from data_gen.toy_city.scene import build_scene
from llava_ial.errors import UserError
from tests.build_runs import ROOT, is_alive
from tests.grid_town import draw_photo

READ = """
import sys
from pathlib import Path
from data_gen import photo_check
photo_check.tqdm.update = lambda bar: print("read", flush=True)
photo_check.read_files(100_000 * [Path(sys.argv[1])], "", 2)
"""


class Fatal(Panorama):
    """Kills the process that is about to draw it, as the system does where memory is short."""

    def __reduce__(self) -> tuple[object, ...]:
        return signal.raise_signal, (signal.SIGKILL,)


@pytest.mark.timeout(60)
def test_a_killed_worker_ends_the_drawing_of_a_city(tmp_path: Path) -> None:
    plan = build_plan(7, "tiny")
    job = Job(build_scene(plan), build_place(plan), 2, 64, tmp_path)
    *panoramas, last = place_panoramas(plan, 8, 2)
    with pytest.raises(UserError, match="--workers 2: the system killed one of them"):
        shoot_city(job, [*panoramas, Fatal(**vars(last))], workers=2)


def test_workers_that_read_photos_end_with_the_process_that_was_killed(tmp_path: Path) -> None:
    draw_photo(tmp_path / "photo.jpg", 1)
    command = [sys.executable, "-c", READ, str(tmp_path / "photo.jpg")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "read\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        process.stdout.close()
    assert len(children) >= 2
    until = time.monotonic() + 20
    while any(is_alive(Path(f"/proc/{pid}")) for pid in children):
        assert time.monotonic() < until, children
        time.sleep(0.1)
