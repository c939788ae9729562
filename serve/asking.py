"""The questions of a split put to a model, with their own photos and, as a control, with others."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from llava_ial.address import Address
from llava_ial.conversation import Message, user_question
from llava_ial.data.dataset import IALDataset, Sample
from llava_ial.evaluation.generation import Ask, Failure, PredictionFile, as_record, ask_all
from llava_ial.evaluation.metrics import (
    ERROR,
    AddressMetrics,
    ScoredAnswer,
    Truth,
    score_answer,
    score_answers,
    summarise,
)
from llava_ial.evaluation.places import Places
from llava_ial.evaluation.questions import Question, QuestionList, with_shuffled_photos
from llava_ial.gazetteer import Gazetteer
from llava_ial.geo import GeoPoint
from llava_ial.inference import Answer
from llava_ial.prompts import STREET, WHERE
from llava_ial.records import PredictionRecord
from serve.evaluate_settings import EvaluateConfig

PREDICTIONS, SHUFFLED = "predictions.jsonl", "predictions_shuffled.jsonl"
# Enough questions to sort by length and to share photos; what a kill may lose.
_BATCHES_PER_WRITE = 4
TURN = "predictions_turn_{}.jsonl"
# Of a photo of elsewhere; no metric of such a photo reads it.
_NOWHERE = Address("outside of the map")
CONTROL_TASKS = (WHERE, STREET)


@dataclass(frozen=True)
class AnswerSet:
    """Answers to a list of questions and what they are worth."""

    predictions: list[PredictionRecord]
    scored: list[ScoredAnswer]
    metrics: AddressMetrics


def truths_of(samples: Sequence[Sample]) -> dict[str, Truth]:
    """What is true of each photo."""
    return {
        sample.photo.image_id: Truth(
            sample.address.address,
            sample.photo.panorama,
            sample.address.sub_street_id,
            GeoPoint(lat=sample.photo.lat, lon=sample.photo.lon),
        )
        for sample in samples
    }


class Asking:
    """Puts questions to a model and scores what it says.

    Args:
        config: Settings of the evaluation.
        dataset: Holds photos and candidates.
        samples: Photos of the split.
        places: Geometry of the candidates.
        elsewhere: Photos of other places, by ``image_id``.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        dataset: IALDataset,
        samples: Sequence[Sample],
        places: Places,
        elsewhere: Mapping[str, Path],
    ) -> None:
        self._config = config
        self._gazetteer = Gazetteer([record.address for record in dataset.gallery])
        self._truths = truths_of(samples)
        self._image_file = {s.photo.image_id: dataset.image_file(s.photo.image_path) for s in samples}
        for image_id, file in elsewhere.items():
            self._truths[image_id], self._image_file[image_id] = Truth(_NOWHERE, image_id), file
        self._places = places
        self.num_asked, self.seconds = 0, 0.0

    def timed(self, ask: Ask) -> Ask:
        """The same, counting in ``num_asked`` and ``seconds`` what this process has asked and how long that took."""

        def timed(questions: Sequence[Question], photos: Sequence[Image.Image]) -> Sequence[Answer | Failure]:
            started = time.perf_counter()
            found = ask(questions, photos)
            self.seconds += time.perf_counter() - started
            self.num_asked += len(questions)
            return found

        return timed

    def answers(self, ask: Ask, questions: QuestionList) -> AnswerSet:
        """All questions with their own photos."""
        return self._ask(ask, questions.asked, PREDICTIONS, "answering")

    def control(self, ask: Ask, questions: QuestionList) -> tuple[AnswerSet | None, int]:
        """The street questions with shuffled photos, and how many of these photos show the true street."""
        asked = [question for question in questions.asked if question.task in CONTROL_TASKS]
        if not self._config.shuffle_photos or not asked or len(self._truths) < 2:
            return None, 0
        street_of = {image_id: truth.address.street_key for image_id, truth in self._truths.items()}
        shuffled = with_shuffled_photos(asked, street_of, self._config.seed)
        pairs = {(question.image_id, question.shown_image_id) for question in shuffled}
        num_same = sum(street_of[image] == street_of[shown] for image, shown in pairs)
        return self._ask(ask, shuffled, SHUFFLED, "photos shuffled"), num_same

    def dialogues(self, ask: Ask, questions: QuestionList, fresh: AnswerSet) -> AnswerSet | None:
        """The questions that an earlier turn gives away, after the model's own earlier answers.

        Args:
            ask: Answers questions.
            questions: Of the split.
            fresh: Answers to questions in dialogues of their own; a first turn is one and is not asked again.
        """
        if not self._config.dialogues or not questions.dialogues:
            return None
        told = {line.question_id: line for line in fresh.predictions}
        for turn in range(max(len(dialogue) for dialogue in questions.dialogues)):
            asked = [
                replace(dialogue[turn], history=_history(dialogue[:turn], told))
                for dialogue in questions.dialogues
                if turn < len(dialogue) and _can_go_on(dialogue[:turn], told)
            ]
            asked = [question for question in asked if turn > 0 or question.question_id not in told]
            if asked:
                said = self._ask(ask, asked, TURN.format(turn + 1), f"dialogues, turn {turn + 1}").predictions
                told |= {line.question_id: line for line in said}
        lost = Failure("an earlier turn of its dialogue has no answer")
        turns = [question for dialogue in questions.dialogues for question in dialogue]
        return self._score([
            told.get(question.question_id) or as_record(question, lost)
            for question in turns
            if question.question_id in questions.given_away
        ])  # fmt: skip

    def _ask(self, ask: Ask, questions: Sequence[Question], file: str, title: str) -> AnswerSet:
        config = self._config
        predictions = ask_all(
            ask,
            questions,
            self._config.output / file,
            self._image_file,
            questions_per_write=_BATCHES_PER_WRITE * (config.concurrency if config.server else config.batch_size),
            is_right=self._names_street,
            title=title,
        )
        return self._score(predictions)

    def keep(self, questions: QuestionList, predictions: Sequence[PredictionRecord]) -> AnswerSet:
        """Answers that somebody else gave: written like a model's own, and scored."""
        file = PredictionFile(self._config.output / PREDICTIONS)
        file.append(predictions)
        return self._score(file.finish(questions.asked))

    def _score(self, predictions: list[PredictionRecord]) -> AnswerSet:
        scored = score_answers(predictions, self._truths, self._gazetteer, self._places)
        metrics = summarise(scored, num_failed=len(predictions) - len(scored), seed=self._config.seed)
        return AnswerSet(predictions, scored, metrics)

    def _names_street(self, prediction: PredictionRecord) -> bool | None:
        truth = self._truths[prediction.image_id]
        hit = score_answer(prediction, truth, self._gazetteer).scores.get("street_accuracy")
        return None if hit is None else bool(hit)


def _can_go_on(earlier: Sequence[Question], told: Mapping[str, PredictionRecord]) -> bool:
    return all(q.question_id in told and told[q.question_id].finish_reason != ERROR for q in earlier)


def _history(earlier: Sequence[Question], told: Mapping[str, PredictionRecord]) -> tuple[Message, ...]:
    """A dialogue so far, with the model's own answers; an empty one would be no turn."""
    turns: list[Message] = []
    for question in earlier:
        turns.append(Message("user", question.text) if turns else user_question(question.text))
        turns.append(Message("assistant", told[question.question_id].answer or "..."))
    return tuple(turns)
