"""Dialogues of every kind of question: half of each kind opens, hard wrong answers, marks that hold, refusals."""

from collections import Counter, defaultdict

import pytest

from data_gen.converse import DialogueSettings
from data_gen.gallery import gallery_record, sub_street_id
from data_gen.surroundings import Surroundings
from data_gen.wide_dialogues import LocatedPhoto, converse_widely, refuse
from llava_ial.address import Address, CrossStreet
from llava_ial.conversation import validate_messages
from llava_ial.evaluation.reading import is_refusal, read_choice, read_options
from llava_ial.prompts import TASKS, WORDINGS
from llava_ial.records import ConversationRecord, GalleryRecord
from llava_ial.wider_prompts import WIDER_TASKS, WIDER_WORDINGS, follow_up_wordings, format_nearby, format_option

PLACE = {"city": "Gridville", "region": "GV", "country": "Gridland"}


def _address(street: str, first: str, second: str, area: str) -> Address:
    return Address(street, area, (CrossStreet(first, area), CrossStreet(second, area)), **PLACE)


ADDRESSES = [
    _address("Ash Street", "First Avenue", "Second Avenue", "West"),
    _address("Ash Street", "Second Avenue", "Third Avenue", "West"),
    _address("Ash Street", "Sixth Avenue", "Seventh Avenue", "East"),
    _address("First Avenue", "Ash Street", "Beech Street", "West"),
    _address("Second Avenue", "Ash Street", "Beech Street", "West"),
    _address("Far Street", "Low Road", "High Road", "East"),
]
ADJACENT = {0: [1, 3, 4], 1: [0, 4], 3: [0], 4: [0, 1]}


@pytest.fixture
def gallery() -> list[GalleryRecord]:
    ids = [sub_street_id(address) for address in ADDRESSES]
    return [
        gallery_record(address, [[[9.0, 48.0], [9.001, 48.0]]], 5, [ids[n] for n in ADJACENT.get(i, [])])
        for i, address in enumerate(ADDRESSES)
    ]


def _photo(name: str, split: str = "train", index: int = 0) -> LocatedPhoto:
    return LocatedPhoto(
        name, f"{name}.jpg", sub_street_id(ADDRESSES[index]), split, ADDRESSES[index], name.endswith("3"), "12a"
    )


def _dialogues(gallery: list[GalleryRecord], count: int, split: str = "train", most: int = 99):
    surroundings = Surroundings(gallery)
    for number in range(count):
        yield from converse_widely(_photo(f"i{number}", split, number % 2), surroundings, DialogueSettings(most, 0))


def _questions(dialogue: ConversationRecord):
    texts = [message.content for message in dialogue.messages]
    return zip(dialogue.tasks, texts[::2], texts[1::2], dialogue.is_given_away, strict=True)


def test_wordings_are_many_and_disjoint() -> None:
    assert set(WIDER_WORDINGS) == set(WIDER_TASKS)
    follow_ups = {
        split: [text for task in TASKS for text in follow_up_wordings(task, split)] for split in ("train", "test")
    }
    train = [text for kind in (WORDINGS | WIDER_WORDINGS).values() for text in kind.train] + follow_ups["train"]
    test = [text for kind in (WORDINGS | WIDER_WORDINGS).values() for text in kind.test] + follow_ups["test"]
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)
    assert not set(train) & set(test)
    assert all(len(kind.train) >= 12 and len(kind.test) >= 4 for kind in WIDER_WORDINGS.values())
    assert all(len(follow_up_wordings(task, "train")) in (0, 16) for task in TASKS)


def test_half_of_each_kind_opens_a_dialogue(gallery: list[GalleryRecord]) -> None:
    asked, opened, referred = Counter(), Counter(), 0
    back = {text for task in TASKS for text in follow_up_wordings(task, "train")}
    for dialogue in _dialogues(gallery, 400):
        validate_messages(dialogue.messages, dialogue.conversation_id)
        asked.update(dialogue.tasks)
        opened[dialogue.tasks[0]] += 1
        texts = [question for _, question, _, _ in _questions(dialogue)]
        assert texts[0].removeprefix("<image>\n") not in back
        referred += sum(text in back for text in texts)
    assert set(asked) == (set(TASKS) | set(WIDER_TASKS)) - {"elsewhere"}
    assert all(asked[task] == (800 if task == "yes_no" else 400) for task in asked)
    assert all(0.42 < opened[task] / asked[task] < 0.6 for task in asked)
    assert referred > 200


