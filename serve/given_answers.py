"""Answers that somebody else produced, to be scored like a model's own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_ial.errors import UserError
from llava_ial.evaluation.generation import Failure, as_record
from llava_ial.evaluation.questions import Question
from llava_ial.inference import STOP, Answer
from llava_ial.prompts import WHERE
from llava_ial.records import PredictionRecord

_IDS, _TEXTS = ("question_id", "id", "image_id"), ("answer", "text", "response")


def read_answers(path: Path, questions: Sequence[Question]) -> list[PredictionRecord]:
    """The answers of a JSONL file, one record per question.

    A line holds ``question_id`` (or ``id``) and ``answer`` (or ``text``, as LLaVA's scripts write it, or
    ``response``). Instead of a question a line may name an ``image_id``: its answer is then to "where was this taken?".
    A question that the file does not answer is a failed one, not a wrong one.

    Args:
        path: The file; a ``predictions.jsonl`` of this command is one too.
        questions: All that are scored; the file may hold more.

    Raises:
        UserError: A line that cannot be read, two answers to one question, or no answer to any.
    """
    by_id = {question.question_id: question for question in questions}
    where = {question.image_id: question for question in reversed(questions) if question.task == WHERE}
    found: dict[str, Answer | Failure] = {}
    try:
        # Other programs may begin a file with a mark; and an answer may hold letters that splitlines() would cut at.
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--predictions {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(path, number, line)
        named = next(name for name in _IDS if name in row)
        question = by_id.get(str(row[named])) or where.get(str(row[named]))
        if question is None:
            continue  # of another split, or of a kind that is not scored
        if question.question_id in found:
            raise UserError(f"--predictions {path}, line {number}: a second answer to {question.question_id}")
        found[question.question_id] = _answer(row)
    if not found:
        raise UserError(
            f"--predictions {path}: none of its {len(lines)} lines answers a question of this split; "
            f"question_id looks like '{questions[0].question_id}', image_id like '{questions[0].image_id}'"
        )
    return [as_record(q, found.get(q.question_id, Failure(f"no answer in {path.name}"))) for q in questions]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"--predictions {path}, line {number}: no JSON: {error}") from error
    if not isinstance(row, dict) or not set(_IDS) & set(row) or not set(_TEXTS) & set(row):
        keys = f"{' or '.join(_IDS)} and {' or '.join(_TEXTS)}"
        raise UserError(f"--predictions {path}, line {number}: expected an object with {keys}")
    return row


def _answer(row: dict[str, Any]) -> Answer | Failure:
    if row.get("error"):
        return Failure(str(row["error"]))
    text = next(row[name] for name in _TEXTS if name in row)
    return Answer(str(text or ""), str(row.get("finish_reason") or STOP))
