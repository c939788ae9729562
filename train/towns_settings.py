"""Options of the comparison over towns."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from llava_ial.errors import UserError
from llava_ial.locating import Way
from llava_ial.splits import SPLIT_NAMES
from llava_ial.training.clip_settings import ClipSettings
from train.ablation_settings import slug
from train.towns_tables import Run
from train.training_runs import read_stage1_options, split_options

# Of the last step's rate, as published: 2.4e-8 behind 2.4e-5 (arXiv 2407.08156).
FINAL_RATE_SHARE = 1e-3
# What a comparison holds equal: how often photos are seen, how many together, and how they are changed.
_EQUAL = ("num_epochs", "batch_size", "min_crop_area", "colour_jitter", "white_balance_jitter")
_SWEPT = ("learning_rate", "final_learning_rate", "seed")


@dataclass
class TownsSettings:
    """Which methods, which rates, which towns."""

    base: str = field(metadata={"help": "CLIP that every method starts from: name on the hub, or a folder"})
    output: Path = field(metadata={"help": "folder to write"})
    methods: list[str] = field(
        default_factory=lambda: ["AddressCLIP:", "three views: --views=3"],
        metadata={"help": "each 'NAME: --option value ...' of train/stage1_clip.py; the first is the faithful one"},
    )
    rates: list[float] = field(
        default_factory=lambda: [4e-4, 8e-4, 1.6e-3, 3.2e-3],
        metadata={"help": "highest learning rates that each method is trained with on the development towns"},
    )
    stage1_options: str = field(
        default="", metadata={"help": "options of train/stage1_clip.py for all methods: epochs, batch, augmentation"}
    )
    dev_towns: list[int] = field(
        default_factory=lambda: [11, 12, 13], metadata={"help": "seeds of the towns that rate and method are chosen on"}
    )
    report_towns: list[int] = field(
        default_factory=lambda: [21, 22, 23, 24, 25], metadata={"help": "seeds of the towns that are reported"}
    )
    size: str = field(default="small", metadata={"help": "of each town, as of python -m data_gen.toy_city"})
    eval_split: str = field(default="test", metadata={"help": "split to measure on"})
    parallel: int = field(
        default=1, metadata={"help": "trainings at a time; two small ones are done sooner so than one after the other"}
    )

    @property
    def names(self) -> list[str]:
        """Of the methods."""
        return [split_options(method)[0] for method in self.methods]

    def sweep(self) -> list[Run]:
        """Every method with every rate."""
        return [Run(name, rate) for name in self.names for rate in self.rates]

    def trained(self) -> dict[str, tuple[ClipSettings, Way]]:
        """By method: its training, without places and rate, and how its encoder locates.

        Raises:
            UserError: An unknown option or an impossible value.
        """
        common = shlex.split(self.stage1_options)
        methods = map(split_options, self.methods)
        return {name: read_stage1_options([*common, *options], f"method '{name}'") for name, options in methods}

    def refuse_impossible(self) -> None:
        """Checks everything before anything expensive.

        Raises:
            UserError: Names option, value and what is allowed.
        """
        for method in self.methods:
            if not re.fullmatch(r"[^:]*\w[^:]*:( +--\w.*)?", method.strip()):
                raise UserError(f"--methods '{method}': allowed: 'NAME: --option value ...', or 'NAME:'")
        if len({slug(name) for name in self.names}) < max(2, len(self.names)):
            raise UserError("--methods: allowed: at least two, each with a name of its own")
        if not self.rates or min(self.rates) <= 0 or len({f"{rate:g}" for rate in self.rates}) < len(self.rates):
            raise UserError(f"--rates {self.rates}: allowed: different ones above 0")
        towns = [*self.dev_towns, *self.report_towns]
        if not self.dev_towns or not self.report_towns or len(set(towns)) < len(towns):
            raise UserError("--dev_towns, --report_towns: allowed: different towns, and at least one of each")
        if self.eval_split not in SPLIT_NAMES:
            raise UserError(f"--eval_split {self.eval_split}: allowed: {', '.join(SPLIT_NAMES)}")
        if self.parallel < 1:
            raise UserError(f"--parallel {self.parallel}: allowed: at least 1")
        self._refuse_unequal()

    def _refuse_unequal(self) -> None:
        trained = self.trained()
        (first, _), plain = next(iter(trained.values())), ClipSettings(Path(), "", Path())
        for name, (training, _) in trained.items():
            for option in _EQUAL:
                if getattr(training, option) != getattr(first, option):
                    raise UserError(f"method '{name}': --{option} is the same for all; give it in --stage1_options")
            for option in _SWEPT:
                if getattr(training, option) != getattr(plain, option):
                    raise UserError(f"method '{name}': --{option} is set by --rates and the town's seed; leave it out")
