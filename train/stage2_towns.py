r"""How does LLaVA read what stage 1 has learned? Ways to tune it, compared on some towns and reported on others.

    for seed in 7 34 35 36 37 38 39 40; do make demo SEED=$seed SERVE=0; done
    python -m train.stage2_towns --config train/configs/stage2_towns.yaml --base train/toy_base/models/toy-llava \
        --output OUTPUT

1. tunes by every method on each development town, from the town's data and its AddressCLIP, and asks the test photos
2. takes the best method by the mean share of streets and cross streets that are named right
3. tunes by the first method and by the best one on the report's towns, and asks these towns' test photos
4. pairs the answers of each with the first candidates of its AddressCLIP, photo by photo over all these towns

Methods have the same base, dialogues, epochs, rates and seed; what a line adds is all in which it differs (and the
projector's own training, where it comes first). Writes methods.md with tables, methods.json with the same in numbers,
and a folder for every training and evaluation. The same command continues: what is finished is not run again.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)))))  # read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import csv
import json
import shlex
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_ial.config import parse_config, save_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import (
    MANIFEST,
    FolderState,
    claim_folder,
    file_hash,
    publish_manifest,
    write_json,
    write_text,
)
from llava_ial.prompts import WHERE
from train.ablation_settings import slug
from train.stage2_towns_settings import Stage2TownsSettings
from train.stage2_towns_tables import MethodResult, best_method, format_methods, summary
from train.training_runs import ROOT, Command, TrainingRuns, end_on_sigterm

KIND = "stage2_towns"
_NOT_IDENTITY = ("output", "parallel")
_STREET, _PIECE = "street_accuracy", "sub_street_accuracy"


def main() -> None:
    """Reads the settings, runs what is missing, writes the tables."""
    (settings,) = parse_config(Stage2TownsSettings, description=__doc__ or "")
    settings.refuse_impossible()
    end_on_sigterm()
    identity = {name: str(value) for name, value in asdict(settings).items() if name not in _NOT_IDENTITY}
    identity |= {str(folder): file_hash(folder / MANIFEST) for folder in settings.inputs}
    if claim_folder(settings.output, KIND, identity) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete, nothing to do")
        return
    save_config(settings.output / "config.yaml", settings)
    with TrainingRuns(settings.parallel) as runs:
        dev = measure(settings, runs, settings.names, settings.dev_towns)
        best = best_method(settings.names, dev)
        report = measure(settings, runs, dict.fromkeys([settings.names[0], best]), settings.report_towns)
    about = {"machine": f"{os.cpu_count()} CPU cores", "measured_on": datetime.now(UTC).date().isoformat()}
    found = {"best": best, "development": summary(dev), "report": summary(report), **about}
    text = format_methods(settings.shown_options(), dev, report, best)
    write_text(settings.output / "methods.md", text)
    write_json(settings.output / "methods.json", found)
    publish_manifest(settings.output, KIND, identity, best=best)
    print(text)


def measure(
    settings: Stage2TownsSettings, runs: TrainingRuns, names: Iterable[str], towns: Sequence[Path]
) -> list[MethodResult]:
    """Every method on every town, the finished ones from their folders.

    Raises:
        UserError: A training or an evaluation failed.
    """
    names = list(names)
    waiting: dict[tuple[str, Path], Future[dict[str, float]]] = {}
    for town in towns:
        for model in dict.fromkeys(settings.model_of(name) for name in names):
            asked = [name for name in names if settings.model_of(name) == model]
            waiting[model, town] = runs.start_chain(commands(settings, model, asked, town))
    for done in tqdm(as_completed(waiting.values()), total=len(waiting), desc="trainings", unit="training"):
        done.result()
    return [
        read_result(
            name, town.name, _folder(settings, name, town) / "evaluation",
            waiting[settings.model_of(name), town].result()["seconds"],
        )
        for town in towns for name in names
    ]  # fmt: skip


def commands(settings: Stage2TownsSettings, model: str, asked: Sequence[str], town: Path) -> list[Command]:
    """All that a method needs on a town, in order: its training and what it is asked."""
    folder, data = _folder(settings, model, town), f"--data={town / 'data'}"
    found, base = [], settings.base
    common = [data, f"--clip={town / 'stage1'}", f"--seed={settings.seed}", *shlex.split(settings.stage2_options)]
    if model in settings.projector_first:
        aligned, merged = folder / "projector", folder / "projector_merged"
        found.append(_training([*common, f"--base={base}", *shlex.split(settings.projector_options)], aligned))
        arguments = ("-m", "train.merge", f"--model={aligned}", data, f"--output={merged}", "--dtype=float32")
        found.append(Command(arguments, merged))
        base = str(merged)
    found.append(_training([*common, f"--base={base}", *settings.trained()[model]], folder / "model"))
    for name in asked:
        hints = [f"--hints={settings.asked_with[name]}"] if name in settings.asked_with else []
        output = _folder(settings, name, town) / "evaluation"
        arguments = ("-m", "serve.evaluate", f"--model={folder / 'model'}", data, f"--output={output}", *hints)
        found.append(Command((*arguments, *shlex.split(settings.evaluate_options)), output))
    return found


def read_result(name: str, town: str, evaluation: Path, seconds: float) -> MethodResult:
    """What an evaluation found."""
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    photos = {row["image_id"]: row for row in _rows(evaluation / "photos.csv")}
    answers = [row for row in _rows(evaluation / "answers.csv") if row["task"] == WHERE]  # a failed one is a wrong one
    parts = [metrics["answers"], metrics.get("dialogues") or {"rates": {}}]
    return MethodResult(
        name, town, seconds,
        {row["image_id"]: [_share(row[_STREET]), _share(row[_PIECE])] for row in answers},
        {key: [float(row["street_rank"] == "1"), float(row["sub_street_rank"] == "1")] for key, row in photos.items()},
        {key: row["panorama_id"] for key, row in photos.items()},
        {key: rate["value"] for part in parts for key, rate in part["rates"].items() if "question" in key},
        metrics["against_encoder"]["street"],
    )  # fmt: skip


def _training(options: Sequence[str], output: Path) -> Command:
    return Command((str(ROOT / "train" / "stage2_llava.py"), *options, f"--output_dir={output}"), output)


def _folder(settings: Stage2TownsSettings, name: str, town: Path) -> Path:
    return settings.output / "runs" / town.name / slug(name)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: {error}; delete its folder, and the same command evaluates again") from error


def _share(cell: str) -> float:
    return float(cell or 0.0)


if __name__ == "__main__":
    run_command(main)
