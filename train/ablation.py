"""The paper's tables for one's own city: every method with several seeds, measured alike.

    python -m train.ablation --config train/configs/ablation_toy.yaml --data DATA --base CLIP --output OUTPUT

Writes results/METHOD.json, one for each method (what was measured for each seed, seconds, memory), and tables.md: the
means over seeds beside the published figures, with a paired test against AddressCLIP. The same command continues: what
is finished is not run again.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)))))  # read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoTokenizer

from llava_ial.config import parse_config, save_config
from llava_ial.data.clip import ClipExample, clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.data.views import ONE
from llava_ial.errors import UserError, run_command
from llava_ial.evaluation.locate import PhotoFeatures, address_ranks, encode_photos
from llava_ial.evaluation.retrieval import retrieval_metrics, street_classes, street_ranks, sub_street_ranks
from llava_ial.locating import load_encoder
from llava_ial.manifest import MANIFEST, FolderState, claim_folder, publish_manifest, write_json, write_text
from llava_ial.models.address_clip import AddressCLIP, load_dual_encoder
from train.ablation_tables import ADDRESS_CLIP, RETRIEVAL, ZERO_SHOT, MethodResult, format_tables

KIND = "ablation"
ROOT = Path(__file__).resolve().parents[1]
# Options of train/stage1_clip.py: weights of address, caption and geography.
LOSSES = {
    "CLIP + address": (1.0, 0.0, 0.0),
    "CLIP + caption": (0.0, 1.0, 0.0),
    "CLIP + address + caption": (1.0, 0.2, 0.0),
    "CLIP + address + geography": (1.0, 0.0, 0.8),
    ADDRESS_CLIP: (1.0, 0.2, 0.8),
}
PROMPTS = {"CLIP + CoOp": "coop", "CLIP + CoCoOp": "cocoop", "CLIP + MaPLe": "maple"}


@dataclass
class AblationSettings:
    """What is compared, on what, and how long each method may learn."""

    data: Path = field(metadata={"help": "data set folder, made by python -m data_gen.build"})
    base: str = field(metadata={"help": "CLIP that every method starts from: name on the hub, or a folder"})
    output: Path = field(metadata={"help": "folder to write"})
    image_root: Path | None = field(default=None, metadata={"help": "where the photos lie, if they were moved"})
    seeds: list[int] = field(
        default_factory=lambda: [21, 22, 23], metadata={"help": "each trained method runs with each"}
    )
    eval_split: str = field(default="test", metadata={"help": "split to measure on"})
    methods: list[str] = field(
        default_factory=lambda: [ZERO_SHOT, *LOSSES, *PROMPTS, RETRIEVAL],
        metadata={"help": "what to run, by the names of the tables"},
    )
    variants: list[str] = field(
        default_factory=list,
        metadata={"help": "further settings of AddressCLIP, each 'NAME: --option value ...' of train/stage1_clip.py"},
    )
    stage1_options: str = field(
        default="", metadata={"help": "options of train/stage1_clip.py for all that it trains: epochs, batch, rate"}
    )
    prompt_options: str = field(default="", metadata={"help": "options of train/prompt_tuning.py for all prompts"})
    cocoop_photos: int = field(
        default=0, metadata={"help": "training photos for CoCoOp, which pays for every photo and address; 0: all"}
    )

    def refuse_impossible(self) -> None:
        """Checks the names before anything expensive.

        Raises:
            UserError: An unknown method, or a variant without a name.
        """
        known = [ZERO_SHOT, *LOSSES, *PROMPTS, RETRIEVAL]
        for name in self.methods:
            if name not in known:
                raise UserError(f"--methods {name}: allowed: {', '.join(known)}")
        if RETRIEVAL in self.methods and ADDRESS_CLIP not in self.methods:
            raise UserError(f"--methods {RETRIEVAL}: it searches with the features of {ADDRESS_CLIP}; add that too")
        for variant in self.variants:
            if not re.match(r"[^:]+: +--\w", variant):
                raise UserError(f"--variants '{variant}': allowed: 'NAME: --option value ...'")


def main() -> None:
    """Reads the settings, runs what is missing, writes the tables."""
    (settings,) = parse_config(AblationSettings, description=__doc__ or "")
    settings.refuse_impossible()
    ablation = Ablation(settings)
    if claim_folder(settings.output, KIND, ablation.identity) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete, nothing to do")
        return
    save_config(settings.output / "config.yaml", settings)
    results = ablation.run()
    panoramas = {s.photo.image_id: s.photo.panorama_id or s.photo.image_id for s in ablation.samples}
    write_text(settings.output / "tables.md", format_tables(results, panoramas))
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
        self.samples = self.dataset.samples(settings.eval_split)
        self.rows = clip_examples(self.dataset, settings.eval_split)
        self.streets = street_classes([record.address.street_key for record in self.dataset.gallery])
        options = {k: v for k, v in asdict(settings).items() if k not in ("data", "image_root", "base", "output")}
        self.identity = {**options, "data_hash": self.dataset.identity, "base": Path(settings.base).name}

    def run(self) -> list[MethodResult]:
        """Every method, the finished ones from their files."""
        jobs: dict[str, list[str]] = {name: [] for name in self.settings.methods}
        jobs |= {v.split(":", 1)[0].strip(): shlex.split(v.split(":", 1)[1]) for v in self.settings.variants}
        results = []
        for name, options in (progress := tqdm(jobs.items(), desc="methods")):
            progress.set_postfix_str(name)
            path = self.settings.output / "results" / f"{_slug(name)}.json"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                write_json(path, asdict(self._run_method(name, options)))
            results.append(MethodResult(**json.loads(path.read_text(encoding="utf-8"))))
        return results

    def _run_method(self, name: str, options: list[str]) -> MethodResult:
        result = MethodResult(name)
        for seed in [0] if name == ZERO_SHOT else self.settings.seeds:
            folder = self.settings.output / "runs" / f"{_slug(name)}-{seed}"
            if name == ZERO_SHOT:
                result.add(seed, *self._rank(self.settings.base))
            elif name == RETRIEVAL:
                self._retrieve(result, seed, self.settings.output / "runs" / f"{_slug(ADDRESS_CLIP)}-{seed}")
            elif name in PROMPTS:
                seconds, peak = self._train("prompt_tuning", folder, seed, self._prompt_options(name))
                places = json.loads((folder / "ranks.json").read_text(encoding="utf-8"))
                ranks = torch.tensor([places[row.image_id] for row in self.rows])
                result.add(seed, *_measured(self.rows, ranks[:, 0], ranks[:, 1]), seconds=seconds, peak_bytes=peak)
            else:
                address, caption, geography = LOSSES.get(name, LOSSES[ADDRESS_CLIP])
                weights = [
                    f"--address_weight={address}", f"--caption_weight={caption}", f"--geography_weight={geography}",
                    "--checkpoint_every=0",
                ]  # fmt: skip
                seconds, peak = self._train(
                    "stage1_clip", folder, seed, [*shlex.split(self.settings.stage1_options), *weights, *options]
                )
                result.add(seed, *self._rank(str(folder)), seconds=seconds, peak_bytes=peak)
        return result

    def _prompt_options(self, name: str) -> list[str]:
        few = [f"--max_photos={self.settings.cocoop_photos}"] if PROMPTS[name] == "cocoop" else []
        method = [f"--method={PROMPTS[name]}", f"--eval_split={self.settings.eval_split}"]
        return [*shlex.split(self.settings.prompt_options), *method, *few]

    def _train(self, script: str, folder: Path, seed: int, options: list[str]) -> tuple[float, int]:
        """Runs a training command to its end; seconds and the peak of its resident memory in bytes."""
        places = [f"--data={self.settings.data}", f"--base={self.settings.base}", f"--output={folder}"]
        if self.settings.image_root:
            places.append(f"--image_root={self.settings.image_root}")
        folder.parent.mkdir(exist_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "train" / f"{script}.py"), *options, *places, f"--seed={seed}"],
                stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            last = (log.read_text(encoding="utf-8").strip().splitlines() or ["(it said nothing)"])[-1]
            raise UserError(f"{folder.name}: train/{script}.py ended with {process.returncode}: {last}; see {log}")
        return time.monotonic() - started, usage.ru_maxrss * 1024

    def _rank(self, model: str) -> tuple[dict[str, float], dict[str, list[int]]]:
        """Metrics and places by the texts of the gallery, and as a folder of stage 1 says by views and its photos."""
        is_trained = (Path(model) / MANIFEST).is_file() and "gallery_hash" in json.loads(
            (Path(model) / MANIFEST).read_text(encoding="utf-8")
        )
        trained = load_encoder(Path(model), "cpu") if is_trained else None
        encoder, photos = self._encode(model, self.rows, trained.views if trained else ONE)
        texts = encoder.embed_texts(
            [record.verbose for record in self.dataset.gallery], AutoTokenizer.from_pretrained(model)
        )
        return _measured(
            self.rows, *address_ranks(photos, texts, self.streets, memory=trained.memory if trained else None)
        )

    def _retrieve(self, result: MethodResult, seed: int, folder: Path) -> None:
        """Nearest training photo by the features of an encoder, and the address of where it was taken."""
        known_rows = clip_examples(self.dataset, "train")
        _, known = self._encode(str(folder), known_rows)
        _, asked = self._encode(str(folder), self.rows)
        scores = torch.full((len(asked.features), len(self.dataset.gallery)), -torch.inf)
        similarity = asked.features @ known.features.T
        scores.scatter_reduce_(1, known.address_id.expand_as(similarity), similarity, "amax")
        ranks = sub_street_ranks(scores, asked.address_id), street_ranks(scores, asked.address_id, self.streets)
        started = time.perf_counter()
        for feature in asked.features:
            known.address_id[(known.features @ feature).argmax()]
        milliseconds = 1000 * (time.perf_counter() - started) / len(asked.features)
        result.add(
            seed, *_measured(self.rows, *ranks),
            gallery_bytes=known.features.nbytes + known.address_id.nbytes, query_milliseconds=milliseconds,
        )  # fmt: skip

    def _encode(self, model: str, rows: list[ClipExample], views: str = ONE) -> tuple[AddressCLIP, PhotoFeatures]:
        encoder = AddressCLIP(load_dual_encoder(str(Path(model).resolve()) if Path(model).is_dir() else model)).eval()
        image_processor = AutoImageProcessor.from_pretrained(model, backend="pil")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        photos = encode_photos(encoder.to(device), rows, image_processor, device=device, batch_size=64, views=views)
        if len(photos.row) < len(rows):
            raise UserError(f"{len(rows) - len(photos.row)} photos cannot be read: a comparison needs the same for all")
        return encoder.cpu(), photos.map(torch.Tensor.cpu)


def _measured(
    rows: list[ClipExample], sub_street: torch.Tensor, street: torch.Tensor
) -> tuple[dict[str, float], dict[str, list[int]]]:
    places = zip(rows, sub_street.tolist(), street.tolist(), strict=True)
    return retrieval_metrics(sub_street, street), {row.image_id: [piece, road] for row, piece, road in places}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


if __name__ == "__main__":
    run_command(main)
