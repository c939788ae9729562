"""What ``toy-llava`` hears: scenes described with their photos, addresses talked about without."""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llava_ial.address import Address, format_spoken
from llava_ial.conversation import IMAGE_TOKEN, Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.hints import format_hint
from train.toy_base.names import made_up_word, spelled_word

SCENE_QUESTIONS = (
    "What does this photo show?",
    "Describe this view.",
    "What can be seen here?",
    "Describe the scene in one sentence.",
    "What do you see?",
    "Tell me what is in this picture.",
)
_MADE_UP_SHARE = 0.7
_SPELLED_SHARE = 0.5
_MOST_FOLLOW_UPS = 3
# Most of the talk says first where the photo was taken, or lists some likely addresses: the language model learns to
# take names from what it was told, and from a list the one or the other as often as their probabilities say.
_SHARE_TOLD, _SHARE_LISTED = 0.3, 0.5
_MOST_LISTED = 4
_ORDINALS = ("first", "second", "third", "fourth")
_MOST_DRILLED = 5
_SHARE_NEAR = 0.7
_TOLD = ("This photo was taken at {}. ", "I am standing at {}. ", "The photo shows {}. ")


def scene_dialogues(captions: Sequence[str], seed: int) -> list[list[Message]]:
    """One question and the description as its answer, for every photo in order."""
    chosen = np.random.default_rng(seed).integers(len(SCENE_QUESTIONS), size=len(captions))
    return [
        [user_question(SCENE_QUESTIONS[which]), Message("assistant", caption)]
        for which, caption in zip(chosen, captions, strict=True)
    ]


def address_dialogues(data_sets: Sequence[Path], seed: int, pieces: Sequence[str] = ()) -> list[list[Message]]:
    """The dialogues of data sets as text, most with made-up names, and most with the address told or listed first.

    Where each dialogue has names of its own, a later turn can only be answered by reading the earlier ones. With the
    few names of some towns a language model learns the names instead. Half of the made-up names are spelled with
    ``pieces``, where there are any.
    """
    draw = np.random.default_rng(seed)
    talks: list[list[Message]] = []
    for folder in data_sets:
        dataset = IALDataset(folder)
        address_of = {record.sub_street_id: record.address for record in dataset.gallery}
        words = name_words(record.address for record in dataset.gallery)
        for record in dataset.conversations("train"):
            first, *rest = some_turns(record.messages, draw)
            question = first.content.replace(IMAGE_TOKEN, "").strip()
            which, truth = draw.random(), address_of[record.sub_street_id]
            if which < _SHARE_TOLD:
                question = _TOLD[draw.integers(len(_TOLD))].format(format_spoken(truth)) + question
            elif which < _SHARE_TOLD + _SHARE_LISTED:
                question = f"{format_hint(listed(truth, list(address_of.values()), draw))}\n{question}"
            talk = [Message("user", question), *rest]
            talks.append(rename(talk, words, draw, pieces) if draw.random() < _MADE_UP_SHARE else talk)
    return talks


def listed(truth: Address, addresses: Sequence[Address], draw: np.random.Generator) -> list[tuple[Address, float]]:
    """Up to ``_MOST_LISTED`` addresses with falling probabilities, and the truth in each place as often as that says.

    Half of the others are of the same neighbourhood, as an encoder's candidates often are.
    """
    far = [address for address in dict.fromkeys(addresses) if address != truth]
    near = [address for address in far if address.neighbourhood == truth.neighbourhood]
    count = int(draw.integers(1, min(_MOST_LISTED, len(far) + 1) + 1))
    weights = np.sort(draw.exponential(size=count))[::-1]
    place = int(draw.choice(count, p=weights / weights.sum()))
    chosen: list[Address] = []
    while len(chosen) < count - 1:
        pool = near if draw.random() < 0.5 and any(a not in chosen for a in near) else far
        other = pool[int(draw.integers(len(pool)))]
        if other not in chosen:
            chosen.append(other)
    chosen.insert(place, truth)
    return list(zip(chosen, (weights / weights.sum() * draw.uniform(0.3, 0.95)).tolist(), strict=True))


def address_drills(
    data_sets: Sequence[Path], *, per_set: int, seed: int, pieces: Sequence[str] = ()
) -> list[list[Message]]:
    """Lists of addresses, and questions about this and that one of them: nothing but reading, and it has one answer.

    Every name is made up, half of them of ``pieces`` where there are any, so that each can be found in its list alone.
    The city, which no list names, is left out.
    """
    draw = np.random.default_rng(seed)
    drills: list[list[Message]] = []
    for folder in data_sets:
        dataset = IALDataset(folder)
        address_of = {record.sub_street_id: record.address for record in dataset.gallery}
        turns: dict[Address, list[tuple[str, str]]] = {}
        for record in dataset.conversations("train"):
            address = address_of[record.sub_street_id]
            turns.setdefault(address, []).extend(_turns_without_city(record.messages, address.city))
        words = name_words(turns)
        drills += [rename(drill(turns, draw), words, draw, pieces) for _ in range(per_set)]
    return drills


