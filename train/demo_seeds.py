r"""What do demos of several towns give on the mean? Towns differ by more than the interval of one of them says.

    for seed in 34 36 37; do
        make demo SEED=$seed SERVE=0
        python -m llava_ial.evaluation.ways --model train/toy_base/models/toy-clip --data runs/demo_short_$seed/data \
            --views parts --memory_weights 30 --memory_sharpness 4 --mixed_precision auto \
            --output runs/demo_short_$seed/untuned.json
    done
    python -m train.demo_seeds --runs runs/demo_short_34 runs/demo_short_36 runs/demo_short_37

Reads ``evaluation/metrics.json`` and ``times.tsv`` of every run, and what ``untuned.json`` says of the encoder that
stage 1 started from, located alike, where there is one. Prints a Markdown table with mean and deviation over
the towns, and writes the same figures as JSON.
"""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import write_json

TIMES, UNTUNED = "times.tsv", "untuned.json"
_PARTS = ("ranking", "answers", "baselines", "against_encoder", "shuffled_photos")


@dataclass
class Settings:
    """Which runs."""

    runs: list[Path] = field(metadata={"help": "folders of finished demos, each with another town"})
    output: Path = field(default=Path("benchmarks/results/demo_seeds.json"), metadata={"help": "JSON to write"})


def main() -> None:
    """Reads all runs before it says anything."""
    (settings,) = parse_config(Settings, description=__doc__ or "")
    towns = {run.name: figures(run) for run in settings.runs}
    if len(towns) < len(settings.runs):
        raise UserError(f"--runs {' '.join(map(str, settings.runs))}: two have the same name; take each town once")
    found: dict[str, Any] = {"towns": towns, "mean": over_towns(towns, mean)}
    if len(towns) > 1:
        found["deviation"] = over_towns(towns, stdev)
    about = {"machine": f"{os.cpu_count()} CPU cores", "measured_on": datetime.now(UTC).date().isoformat()}
    write_json(settings.output, found | about)
    print(format_table(found))


def figures(run: Path) -> dict[str, float]:
    """Rates in percent and seconds of one demo.

    Raises:
        UserError: It is not finished.
    """
    metrics = _read(run / "evaluation" / "metrics.json")
    if missing := [part for part in _PARTS if part not in metrics]:
        raise UserError(f"{run}: its evaluation has no {', '.join(missing)}; take what `make demo` writes")
    ranking, answers = metrics["ranking"], metrics["answers"]["rates"]
    street = metrics["against_encoder"]["street"]
    rates = {
        **{name: ranking[name] for name in ("SSA@1", "SSA@5", "SA@1", "SA@5")},
        "SSA@1, best baseline": max(baseline["SSA@1"] for baseline in metrics["baselines"].values()),
        "street in words": answers["street_accuracy"]["value"],
        "street and cross streets in words": answers["sub_street_accuracy"]["value"],
        "address not in the list": answers["nonexistent_address_rate"]["value"],
        "shuffled photos: street in words": metrics["shuffled_photos"]["rates"]["street_accuracy"]["value"],
    }
    found = {name: round(100 * rate, 1) for name, rate in rates.items()}
    if (run / UNTUNED).exists():
        found["SSA@1, untuned, located alike"] = round(100 * _read(run / UNTUNED)["ways"][0]["metrics"]["SSA@1"], 1)
    found["SSA@1 above the best baseline"] = round(found["SSA@1"] - found["SSA@1, best baseline"], 1)
    found["street in words, above SA@1"] = round(found["street in words"] - found["SA@1"], 1)
    found |= {
        "other street than the first candidate": street["num_differ"],
        "there right: the words": street["num_right"],
        "there right: the candidate": street["num_encoder_right"],
    }
    return found | _seconds(run / TIMES)


def over_towns(towns: dict[str, dict[str, float]], of: Any) -> dict[str, float]:
    """``of`` the values of every figure that all towns have."""
    common = [name for name in next(iter(towns.values())) if all(name in town for town in towns.values())]
    return {name: round(of([town[name] for town in towns.values()]), 1) for name in common}


def format_table(found: dict[str, Any]) -> str:
    """A row for each figure; mean and deviation after the towns."""
    columns = {**found["towns"], **{name: found[name] for name in ("mean", "deviation") if name in found}}
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in found["mean"]:
        lines.append(f"| {name} | {' | '.join(f'{column[name]:g}' for column in columns.values())} |")
    return "\n".join(lines)


def _seconds(times: Path) -> dict[str, float]:
    """Of every step and of all; what a step took before it was interrupted is not known."""
    if not times.exists():
        return {}
    seconds: dict[str, float] = {}
    for line in times.read_text(encoding="utf-8").splitlines():
        title, value = line.split("\t")
        seconds[f"seconds: {title}"] = seconds.get(f"seconds: {title}", 0) + float(value)
    return {**seconds, "seconds: all": sum(seconds.values())}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: {error}; run `make demo SEED=... SERVE=0` to its end first") from error


if __name__ == "__main__":
    run_command(main)
