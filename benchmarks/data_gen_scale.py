"""How long a data set of millions of positions takes from a table to dialogues, and how much memory.

    python -m benchmarks.data_gen_scale --streets city.osm.pbf --neighbourhoods neighbourhoods.geojson

Panoramas are drawn along the streets with an error of 5 m, each with the crops of SF-XL (12); no pixels, no LLaVA JSON.
The build is the command itself. Writes benchmarks/results/data_gen_scale.json and prints a table.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data_gen import draw_positions
from data_gen.streets import DEFAULT_HIGHWAYS, StreetMap, load_street_map
from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import file_hash, library_versions, write_json

RESULTS = Path("benchmarks/results/data_gen_scale.json")
_CROPS = 12
_POLL_S = 1.0
_BATCH = 100_000
_STEPS = (
    "list",
    "check",
    "photos",
    "geocode",
    "addresses",
    "caps",
    "house_numbers",
    "captions",
    "conversations",
    "summary",
)


@dataclass
class ScaleSettings:
    """What is measured."""

    streets: Path = field(metadata={"help": "map: an .osm.pbf extract"})
    neighbourhoods: Path | None = field(default=None, metadata={"help": "GeoJSON polygons"})
    num_positions: int = field(default=4_100_000, metadata={"help": "rows of the table"})
    workers: int = field(default=2, metadata={"help": "processes of the build"})
    questions: str = field(default="measured", metadata={"help": "kinds of question, as in a build"})
    max_times_mean: float = field(default=4.0, metadata={"help": "cap by sub-street, as in a build; 0: none"})
    folder: Path = field(default=Path("runs/data_gen_scale"), metadata={"help": "where table and data set are made"})
    output: Path = field(default=RESULTS, metadata={"help": "JSON file of the results"})


@dataclass(frozen=True)
class Measured:
    """One build.

    Attributes:
        steps: Rows of the table.
        seconds: From start to end by the clock.
        cpu_s: Processor seconds of all its processes: what it would take one free core.
        peak_mb: The most memory of all its processes together.
        mean_load: Of the machine meanwhile; more than its cores means that others worked on it too.
    """

    steps: list[dict[str, Any]]
    seconds: float
    cpu_s: float
    peak_mb: float
    mean_load: float


def main() -> None:
    """The command."""
    (settings,) = parse_config(ScaleSettings, description=__doc__ or "")
    if settings.num_positions < _CROPS:
        raise UserError(f"num_positions: {settings.num_positions}; at least {_CROPS}")
    if settings.folder.exists():
        raise UserError(f"folder: {settings.folder} is there already; delete it or name another one")
    settings.folder.mkdir(parents=True)
    street_map = load_street_map(settings.streets, DEFAULT_HIGHWAYS, settings.neighbourhoods)
    table = settings.folder / "positions.parquet"
    write_positions(street_map, settings.num_positions, table)
    measured = _measured_build(settings, table)
    rows = measured.steps
    print(f"{'step':<16}{'seconds':>10}{'positions/s':>14}")
    for row in rows:
        print(f"{row['step']:<16}{row['seconds']:>10.1f}{row['positions_per_s']:>14,.0f}")
    size_mb = sum(path.stat().st_size for path in settings.folder.rglob("*.parquet")) / 1e6
    print(f"{settings.num_positions:,} positions in {measured.seconds:,.0f} s ", end="")
    print(
        f"({measured.cpu_s:,.0f} s of processor time; load {measured.mean_load:.1f} on {os.cpu_count()} cores); ",
        end="",
    )
    print(f"{measured.peak_mb:,.0f} MB of memory at most; {size_mb:,.0f} MB written")
    facts = {
        "what": "seconds of each step of a build, processor seconds and most memory of all its processes together",
        "measured_on": datetime.now(UTC).date().isoformat(),
        "cpu_cores": os.cpu_count(),
        "mean_load": round(measured.mean_load, 2),
        "map": {"file": settings.streets.name, "sha256": file_hash(settings.streets)},
        "positions": settings.num_positions,
        "workers": settings.workers,
        "questions": settings.questions,
        "max_times_mean": settings.max_times_mean,
        "steps": rows,
        "seconds": round(measured.seconds, 1),
        "cpu_seconds": round(measured.cpu_s, 1),
        "positions_per_cpu_s": round(settings.num_positions / measured.cpu_s),
        "peak_memory_mb": round(measured.peak_mb),
        "parquet_mb": round(size_mb),
        "versions": library_versions(),
    }
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings.output, facts)
    shutil.rmtree(settings.folder)


def write_positions(street_map: StreetMap, count: int, path: Path) -> None:
    """A table of photos by panorama, in batches."""
    schema = pa.schema(
        [("image_path", pa.string()), ("lat", pa.float64()), ("lon", pa.float64()), ("panorama_id", pa.string())]
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, count, _BATCH * _CROPS):
            rows = np.arange(start, min(start + _BATCH * _CROPS, count))
            first = start // _CROPS
            panoramas = rows // _CROPS - first
            places = draw_positions(street_map, int(panoramas[-1]) + 1, seed=first)
            lat, lon = street_map.frame.to_lat_lon(places)
            names = [f"{first + p:08d}" for p in panoramas.tolist()]
            files = [f"{name}/{row % _CROPS:02d}.jpg" for name, row in zip(names, rows.tolist(), strict=True)]
            columns = [pa.array(files), pa.array(lat[panoramas]), pa.array(lon[panoramas]), pa.array(names)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=100_000)


def _measured_build(settings: ScaleSettings, table: Path) -> Measured:
    """Runs the build and watches it; its steps' times are as it notes them."""
    output = settings.folder / "data"
    options: dict[str, object] = {
        "image_root": settings.folder,
        "photos_csv": table,
        "streets": settings.streets,
        "neighbourhoods": settings.neighbourhoods,
        "require_images": "false",
        "llava_json": "false",
        "city": "City",
        "num_dialogues": 1,
        "questions": settings.questions,
        "max_times_mean": settings.max_times_mean,
        "workers": settings.workers,
        "map_cache": settings.folder / "maps",
        "output": output,
    }
    command = [sys.executable, "-m", "data_gen.build"]
    command += [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]
    started, peak_mb, loads, cpu_before = time.time(), 0.0, [], _children_cpu_s()
    with (settings.folder / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(_POLL_S)
            peak_mb = max(peak_mb, _memory_mb(process.pid))
            loads.append(os.getloadavg()[0])
    total_s = time.time() - started
    if process.returncode:
        raise UserError(f"the build failed; {settings.folder / 'log.txt'} says why")
    noted: dict[str, float] = json.loads((output / "run.json").read_text(encoding="utf-8"))["step_seconds"]
    rows = [
        {"step": step, "seconds": seconds, "positions_per_s": round(settings.num_positions / max(seconds, 0.01))}
        for step, seconds in noted.items()
    ]
    steps = sorted(rows, key=lambda row: _STEPS.index(row["step"]))
    return Measured(steps, total_s, _children_cpu_s() - cpu_before, peak_mb, sum(loads) / len(loads))


def _children_cpu_s() -> float:
    """Processor seconds of the ended processes that this one started, and of those that they waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _memory_mb(pid: int) -> float:
    """Memory that a process and its children hold, shared pages counted once (PSS)."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) / 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except (OSError, ProcessLookupError):
        return total
    return total + sum(_memory_mb(int(child)) for child in children)


if __name__ == "__main__":
    run_command(main)