def drill(turns: Mapping[Address, Sequence[tuple[str, str]]], draw: np.random.Generator) -> list[Message]:
    """A list of up to ``_MOST_LISTED`` of the addresses, then some of their questions, each about one that is named.

    Most of them touch each other, as an encoder's candidates do: what stands after "Oak Road, between" is in it twice.
    """
    addresses = [list(turns)[i] for i in draw.permutation(len(turns))]
    count = int(draw.integers(1, min(_MOST_LISTED, len(addresses)) + 1))
    some = [addresses.pop()]
    while len(some) < count:
        near = [i for i, address in enumerate(addresses) if _streets(address) & _streets(some[0])]
        some.append(addresses.pop(near[0] if near and draw.random() < _SHARE_NEAR else 0))
    some = [some[i] for i in draw.permutation(count)]
    shares = np.sort(draw.dirichlet(np.ones(count)))[::-1]
    talk: list[Message] = []
    for _ in range(draw.integers(2, _MOST_DRILLED + 1)):
        which = int(draw.integers(count))
        asked, answer = turns[some[which]][draw.integers(len(turns[some[which]]))]
        question = f"Take the {_ORDINALS[which]} address. {asked}"
        opening = "" if talk else f"{format_hint(list(zip(some, shares.tolist(), strict=True)))}\n"
        talk += [Message("user", opening + question), Message("assistant", answer)]
    return talk


def _streets(address: Address) -> set[str]:
    return {address.street, *(cross.street for cross in address.cross_streets)}


def _turns_without_city(messages: Sequence[Message], city: str) -> Iterator[tuple[str, str]]:
    """Pairs of question and answer, the city and what follows cut off; those that ask for the city are left out."""
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        before, comma_city, _ = answer.content.partition(f", {city}")
        said = f"{before}." if comma_city else before
        if city not in said:
            yield question.content.replace(IMAGE_TOKEN, "").strip(), said


def some_turns(messages: Sequence[Message], draw: np.random.Generator) -> list[Message]:
    """The first question with its answer and up to ``_MOST_FOLLOW_UPS`` of the later ones, in order."""
    later = np.arange(2, len(messages), 2)
    kept = np.sort(draw.permutation(later)[: draw.integers(_MOST_FOLLOW_UPS + 1)])
    return [messages[i] for start in (0, *kept) for i in (start, start + 1)]


def name_words(addresses: Iterable[Address]) -> set[str]:
    """The words that make one town's names its own: "Quail" of "Quail Road", "Farminster" of "Farminster Bay"."""
    names = {
        name for a in addresses for name in (a.street, a.neighbourhood, a.city, *(c.street for c in a.cross_streets))
    }
    return {word for name in names if name for word in (name.split()[:-1] or name.split())}


def rename(
    messages: Sequence[Message], words: set[str], draw: np.random.Generator, pieces: Sequence[str] = ()
) -> list[Message]:
    """The same dialogue with another made-up word for each of ``words``, the same one throughout."""
    others: dict[str, str] = {}
    pattern = re.compile(r"\b(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + r")\b")

    def other(found: re.Match[str]) -> str:
        if found.group() not in others:
            spelled = pieces and draw.random() < _SPELLED_SHARE
            others[found.group()] = spelled_word(pieces, draw) if spelled else made_up_word(draw)
        return others[found.group()]

    return [Message(message.role, pattern.sub(other, message.content)) for message in messages]


def build_data_sets(cities: Sequence[Path], folder: Path) -> list[Path]:
    """Runs ``python -m data_gen.build`` on each city that has no data set yet.

    Raises:
        UserError: The build failed.
    """
    built = []
    for city in tqdm(cities, desc="data sets", unit="city"):
        output = folder / f"data-{city.name}"
        command = [sys.executable, "-m", "data_gen.build", "--config", "data_gen/configs/toy_city.yaml"]
        command += ["--output", str(output), "--image_root", str(city), "--photos_csv", str(city / "photos.csv")]
        command += ["--streets", str(city / "city.osm.pbf"), "--captions_csv", str(city / "captions.csv")]
        command += ["--neighbourhoods", str(city / "neighbourhoods.geojson")]
        made = subprocess.run(command, check=False, capture_output=True, text=True)
        if made.returncode:
            raise UserError(f"{' '.join(command)} failed: {(made.stderr.strip().splitlines() or [''])[-1]}")
        built.append(output)
    return built
