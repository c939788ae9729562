"""What toy-llava hears of addresses: some turns, and names that only the dialogue itself can have told."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_ial.address import Address, CrossStreet
from llava_ial.conversation import Message
from tests.tiny_world import TinyWorld, build_tiny_dataset
from train.toy_base import pretrain_copying
from train.toy_base.dialogues import address_dialogues, address_drills, listed, name_words, rename, some_turns

TALK = [
    Message("user", "Where is this?"),
    Message("assistant", "This is Oak Road, between Elm Lane and Oakley Street, Old Market, Bay."),
    Message("user", "Is this Oak Road?"),
    Message("assistant", "Yes, this is Oak Road."),
    Message("user", "In which quarter?"),
    Message("assistant", "The neighbourhood is Old Market."),
]


def test_each_word_of_a_name_has_one_other_name_throughout() -> None:
    said = rename(TALK, {"Oak", "Elm", "Old", "Bay"}, np.random.default_rng(0))
    oak = said[2].content.removeprefix("Is this ").removesuffix(" Road?")
    old = said[5].content.removeprefix("The neighbourhood is ").removesuffix(" Market.")
    assert {oak, old}.isdisjoint({"Oak", "Old"})
    assert oak != old
    assert said[1].content.startswith(f"This is {oak} Road, between ")
    assert f" and Oakley Street, {old} Market, " in said[1].content  # a longer word is not touched
    assert said[3].content == f"Yes, this is {oak} Road."
    assert [message.role for message in said] == [message.role for message in TALK]


def test_half_of_the_other_names_are_spelled_where_there_are_pieces() -> None:
    draw = np.random.default_rng(0)
    oaks = [
        rename(TALK, {"Oak"}, draw, ["zz", "yy"])[2].content.removeprefix("Is this ").removesuffix(" Road?")
        for _ in range(200)
    ]
    assert 70 < sum(set(oak.lower()) <= {"z", "y"} for oak in oaks) < 130


def test_another_dialogue_has_other_names() -> None:
    draw = np.random.default_rng(0)
    assert len({rename(TALK, {"Oak"}, draw)[3].content for _ in range(20)}) > 15


@given(st.integers(0, 10_000))
def test_kept_turns_are_the_first_and_whole_pairs_in_order(seed: int) -> None:
    kept = some_turns(TALK, np.random.default_rng(seed))
    pairs = [tuple(kept[i : i + 2]) for i in range(0, len(kept), 2)]
    all_pairs = [tuple(TALK[i : i + 2]) for i in range(0, len(TALK), 2)]
    assert pairs[0] == all_pairs[0]
    assert [all_pairs.index(pair) for pair in pairs] == sorted({all_pairs.index(pair) for pair in pairs})


def test_the_words_of_names_leave_out_the_kind_of_street() -> None:
    address = Address("Oak Road", "Old Market", (CrossStreet("Elm Lane"),), city="Bay")
    assert name_words([address]) == {"Oak", "Elm", "Old", "Bay"}


def test_talk_has_no_photo_and_the_address_is_often_told_or_listed(tmp_path: Path) -> None:
    data = build_tiny_dataset(tmp_path / "data")
    talks = address_dialogues([data] * 20, seed=0)
    assert talks == address_dialogues([data] * 20, seed=0)
    assert not any("<image>" in message.content for talk in talks for message in talk)
    told = sum(
        talk[0].content.startswith(("This photo was taken at ", "I am stand", "The photo shows ")) for talk in talks
    )
    listed_first = [talk for talk in talks if talk[0].content.startswith("Likely addresses: ")]
    assert 0.2 < told / len(talks) < 0.4
    assert 0.4 < len(listed_first) / len(talks) < 0.6


def test_the_truth_is_in_each_place_of_a_list_as_often_as_its_probability_says() -> None:
    draw = np.random.default_rng(0)
    addresses = [Address(f"{name} Road", f"Hill {i % 2}") for i, name in enumerate("ABCDEFGH")]
    stated, found = [], []
    for _ in range(3000):
        lines = listed(addresses[3], addresses, draw)
        shares = [share for _, share in lines]
        assert sorted(shares, reverse=True) == shares
        assert 0.3 <= sum(shares) <= 0.95
        assert len({address for address, _ in lines}) == len(lines) <= 4
        place = [address for address, _ in lines].index(addresses[3])
        stated.append(shares[0] / sum(shares))
        found.append(place == 0)
    sharp = np.array(stated) > np.median(stated)
    for part in (sharp, ~sharp):
        assert abs(np.mean(np.array(stated)[part]) - np.mean(np.array(found)[part])) < 0.04
    assert listed(addresses[0], addresses[:1], draw)[0][0] == addresses[0]


def test_the_answers_of_a_drill_stand_in_the_address_that_its_question_names(tmp_path: Path) -> None:
    data = build_tiny_dataset(tmp_path / "data", TinyWorld(num_train=16))
    drills = address_drills([data], per_set=200, seed=0)
    assert drills == address_drills([data], per_set=200, seed=0)
    assert drills[0] != address_drills([data], per_set=1, seed=1)[0]
    places = set()
    for talk in drills:
        listing, _, first = talk[0].content.partition("\n")
        items = [item.rsplit(" ", 1)[0] for item in listing.removeprefix("Likely addresses: ").split("; ")]
        assert 1 <= len(items) <= 4
        for question, answer in zip([first, *(m.content for m in talk[2::2])], talk[1::2], strict=True):
            found = re.match(r"Take the (first|second|third|fourth) address\. ", question)
            assert found is not None
            places.add((len(items), found.group(1)))
            item = items[["first", "second", "third", "fourth"].index(found.group(1))]
            names = re.findall(r"(?<!^)(?<!\. )\b[A-Z]\w+", answer.content)
            assert answer.content.startswith("No,") or all(name in item.split() or f"{name}," in item for name in names)
            assert "Tinytown" not in question + answer.content
    assert len(places) == 1 + 2 + 3 + 4


def test_an_answer_with_one_wrong_token_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    supervised = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    labels = torch.arange(int(supervised.sum()))
    said = torch.nn.functional.one_hot(labels, 20).float()
    answers = 4

    def copied(wrong: list[int]) -> float:
        logits = said.clone()
        logits[wrong, 19] = 2.0
        monkeypatch.setattr(pretrain_copying, "supervised_logits", lambda *_: (logits, labels, supervised))
        found = pretrain_copying.measure_copying(torch.nn.Linear(1, 1), [None], torch.ones(1))  # type: ignore[arg-type,list-item]
        return found["answers_copied"]

    assert copied([]) == 1.0
    assert copied([2]) == copied([2, 3]) == 1 - 1 / answers
    assert copied([0, 3, 6]) == 1 - 3 / answers
    assert copied(list(range(8))) == 0.0


def test_a_drill_stands_beside_a_photo_whose_features_are_disturbed_by_channel() -> None:
    assert pretrain_copying.beside_a_photo(TALK) == [Message("user", "<image>\nWhere is this?"), *TALK[1:]]
    features = torch.randn(3, 5, 7).half()
    first, again = (pretrain_copying.disturbed(features, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(first, again)
    gain = (first[:, 1:] - first[:, :-1]) / (features[:, 1:].float() - features[:, :-1].float())
    torch.testing.assert_close(gain, gain[:, :1].expand_as(gain), rtol=0.02, atol=0.02)
    assert (gain > 0).all()
    assert gain[:, 0].std() > 0.2
