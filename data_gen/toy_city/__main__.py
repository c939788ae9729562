"""Build an invented town with a street map and rendered street photos.

Example:
    python -m data_gen.toy_city --seed 7 --output runs/toy/city
    python -m data_gen.toy_city --seed 1003 --size medium --photos 2000 --output runs/cities/1003
"""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from data_gen.toy_city.build import CityOptions, build_city
from data_gen.toy_city.names import FIRST_PRETRAINING_SEED
from data_gen.toy_city.plan import SIZES
from llava_ial.errors import UserError, run_command

TOY_CLIP = Path(__file__).resolve().parents[2] / "train" / "toy_base" / "models" / "toy-clip"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, as those of every command here."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    sizes = "; ".join(f"{name}: {spec.photos} photos" for name, spec in SIZES.items())
    parser = _Parser(
        prog="python -m data_gen.toy_city",
        description="Build an invented town: an OpenStreetMap extract, neighbourhood polygons, and street photos with "
        "EXIF positions, captions and a train/val/test split. The same seed, size, pixels and photos give the same "
        "bytes.",
    )
    seed_help = f"which town; below {FIRST_PRETRAINING_SEED} for demos, from there on for pretraining (other names)"
    parser.add_argument("--seed", type=int, required=True, help=seed_help)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; a finished same city is reused")
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help=f"{sizes} (default: small)")
    parser.add_argument("--pixels", type=int, default=112, help="width and height of the photos (default: 112)")
    parser.add_argument("--photos", type=int, help="number of photos, instead of the size's own")
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, help=f"rendering processes (default here: {workers})")
    parser.add_argument(
        "--clip",
        type=Path,
        default=TOY_CLIP if TOY_CLIP.is_dir() else None,
        help="folder of an untuned CLIP to measure as a baseline (default: toy-clip); 'none' leaves it out",
    )
    return parser


def main() -> None:
    """Run the command."""
    given = build_parser().parse_args()
    clip = None if given.clip == Path("none") else given.clip
    if clip is not None and not (clip / "config.json").is_file():
        raise UserError(f"--clip {clip}: no CLIP there (no config.json); name another folder, or 'none'")
    build_city(CityOptions(given.seed, given.size, given.pixels, given.photos), given.output, given.workers, clip)


if __name__ == "__main__":
    run_command(main)
