"""How well and how fast street names are found in sentences, kind by kind.

    python benchmarks/matcher.py --names city.osm.pbf

Every name of the map becomes a street of the gazetteer and the subject of sentences. `right`: the street that was meant
is found; `wrong`: another one; the rest is unmatched. Sentences are counted per second of one core's time, the fastest
of `--repeats` measurements. Writes benchmarks/results/matcher.json and prints a table.
"""

import os
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llava_ial.address import Address, CrossStreet, format_canonical, format_spoken, format_verbose
from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.gazetteer import Gazetteer
from llava_ial.manifest import library_versions, write_json
from llava_ial.place_names import name_key
from llava_ial.prompts import STREET, WHERE, format_answer

RESULTS = Path("benchmarks/results/matcher.json")
AREAS = ("Shadyside", "Strip District", "Mount Washington", "")
CITY = "Pittsburgh"
SENTENCES = (
    "This is {}.", "I think we are on {}.", "The photo was taken on {}, near a church.", "Looks like {} to me!",
    "it is {}", "My guess: {} in the morning.", "Probably {}, but I am not sure.", "You are standing on {}.",
)  # fmt: skip
OTHER_LANGUAGES = (
    "Das ist {}.",
    "Je crois que c’est {}.",
    "Это {}.",
    "ここは{} です。",
    "Está en {}.",
    "Jsme na ulici {}.",
)
SHORT = {
    "Street": "St", "Avenue": "Ave", "Boulevard": "Blvd", "Road": "Rd", "Drive": "Dr", "Lane": "Ln", "Court": "Ct",
    "Place": "Pl", "Square": "Sq", "Terrace": "Ter", "Parkway": "Pkwy", "Alley": "Aly", "Saint": "St.", "North": "N.",
    "South": "S.", "East": "E.", "West": "W.",
}  # fmt: skip
ORDINALS = {
    "First": "1st", "Second": "2nd", "Third": "3rd", "Fourth": "4th", "Fifth": "5th", "Sixth": "6th", "Seventh": "7th",
    "Eighth": "8th", "Ninth": "9th", "Tenth": "10th",
}  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class BenchmarkConfig:
    """What is measured."""

    names: Path = field(
        default=Path("../shared/data/pittsburgh/pittsburgh.osm.pbf"),
        metadata={"help": "OpenStreetMap extract whose street names are looked for"},
    )
    sentences: int = field(default=6000, metadata={"help": "of each kind"})
    seed: int = field(default=0, metadata={"help": "of the sentences"})
    repeats: int = field(default=5, metadata={"help": "measurements of each kind; the fastest counts"})
    output: Path = field(default=RESULTS, metadata={"help": "JSON to write"})


def main() -> None:
    """Measures, prints, writes."""
    (config,) = parse_config(BenchmarkConfig, description=__doc__ or "")
    names = read_names(config.names)
    draw = random.Random(config.seed)
    addresses = [
        Address(
            name,
            draw.choice(AREAS),
            tuple(CrossStreet(other) for other in draw.sample(names, draw.randrange(3)) if other != name),
            CITY,
        )
        for name in names
    ]
    gazetteer = Gazetteer(addresses)
    keys = {name: name_key(name) for name in names}
    rows = []
    print(f"{len(names)} names\n{'kind':<28}{'sentences':>10}{'right':>9}{'wrong':>9}{'sentences/s':>14}")
    for kind, make in KINDS.items():
        rows.append(measure(kind, make, gazetteer, addresses, keys, config))
        row = rows[-1]
        rate = f"{row['sentences_per_s']:>14,.0f}"
        print(f"{kind:<28}{row['sentences']:>10}{row['right']:>9.2%}{row['wrong']:>9.2%}{rate}")
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"1 of {os.cpu_count()} CPU cores",
        "versions": library_versions(),
        "num_names": len(names),
    }
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, facts | {"config": settings, "rows": rows})


Maker = Callable[[Address, Sequence[Address], random.Random], tuple[str, str] | None]


