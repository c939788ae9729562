"""Dialogues from files of LLaVA's form, ``[{"id": ..., "image": ..., "conversations": [...]}, ...]``."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_ial.conversation import from_llava_json
from llava_ial.errors import UserError
from llava_ial.manifest import file_hash
from llava_ial.records import ConversationRecord

GENERAL = "general"  # the kind of every question that is not about an address


@dataclass(frozen=True)
class Mixture:
    """A file to mix in, and how many dialogues of it: a share of the number of the data set's own."""

    path: Path
    share: float


def parse_mixture(text: str) -> Mixture:
    """Reads ``general.json:0.1``.

    Raises:
        UserError: Not of this form.

    Example:
        >>> parse_mixture("general.json:0.1")
        Mixture(path=PosixPath('general.json'), share=0.1)
    """
    path, _, share = text.rpartition(":")
    try:
        mixture = Mixture(Path(path), float(share))
    except ValueError:
        mixture = Mixture(Path(path), 0.0)
    if not path or not 0 < mixture.share < float("inf"):
        raise UserError(f"--mix {text}: allowed: FILE.json:SHARE with a share above 0, for example general.json:0.1")
    return mixture


def hash_of_json(path: Path) -> str:
    """Identity of a file of dialogues.

    Raises:
        UserError: No such file.
    """
    try:
        return file_hash(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def read_llava_json(path: Path) -> list[ConversationRecord]:
    """All dialogues of a file; those without a photo have an empty ``image_path``, the others an absolute one.

    Raises:
        UserError: No JSON (a download that broke off), no list, or an entry that is no dialogue, by its id.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON, it may be cut off: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: expected a list of dialogues, found {'none' if entries == [] else 'something else'}")
    return [_record(entry, position, path) for position, entry in enumerate(entries)]


def draw_mixed(mix: Sequence[str], num_own: int, *, seed: int) -> list[ConversationRecord]:
    """The dialogues that a run mixes into its ``num_own``, in the order of their files.

    A file with fewer than its share asks for gives all that it has.
    """
    drawn: list[ConversationRecord] = []
    for mixture in map(parse_mixture, mix):
        records = read_llava_json(mixture.path)
        count = min(len(records), max(1, round(mixture.share * num_own)))
        chosen = random.Random(seed).sample(range(len(records)), count)  # noqa: S311 (a fixed draw, not a secret)
        drawn += [records[i] for i in sorted(chosen)]
    return drawn


def _record(entry: object, position: int, path: Path) -> ConversationRecord:
    if not isinstance(entry, dict):
        raise UserError(f"{path}: entry {position} is a {type(entry).__name__}, expected an object")
    try:
        name, image, messages = from_llava_json({"id": f"at position {position}", **entry})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    num_questions = len(messages) // 2
    return ConversationRecord(
        conversation_id=name,
        image_id=name,
        image_path=str((path.parent / image).resolve()) if image else "",
        sub_street_id="",
        split="train",
        messages=messages,
        question_ids=[f"{name}-{number}" for number in range(num_questions)],
        tasks=[GENERAL] * num_questions,
        is_given_away=[False] * num_questions,
    )
