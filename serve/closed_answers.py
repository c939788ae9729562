"""Answers from a closed list: the model says which address of the gallery it means, and how sure it is."""

from collections.abc import Sequence

import torch
from PIL import Image

from llava_ial.evaluation.questions import Question
from llava_ial.inference import STOP, AddressPredictor, Answer
from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET, WHERE, format_answer, format_piece
from serve.evaluate_settings import CONSTRAINED, RANKED
from serve.hinted import HintsOf

_NUM_KEPT = 5


class ClosedAnswers:
    """Chooses answers; a question whose answers are no list (yes or no) is answered freely.

    Args:
        predictor: A model that can answer.
        mode: ``ranked`` or ``constrained``.
        batch_size: Free answers at a time.
        max_new_tokens: Most tokens of a free answer.
        hints_of: What the model is told before the questions.
    """

    def __init__(
        self, predictor: AddressPredictor, mode: str, *, batch_size: int, max_new_tokens: int, hints_of: HintsOf
    ) -> None:
        self._predictor = predictor
        self._mode = mode
        self._hints_of = hints_of
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens
        addresses = [record.address for record in predictor.gallery]
        is_known = {
            WHERE: lambda address: True,
            STREET: lambda address: True,
            BETWEEN: lambda address: bool(format_piece(address)),
            NEIGHBOURHOOD: lambda address: bool(address.neighbourhood),
            CITY: lambda address: bool(address.city),
        }
        self._choices = {
            task: tuple(dict.fromkeys(format_answer(task, address) for address in addresses if has_answer(address)))
            for task, has_answer in is_known.items()
        }

    def __call__(self, questions: Sequence[Question], photos: Sequence[Image.Image]) -> list[Answer]:
        """One answer for each question, in order."""
        listed = [i for i, question in enumerate(questions) if self._choices.get(question.task)]
        rest = [i for i in range(len(questions)) if i not in set(listed)]
        scores = self._predictor.choose_batch(
            [questions[i].messages for i in listed],
            [photos[i] for i in listed],
            [self._choices[questions[i].task] for i in listed],
            hints=self._hints_of([questions[i] for i in listed], [photos[i] for i in listed]),
        )
        answers: dict[int, Answer] = {}
        for i, found in zip(listed, scores, strict=True):
            choices = self._choices[questions[i].task]
            log_probabilities = found.ranked if self._mode == RANKED else found.constrained
            first = found.walked if self._mode == CONSTRAINED else None
            answers[i] = _as_answer(choices, log_probabilities.exp(), first)
        spoken = self._predictor.answer_batch(
            [questions[i].messages for i in rest],
            [photos[i] for i in rest],
            batch_size=self._batch_size,
            max_new_tokens=self._max_new_tokens,
            hints=self._hints_of([questions[i] for i in rest], [photos[i] for i in rest]),
        )
        answers.update(zip(rest, spoken, strict=True))
        return [answers[i] for i in range(len(questions))]


def _as_answer(choices: Sequence[str], probabilities: torch.Tensor, first: int | None) -> Answer:
    """The best of the list, best first; a decoder's walk, which need not end at the likeliest, is the answer itself."""
    order = probabilities.argsort(descending=True, stable=True).tolist()
    chosen = order[0] if first is None else first
    order = [chosen, *(i for i in order if i != chosen)][:_NUM_KEPT]
    return Answer(
        choices[chosen],
        STOP,
        candidates=tuple(choices[i] for i in order),
        probabilities=tuple(round(float(probabilities[i]), 6) for i in order),
    )
