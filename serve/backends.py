"""What ``--model``, ``--server`` and ``--predictions`` come to: who is asked, checked before and opened late."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from llava_ial.conversation import Message
from llava_ial.data.dataset import IALDataset
from llava_ial.distributed import world_size
from llava_ial.errors import UserError
from llava_ial.evaluation.generation import Ask, Failure
from llava_ial.evaluation.questions import Question
from llava_ial.evaluation.ranking import Scores
from llava_ial.inference import AddressPredictor, Answer, choose_device, choose_dtype
from llava_ial.manifest import read_manifest
from llava_ial.models.llava import ADDRESS_CLIP_KIND
from llava_ial.models.llava_folder import KIND as LLAVA_IAL_KIND
from llava_ial.models.llava_merged import KIND as MERGED_KIND
from serve.closed_answers import ClosedAnswers
from serve.completions import CompletionsClient, ServerSettings
from serve.evaluate_settings import DTYPES, FREE, EvaluateConfig, is_own_folder
from serve.hinted import HintsOf, open_hints
from serve.image_text import ImageTextModel


@dataclass(frozen=True)
class Backend:
    """Who is asked.

    Attributes:
        ask: Answers questions; None for a model that only ranks.
        scores_of: Scores every candidate for photos; None for a model that does not rank.
        locator: Tells how like this city a photo looks; None for a model that cannot.
    """

    ask: Ask | None = None
    scores_of: Scores | None = None
    locator: AddressPredictor | None = None


def can_answer(config: EvaluateConfig, dataset: IALDataset) -> bool:
    """False for a model that only ranks; nothing is loaded.

    Raises:
        UserError: The model is a folder of this project and cannot be used with this data set.
    """
    if config.predictions or not is_own_folder(config):
        return True
    manifest = read_manifest(Path(str(config.model)), LLAVA_IAL_KIND, MERGED_KIND, ADDRESS_CLIP_KIND)
    if manifest["gallery_hash"] != dataset.gallery_hash:
        raise UserError(f"{config.model} was trained on another list of addresses than {config.data} holds")
    return bool(manifest["kind"] != ADDRESS_CLIP_KIND)


def open_backend(config: EvaluateConfig) -> Backend:
    """Loads the model, or makes the client of a server."""
    if config.predictions:
        return Backend()
    name = str(config.model)
    if config.server:
        settings = ServerSettings(config.server, name, config.concurrency, config.retries, config.timeout_s)
        return Backend(_asks(CompletionsClient(settings), config))
    transformers_logging.disable_progress_bar()
    device = own_device(config.device)
    dtype = DTYPES[config.dtype] or choose_dtype(device)
    if not is_own_folder(config):
        return Backend(_asks(ImageTextModel(name, device=device, dtype=dtype), config))
    predictor = AddressPredictor.from_pretrained(
        Path(name), base=config.base, device=device, dtype=dtype, quantize=config.quantize
    )
    predictor.keep_cosines()
    return as_backend(predictor, config)


def as_backend(predictor: AddressPredictor, config: EvaluateConfig) -> Backend:
    """A predictor of this project."""
    ask: Ask | None = None
    if predictor.can_answer:
        hints_of = open_hints(predictor, config)
        if config.answers == FREE:
            ask = _asks(predictor, config, hints_of)
        else:
            ask = ClosedAnswers(
                predictor,
                config.answers,
                batch_size=config.batch_size,
                max_new_tokens=config.max_new_tokens,
                hints_of=hints_of,
            )
    return Backend(ask, predictor.probabilities, predictor)


class _Answerer(Protocol):
    def answer_batch(
        self,
        dialogues: Sequence[Sequence[Message]],
        photos: Sequence[Image.Image],
        *,
        batch_size: int,
        max_new_tokens: int,
        **told: Any,
    ) -> Sequence[Answer | Failure]:
        """One answer, or why there is none, for each dialogue, in order."""


def _asks(model: _Answerer, config: EvaluateConfig, hints_of: HintsOf | None = None) -> Ask:
    """Free text in answer to each question, after the hints that a model takes."""

    def ask(questions: Sequence[Question], photos: Sequence[Image.Image]) -> Sequence[Answer | Failure]:
        told = {} if hints_of is None else {"hints": hints_of(questions, photos)}
        return model.answer_batch(
            [question.messages for question in questions],
            photos,
            batch_size=config.batch_size,
            max_new_tokens=config.max_new_tokens,
            **told,
        )

    return ask


def own_device(name: str) -> str:
    """The device of this process: of several on one machine each takes a GPU of its own, while there are some."""
    device = choose_device(name)
    if device != "cuda" or world_size() == 1:
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
