"""Asking a model every question, in a way that a power cut does not spoil."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from llava_ial.data.images import load_photo
from llava_ial.distributed import is_main_process, rank, run_on_every_process, run_on_main_process, world_size
from llava_ial.errors import UserError
from llava_ial.evaluation.metrics import ERROR
from llava_ial.evaluation.questions import Question
from llava_ial.inference import Answer
from llava_ial.manifest import write_text
from llava_ial.records import PredictionRecord


@dataclass(frozen=True)
class Failure:
    """Why a question has no answer."""

    error: str


class StopAskingError(UserError):
    """Something that will be wrong with every further question too, such as a key that a server refuses."""


# What a question, a photo or the machine may raise; a UserError is a ValueError, as are the complaints of processors.
_TROUBLE = (ValueError, RuntimeError, MemoryError)
# One answer, or why there is none, for each question, in order; ``StopAskingError`` ends the evaluation.
Ask = Callable[[Sequence[Question], Sequence[Image.Image]], Sequence["Answer | Failure"]]


class PredictionFile:
    """``predictions.jsonl``: one answer a line, appended and flushed; the last line about a question counts."""

    def __init__(self, path: Path) -> None:
        """Opens the file, repairing a last line that was torn by a kill.

        Raises:
            UserError: Another line is no prediction.
        """
        self.path = path
        self.by_question: dict[str, PredictionRecord] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        # Not splitlines(): an answer may hold other letters that it takes for the end of a line, such as U+2028.
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                record = PredictionRecord(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}, line {number}: no prediction: {error}; delete this line") from error
            self.by_question[record.question_id] = record

    def append(self, records: Iterable[PredictionRecord]) -> None:
        """Adds answers; on return they are on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            for record in records:
                self.by_question[record.question_id] = record
                file.write(_as_line(record))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, questions: Sequence[Question]) -> list[PredictionRecord]:
        """Rewrites the file in the order of the questions, one line each, as an uninterrupted run would have it."""
        records = [self.by_question[question.question_id] for question in questions]
        write_text(self.path, "".join(_as_line(record) for record in records))
        return records


def ask_all(
    ask: Ask,
    questions: Sequence[Question],
    path: Path,
    image_file: Mapping[str, Path],
    *,
    questions_per_write: int,
    is_right: Callable[[PredictionRecord], bool | None],
    title: str,
) -> list[PredictionRecord]:
    """Answers to all questions; those that ``path`` already holds are not asked again, failed ones are.

    Several processes share the photos and all get the answers.

    Args:
        ask: Answers questions about photos.
        questions: Each is a dialogue of its own.
        path: The predictions.
        image_file: Where each photo lies.
        questions_per_write: As many are asked and then written to the disk together; more if a photo has more.
        is_right: For the running share in the progress bar; None for an answer that does not count in it.
        title: Of the progress bar.
    """
    file = run_on_main_process(lambda: _gather_parts(path))
    open_questions = _by_photo([q for q in questions if _is_open(file.by_question.get(q.question_id))])
    own = _share(open_questions)
    mine = file if world_size() == 1 else PredictionFile(_part_path(path, rank()))
    verdicts = [is_right(record) for record in file.by_question.values() if record.finish_reason != ERROR]
    num_done = len(questions) - len(open_questions)

    def ask_own() -> None:
        with tqdm(
            total=num_done + len(own), initial=num_done, desc=title, unit=" answers", smoothing=0.05,
            disable=not is_main_process(),
        ) as progress:  # fmt: skip
            for part in _parts(own, questions_per_write):
                records = _ask(ask, part, image_file)
                mine.append(records)
                verdicts.extend(is_right(record) for record in records if record.finish_reason != ERROR)
                counted = [verdict for verdict in verdicts if verdict is not None]
                progress.update(len(part))
                if counted:
                    progress.set_postfix_str(f"{sum(counted) / len(counted):.1%} right so far")

    run_on_every_process(ask_own)
    return run_on_main_process(lambda: _gather_parts(path).finish(questions))


def _part_path(path: Path, process: int) -> Path:
    return path.with_name(f"{path.stem}.{process}.part")


def _gather_parts(path: Path) -> PredictionFile:
    """The predictions with what single processes have written beside them, in this run or in one that was killed."""
    file = PredictionFile(path)
    for part in sorted(path.parent.glob(f"{path.stem}.*.part")):
        file.append(PredictionFile(part).by_question.values())
        part.unlink()
    return file


def _share(questions: Sequence[Question]) -> list[Question]:
    """The questions of this process: all of a photo or none."""
    photos = list(dict.fromkeys(question.shown_image_id for question in questions))
    own = set(photos[rank() :: world_size()])
    return [question for question in questions if question.shown_image_id in own]


def _ask(ask: Ask, questions: Sequence[Question], image_file: Mapping[str, Path]) -> list[PredictionRecord]:
    """Answers in the order of the questions; what goes wrong is recorded with them."""
    photos: dict[str, Image.Image] = {}
    errors: dict[str, str] = {}
    for image_id in {question.shown_image_id for question in questions}:
        try:
            photos[image_id] = load_photo(image_file[image_id])
        except UserError as error:
            errors[image_id] = str(error)
    answers: dict[str, Answer | Failure] = {
        question.question_id: Failure(errors[question.shown_image_id])
        for question in questions
        if question.shown_image_id in errors
    }

    def put(part: Sequence[Question]) -> None:
        found = ask(part, [photos[question.shown_image_id] for question in part])
        answers.update(zip([question.question_id for question in part], found, strict=True))

    able = [question for question in questions if question.shown_image_id in photos]
    try:
        put(able)
    except StopAskingError:
        raise
    except _TROUBLE:  # out of memory, or one bad question: the others need not fail with it
        for question in able:
            try:
                put([question])
            except StopAskingError:
                raise
            except _TROUBLE as error:
                answers[question.question_id] = Failure(f"{type(error).__name__}: {error}")
    return [as_record(question, answers[question.question_id]) for question in questions]


def _by_photo(questions: Sequence[Question]) -> list[Question]:
    """The questions about a photo one after another: it is decoded and encoded once for all of them."""
    place: dict[str, int] = {}
    for question in questions:
        place.setdefault(question.shown_image_id, len(place))
    return sorted(questions, key=lambda question: place[question.shown_image_id])


def _parts(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """At least ``size`` questions at a time, but all of a photo together."""
    part: list[Question] = []
    for question in questions:
        if len(part) >= size and part[-1].shown_image_id != question.shown_image_id:
            yield part
            part = []
        part.append(question)
    if part:
        yield part


def as_record(question: Question, answer: Answer | Failure) -> PredictionRecord:
    """The line of ``predictions.jsonl`` about a question."""
    shown = question.shown_image_id if question.shown_image_id != question.image_id else None
    facts: dict[str, Any] = {
        "question_id": question.question_id,
        "image_id": question.image_id,
        "task": question.task,
        "question": question.text,
        "expected": question.expected,
        "shown_image_id": shown,
    }
    if isinstance(answer, Failure):
        return PredictionRecord(**facts, answer="", finish_reason=ERROR, error=answer.error)
    return PredictionRecord(
        **facts,
        answer=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        candidates=None if answer.candidates is None else list(answer.candidates),
        probabilities=None if answer.probabilities is None else list(answer.probabilities),
    )


def _is_open(record: PredictionRecord | None) -> bool:
    return record is None or record.finish_reason == ERROR


def _as_line(record: PredictionRecord) -> str:
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n"
