"""Captions: a name of the map never reaches the text, ordinary words stay."""

from pathlib import Path

import pyarrow as pa
import pytest

from data_gen.caption import LeakMask, caption_photos, constant_captions, read_captions
from llava_ial.errors import UserError
from llava_ial.records import CaptionRecord, from_table

MASK = LeakMask(
    ["Forbes Avenue", "Forbes", "Market", "Silberburgstraße", "Market Street", "A1", "A Street", "The Mall"],
    ["Downtown", "Strip District"],
)


@pytest.mark.parametrize(
    ("caption", "expected", "count"),
    [
        ("a bus on forbes avenue at night", "a bus on the street at night", 1),
        ("a sign that says FORBES AVENUE.", "a sign that says the street.", 1),
        ("the Forbes Avenue bridge", "the street bridge", 1),
        ("forbes, near the strip district", "the street, near the area", 2),
        ("silberburgstraße in the rain", "the street in the rain", 1),
        ("a market with fruit", "a market with fruit", 0),
        ("a stall in Market with fruit", "a stall in the street with fruit", 1),
        ("Market with fruit. Market again", "Market with fruit. Market again", 0),
        ("the market street", "the street", 1),
        ("a downtown street", "a downtown street", 0),
        ("a road in Downtown", "a road in the area", 1),
        ("forbesy avenues, a1", "forbesy avenues, a1", 0),
        ("a street view", "a street view", 0),
        ("a sign of A Street at the mall", "a sign of the street at the mall", 1),
        ("people in front of The Mall", "people in front of the street", 1),
    ],
)
def test_names_are_masked_as_whole_words(caption: str, expected: str, count: int) -> None:
    assert MASK.apply(caption) == (expected, count)


def test_every_photo_gets_a_caption(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("image_id,text\na,a house on Forbes Avenue\nb,\nother,a tree\n")
    captions = read_captions(tmp_path / "c.csv", ["a", "b"], "image_id", "text")
    records = caption_photos(["a", "b"], captions, "a street view", MASK, "csv")
    assert [(r.caption, r.captioner, r.num_masked) for r in records] == [
        ("a house on the street", "csv", 1),
        ("a street view", "constant", 0),
    ]


def test_a_constant_caption_is_one_for_all() -> None:
    text = "a street view of Grant Street"
    table = constant_captions(pa.array(["a", "b"]), text, MASK)
    assert from_table(table, CaptionRecord) == caption_photos(["a", "b"], {}, text, MASK, "csv")


def test_captions_of_other_photos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("image_id,caption\nother,a tree\n")
    with pytest.raises(UserError, match="has no caption for any photo; is 'image_id' its image id column"):
        read_captions(tmp_path / "c.csv", ["a"], "image_id", "caption")
    with pytest.raises(UserError, match="no column 'text'"):
        read_captions(tmp_path / "c.csv", ["a"], "image_id", "text")