def measure(
    kind: str,
    make: Maker,
    gazetteer: Gazetteer,
    addresses: Sequence[Address],
    keys: dict[str, str],
    config: BenchmarkConfig,
) -> dict[str, Any]:
    """Sentences of one kind: what is found in them, and how fast."""
    draw = random.Random(f"{config.seed} {kind}")
    cases: list[tuple[str, str]] = []
    while len(cases) < config.sentences:
        if case := make(draw.choice(addresses), addresses, draw):
            cases.append(case)
    seconds = []
    for _ in range(config.repeats):
        started = time.process_time()
        found = [gazetteer.match(text).street for text, _ in cases]
        seconds.append(time.process_time() - started)
    # Names of one key ("E Street", "East Street") cannot be told apart in an abbreviation.
    right = sum(
        bool(street) == bool(meant) and keys.get(street, "") == keys.get(meant, "")
        for street, (_, meant) in zip(found, cases, strict=True)
    )
    wrong = sum(
        bool(street) and keys.get(street) != keys.get(meant, "")
        for street, (_, meant) in zip(found, cases, strict=True)
    )
    return {
        "kind": kind,
        "sentences": len(cases),
        "right": right / len(cases),
        "wrong": wrong / len(cases),
        "sentences_per_s": len(cases) / min(seconds),
    }


def read_names(path: Path) -> list[str]:
    """All street names of an extract."""
    import osmium

    if not path.is_file():
        raise UserError(f"--names {path}: no such file")
    ways = osmium.FileProcessor(str(path), osmium.osm.WAY)
    return sorted({way.tags["name"] for way in ways if "name" in way.tags})


def _said(name: str, draw: random.Random) -> str:
    return draw.choice(SENTENCES).format(name)


def _changed(change: Callable[[str, random.Random], str]) -> Maker:
    """Sentences with a name that was changed; those that the change leaves as they are do not count."""

    def make(address: Address, _: Sequence[Address], draw: random.Random) -> tuple[str, str] | None:
        name = change(address.street, draw)
        return (_said(name, draw), address.street) if name != address.street else None

    return make


def _words(table: dict[str, str]) -> Callable[[str, random.Random], str]:
    return lambda name, _: " ".join(table.get(word, word) for word in name.split(" "))


def _typo(name: str, draw: random.Random) -> str:
    """One letter of a longer word lost, doubled, replaced or swapped; never a digit, never the kind of street."""
    words = name.split(" ")
    places = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha() and word not in SHORT]
    if not places:
        return name
    at = draw.choice(places)
    word = words[at]
    i = draw.randrange(1, len(word) - 1)
    words[at] = draw.choice((
        word[:i] + word[i + 1 :],
        word[:i] + word[i] + word[i:],
        word[:i] + draw.choice(LETTERS) + word[i + 1 :],
        word[:i] + word[i + 1] + word[i] + word[i + 2 :],
    ))  # fmt: skip
    return " ".join(words)


def _two(address: Address, addresses: Sequence[Address], draw: random.Random) -> tuple[str, str]:
    form = draw.choice(("{} or maybe {}.", "It is {}, not far from {}.", "Either {} or {}, I would say."))
    return form.format(address.street, draw.choice(addresses).street), address.street


def _denied(address: Address, addresses: Sequence[Address], draw: random.Random) -> tuple[str, str]:
    if draw.random() < 0.5:
        return draw.choice(("This is not {}.", "It was not taken on {}.", "No, this isn't {}.")).format(
            address.street
        ), ""
    other = draw.choice(addresses).street
    return f"This is not {other}, it is {address.street}.", address.street


def _between(address: Address, addresses: Sequence[Address], draw: random.Random) -> tuple[str, str]:
    first, second = (draw.choice(addresses).street for _ in range(2))
    return f"We are between {first} and {second} on {address.street}.", address.street


def _listed(address: Address, addresses: Sequence[Address], draw: random.Random) -> tuple[str, str]:
    others = [draw.choice(addresses).street for _ in range(3)]
    return "1. " + address.street + "".join(f"\n{i}. {name}" for i, name in enumerate(others, start=2)), address.street


KINDS: dict[str, Maker] = {
    "own sentence": lambda a, _, d: (format_answer(d.choice((WHERE, STREET)), a), a.street),
    "published forms": lambda a, _, d: (d.choice((format_spoken, format_verbose, format_canonical))(a), a.street),
    "name in a sentence": lambda a, _, d: (_said(a.street, d), a.street),
    "other letter case": _changed(lambda name, draw: draw.choice((name.lower(), name.upper()))),
    "abbreviations": _changed(_words(SHORT)),
    "5th for Fifth": _changed(_words(ORDINALS)),
    "5th, N. and lower case": _changed(lambda name, draw: _words({**SHORT, **ORDINALS})(name, draw).lower()),
    "without dots and marks": _changed(lambda name, _: re.sub(r"[.'’]", "", name).replace("-", " ")),
    "two streets": _two,
    "between A and B first": _between,
    "negations": _denied,
    "lists": _listed,
    "other languages": lambda a, _, d: (d.choice(OTHER_LANGUAGES).format(a.street), a.street),
    "one typo": _changed(_typo),
}


if __name__ == "__main__":
    run_command(main)
