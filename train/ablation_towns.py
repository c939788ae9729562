r"""Is a way to train and to locate better than the faithful AddressCLIP? Chosen on some towns, reported on others.

    python -m train.ablation_towns --config train/configs/ablation_towns.yaml --base train/toy_base/models/toy-clip \
        --output OUTPUT

1. makes the development towns, and trains every method with every learning rate on each
2. takes each method's best rate by the mean SSA@1 over these towns, and with it the best method
3. makes the report's towns, trains the first method and the best one on each, both with their rate
4. compares the two photo by photo over all these towns; the paired test swaps whole panoramas

The first method is the faithful one. Methods have the same base, epochs, batch and augmentation; what a line adds is
all in which it differs. Those that differ only in how photos are located (--views, --memory_weight) share trainings.
Writes towns.md with tables, towns.svg with the sweep's curves, verdict.json with both in numbers, and
results/TOWN/METHOD-RATE.json with the place of the truth for each photo. The same command continues: what is finished
is not run again.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)))))  # read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llava_ial.config import parse_config, save_config
from llava_ial.data.clip import clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError, run_command
from llava_ial.evaluation.retrieval import retrieval_metrics
from llava_ial.evaluation.ways import EncodedCity
from llava_ial.manifest import MANIFEST, FolderState, claim_folder, publish_manifest, write_json, write_text
from llava_ial.models.address_clip import load_dual_encoder
from llava_ial.models.half_precision import AUTO
from llava_ial.models.identity import hash_tensors
from llava_ial.training.clip_settings import ClipSettings
from train.ablation_settings import slug
from train.towns_curves import draw_sweep
from train.towns_settings import FINAL_RATE_SHARE, TownsSettings
from train.towns_tables import Choice, Run, TownResult, choose, format_towns, sweep_by_rate, verdict
from train.training_runs import ROOT, TrainingRuns, end_on_sigterm

KIND = "ablation_towns"
_NOT_IDENTITY = ("base", "output", "parallel")
_DATA_CONFIG = ROOT / "data_gen" / "configs" / "toy_city.yaml"


def main() -> None:
    """Reads the settings, runs what is missing, writes tables and verdict."""
    (settings,) = parse_config(TownsSettings, description=__doc__ or "")
    settings.refuse_impossible()
    end_on_sigterm()
    options = {name: value for name, value in asdict(settings).items() if name not in _NOT_IDENTITY}
    identity = {**options, "base_hash": hash_tensors(load_dual_encoder(settings.base).state_dict())}
    if claim_folder(settings.output, KIND, identity) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete, nothing to do")
        return
    save_config(settings.output / "config.yaml", settings)
    with TrainingRuns(settings.parallel) as runs:
        towns = Towns(settings, runs)
        sweep = towns.measure(settings.sweep(), settings.dev_towns)
        choice = choose(settings.names, sweep)
        report = towns.measure(towns.to_report(choice), settings.report_towns)
    found = {**verdict(choice, report), "sweep": sweep_by_rate(sweep)}
    text = format_towns(settings.rates, sweep, choice, report, found)
    write_text(settings.output / "towns.svg", draw_sweep(settings.rates, sweep))
    write_text(settings.output / "towns.md", text)
    write_json(settings.output / "verdict.json", found)
    publish_manifest(settings.output, KIND, identity, verdict=found)
    print(text)


class Towns:
    """Trainings and measurements on towns.

    Args:
        settings: Checked.
        runs: Where trainings are started.
    """

    def __init__(self, settings: TownsSettings, runs: TrainingRuns) -> None:
        self.settings, self._runs = settings, runs
        self._methods = settings.trained()  # name to training and way
        first: dict[str, str] = {}  # a training is named after the first method that has it
        self._named_after = {
            name: first.setdefault(json.dumps(training.identity(), sort_keys=True), name)
            for name, (training, _) in self._methods.items()
        }

    def to_report(self, choice: Choice) -> list[Run]:
        """The first and the best method with their rates, and what needs no training beyond theirs."""
        trained = {(self._named_after[name], choice.rates[name]) for name in (choice.first, choice.best)}
        return [Run(name, rate) for name, rate in choice.rates.items() if (self._named_after[name], rate) in trained]

    def measure(self, asked: Iterable[Run], towns: Sequence[int]) -> list[TownResult]:
        """Every run on every town, the finished ones from their files.

        Raises:
            UserError: A town could not be made, or a training failed.
        """
        jobs = [(run, town) for town in towns for run in asked]
        missing = [(run, town) for run, town in jobs if not self._file(run, town).exists()]
        for town in tqdm(dict.fromkeys(town for _, town in missing), desc="towns", unit="town"):
            make_town(self.settings.output / "towns" / str(town), town, self.settings.size)
        waiting: dict[Any, list[tuple[Run, int]]] = {}
        for run, town in missing:
            waiting.setdefault(self._runs.start(self._training(run, town)), []).append((run, town))
        for done in tqdm(as_completed(waiting), total=len(waiting), desc="trainings", unit="training"):
            cost, (_, town) = done.result(), waiting[done][0]
            folder = str(self._training(*waiting[done][0]).output)
            city = EncodedCity(folder, self._dataset(town), device=_device(), precision=AUTO)
            for run, _ in waiting[done]:
                self._locate(run, town, city, cost)
        return [TownResult(**json.loads(self._file(run, town).read_text(encoding="utf-8"))) for run, town in jobs]

    def _locate(self, run: Run, town: int, city: EncodedCity, cost: dict[str, float]) -> None:
        split, dataset = self.settings.eval_split, self._dataset(town)
        pieces, roads = city.ranks(split, self._methods[run.method][1])
        photos = [row.image_id for row in clip_examples(dataset, split)]
        samples = dataset.samples(split)
        result = TownResult(
            run.method, run.rate, town, retrieval_metrics(pieces, roads),
            dict(zip(photos, map(list, zip(pieces.tolist(), roads.tolist(), strict=True)), strict=True)),
            {s.photo.image_id: s.photo.panorama for s in samples}, cost,
        )  # fmt: skip
        self._file(run, town).parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file(run, town), asdict(result))

    def _training(self, run: Run, town: int) -> ClipSettings:
        name = f"{slug(self._named_after[run.method])}-{run.rate:g}"
        return replace(
            self._methods[run.method][0], data=self._data(town), base=self.settings.base, checkpoint_every=0, seed=town,
            learning_rate=run.rate, final_learning_rate=run.rate * FINAL_RATE_SHARE,
            output=self.settings.output / "runs" / f"town-{town}" / name,
        )  # fmt: skip

    def _file(self, run: Run, town: int) -> Path:
        return self.settings.output / "results" / f"town-{town}" / f"{slug(run.method)}-{run.rate:g}.json"

    def _data(self, town: int) -> Path:
        return self.settings.output / "towns" / str(town) / "data"

    def _dataset(self, town: int) -> IALDataset:
        return IALDataset(self._data(town))


def make_town(folder: Path, seed: int, size: str) -> None:
    """A town and its data set, by the commands that a user runs; finished ones are kept.

    Raises:
        UserError: A command failed.
    """
    city, data = folder / "city", folder / "data"
    if (data / MANIFEST).exists():
        return
    files = {"photos_csv": "photos.csv", "streets": "city.osm.pbf", "neighbourhoods": "neighbourhoods.geojson",
             "captions_csv": "captions.csv"}  # fmt: skip
    commands = [
        ["data_gen.toy_city", f"--seed={seed}", f"--size={size}", f"--output={city}", "--clip=none"],
        ["data_gen.build", f"--config={_DATA_CONFIG}", f"--output={data}", f"--image_root={city}",
         *(f"--{option}={city / name}" for option, name in files.items())],
    ]  # fmt: skip
    for command in commands:
        made = subprocess.run(
            [sys.executable, "-m", *command], check=False, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if made.returncode:
            raise UserError(f"town {seed}: {command[0]} failed: {(made.stderr.strip().splitlines() or [''])[-1]}")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    run_command(main)
