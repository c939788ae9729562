"""Options of the comparison of stage 2's methods over towns."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from llava_ial.config import parse_config
from llava_ial.errors import UserError
from llava_ial.manifest import MANIFEST
from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_settings import LlavaSettings
from train.ablation_settings import slug
from train.training_runs import split_options

_ASKED_WITH = ("none", "shuffled")


@dataclass
class Stage2TownsSettings:
    """Which methods, which towns."""

    base: str = field(metadata={"help": "LLaVA that every method tunes: name on the hub, or a folder"})
    output: Path = field(metadata={"help": "folder to write"})
    dev_towns: list[Path] = field(
        metadata={"help": "folders with data and stage1 (finished demos), on which the method is chosen"}
    )
    report_towns: list[Path] = field(metadata={"help": "such folders, on which the first and the best are reported"})
    methods: list[str] = field(
        default_factory=lambda: ["no hints: --hints=0", "one hint: --hints=1"],
        metadata={"help": "each 'NAME: --option value ...' of train/stage2_llava.py; the first is reported, too"},
    )
    asked: list[str] = field(
        default_factory=list,
        metadata={"help": "each 'NAME: none' or 'NAME: shuffled': a method that is asked again with other hints"},
    )
    projector_first: list[str] = field(
        default_factory=list, metadata={"help": "names of methods before which the projector is tuned alone"}
    )
    projector_options: str = field(
        default="--lora_rank=0 --dialogues=captions", metadata={"help": "of that training, beside stage2_options"}
    )
    stage2_options: str = field(default="", metadata={"help": "options of train/stage2_llava.py for all methods"})
    evaluate_options: str = field(default="", metadata={"help": "options of serve.evaluate for all"})
    seed: int = field(default=0, metadata={"help": "of all trainings"})
    parallel: int = field(
        default=1, metadata={"help": "trainings at a time; two small ones are done sooner so than one after the other"}
    )

    @property
    def names(self) -> list[str]:
        """Of the methods, and of what is asked again."""
        return [*self.trained(), *self.asked_with]

    @property
    def asked_with(self) -> dict[str, str]:
        """By name: the hints of what is asked again."""
        pairs = [(self._asked_name(line), line.rpartition(":")[2].strip()) for line in self.asked]
        return dict(pairs)

    def model_of(self, name: str) -> str:
        """The method whose model answers: the name's own, or that of the one that is asked again."""
        again = {self._asked_name(line): line.rpartition(":")[0].strip() for line in self.asked}
        return again.get(name, name)

    @property
    def inputs(self) -> list[Path]:
        """Folders of all towns that are read: data sets and encoders."""
        return [town / part for town in [*self.dev_towns, *self.report_towns] for part in ("data", "stage1")]

    def trained(self) -> dict[str, list[str]]:
        """By name: a method's own options."""
        return dict(split_options(method) for method in self.methods)

    def shown_options(self) -> dict[str, str]:
        """By name: all that tells a method from the others, as tables show it."""
        own = {name: shlex.join(options) for name, options in self.trained().items()}
        return {
            name: f"{self.projector_options}, then {options}" if name in self.projector_first else options
            for name, options in own.items()
        }

    def refuse_impossible(self) -> None:
        """Checks everything before anything expensive.

        Raises:
            UserError: Names option, value and what is allowed.
        """
        names = [split_options(method)[0] for method in self.methods]
        if len({slug(name) for name in self.names}) < len(names) + len(self.asked) or len(names) < 2:
            raise UserError("--methods, --asked: allowed: at least two methods, each line with a name of its own")
        for line in self.asked:
            model, _, hints = (part.strip() for part in line.rpartition(":"))
            if model not in names or hints not in _ASKED_WITH:
                raise UserError(f"--asked '{line}': allowed: NAME: {' or '.join(_ASKED_WITH)}, NAME one of the methods")
        if unknown := set(self.projector_first) - set(names):
            raise UserError(f"--projector_first {', '.join(sorted(unknown))}: allowed: names of --methods")
        if self.parallel < 1:
            raise UserError(f"--parallel {self.parallel}: allowed: at least 1")
        self._refuse_towns()
        for name, options in self.trained().items():
            self._refuse_options([*shlex.split(self.stage2_options), *options], f"method '{name}'")

    def _refuse_towns(self) -> None:
        towns = [*self.dev_towns, *self.report_towns]
        if not self.dev_towns or not self.report_towns or len({town.name for town in towns}) < len(towns):
            raise UserError("--dev_towns, --report_towns: allowed: different folders, and at least one of each")
        for folder in self.inputs:
            if not (folder / MANIFEST).exists():
                raise UserError(f"{folder}: not finished; run `make demo SEED=... SERVE=0` to its end first")

    def _refuse_options(self, options: list[str], where: str) -> None:
        places = ["--data=", f"--base={self.base}", "--clip=", "--output_dir=", *options]
        try:
            parse_config(LlavaSettings, LlavaArguments, description="", argv=places)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    @staticmethod
    def _asked_name(line: str) -> str:
        model, _, hints = (part.strip() for part in line.rpartition(":"))
        return f"{model}, asked with {'none' if hints == 'none' else 'those of other photos'}"
