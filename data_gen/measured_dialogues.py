"""The dialogues that an evaluation scores, for many photos at once.

Tens of millions of photos are talked about, so that texts are not put together photo by photo: answers are worded once
for each candidate, questions once for each wording, and columns of numbers say which of them stand where.

A photo's first dialogue opens with the open question of the paper. The other kinds are shared out over all dialogues in
an order that changes from photo to photo, so that every kind opens a dialogue somewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_gen.converse import TELLS, DialogueSettings, known_facts
from llava_ial.address import Address
from llava_ial.conversation import IMAGE_TOKEN, user_question
from llava_ial.errors import UserError
from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET, WHERE, YES_NO, format_answer, question_wordings
from llava_ial.records import ConversationRecord, arrow_schema

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
NumberArray = npt.NDArray[np.uint64]

# Each photo is asked one yes and one no, so that the two are balanced in every data set: two kinds of one task.
_TASKS = (WHERE, STREET, BETWEEN, NEIGHBOURHOOD, CITY, YES_NO, YES_NO)
_WHERE, _YES, _NO = 0, 5, 6
_NONE = -1
_LAST = np.uint64(2**64 - 1)
_FACTS = (STREET, BETWEEN, NEIGHBOURHOOD, CITY)


def _bits(facts: set[str]) -> int:
    return sum(1 << _FACTS.index(fact) for fact in facts)


_NEEDS = np.array([_bits(TELLS[task]) for task in _TASKS])
_TOLD = np.where(np.arange(len(_TASKS)) == _NO, 0, _NEEDS)


class Candidates:
    """What is said of each candidate of a gallery, worded once."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        streets = sorted({address.street for address in addresses})
        number = {street: index for index, street in enumerate(streets)}
        known = [known_facts(address) for address in addresses]
        can_deny = len(streets) > 1
        asked = [[True, *(task in facts for task in _TASKS[1:5]), can_deny, can_deny] for facts in known]
        self.is_asked = np.array(asked, dtype=bool).reshape(-1, len(_TASKS))
        self.known = np.array([_bits(facts) for facts in known], dtype=np.int64)
        self.street = np.array([number[address.street] for address in addresses], dtype=np.int64)
        self.street_bytes = [street.encode() for street in streets]
        self.streets = pa.array([*streets, ""], pa.string())  # the last one: none is named
        answers = [
            format_answer(task, address, asked=address.street) if is_asked[kind] else ""
            for kind, task in enumerate(_TASKS[:_NO])
            for address, is_asked in zip(addresses, asked, strict=True)
        ]
        one_of = {address.street: address for address in addresses}
        for street in streets if can_deny else []:
            other = one_of[streets[street == streets[0]]]
            answers.append(format_answer(YES_NO, other, asked=street))
        if any(IMAGE_TOKEN in answer for answer in answers):
            raise UserError(f"gallery: {IMAGE_TOKEN} in the name of a street or place; mend it in the map")
        self.answers = pa.array(answers, pa.string())

    def answer_rows(self, kind: IntArray, candidate: IntArray, asked: IntArray) -> IntArray:
        """Where the answers stand in ``answers``; arguments and result ``(T,)``."""
        return kind * len(self.street) + np.where(kind == _NO, asked, candidate)


@dataclass(frozen=True)
class PhotoColumns:
    """Photos of one split, ``(N,)`` each; ``candidate`` is the row of the gallery."""

    image_id: pa.Array
    image_path: pa.Array
    sub_street_id: pa.Array
    candidate: IntArray


@dataclass(frozen=True)
class _Turns:
    """Questions in the order of their dialogues, ``(T,)`` each, and the dialogues, ``(D,)`` each."""

    photo: IntArray
    kind: IntArray
    is_first: BoolArray
    is_given_away: BoolArray
    repetition: IntArray
    dialogue_photo: IntArray
    dialogue_number: IntArray