def test_a_limit_takes_from_all_kinds_alike(gallery: list[GalleryRecord]) -> None:
    asked = Counter(task for dialogue in _dialogues(gallery, 400, most=2) for task in dialogue.tasks)
    shares = [asked[task] / (2 if task == "yes_no" else 1) for task in asked]
    assert max(shares) < 1.35 * min(shares)


def test_marks_hold_for_what_was_said(gallery: list[GalleryRecord]) -> None:
    """Naively: the facts of an answer are names; given away means that earlier answers held all of them."""
    seen = defaultdict(set)
    for dialogue in _dialogues(gallery, 200):
        said = ""
        for task, question, answer, is_given in _questions(dialogue):
            if task in ("street", "between", "neighbourhood", "city", "where"):
                address = ADDRESSES[int(dialogue.image_id[1:]) % 2]
                names = {
                    "street": [address.street],
                    "between": [cross.street for cross in address.cross_streets],
                    "neighbourhood": [address.neighbourhood],
                    "city": [address.city],
                }
                names["where"] = [name for group in names.values() for name in group]
                # A "no" and the alternatives deny or spread; they give nothing away.
                assert not is_given or all(name in said for name in names[task]), dialogue
            if task == "choice":
                options = read_options(question)
                assert read_choice(answer, options) is not None
            seen[task].add(is_given)
            said += "" if answer.startswith("No") else answer
    assert seen["street"] == seen["where"] == seen["choice"] == {True, False}
    assert seen["sure"] == seen["candidates"] == {False}


def test_wrong_answers_are_the_hard_ones(gallery: list[GalleryRecord]) -> None:
    surroundings = Surroundings(gallery)
    for number in range(20):
        hard = surroundings.distractors(sub_street_id(ADDRESSES[0]), 3, number)
        assert ADDRESSES[1] in hard  # adjacent piece of the street
        assert ADDRESSES[2] in hard  # the street in another neighbourhood
        assert {address.street for address in hard} & {"First Avenue", "Second Avenue"}  # a crossing street
    assert surroundings.distractors(sub_street_id(ADDRESSES[5]), 3, 0)
    alone = Surroundings(gallery[5:])
    assert alone.distractors(sub_street_id(ADDRESSES[5]), 3, 0) == []
    assert alone.nearby_streets(sub_street_id(ADDRESSES[5])) == ["High Road", "Low Road"]


def test_choices_have_one_right_option_anywhere(gallery: list[GalleryRecord]) -> None:
    letters = Counter()
    for dialogue in _dialogues(gallery, 200, "test"):
        for task, question, answer, _ in _questions(dialogue):
            if task == "choice":
                options = question.split("\n")[-4:]
                right = format_option(ADDRESSES[int(dialogue.image_id[1:]) % 2])
                assert [option for option in options if option[3:] == right] == [answer]
                assert len(set(options)) == 4
                letters[answer[0]] += 1
            if task == "sure":
                assert answer.startswith("I am not sure") == dialogue.image_id.endswith("3")
    assert min(letters[letter] for letter in "ABCD") > 25


def test_names_and_seed_decide_alone(gallery: list[GalleryRecord]) -> None:
    surroundings = Surroundings(gallery)
    photos = [_photo(f"i{n}") for n in range(20)]
    forward = [list(converse_widely(p, surroundings, DialogueSettings(3, 1))) for p in photos]
    backward = [list(converse_widely(p, surroundings, DialogueSettings(3, 1))) for p in reversed(photos)][::-1]
    assert forward == backward
    assert forward != [list(converse_widely(p, surroundings, DialogueSettings(3, 2))) for p in photos]


def test_a_photo_of_elsewhere_is_refused() -> None:
    for split in ("train", "test"):
        record = refuse("elsewhere/a.jpg", "../far/a.jpg", split, DialogueSettings())
        assert is_refusal(record.messages[1].content)
        assert (record.tasks, record.is_given_away, record.sub_street_id) == (["elsewhere"], [False], "")


def test_streets_are_listed_as_one_says_them() -> None:
    assert format_nearby(["A"]) == "Nearby is A."
    assert format_nearby(["Harebell Street", "B", "C"]) == "Nearby are Harebell Street, B and C."
