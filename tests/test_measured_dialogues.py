"""Dialogues written as columns: the same records, and the same bytes, as photo by photo."""

import random
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_gen.converse import DialogueSettings
from data_gen.measured_dialogues import Candidates, NamedNumbers, PhotoColumns, write_dialogues
from llava_ial.address import Address, CrossStreet
from llava_ial.errors import UserError
from llava_ial.prompts import stable_number
from llava_ial.records import ConversationRecord, to_table
from tests.plain_dialogues import plain_dialogues

NUM_PHOTOS = 60


def _gallery(num_streets: int, count: int) -> list[Address]:
    draw = random.Random(num_streets)
    streets = [f"Straße {number}" for number in range(num_streets)]
    return sorted(
        {
            Address(
                draw.choice(streets),
                draw.choice(["", "Downtown", "Bluff"]),
                tuple(CrossStreet(draw.choice(streets)) for _ in range(draw.choice([0, 1, 2]))),
                draw.choice(["", "City"]),
            )
            for _ in range(count)
        }
    )


def _bytes(table: pa.Table) -> bytes:
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


@pytest.mark.parametrize("num_dialogues", [1, 2, 3, 6, 7, 9])
@pytest.mark.parametrize(("num_streets", "count"), [(1, 3), (2, 6), (40, 120)])
@pytest.mark.parametrize(("split", "seed"), [("train", 0), ("val", 3), ("test", 3)])
def test_columns_say_what_a_loop_over_photos_says(
    num_dialogues: int, num_streets: int, count: int, split: str, seed: int
) -> None:
    gallery = _gallery(num_streets, count)
    streets = sorted({address.street for address in gallery})
    talk = DialogueSettings(num_dialogues, seed)
    candidate = np.random.default_rng(seed).integers(0, len(gallery), NUM_PHOTOS)
    names = [f"walk/é{number:03d}" for number in range(NUM_PHOTOS)]
    one_by_one = [
        dialogue
        for name, index in zip(names, candidate.tolist(), strict=True)
        for dialogue in plain_dialogues(name, f"{name}.jpg", f"s{index}", split, gallery[index], streets, talk)
    ]
    columns = (names, [f"{name}.jpg" for name in names], [f"s{index}" for index in candidate.tolist()])
    photos = PhotoColumns(*(pa.array(column, pa.string()) for column in columns), candidate)
    table = write_dialogues(photos, split, Candidates(gallery), talk)
    table.validate(full=True)
    assert _bytes(table) == _bytes(to_table(one_by_one, ConversationRecord))


def test_numbers_of_many_names_are_those_of_each() -> None:
    numbers = NamedNumbers(7, ["a", "ü/b", ""])
    assert numbers.of("where", "wording").tolist() == [
        stable_number(7, n, "where", "wording") for n in ("a", "ü/b", "")
    ]
    endings = ["Grant Street", "Straße", ""]
    expected = [stable_number(7, n, "yes_no", e) for n, e in zip(("a", "ü/b", ""), endings, strict=True)]
    assert numbers.of("yes_no", endings=[e.encode() for e in endings]).tolist() == expected


def test_a_name_that_would_be_a_photo_is_refused() -> None:
    with pytest.raises(UserError, match="gallery: <image>"):
        Candidates([Address("Street of <image>")])