class NamedNumbers:
    """``stable_number(seed, name, ...)`` of many names."""

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self._heads = [f"{seed}\x1f{name}".encode() for name in names]

    def of(self, *rest: str, endings: Sequence[bytes] | None = None) -> NumberArray:
        """The number of each name ``(N,)`` with the same rest of the key, and an ending of its own."""
        tail = "".join(f"\x1f{part}" for part in rest).encode()
        if endings is None:
            digests = [sha256(head + tail).digest() for head in self._heads]
        else:
            digests = [sha256(b"%b%b\x1f%b" % (h, tail, e)).digest() for h, e in zip(self._heads, endings, strict=True)]
        return np.frombuffer(b"".join(digests), dtype=">u8")[::4].astype(np.uint64)


def write_dialogues(photos: PhotoColumns, split: str, candidates: Candidates, settings: DialogueSettings) -> pa.Table:
    """The dialogues about photos of one split, in their order: a table of ``ConversationRecord``."""
    numbers = NamedNumbers(settings.seed, photos.image_id.to_pylist())
    wrong = _wrong_streets(numbers, photos.candidate, candidates)
    turns = _turns(numbers, photos.candidate, wrong, candidates, settings)
    asked = np.full(len(turns.kind), len(candidates.street_bytes), dtype=np.int64)
    asked[turns.kind == _YES] = candidates.street[photos.candidate[turns.photo[turns.kind == _YES]]]
    asked[turns.kind == _NO] = wrong[turns.photo[turns.kind == _NO]]
    questions = _questions(numbers, turns, asked, split, candidates)
    answers = candidates.answers.take(
        pa.array(candidates.answer_rows(turns.kind, photos.candidate[turns.photo], asked))
    )
    return _table(photos, split, turns, questions, answers)


def _wrong_streets(numbers: NamedNumbers, candidate: IntArray, candidates: Candidates) -> IntArray:
    """A street that each photo is not on: one of the others, without a list of them for every photo."""
    own = candidates.street[candidate]
    num_wrong = len(candidates.street_bytes) - 1
    if not num_wrong:
        return own  # there is no other one, and nobody asks
    chosen = (numbers.of("wrong street") % np.uint64(num_wrong)).astype(np.int64)
    return chosen + (chosen >= own)


