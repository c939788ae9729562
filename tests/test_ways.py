"""Ways of locating with a finished encoder: each like a folder that was trained with it, and the table of all."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_ial.data.dataset import IALDataset
from llava_ial.data.views import views_of
from llava_ial.errors import UserError
from llava_ial.evaluation import ways
from llava_ial.evaluation.retrieval import retrieval_metrics
from llava_ial.evaluation.ways import EncodedCity, WaysSettings, cut_to, format_ways
from llava_ial.inference import AddressPredictor
from llava_ial.locating import Way
from tests.test_photo_memory import start_stage1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished stage 1 that pads photos and remembers them, and its data set."""
    return start_stage1(tmp_path_factory.mktemp("ways"), views="pad", memory_weight=2.0, eval_splits="val")


@pytest.mark.parametrize(("size", "corner"), [((200, 100), (0, 50)), ((50, 201), (75, 0)), ((9, 9), (0, 0))])
def test_a_padded_photo_is_whole_and_square(size: tuple[int, int], corner: tuple[int, int]) -> None:
    photo = Image.linear_gradient("L").resize(size).convert("RGB")
    (view,) = views_of(photo, "pad")
    assert view.size == (max(size), max(size))
    left, top = corner
    assert view.crop((left, top, left + size[0], top + size[1])).tobytes() == photo.tobytes()
    if size[0] != size[1]:
        assert view.getpixel((0, 0)) == view.getpixel((max(size) - 1, max(size) - 1)) == (122, 116, 104)


def test_a_way_places_photos_as_a_folder_that_was_written_with_it(trained: tuple[Path, Path]) -> None:
    out, data = trained
    measured = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["val"]
    city = EncodedCity(str(out), IALDataset(data))
    found = retrieval_metrics(*city.ranks("val", Way("pad", 2.0)))
    plain = retrieval_metrics(*city.ranks("val", Way()))
    for name in ("SSA@1", "SSA@5", "SA@1", "SA@5"):
        assert found[name] == measured[name]
        assert plain[name] == measured[f"plain {name}"]


def test_the_chat_pads_as_the_evaluation_does(trained: tuple[Path, Path]) -> None:
    out, data = trained
    dataset = IALDataset(data)
    files = [dataset.image_file(sample.photo.image_path) for sample in dataset.samples("val")]
    features = EncodedCity(str(out), dataset).photos("val", "pad").features
    torch.testing.assert_close(AddressPredictor.from_pretrained(out).photo_features(files), features)
    assert not torch.allclose(features, EncodedCity(str(out), dataset).photos("val").features, atol=1e-3)


@pytest.mark.parametrize(("aspect", "size"), [(1.5, (90, 60)), (1.0, (60, 60)), (3.0, (96, 32))])
def test_photos_are_cut_around_their_middle(aspect: float, size: tuple[int, int]) -> None:
    photo = Image.linear_gradient("L").resize((96, 60)).convert("RGB")
    cut = cut_to(aspect, photo)
    assert cut.size == size
    left, top = (96 - size[0]) // 2, (60 - size[1]) // 2
    assert cut.tobytes() == photo.crop((left, top, left + size[0], top + size[1])).tobytes()


def test_of_square_photos_the_middle_and_the_whole_are_the_same(trained: tuple[Path, Path]) -> None:
    out, data = trained
    city = EncodedCity(str(out), IALDataset(data), aspect=1.0)
    assert torch.equal(city.photos("val", "1").features, city.photos("val", "pad").features)


def test_the_table_compares_each_way_with_the_first() -> None:
    first, better = torch.tensor([1, 2, 9, 1]), torch.tensor([1, 1, 1, 1])
    found = {Way(): (first, first), Way("3", 3.0): (better, better)}
    lines = format_ways(found, {"1": 2.0, "3": 6.0}, ["a", "b", "c", "d"]).splitlines()
    assert lines[2] == "| 1 | 0 | 50.0 | 75.0 | 50.0 | 75.0 |  |  | 2.0 |"
    assert lines[3].startswith("| 3 | 3 | 100.0 | 100.0 | 100.0 | 100.0 | +50.0 [")
    assert {line.count("|") for line in lines} == {10}


def test_the_command_prints_the_table_and_writes_the_places(trained: tuple[Path, Path], tmp_path, monkeypatch, capsys):
    out, data = trained
    given = [
        f"--model={out}",
        f"--data={data}",
        "--split=val",
        "--views",
        "1",
        "pad",
        f"--output={tmp_path / 'w.json'}",
    ]
    monkeypatch.setattr("sys.argv", ["ways.py", *given])
    ways.main()
    assert "| pad | 3 |" in capsys.readouterr().out
    written = json.loads((tmp_path / "w.json").read_text(encoding="utf-8"))
    assert [(way["views"], way["memory_weight"]) for way in written["ways"]] == [
        ("1", 0.0), ("pad", 0.0), ("1", 3.0), ("pad", 3.0)
    ]  # fmt: skip
    assert written["ways"][0]["metrics"]["num_photos"] == len(written["ways"][0]["ranks"]) == 2


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"views": ["2"]}, "--views 2: allowed: 1, 3, parts, pad"),
        ({"split": "some"}, "--split some"),
        ({"aspect": -1}, "--asp"),
    ],
)
def test_wrong_options_are_told(given: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        WaysSettings("m", Path(), **given).refuse_impossible()


def test_a_broken_photo_ends_a_comparison(trained: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = trained
    photos = tmp_path / "photos"
    for sample in IALDataset(data).samples("val"):
        (photos / sample.photo.image_path).parent.mkdir(parents=True, exist_ok=True)
        (photos / sample.photo.image_path).write_bytes(b"no photo")
    with pytest.raises(UserError, match="2 photos of split 'val' cannot be read"):
        EncodedCity(str(out), IALDataset(data, photos)).photos("val")
