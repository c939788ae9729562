"""What an evaluation is told, checked before anything expensive, and what of it decides the results."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.evaluation.questions import SCORED_TASKS
from llava_ial.inference import MAX_NEW_TOKENS, choose_device, choose_dtype
from llava_ial.manifest import BUILDING, MANIFEST, config_hash, file_hash
from llava_ial.models.quantized import QUANTIZATIONS
from serve.completions import KEY_VARIABLE, ServerSettings
from serve.examples import find_photos

FREE, RANKED, CONSTRAINED = MODES = ("free", "ranked", "constrained")
OWN, NONE, SHUFFLED = HINTS = ("own", "none", "shuffled")
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class EvaluateConfig:
    """Settings of an evaluation."""

    data: Path = field(metadata={"help": "data set folder (output of python -m data_gen.build)"})
    output: Path = field(metadata={"help": "folder to write"})
    model: str | None = field(
        default=None,
        metadata={
            "help": "folder of stage 2, or of stage 1 (ranking alone); or the name of any image-text model of "
            "transformers; with --server its name there"
        },
    )
    server: str | None = field(
        default=None,
        metadata={
            "help": "ask an OpenAI-compatible server (hosted, vLLM, transformers serve), for example "
            f"http://localhost:8000/v1; the key is read from the environment variable {KEY_VARIABLE}"
        },
    )
    predictions: Path | None = field(
        default=None,
        metadata={"help": "score the answers of this JSONL file (question_id or image_id, and answer) and ask nobody"},
    )
    answers: str = field(
        default=FREE,
        metadata={
            "help": "free: text; ranked: the address of the list that the model finds likeliest; constrained: text "
            "held to the list, token by token. The last two are for a folder of stage 2 and give probabilities"
        },
    )
    hints: str = field(
        default=OWN,
        metadata={
            "help": "of a model that was trained with hints: its own, 'none', or 'shuffled', those of other photos, "
            "which show what it sees itself"
        },
    )
    concurrency: int = field(default=8, metadata={"help": "with --server: requests at a time"})
    retries: int = field(default=5, metadata={"help": "with --server: how often a request is tried again"})
    timeout_s: float = field(default=120.0, metadata={"help": "with --server: longest wait for one reply"})
    price_in: float = field(default=0.0, metadata={"help": "with --server: price of a million tokens asked"})
    price_out: float = field(default=0.0, metadata={"help": "with --server: price of a million tokens answered"})
    split: str = field(default="test", metadata={"help": "train (a memorisation check), val or test"})
    tasks: list[str] = field(
        default_factory=lambda: list(SCORED_TASKS),
        metadata={"help": f"kinds of questions to ask: {', '.join(SCORED_TASKS)}; those that the data set has"},
    )
    elsewhere: Path | None = field(
        default=None,
        metadata={
            "help": "folder with photos of other places: each is asked about, the right answer is that it is not from "
            "this city; beside those that the data set holds"
        },
    )
    shuffle_photos: bool = field(default=True, metadata={"help": "also ask with the photos shuffled, as a control"})
    dialogues: bool = field(
        default=True, metadata={"help": "also ask the questions that an earlier turn gives away, in their dialogues"}
    )
    baselines: str | None = field(
        default=None,
        metadata={
            "help": "also measure baselines with this untuned CLIP (folder or name), for example "
            "the one that stage 1 started from"
        },
    )
    untuned_alike: bool = field(
        default=True,
        metadata={
            "help": "among the baselines, locate with the untuned CLIP as the model locates, by its views and a memory "
            "of the training photos, where it has one; takes as long as it takes to look at all of them"
        },
    )
    photos_in_report: bool = field(
        default=True, metadata={"help": "show photos in report.html; without, it can be handed on with no picture"}
    )
    compare: Path | None = field(
        default=None, metadata={"help": "folder of another evaluation of the same questions: a paired test against it"}
    )
    batch_size: int = field(
        default=32, metadata={"help": "questions at a time; in float32 it does not change the answers"}
    )
    max_new_tokens: int = field(default=MAX_NEW_TOKENS, metadata={"help": "most tokens of an answer"})
    seed: int = field(default=0, metadata={"help": "of the shuffled photos and of the intervals"})
    image_root: Path | None = field(default=None, metadata={"help": "where the photos are now, if they were moved"})
    base: str | None = field(default=None, metadata={"help": "where the model's base is now, if it was moved"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1 ...; auto takes a GPU where there is one"})
    quantize: str = field(
        default="none",
        metadata={"help": "hold the language model of a folder of stage 2 at four bits, 'nf4', or at eight, 'int8'"},
    )
    dtype: str = field(default="auto", metadata={"help": f"of the weights: {', '.join(DTYPES)}"})


def refuse_impossible(config: EvaluateConfig) -> None:
    """Checks what can be checked without reading anything.

    Raises:
        UserError: Names the setting.
    """
    if config.predictions:
        if config.model or config.server:
            raise UserError("--predictions FILE asks nobody: leave --model and --server out")
    elif not config.model:
        raise UserError("--model: name a folder of stage 1 or 2, or a model; or a file of answers with --predictions")
    if config.answers not in MODES:
        raise UserError(f"--answers '{config.answers}' is unknown; allowed: {', '.join(MODES)}")
    if config.answers != FREE and not is_own_folder(config):
        raise UserError(
            f"--answers {config.answers} needs a model whose probabilities can be read: a folder of stage 2"
        )
    if config.hints not in HINTS:
        raise UserError(f"--hints '{config.hints}' is unknown; allowed: {', '.join(HINTS)}")
    if config.hints != OWN and not is_own_folder(config):
        raise UserError(f"--hints {config.hints} is for a folder of stage 2 that was trained with hints")
    if config.server:
        ServerSettings(config.server, str(config.model))
    for name in ("batch_size", "max_new_tokens", "concurrency"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: at least 1")
    if config.quantize not in QUANTIZATIONS:
        raise UserError(f"--quantize '{config.quantize}' is unknown; allowed: {', '.join(QUANTIZATIONS)}")
    if config.quantize != "none" and not is_own_folder(config):
        raise UserError(f"--quantize {config.quantize} is for a folder of stage 2")
    if config.dtype not in DTYPES:
        raise UserError(f"--dtype '{config.dtype}' is unknown; allowed: {', '.join(DTYPES)}")


def identity_of(config: EvaluateConfig, dataset: IALDataset) -> tuple[dict[str, Any], dict[str, str]]:
    """What decides the answers, and what they are made from."""
    parents = {"data": dataset.identity}
    if config.predictions:
        parents["predictions"] = file_hash(config.predictions)
    elif config.server or not is_own_folder(config):
        parents["model"] = f"{config.server or 'transformers'}: {config.model}"
    else:
        parents["model"] = file_hash(Path(str(config.model)) / MANIFEST)
    if config.elsewhere:
        photos = find_photos(config.elsewhere)
        hashes = {photo.relative_to(config.elsewhere).as_posix(): file_hash(photo) for photo in photos}
        parents["elsewhere"] = config_hash(hashes)
    names = (
        "split",
        "answers",
        "hints",
        "tasks",
        "shuffle_photos",
        "dialogues",
        "max_new_tokens",
        "seed",
        "baselines",
        "untuned_alike",
        "quantize",
        "photos_in_report",
    )
    # What "auto" comes to: half of the answers in one type and half in another would be no evaluation.
    dtype = DTYPES[config.dtype] or choose_dtype(choose_device(config.device))
    return {name: getattr(config, name) for name in names} | {"dtype": str(dtype)} | parents, parents


def is_own_folder(config: EvaluateConfig) -> bool:
    """True if ``--model`` is a folder that this project wrote, or a path where nothing lies.

    ``owner/name`` is a name on the hub where no folder ``owner`` is.
    """
    if config.server or not config.model:
        return False
    folder = Path(config.model)
    if folder.exists():
        return (folder / MANIFEST).is_file() or (folder / BUILDING).is_file()
    return config.model.count("/") != 1 or folder.parent.is_dir()
