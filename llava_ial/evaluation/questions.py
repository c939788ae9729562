"""Which questions an evaluation asks, and about which photo."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava_ial.conversation import IMAGE_TOKEN, Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.prompts import TASKS, choose
from llava_ial.records import ConversationRecord
from llava_ial.wider_prompts import CANDIDATES, CHOICE, ELSEWHERE, NEARBY, WIDER_TASKS, WIDER_WORDINGS, format_refusal

SCORED_TASKS = (*TASKS, CHOICE, CANDIDATES, NEARBY, ELSEWHERE)


@dataclass(frozen=True)
class Question:
    """One question, asked in a dialogue of its own or, with a ``history``, later in one.

    Attributes:
        image_id: Photo whose address is asked for.
        shown_image_id: Photo that the model sees; another one in the control with shuffled photos.
        text: Without the image mark.
        expected: The data set's answer.
        history: Earlier turns; the first message begins with the image mark.
    """

    question_id: str
    image_id: str
    shown_image_id: str
    task: str
    text: str
    expected: str
    history: tuple[Message, ...] = ()

    @property
    def messages(self) -> list[Message]:
        """The dialogue that the model is asked to continue."""
        return [*self.history, Message("user", self.text)] if self.history else [user_question(self.text)]


@dataclass(frozen=True)
class QuestionList:
    """The questions of a split, and how many were left out and why.

    Attributes:
        asked: Each in a dialogue of its own.
        dialogues: Turn by turn, up to the last one that an earlier turn gives away.
        num_given_away: Questions whose answer stands in an earlier turn; they are asked in ``dialogues`` alone.
        given_away: Their ids.
        elsewhere: Files of the photos of other places, by ``image_id``.
    """

    asked: list[Question]
    num_given_away: int
    num_other_tasks: int
    dialogues: list[list[Question]]
    given_away: frozenset[str]
    elsewhere: dict[str, Path]


def load_questions(dataset: IALDataset, split: str, tasks: Sequence[str] = SCORED_TASKS) -> QuestionList:
    """The questions of a split in table order.

    A question whose answer stands in an earlier turn of its dialogue measures reading: it is asked in its dialogue
    alone, apart.

    Raises:
        UserError: A kind of question that is unknown, or nothing to ask.
    """
    if unknown := set(tasks) - set(SCORED_TASKS):
        raise UserError(f"--tasks: unknown kind of question '{min(unknown)}'; allowed: {', '.join(SCORED_TASKS)}")
    asked: list[Question] = []
    dialogues: list[list[Question]] = []
    given_away: set[str] = set()
    num_other_tasks = 0
    elsewhere: dict[str, Path] = {}
    for record in dataset.conversations(split):
        turns = _turns(record, dataset)
        if not record.sub_street_id and set(record.tasks) & set(tasks):
            elsewhere[record.image_id] = dataset.image_file(record.image_path)
        last = -1
        for position, (turn, is_given_away) in enumerate(zip(turns, record.is_given_away, strict=True)):
            if turn.task not in tasks:
                num_other_tasks += 1
            elif is_given_away:
                given_away.add(turn.question_id)
                last = position
            else:
                asked.append(turn)
        if last >= 0:
            dialogues.append(turns[: last + 1])
    if not asked:
        raise UserError(f"{dataset.folder}: split '{split}' has no question of the kinds {', '.join(tasks)}")
    return QuestionList(asked, len(given_away), num_other_tasks, dialogues, frozenset(given_away), elsewhere)


def elsewhere_questions(image_ids: Sequence[str], seed: int) -> list[Question]:
    """One question about each photo of another place; the right answer is that it has no address here."""
    wordings, expected = WIDER_WORDINGS[ELSEWHERE].test, format_refusal()
    return [
        Question(f"{name}/{ELSEWHERE}/0", name, name, ELSEWHERE, choose(wordings, seed, name, ELSEWHERE), expected)
        for name in image_ids
    ]


def _turns(record: ConversationRecord, dataset: IALDataset) -> list[Question]:
    """The questions of a dialogue, each as if it stood alone."""
    turns = []
    for position, (question_id, task) in enumerate(zip(record.question_ids, record.tasks, strict=True)):
        if task not in TASKS and task not in WIDER_TASKS:
            raise UserError(f"{dataset.folder}: question {question_id} is of the unknown kind '{task}'")
        question, answer = record.messages[2 * position : 2 * position + 2]
        text = question.content.replace(IMAGE_TOKEN, "").strip()
        turns.append(Question(question_id, record.image_id, record.image_id, task, text, answer.content))
    return turns


def with_shuffled_photos(
    questions: Sequence[Question], street_of: Mapping[str, tuple[str, str]], seed: int
) -> list[Question]:
    """The same questions with each photo replaced by one of another street, as far as the streets allow.

    The control for answers that do not come from the photo: a model that looks must now fail.

    Args:
        questions: Of any number of photos.
        street_of: Street of each photo.
        seed: Of the draw.

    Raises:
        UserError: There is no second photo.
    """
    shown = derange_by_street(sorted({q.image_id for q in questions}), street_of, seed)
    return [replace(q, shown_image_id=shown[q.image_id]) for q in questions]


def derange_by_street(image_ids: Sequence[str], street_of: Mapping[str, tuple[str, str]], seed: int) -> dict[str, str]:
    """A permutation of photos that leaves none in place, and none on its street if no street has over half of them.

    The photos are lined up street by street, and each is given the one that stands further down the line by the size of
    the largest street.

    Raises:
        UserError: Fewer than two photos.
    """
    if len(image_ids) < 2:
        raise UserError("the control needs two photos to shuffle; leave it out with --no_shuffle_photos")
    draw = random.Random(seed)  # noqa: S311 (a fixed draw, not a secret)
    streets: dict[tuple[str, str], list[str]] = defaultdict(list)
    for image_id in draw.sample(image_ids, len(image_ids)):
        streets[street_of[image_id]].append(image_id)
    line = [image_id for photos in streets.values() for image_id in photos]
    step = min(max(len(photos) for photos in streets.values()), len(line) - 1)
    return {image_id: line[(i + step) % len(line)] for i, image_id in enumerate(line)}
