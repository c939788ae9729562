"""Options of the comparison of stage 1 with its peers."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from llava_ial.config import parse_config
from llava_ial.errors import UserError
from train.ablation_tables import ADDRESS_CLIP, RETRIEVAL, ZERO_SHOT
from train.prompt_tuning import PromptSettings
from train.training_runs import read_stage1_options, split_options

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

    parallel: int = field(
        default=1, metadata={"help": "trainings at a time; they share the cores, and their seconds are of such a time"}
    )
    retrieval_features: list[str] = field(
        default_factory=list,
        metadata={"help": "further encoders by whose features training photos are searched: a CLIP's folder or name"},
    )

    def refuse_impossible(self) -> None:
        """Checks names and options before anything expensive.

        Raises:
            UserError: An unknown method, a variant without a name, or an option that its training would refuse.
        """
        known = [ZERO_SHOT, *LOSSES, *PROMPTS, RETRIEVAL]
        for name in self.methods:
            if name not in known:
                raise UserError(f"--methods {name}: allowed: {', '.join(known)}")
        if RETRIEVAL in self.methods and ADDRESS_CLIP not in self.methods:
            raise UserError(f"--methods {RETRIEVAL}: it searches with the features of {ADDRESS_CLIP}; add that too")
        if self.parallel < 1:
            raise UserError(f"--parallel {self.parallel}: allowed: at least 1")
        for variant in self.variants:
            if not re.match(r"[^:]+: +--\w", variant):
                raise UserError(f"--variants '{variant}': allowed: 'NAME: --option value ...'")
        for name, options in self.trained().items():
            read_stage1_options(options, name)
        names = [slug(name) for name in [*self.methods, *self.searched, *(split_options(v)[0] for v in self.variants)]]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"--methods, --variants: '{twice.pop()}' twice, as a file's name; choose other names")
        for method in PROMPTS.values():
            self.prompt_settings(method)

    @property
    def searched(self) -> dict[str, str]:
        """Encoders to search with, by the name of their row."""
        return {f"{RETRIEVAL}, {Path(name).name}": name for name in self.retrieval_features}

    def remarks(self, num_training_photos: int) -> list[str]:
        """What the tables must be read with."""
        if not 0 < self.cocoop_photos < num_training_photos or "CLIP + CoCoOp" not in self.methods:
            return []
        return [f"CLIP + CoCoOp learnt from {self.cocoop_photos} of the {num_training_photos} training photos."]

    def trained(self) -> dict[str, list[str]]:
        """What stage 1 trains: options of each method and variant."""
        found = {}
        common = shlex.split(self.stage1_options)
        for name in self.methods:
            if name in LOSSES:
                found[name] = [*common, *_loss_options(name)]
        for name, options in map(split_options, self.variants):
            found[name] = [*common, *_loss_options(ADDRESS_CLIP), *options]
        return found

    def prompt_settings(self, method: str) -> PromptSettings:
        """What ``train/prompt_tuning.py`` is told.

        Raises:
            UserError: An unknown option or an impossible value.
        """
        few = [f"--max_photos={self.cocoop_photos}"] if method == "cocoop" else []
        places = ["--data=", "--base=", "--output=", f"--method={method}", f"--eval_split={self.eval_split}"]
        try:
            (settings,) = parse_config(
                PromptSettings, description="", argv=[*shlex.split(self.prompt_options), *places, *few]
            )
            settings.refuse_impossible()
        except UserError as error:
            raise UserError(f"--prompt_options: {error}") from error
        found: PromptSettings = settings
        return found


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _loss_options(name: str) -> list[str]:
    kinds = ("address", "caption", "geography")
    return [f"--{kind}_weight={weight}" for kind, weight in zip(kinds, LOSSES[name], strict=True)]
