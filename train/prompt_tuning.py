r"""The paper's peers of stage 1: CoOp, CoCoOp or MaPLe on a frozen CLIP, with the addresses as classes.

    one process    python -m train.prompt_tuning --data DATA --base CLIP --output OUTPUT --method maple
    two CPUs       accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \
                       --dynamo_backend no train/prompt_tuning.py --num_processes 2 --cpu true ...

The output holds the learnt vectors, metrics.json, and ranks.json: the place of the true piece of street and of the true
street for every photo of the split.
"""

import os

os.environ.setdefault(  # read when torch is imported
    "OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils import logging as transformers_logging

from llava_ial import distributed
from llava_ial.config import parse_config, save_config
from llava_ial.data.batches import GlobalBatches
from llava_ial.data.clip import ClipCollator, ClipExample, ClipPhotos, clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError, run_command
from llava_ial.evaluation.retrieval import retrieval_metrics, street_classes, street_ranks, sub_street_ranks
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, write_json
from llava_ial.models.address_clip import load_clip
from llava_ial.models.identity import hash_tensors
from llava_ial.models.prompt_learning import METHODS, build_prompt_learner
from llava_ial.splits import SPLIT_NAMES
from llava_ial.training.optim import learning_rate_at, set_learning_rate
from llava_ial.training.seeds import seed_everything, seed_step

KIND = "clip_prompts"
_NOT_IDENTITY = ("data", "image_root", "base", "output", "cpu", "num_workers")


@dataclass
class PromptSettings:
    """What to learn on, how, and where the result goes; the defaults are CoOp's."""

    data: Path = field(metadata={"help": "data set folder, made by python -m data_gen.build"})
    base: str = field(metadata={"help": "CLIP to put prompts into: name on the Hugging Face hub, or a folder"})
    output: Path = field(metadata={"help": "folder to write"})
    method: str = field(default="coop", metadata={"help": "coop, cocoop or maple"})
    image_root: Path | None = field(default=None, metadata={"help": "where the photos lie, if they were moved"})
    eval_split: str = field(default="val", metadata={"help": "split to measure on"})
    max_photos: int = field(
        default=0, metadata={"help": "training photos, the first of the table; 0: all. CoCoOp pays for each of them"}
    )
    num_epochs: int = field(default=10, metadata={"help": "times that every photo is seen"})
    batch_size: int = field(default=32, metadata={"help": "photos of a step over all processes"})
    learning_rate: float = field(default=2e-3, metadata={"help": "highest learning rate of SGD with momentum 0.9"})
    weight_decay: float = field(default=5e-4, metadata={"help": "of the learnt vectors and matrices"})
    depth: int = field(default=9, metadata={"help": "layers that MaPLe gives vectors to"})
    first_words: str = field(default="a street view of", metadata={"help": "what the vectors are at first"})
    class_chunk: int = field(default=256, metadata={"help": "addresses that are encoded at once"})
    num_processes: int = field(default=1, metadata={"help": "processes that must train together"})
    cpu: bool = field(default=False, metadata={"help": "train on the CPU"})
    num_workers: int = field(default=4, metadata={"help": "processes that decode photos"})
    seed: int = field(default=0, metadata={"help": "of order and first values"})

    def refuse_impossible(self) -> None:
        """Checks the values before anything expensive.

        Raises:
            UserError: Names option, value and what is allowed.
        """
        for name, allowed in (("method", METHODS), ("eval_split", SPLIT_NAMES)):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)}: allowed: {', '.join(allowed)}")
        for name in ("num_epochs", "batch_size", "depth", "class_chunk", "num_processes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: allowed: at least 1")


def main() -> None:
    """Reads the settings, checks everything, learns."""
    (settings,) = parse_config(PromptSettings, description=__doc__ or "")
    settings.refuse_impossible()
    transformers_logging.disable_progress_bar()
    seed_everything(settings.seed)
    accelerator = Accelerator(cpu=settings.cpu)
    distributed.refuse_wrong_world_size(settings.num_processes, accelerator.num_processes)
    tuning = distributed.run_on_every_process(partial(PromptTuning, settings, accelerator))
    if distributed.run_on_main_process(tuning.claim) is FolderState.COMPLETE:
        print(f"{settings.output}: already complete, nothing to do")
    else:
        tuning.train()
        tuning.write(tuning.measure())
    del tuning
    accelerator.free_memory()
    distributed.shut_down()


