"""What ``--model``, ``--server`` and ``--predictions`` come to: who is asked, checked before and opened late."""

import os
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging as transformers_logging

from llava_ial.data.dataset import IALDataset
from llava_ial.distributed import world_size
from llava_ial.errors import UserError
from llava_ial.evaluation.generation import Answerer
from llava_ial.evaluation.ranking import Scores
from llava_ial.inference import AddressPredictor, choose_device, choose_dtype
from llava_ial.manifest import read_manifest
from serve.completions import CompletionsClient, ServerSettings
from serve.evaluate_settings import DTYPES, EvaluateConfig, is_own_folder
from serve.image_text import ImageTextModel


@dataclass(frozen=True)
class Backend:
    """Who is asked.

    Attributes:
        answerer: Answers questions; None for a model that only ranks.
        scores_of: Scores every candidate for photos; None for a model that does not rank.
    """

    answerer: Answerer | None = None
    scores_of: Scores | None = None


def can_answer(config: EvaluateConfig, dataset: IALDataset) -> bool:
    """False for a model that only ranks; nothing is loaded.

    Raises:
        UserError: The model is a folder of this project and cannot be used with this data set.
    """
    if config.predictions or not is_own_folder(config):
        return True
    manifest = read_manifest(Path(str(config.model)), "llava_ial", "address_clip")
    if manifest["gallery_hash"] != dataset.gallery_hash:
        raise UserError(f"{config.model} was trained on another list of addresses than {config.data} holds")
    return bool(manifest["kind"] == "llava_ial")


def open_backend(config: EvaluateConfig) -> Backend:
    """Loads the model, or makes the client of a server."""
    if config.predictions:
        return Backend()
    name = str(config.model)
    if config.server:
        settings = ServerSettings(config.server, name, config.concurrency, config.retries, config.timeout_s)
        return Backend(CompletionsClient(settings))
    transformers_logging.disable_progress_bar()
    device = own_device(config.device)
    dtype = DTYPES[config.dtype] or choose_dtype(device)
    if not is_own_folder(config):
        return Backend(ImageTextModel(name, device=device, dtype=dtype))
    return as_backend(AddressPredictor.from_pretrained(Path(name), base=config.base, device=device, dtype=dtype))


def as_backend(predictor: AddressPredictor) -> Backend:
    """A predictor of this project."""
    return Backend(predictor if predictor.can_answer else None, predictor.probabilities)


def own_device(name: str) -> str:
    """The device of this process; of several processes on one machine each takes a GPU of its own."""
    device = choose_device(name)
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and world_size() > 1 else device