def _turns(
    numbers: NamedNumbers, candidate: IntArray, wrong: IntArray, candidates: Candidates, settings: DialogueSettings
) -> _Turns:
    """Every question once, shared out over the dialogues.

    The shortest share follows the open question, which already makes its dialogue one longer.
    """
    streets = candidates.street_bytes
    own_street = [streets[i] for i in candidates.street[candidate].tolist()]
    orders = [numbers.of(task, "") for task in _TASKS[1:_YES]]
    orders += [numbers.of(YES_NO, endings=own_street), numbers.of(YES_NO, endings=[streets[i] for i in wrong.tolist()])]
    is_asked = candidates.is_asked[candidate]
    mixed = 1 + np.argsort(np.where(is_asked[:, 1:], np.stack(orders, axis=1), _LAST), axis=1, kind="stable")
    num_asked = is_asked[:, 1:].sum(axis=1)
    shares, rest = settings.num_dialogues, mixed.shape[1]
    grid = np.full((len(candidate), min(shares, rest + 1), 2 + (rest - 1) // shares), _NONE)
    grid[:, 0, 0] = _WHERE
    for place in range(rest):
        share, turn = place % shares, place // shares
        here = (0, turn + 1) if share == shares - 1 else (share + 1, turn)
        grid[:, here[0], here[1]] = np.where(place < num_asked, mixed[:, place], _NONE)
    is_turn = grid != _NONE
    photo, _, row = np.nonzero(is_turn)
    dialogue_photo, dialogue_number = np.nonzero(is_turn[:, :, 0])
    kind = grid[is_turn]
    flat = grid.reshape(len(grid), -1)
    no_is_first = (flat == _NO).argmax(axis=1) < (flat == _YES).argmax(axis=1)
    repetition = np.where(kind == _YES, no_is_first[photo], (kind == _NO) & ~no_is_first[photo])
    is_given = _given_away(grid, candidates.known[candidate])[is_turn]
    return _Turns(photo, kind, row == 0, is_given, repetition.astype(np.int64), dialogue_photo, dialogue_number)


def _given_away(grid: IntArray, known: IntArray) -> BoolArray:
    """Of questions ``(N, dialogues, turns)``, those whose answer earlier turns of their dialogue hold."""
    is_given = np.zeros(grid.shape, dtype=bool)
    told = np.zeros(grid.shape[:2], dtype=np.int64)
    for row in range(grid.shape[2]):
        kind = grid[:, :, row]
        is_given[:, :, row] = (_NEEDS[kind] & known[:, None] & ~told) == 0
        told |= np.where(kind == _NONE, 0, _TOLD[kind])
    return is_given


def _questions(numbers: NamedNumbers, turns: _Turns, asked: IntArray, split: str, candidates: Candidates) -> pa.Array:
    """The text of each question ``(T,)``: its wording, with the street that it names."""
    before: list[str] = []
    after: list[str] = []
    row = np.zeros(len(turns.kind), dtype=np.int64)
    for task in dict.fromkeys(_TASKS):
        wordings = question_wordings(task, split)
        here = np.flatnonzero(np.isin(turns.kind, [kind for kind, of in enumerate(_TASKS) if of == task]))
        chosen = (numbers.of(task, "wording") % np.uint64(len(wordings))).astype(np.int64)
        row[here] = len(before) + (chosen[turns.photo[here]] + turns.repetition[here]) % len(wordings)
        cut = [wording.partition("{asked}") for wording in wordings]
        before += [start for start, _, _ in cut]
        after += [end for _, _, end in cut]
    opening = [user_question(start).content for start in before]
    starts = pa.array(before + opening, pa.string()).take(pa.array(row + len(before) * turns.is_first))
    ends = pa.array(after, pa.string()).take(pa.array(row))
    return pc.binary_join_element_wise(starts, candidates.streets.take(pa.array(asked)), ends, "")


def _table(photos: PhotoColumns, split: str, turns: _Turns, questions: pa.Array, answers: pa.Array) -> pa.Table:
    schema = arrow_schema(ConversationRecord)
    count, num_dialogues = len(turns.kind), len(turns.dialogue_photo)
    in_turn = np.arange(2 * count) // 2 + count * (np.arange(2 * count) % 2)
    contents = pa.concat_arrays([questions, answers]).take(pa.array(in_turn))
    roles = pa.array(["user", "assistant"], pa.string()).take(pa.array(np.arange(2 * count) % 2))
    message = schema.field("messages").type.value_type
    messages = pa.StructArray.from_arrays([roles, contents], fields=list(message))
    starts = pa.array(np.append(np.flatnonzero(turns.is_first), count), pa.int32())
    doubled = pc.multiply(starts, pa.scalar(2, pa.int32()))
    tasks = pa.array(_TASKS, pa.string()).take(pa.array(turns.kind))
    marks = pa.array([f"/{task}/{n}" for task in _TASKS for n in (0, 1)], pa.string())
    of_photo = pa.array(turns.photo)
    ids = pc.binary_join_element_wise(
        photos.image_id.take(of_photo), marks.take(pa.array(2 * turns.kind + turns.repetition)), ""
    )
    names = pa.array([f"/{n}" for n in range(int(turns.dialogue_number.max(initial=0)) + 1)], pa.string())
    own = pa.array(turns.dialogue_photo)
    image_ids = photos.image_id.take(own)
    columns = {
        "conversation_id": pc.binary_join_element_wise(image_ids, names.take(pa.array(turns.dialogue_number)), ""),
        "image_id": image_ids,
        "image_path": photos.image_path.take(own),
        "sub_street_id": photos.sub_street_id.take(own),
        "split": pa.array([split], pa.string()).take(pa.array(np.zeros(num_dialogues, dtype=np.int64))),
        "messages": pa.ListArray.from_arrays(doubled, messages, type=schema.field("messages").type),
        "question_ids": pa.ListArray.from_arrays(starts, ids, type=schema.field("question_ids").type),
        "tasks": pa.ListArray.from_arrays(starts, tasks, type=schema.field("tasks").type),
        "is_given_away": pa.ListArray.from_arrays(
            starts, pa.array(turns.is_given_away), type=schema.field("is_given_away").type
        ),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
