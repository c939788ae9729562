"""Heat maps: the area under the curve against pairs, whom a name is true of, and the command."""

import json

import pytest
import torch
from PIL import Image

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.evaluation import heatmap
from llava_ial.evaluation.heatmap import auc, is_there, names_of_levels


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    scores = torch.tensor([0.9, 0.5, 0.5, 0.1, 0.7])
    is_right = torch.tensor([True, True, False, False, False])
    pairs = [(a, b) for a in scores[is_right].tolist() for b in scores[~is_right].tolist()]
    assert auc(scores, is_right) == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    assert auc(scores, torch.zeros(5, dtype=torch.bool)) is None
    assert auc(scores, torch.ones(5, dtype=torch.bool)) is None


def test_a_name_is_true_at_its_own_level(tiny_folders):
    dataset = IALDataset(tiny_folders.data)
    addresses = [sample.address.address for sample in dataset.samples("train")]
    names = names_of_levels(dataset.gallery)
    assert set(names) == set(heatmap.LEVELS)
    for texts in names.values():
        assert all(is_there(text, addresses).any() for text in texts)
    assert is_there("amber street", addresses).tolist() == [a.street == "Amber Street" for a in addresses]
    assert not is_there("somewhere else", addresses).any()


def test_the_command_draws_each_text_and_measures_each_level(tiny_folders, tmp_path, monkeypatch, capsys):
    given = [f"--model={tiny_folders.clip}", f"--data={tiny_folders.data}", f"--output={tmp_path}", "--split=train"]
    monkeypatch.setattr("sys.argv", ["heatmap", *given, "--text", "Amber Street", "a <nice> place"])
    heatmap.main()
    found = json.loads((tmp_path / "heatmaps.json").read_text())
    assert all(0 <= value <= 1 for value in found["levels"].values())
    assert 0 <= found["texts"]["Amber Street"]["auc"] <= 1
    assert found["texts"]["a <nice> place"]["auc"] is None
    with Image.open(tmp_path / "heatmap-00.png") as picture:
        assert len(picture.getcolors(100_000)) > 3
    drawing = (tmp_path / "heatmap-01.svg").read_text()
    assert drawing.count("<circle") == found["num_photos"] == 8
    assert "a &lt;nice> place" in drawing
    assert "street" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["heatmap", *given, "--split=some"])
    with pytest.raises(UserError, match="--split some"):
        heatmap.main()
