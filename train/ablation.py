"""The paper's tables for one's own city: every method with several seeds, measured alike.

    python -m train.ablation --config train/configs/ablation_toy.yaml --data DATA --base CLIP --output OUTPUT

Writes results/METHOD.json, one for each method (what was measured for each seed, seconds, memory), ranks/METHOD.json
(places of the truth for each photo), and tables.md: the means over seeds beside the published figures, with a paired
test against AddressCLIP. The same command continues: what is finished is not run again. Methods that differ only in how
a finished encoder locates photos (--views, --memory_weight) share its training.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)))))  # read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llava_ial.config import parse_config, save_config
from llava_ial.data.clip import clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import run_command
from llava_ial.evaluation.retrieval import retrieval_metrics
from llava_ial.evaluation.ways import EncodedCity
from llava_ial.locating import Way
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, write_json, write_text
from llava_ial.models.address_clip import load_dual_encoder
from llava_ial.models.half_precision import AUTO
from llava_ial.models.identity import hash_tensors
from llava_ial.training.clip_settings import ClipSettings
from train.ablation_settings import PROMPTS, AblationSettings, slug
from train.ablation_tables import ADDRESS_CLIP, RETRIEVAL, ZERO_SHOT, MethodResult, format_tables
from train.prompt_tuning import PromptSettings
from train.training_runs import TrainingRuns, end_on_sigterm, read_stage1_options, split_options

KIND = "ablation"
_NOT_IDENTITY = ("data", "image_root", "base", "output", "parallel")


def main() -> None:
    """Reads the settings, runs what is missing, writes the tables."""
    (settings,) = parse_config(AblationSettings, description=__doc__ or "")
    settings.refuse_impossible()
    end_on_sigterm()
    ablation = Ablation(settings)
    if claim_folder(settings.output, KIND, ablation.identity) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete, nothing to do")
        return
    save_config(settings.output / "config.yaml", settings)
    with ablation.runs:
        results = ablation.run()
    samples = ablation.dataset.samples(settings.eval_split)
    panoramas = {sample.photo.image_id: sample.photo.panorama for sample in samples}
    write_text(
        settings.output / "tables.md", format_tables(results, panoramas, settings.remarks(ablation.num_training_photos))
    )
    publish_manifest(settings.output, KIND, ablation.identity, parents={"data": ablation.dataset.identity})
    print((settings.output / "tables.md").read_text(encoding="utf-8"))


class Ablation:
    """All runs of a comparison.

    Args:
        settings: Checked.
    """

    def __init__(self, settings: AblationSettings) -> None:
        self.settings = settings
        self.dataset = IALDataset(settings.data, settings.image_root)
        self.photos = [row.image_id for row in clip_examples(self.dataset, settings.eval_split)]
        self.num_training_photos = len(clip_examples(self.dataset, "train"))
        self.runs = TrainingRuns(settings.parallel)
        self._trained = settings.trained()
        # A training is named after the first method that has it.
        first: dict[str, str] = {}
        self._named_after = {
            name: first.setdefault(json.dumps(read_stage1_options(given, name)[0].identity(), sort_keys=True), name)
            for name, given in self._trained.items()
        }
        options = {k: v for k, v in asdict(settings).items() if k not in _NOT_IDENTITY}
        base_hash, *searched = (
            hash_tensors(load_dual_encoder(name).state_dict()) for name in (settings.base, *settings.searched.values())
        )
        searched_hashes = dict(zip(settings.searched, searched, strict=True))
        self.identity = {
            **options, "data_hash": self.dataset.identity, "base_hash": base_hash, "searched_hashes": searched_hashes,
        }  # fmt: skip

    def run(self) -> list[MethodResult]:
        """Every method, the finished ones from their files."""
        searched, variants = self.settings.searched, [split_options(v)[0] for v in self.settings.variants]
        names = [*self.settings.methods, *searched, *variants]
        for name in names:
            if not self._result_file(name).exists():
                self._start(name)
        results = []
        for name in (progress := tqdm(names, desc="methods")):
            progress.set_postfix_str(name)
            if not self._result_file(name).exists():
                self._write(self._run_method(name, searched.get(name)))
            results.append(self._read(name))
        return results

    def _result_file(self, name: str) -> Path:
        return self.settings.output / "results" / f"{slug(name)}.json"

    def _ranks_file(self, name: str) -> Path:
        return self.settings.output / "ranks" / f"{slug(name)}.json"

    def _write(self, result: MethodResult) -> None:
        figures = asdict(result)
        # The result says that the method is finished, so it comes last.
        for path, value in (
            (self._ranks_file(result.name), figures.pop("ranks")),
            (self._result_file(result.name), figures),
        ):
            path.parent.mkdir(exist_ok=True)
            write_json(path, value)

    def _read(self, name: str) -> MethodResult:
        figures, ranks = (
            json.loads(path.read_text(encoding="utf-8")) for path in (self._result_file(name), self._ranks_file(name))
        )
        return MethodResult(**figures, ranks=ranks)

    def _start(self, name: str) -> None:
        """Puts the trainings of a method into the queue."""
        for seed in self.settings.seeds:
            if name in PROMPTS:
                self.runs.start(self._prompts(name, seed))
            elif name in self._trained or name == RETRIEVAL:
                self.runs.start(self._training(ADDRESS_CLIP if name == RETRIEVAL else name, seed))

    def _run_method(self, name: str, features: str | None) -> MethodResult:
        result = MethodResult(name)
        if name == ZERO_SHOT:
            self._locate(result, 0, self.settings.base, Way(), {})
            return result
        if features is not None:
            self._retrieve(result, 0, features)
            return result
        for seed in self.settings.seeds:
            if name in PROMPTS:
                settings = self._prompts(name, seed)
                cost = self.runs.train(settings)
                places = json.loads((settings.output / "ranks.json").read_text(encoding="utf-8"))
                ranks = torch.tensor([places[photo] for photo in self.photos])
                result.add(seed, *self._measured(ranks[:, 0], ranks[:, 1]), **cost)
            elif name == RETRIEVAL:
                training = self._training(ADDRESS_CLIP, seed)
                self.runs.train(training)
                self._retrieve(result, seed, str(training.output))
            else:
                training = self._training(name, seed)
                cost = self.runs.train(training)
                way = read_stage1_options(self._trained[name], name)[1]
                self._locate(result, seed, str(training.output), way, cost)
        return result

    def _prompts(self, name: str, seed: int) -> PromptSettings:
        settings: PromptSettings = self._placed(self.settings.prompt_settings(PROMPTS[name]), name, seed)
        return settings

    def _training(self, name: str, seed: int) -> ClipSettings:
        """The training of a method, which methods with the same training share."""
        training = replace(read_stage1_options(self._trained[name], name)[0], checkpoint_every=0)
        settings: ClipSettings = self._placed(training, self._named_after[name], seed)
        return settings

    def _placed(self, settings: Any, name: str, seed: int) -> Any:
        """The settings of a training with places and seed."""
        given = self.settings
        return replace(
            settings, data=given.data, image_root=given.image_root, base=given.base, seed=seed,
            output=given.output / "runs" / f"{slug(name)}-{seed}",
        )  # fmt: skip

    def _locate(self, result: MethodResult, seed: int, model: str, way: Way, cost: dict[str, float]) -> None:
        city = self._encode(model)
        ranks = city.ranks(self.settings.eval_split, way)
        result.add(seed, *self._measured(*ranks), **cost, **city.search_cost(self.settings.eval_split, way))

    def _retrieve(self, result: MethodResult, seed: int, model: str) -> None:
        """Nearest training photo by the features of an encoder, and the address of where it was taken."""
        city = self._encode(model)
        ranks, cost = city.retrieve(self.settings.eval_split)
        result.add(seed, *self._measured(*ranks), **cost)

    def _encode(self, model: str) -> EncodedCity:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return EncodedCity(model, self.dataset, device=device, precision=AUTO)

    def _measured(
        self, sub_street: torch.Tensor, street: torch.Tensor
    ) -> tuple[dict[str, float], dict[str, list[int]]]:
        places = zip(self.photos, sub_street.tolist(), street.tolist(), strict=True)
        return retrieval_metrics(sub_street, street), {photo: [piece, road] for photo, piece, road in places}


if __name__ == "__main__":
    run_command(main)
