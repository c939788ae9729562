"""Wordings and dialogues: disjoint between train and test, answers that parse back, nothing said twice unmarked."""

import random
import string
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.converse import DialogueSettings
from data_gen.measured_dialogues import Candidates, PhotoColumns, write_dialogues
from llava_ial.address import Address, CrossStreet, is_plain_name, parse_spoken
from llava_ial.conversation import IMAGE_TOKEN, from_llava_json, to_llava_json, validate_messages
from llava_ial.prompts import (
    PUBLISHED_QUESTION,
    TASKS,
    WORDINGS,
    choose,
    format_answer,
    format_piece,
    parse_answer,
    question_wordings,
    stable_number,
)
from llava_ial.records import ConversationRecord, from_table

STREETS = ["Ash Street", "Beech Street", "Cedar Street", "Grant Street"]
FULL = Address(
    "Grant Street", "Downtown", (CrossStreet("Fifth Avenue"), CrossStreet("Sixth Avenue")), "Pittsburgh", "PA", "USA"
)
NAMES = st.text(string.ascii_letters + "äöüéß .'-", min_size=1, max_size=18).map(str.strip).filter(is_plain_name)


def _dialogues(
    address: Address = FULL, image_id: str = "i1", split: str = "train", num_dialogues: int = 2, seed: int = 0
) -> list[ConversationRecord]:
    others = [Address(street) for street in STREETS if street != address.street]
    return _talk([address, *others], DialogueSettings(num_dialogues, seed), image_id, split)


def _talk(
    gallery: list[Address], talk: DialogueSettings, image_id: str = "i1", split: str = "train"
) -> list[ConversationRecord]:
    """About a photo of the gallery's first address."""
    texts = ([image_id], [f"{image_id}.jpg"], ["s1"])
    photos = PhotoColumns(*(pa.array(column, pa.string()) for column in texts), np.zeros(1, dtype=np.int64))
    return from_table(write_dialogues(photos, split, Candidates(gallery), talk), ConversationRecord)


def test_wordings_are_many_and_disjoint() -> None:
    assert set(WORDINGS) == set(TASKS)
    train = [text for wordings in WORDINGS.values() for text in wordings.train]
    test = [text for wordings in WORDINGS.values() for text in wordings.test]
    assert all(len(wordings.train) >= 12 and len(wordings.test) >= 4 for wordings in WORDINGS.values())
    assert len({text.lower() for text in train + test}) == len(train) + len(test)
    assert all("{asked}" in text for text in (*WORDINGS["yes_no"].train, *WORDINGS["yes_no"].test))


def test_published_question_and_answer_stand_word_for_word() -> None:
    assert PUBLISHED_QUESTION == "Where might this photo have been taken? Tell me its street level address."
    assert PUBLISHED_QUESTION in question_wordings("where", "train")
    published = Address("Grant Street", "Downtown", (), "Pittsburgh", "PA", "USA")
    answer = "The address of this photo might be Grant Street, Downtown, Pittsburgh, PA, USA."
    assert format_answer("where", published) == answer


@settings(max_examples=100, deadline=None)
@given(NAMES, NAMES, NAMES, st.lists(NAMES, max_size=2), NAMES)
def test_answers_parse_back(street: str, neighbourhood: str, city: str, crossings: list[str], wrong: str) -> None:
    address = Address(street, neighbourhood, tuple(CrossStreet(name) for name in crossings), city, "PA", "USA")
    found = parse_answer("where", format_answer("where", address))
    assert found is not None
    assert parse_spoken(found["address"], city=city, region="PA", country="USA") == address
    assert parse_answer("street", format_answer("street", address)) == {"street": street}
    assert parse_answer("neighbourhood", format_answer("neighbourhood", address)) == {"neighbourhood": neighbourhood}
    assert parse_answer("city", format_answer("city", address)) == {"city": city}
    if crossings:
        assert parse_answer("between", format_answer("between", address)) == {"piece": format_piece(address)}
    for asked, verdict in ((street, "yes"), (wrong, "no" if wrong != street else "yes")):
        expected = {"asked": asked, "verdict": verdict}
        assert parse_answer("yes_no", format_answer("yes_no", address, asked=asked)) == expected


