"""Which questions an evaluation asks, and about which photo."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llava_ial.conversation import IMAGE_TOKEN, Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.prompts import TASKS


@dataclass(frozen=True)
class Question:
    """One question, asked in a dialogue of its own.

    Attributes:
        image_id: Photo whose address is asked for.
        shown_image_id: Photo that the model sees; another one in the control with shuffled photos.
        text: Without the image mark.
        expected: The data set's answer.
    """

    question_id: str
    image_id: str
    shown_image_id: str
    task: str
    text: str
    expected: str

    @property
    def messages(self) -> list[Message]:
        """The dialogue that the model is asked to continue."""
        return [user_question(self.text)]


@dataclass(frozen=True)
class QuestionList:
    """The questions of a split, and how many were left out and why."""

    asked: list[Question]
    num_given_away: int
    num_other_tasks: int


def load_questions(dataset: IALDataset, split: str, tasks: Sequence[str] = TASKS) -> QuestionList:
    """The questions of a split in table order.

    A question whose answer stands in an earlier turn of its dialogue is left out: there it measures reading.

    Raises:
        UserError: A kind of question that is unknown, or nothing to ask.
    """
    if unknown := set(tasks) - set(TASKS):
        raise UserError(f"--tasks: unknown kind of question '{min(unknown)}'; allowed: {', '.join(TASKS)}")
    asked: list[Question] = []
    num_given_away = num_other_tasks = 0
    for record in dataset.conversations(split):
        turns = zip(record.question_ids, record.tasks, record.is_given_away, strict=True)
        for position, (question_id, task, is_given_away) in enumerate(turns):
            if task not in TASKS:
                raise UserError(f"{dataset.folder}: question {question_id} is of the unknown kind '{task}'")
            if task not in tasks:
                num_other_tasks += 1
            elif is_given_away:
                num_given_away += 1
            else:
                question, answer = record.messages[2 * position : 2 * position + 2]
                text = question.content.replace(IMAGE_TOKEN, "").strip()
                asked.append(Question(question_id, record.image_id, record.image_id, task, text, answer.content))
    if not asked:
        raise UserError(f"{dataset.folder}: split '{split}' has no question of the kinds {', '.join(tasks)}")
    return QuestionList(asked, num_given_away, num_other_tasks)


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