class PromptTuning:
    """One run.

    Args:
        settings: What to do.
        accelerator: The processes.

    Raises:
        UserError: Whatever the user can mend.
    """

    def __init__(self, settings: PromptSettings, accelerator: Accelerator) -> None:
        self.settings, self.accelerator = settings, accelerator
        self.dataset = IALDataset(settings.data, settings.image_root)
        self.train_rows = clip_examples(self.dataset, "train")[: settings.max_photos or None]
        self.eval_rows = clip_examples(self.dataset, settings.eval_split)
        clip = load_clip(settings.base)
        identity = {name: value for name, value in asdict(settings).items() if name not in _NOT_IDENTITY}
        parents = {"data_hash": self.dataset.identity, "base_hash": hash_tensors(clip.state_dict())}
        self.identity = {**identity, **parents}
        tokenizer = AutoTokenizer.from_pretrained(settings.base)
        self.image_processor = AutoImageProcessor.from_pretrained(settings.base, backend="pil")
        self.collator = ClipCollator(tokenizer, clip.config.text_config.max_position_embeddings, text_kinds=())
        options = {"depth": settings.depth} if settings.method == "maple" else {}
        self.learner = build_prompt_learner(
            settings.method, clip.to(accelerator.device), tokenizer, [r.verbose for r in self.dataset.gallery],
            first_words=settings.first_words, class_chunk=settings.class_chunk, **options,
        )  # fmt: skip

    def claim(self) -> FolderState:
        """Takes the output folder."""
        return claim_folder(self.settings.output, KIND, self.identity)

    def train(self) -> None:
        """Cross entropy over the addresses, vectors alone."""
        settings, learner = self.settings, self.learner
        rank, world = distributed.rank(), distributed.world_size()
        sizes = GlobalBatches(len(self.train_rows), settings.batch_size, num_steps=0, rank=rank, world=world, seed=0)
        num_steps = sizes.steps_per_epoch * settings.num_epochs
        batches = GlobalBatches(
            len(self.train_rows), settings.batch_size, num_steps=num_steps, rank=rank, world=world, seed=settings.seed
        )
        trained = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay)
        parallel, optimizer = self.accelerator.prepare(learner, optimizer)
        loader = self._loader(self.train_rows, batches=batches)
        progress = tqdm(loader, desc=settings.method, unit="step", disable=not distributed.is_main_process())
        for step, batch in enumerate(progress):
            if "error" in batch:
                raise UserError(batch["error"])
            seed_step(settings.seed, step, rank)
            set_learning_rate(
                optimizer,
                learning_rate_at(step, num_steps=num_steps, warmup_steps=0, peak=settings.learning_rate, final=0.0),
            )
            logits = parallel(batch["pixel_values"].to(self.accelerator.device))
            truth = batch["address_id"].to(self.accelerator.device)
            # Processes may hold unequal shares; the wrapper takes the mean over processes.
            loss = cross_entropy(logits, truth, reduction="sum") * world / batches.batch_size
            self.accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            progress.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)

    @torch.no_grad()
    def measure(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Place of the true piece and of the true street for each photo of the split, two ``(N,)``."""
        rank, world, device = distributed.rank(), distributed.world_size(), self.accelerator.device
        streets = street_classes([record.address.street_key for record in self.dataset.gallery]).to(device)
        learner = self.learner.eval()
        pieces, roads = (
            [torch.zeros(0, dtype=torch.int64, device=device)],
            [torch.zeros(0, dtype=torch.int64, device=device)],
        )
        for batch in self._loader(self.eval_rows[rank::world]):
            if "error" in batch:
                raise UserError(batch["error"])
            scores, truth = learner(batch["pixel_values"].to(device)), batch["address_id"].to(device)
            pieces.append(sub_street_ranks(scores, truth))
            roads.append(street_ranks(scores, truth, streets))
        row = torch.arange(rank, len(self.eval_rows), world, device=device)
        order = distributed.gather_with_gradient(row).argsort()
        gathered = [distributed.gather_with_gradient(torch.cat(ranks))[order].cpu() for ranks in (pieces, roads)]
        return gathered[0], gathered[1]

    def write(self, ranks: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Vectors, metrics, places; the manifest last."""
        output = self.settings.output
        if distributed.is_main_process():
            state = {name: p.detach().cpu() for name, p in self.learner.named_parameters() if p.requires_grad}
            save_file(state, output / "prompts.safetensors")
            save_config(output / "config.yaml", self.settings)
            metrics = {self.settings.eval_split: retrieval_metrics(*ranks)}
            write_json(output / "metrics.json", metrics)
            places = zip(self.eval_rows, *(r.tolist() for r in ranks), strict=True)
            write_json(output / "ranks.json", {row.image_id: [piece, road] for row, piece, road in places})
            num_trained = sum(tensor.numel() for tensor in state.values())
            publish_manifest(output, KIND, self.identity, metrics=metrics, num_trained_weights=num_trained)
            print(
                f"{output}: "
                + "  ".join(f"{k} {v:.2%}" for k, v in metrics[self.settings.eval_split].items() if "@" in k)
            )
        distributed.wait_for_everyone()

    def _loader(
        self, rows: list[ClipExample], *, batches: GlobalBatches | None = None
    ) -> DataLoader[dict[str, torch.Tensor]]:
        photos, workers = ClipPhotos(rows, self.image_processor), self.settings.num_workers
        if batches is None:
            return DataLoader(
                photos, batch_size=self.settings.batch_size, collate_fn=self.collator, num_workers=workers
            )
        return DataLoader(photos, batch_sampler=batches, collate_fn=self.collator, num_workers=workers)


if __name__ == "__main__":
    run_command(main)
