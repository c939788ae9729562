"""Dialogues of every kind of question: the measured ones, choices, candidates, surroundings, certainty, refusals.

A photo's questions come in an order of its own and are cut into dialogues of two, three and one turn, so that half of
the samples of each kind open a dialogue. Later turns may refer back. A question whose answer an earlier turn of its
dialogue already holds is marked.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from data_gen.converse import TELLS, DialogueSettings, Turn, assemble, known_facts
from data_gen.surroundings import Surroundings
from llava_ial.address import Address
from llava_ial.prompts import BETWEEN, STREET, WHERE, YES_NO, choose, format_answer, question_wordings, stable_number
from llava_ial.records import ConversationRecord
from llava_ial.wider_prompts import (
    CANDIDATES,
    CHOICE,
    ELSEWHERE,
    HOUSE_NUMBER,
    LETTERS,
    NEARBY,
    SURE,
    WIDER_WORDINGS,
    follow_up_wordings,
    format_candidates,
    format_certainty,
    format_choice,
    format_choice_question,
    format_house_number,
    format_nearby,
    format_refusal,
)

_LENGTHS = (2, 3, 1)  # of dialogues in turn: two turns in the middle, half of all questions open one
_MAX_NEARBY = 5


@dataclass(frozen=True)
class LocatedPhoto:
    """What the dialogues about a photo need to know of it."""

    image_id: str
    image_path: str
    sub_street_id: str
    split: str
    address: Address
    is_ambiguous: bool
    house_number: str = ""


def converse_widely(
    photo: LocatedPhoto, surroundings: Surroundings, settings: DialogueSettings
) -> Iterator[ConversationRecord]:
    """The dialogues about one photo, at most ``settings.num_dialogues`` of them.

    The order of the kinds is drawn for each photo, so that a limit takes from all kinds alike.
    """
    turns = _turns(photo, surroundings, settings.seed)
    mixed = sorted(turns, key=lambda t: stable_number(settings.seed, photo.image_id, t.task, t.asked, "order"))
    start = stable_number(settings.seed, photo.image_id, "lengths")
    known = known_facts(photo.address) | {CANDIDATES, NEARBY, SURE, HOUSE_NUMBER}
    for number in range(settings.num_dialogues):
        length = _LENGTHS[(start + number) % len(_LENGTHS)]
        questions, mixed = mixed[:length], mixed[length:]
        if not questions:
            return
        worded = [_refer_back(turn, photo, settings.seed) if i else turn for i, turn in enumerate(questions)]
        yield assemble(
            f"{photo.image_id}/{number}",
            photo.image_id,
            photo.image_path,
            photo.sub_street_id,
            photo.split,
            worded,
            known,
        )


def refuse(image_id: str, image_path: str, split: str, settings: DialogueSettings) -> ConversationRecord:
    """The dialogue about a photo of elsewhere: asked for its address, the answer is that it has none here."""
    kind = WIDER_WORDINGS[ELSEWHERE]
    question = choose(kind.test if split == "test" else kind.train, settings.seed, image_id, ELSEWHERE)
    turn = Turn(ELSEWHERE, question, format_refusal(), f"{image_id}/{ELSEWHERE}/0", frozenset(), frozenset({ELSEWHERE}))
    return assemble(f"{image_id}/0", image_id, image_path, "", split, [turn], {ELSEWHERE})


def _turns(photo: LocatedPhoto, surroundings: Surroundings, seed: int) -> list[Turn]:
    """Every question that can be asked about a photo, worded as if it opened its dialogue."""
    address, image_id = photo.address, photo.image_id
    turns = []
    for task in [WHERE, *(t for t in TELLS if t in known_facts(address))]:
        turns.append(_turn(photo, task, seed, format_answer(task, address), TELLS[task]))
    hard = surroundings.distractors(photo.sub_street_id, len(LETTERS) - 1, seed, image_id, "distractors")
    wrong = [other.street for other in hard if other.street != address.street]
    for number, asked in enumerate([address.street, *wrong[:1]] if wrong else []):
        told = {STREET} if asked == address.street else set()
        answer = format_answer(YES_NO, address, asked=asked)
        turns.append(_turn(photo, YES_NO, seed, answer, told, needs={STREET}, asked=asked, number=number))
    everything = set().union(*TELLS.values()) & known_facts(address)
    if hard:
        options = sorted([address, *hard], key=lambda a: stable_number(seed, image_id, "options", a))
        question = _wording(photo, CHOICE, seed)
        text = format_choice_question(question, options)
        answer = format_choice(address, options)
        # The options share their city, so it is neither asked for nor told.
        turns.append(_turn(photo, CHOICE, seed, answer, everything & {STREET, BETWEEN, "neighbourhood"}, question=text))
        answer = format_candidates(address, hard)
        turns.append(_turn(photo, CANDIDATES, seed, answer, everything | {CANDIDATES}, needs={*everything, CANDIDATES}))
    if near := surroundings.nearby_streets(photo.sub_street_id):
        near = sorted(near, key=lambda s: stable_number(seed, image_id, "nearby", s))[:_MAX_NEARBY]
        crossings = {cross.street for cross in address.cross_streets}
        told = {NEARBY, *({BETWEEN} if crossings and crossings <= set(near) else ())}
        turns.append(_turn(photo, NEARBY, seed, format_nearby(sorted(near)), told, needs={NEARBY}))
    if photo.house_number:
        answer = format_house_number(photo.house_number)
        turns.append(_turn(photo, HOUSE_NUMBER, seed, answer, {HOUSE_NUMBER}, needs={HOUSE_NUMBER}))
    answer = format_certainty(is_ambiguous=photo.is_ambiguous)
    turns.append(_turn(photo, SURE, seed, answer, {SURE}, needs={SURE}))
    return turns


def _turn(
    photo: LocatedPhoto,
    task: str,
    seed: int,
    answer: str,
    tells: set[str],
    *,
    needs: set[str] | None = None,
    asked: str = "",
    number: int = 0,
    question: str = "",
) -> Turn:
    text = question or _wording(photo, task, seed, offset=number).format(asked=asked)
    return Turn(
        task,
        text,
        answer,
        f"{photo.image_id}/{task}/{number}",
        frozenset(tells),
        frozenset(tells if needs is None else needs),
        asked,
    )


def _wording(photo: LocatedPhoto, task: str, seed: int, offset: int = 0) -> str:
    if task in WIDER_WORDINGS:
        kind = WIDER_WORDINGS[task]
        wordings = kind.test if photo.split == "test" else kind.train
    else:
        wordings = question_wordings(task, photo.split)
    return choose(wordings, seed, photo.image_id, task, "wording", offset=offset)


def _refer_back(turn: Turn, photo: LocatedPhoto, seed: int) -> Turn:
    """Every second later turn that can refer to the one before it does."""
    wordings = follow_up_wordings(turn.task, photo.split)
    if not wordings or stable_number(seed, photo.image_id, turn.task, "refer") % 2:
        return turn
    return turn.with_question(choose(wordings, seed, photo.image_id, turn.task, "follow-up"))