def test_other_text_is_of_no_known_form() -> None:
    assert parse_answer("where", "I do not know.") is None
    assert parse_answer("yes_no", "Perhaps.") is None


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_dialogues_alternate_and_round_trip(split: str) -> None:
    for dialogue in _dialogues(split=split):
        validate_messages(dialogue.messages, dialogue.conversation_id)
        assert sum(message.content.count(IMAGE_TOKEN) for message in dialogue.messages) == 1
        num_questions = len(dialogue.messages) // 2
        assert num_questions == len(dialogue.tasks) == len(dialogue.question_ids) == len(dialogue.is_given_away)
        entry = to_llava_json(dialogue.conversation_id, dialogue.image_path, dialogue.messages)
        assert from_llava_json(entry) == (dialogue.conversation_id, "i1.jpg", dialogue.messages)
        for task, message in zip(dialogue.tasks, dialogue.messages[::2], strict=True):
            text = message.content.removeprefix(f"{IMAGE_TOKEN}\n")
            forms = question_wordings(task, split)
            assert text in {form.format(asked=street) for form in forms for street in STREETS}


def test_every_kind_is_asked_once_and_ids_are_unique() -> None:
    dialogues = _dialogues()
    tasks = Counter(task for dialogue in dialogues for task in dialogue.tasks)
    assert tasks == {"where": 1, "street": 1, "between": 1, "neighbourhood": 1, "city": 1, "yes_no": 2}
    ids = [question_id for dialogue in dialogues for question_id in dialogue.question_ids]
    assert len(set(ids)) == 7
    assert {"i1/where/0", "i1/yes_no/0", "i1/yes_no/1"} <= set(ids)
    assert dialogues[0].tasks[0] == "where"


def test_what_the_map_does_not_know_is_not_asked() -> None:
    tasks = {task for dialogue in _dialogues(Address("Grant Street")) for task in dialogue.tasks}
    assert tasks == {"where", "street", "yes_no"}
    border = Address("Grant Street", "Downtown", (CrossStreet("Grant Street", "Bluff"),))
    assert "between" not in {task for dialogue in _dialogues(border) for task in dialogue.tasks}
    (only,) = _talk([Address("Lone Street")], DialogueSettings(1))
    assert only.tasks == ["where", "street"]


def test_yes_and_no_are_balanced_and_true() -> None:
    verdicts: Counter[str] = Counter()
    for number in range(50):
        for dialogue in _dialogues(image_id=f"i{number}"):
            for task, answer in zip(dialogue.tasks, dialogue.messages[1::2], strict=True):
                if task == "yes_no":
                    found = parse_answer(task, answer.content)
                    assert found is not None
                    assert (found["asked"] == FULL.street) == (found["verdict"] == "yes")
                    verdicts[found["verdict"]] += 1
    assert verdicts == {"yes": 50, "no": 50}


def test_given_away_means_said_before() -> None:
    """Naively: a question is given away if each name that its answer holds was in an earlier answer, not denied."""
    facts = {"street": ["Grant Street"], "between": ["Fifth Avenue", "Sixth Avenue"], "neighbourhood": ["Downtown"]}
    facts |= {"city": ["Pittsburgh"], "yes_no": ["Grant Street"]}
    facts["where"] = [name for task in ("street", "between", "neighbourhood", "city") for name in facts[task]]
    seen = set()
    for number in range(60):
        for dialogue in _dialogues(image_id=f"i{number}", num_dialogues=1 + number % 3):
            said = ""
            for i, task in enumerate(dialogue.tasks):
                assert dialogue.is_given_away[i] == all(name in said for name in facts[task]), dialogue
                answer = dialogue.messages[2 * i + 1].content
                said += "" if answer.startswith("No") else answer
                seen.add((task, dialogue.is_given_away[i]))
    assert {task for task, is_given in seen if not is_given} == set(TASKS)


def test_every_kind_opens_a_dialogue_somewhere() -> None:
    openings = Counter(d.tasks[0] for number in range(200) for d in _dialogues(image_id=f"i{number}"))
    assert openings["where"] == 200
    assert all(openings[task] >= 20 for task in TASKS)


def test_choices_follow_the_name_and_the_seed_alone() -> None:
    names = [f"i{number}" for number in range(30)]
    first = {name: _dialogues(image_id=name) for name in names}
    random.Random(1).shuffle(names)
    assert {name: _dialogues(image_id=name) for name in names} == first
    assert {name: _dialogues(image_id=name, seed=1) for name in names} != first
    assert stable_number("a", 1) == 9484037261928657086
    assert choose("abc", "k", offset=1) == "abc"[("abc".index(choose("abc", "k")) + 1) % 3]
