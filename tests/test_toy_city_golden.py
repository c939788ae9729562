"""The look of the toy city is frozen: base models were trained on it.

Whoever changes what a view looks like raises `GENERATOR_VERSION`, trains new base models and then renews the file:
    python -m tests.test_toy_city_golden
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_gen.toy_city import GENERATOR_VERSION
from data_gen.toy_city.capture import aim_camera, draw_movers, place_panoramas
from data_gen.toy_city.light import draw_light
from data_gen.toy_city.plan import build_plan
from data_gen.toy_city.render import render_views
from data_gen.toy_city.scene import build_scene

GOLDEN = Path(__file__).parent / "golden" / "toy_city.txt"
SEEDS, VIEWS, PIXELS, BLOCK = (7, 1007), 5, 112, 14


def fingerprint() -> npt.NDArray[np.uint8]:
    """Return ten renders of two cities, (10, 8, 8, 3): means of blocks, robust to rounding."""
    blocks = []
    for seed in SEEDS:
        scene = build_scene(build_plan(seed, "tiny"))
        panoramas = place_panoramas(scene.plan, 48, 4)
        for number in range(VIEWS):
            panorama = panoramas[2 * number]
            camera = aim_camera(seed, panorama, 4)
            light = draw_light(seed, panorama.day, panorama.number)
            views = render_views(scene, camera, light, draw_movers(scene, panorama), PIXELS, panorama.number)
            image = views.images[number % 4].astype(np.float64)
            side = PIXELS // BLOCK
            blocks.append(image.reshape(side, BLOCK, side, BLOCK, 3).mean(axis=(1, 3)))
    return np.rint(np.stack(blocks)).astype(np.uint8)


def test_ten_renders_look_as_they_did() -> None:
    version, *rows = GOLDEN.read_text().split()
    assert version == f"version={GENERATOR_VERSION}", "a new generator version needs new golden renders"
    expected = np.frombuffer(bytes.fromhex("".join(rows)), dtype=np.uint8)
    found = fingerprint().reshape(-1)
    off = np.abs(found.astype(int) - expected.astype(int))
    assert off.max() <= 2, f"{(off > 2).mean():.1%} of the blocks moved, by up to {off.max()} of 255"


def write_golden() -> None:
    """Renew the file."""
    rows = [row.tobytes().hex() for row in fingerprint()]
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("\n".join([f"version={GENERATOR_VERSION}", *rows]) + "\n")
    sys.stdout.write(f"{GOLDEN}: renewed\n")


if __name__ == "__main__":
    write_golden()
