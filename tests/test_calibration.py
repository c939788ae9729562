"""Calibration: the temperature that was put in comes out, thresholds keep their promise, files belong to one model."""

import json
import shutil
import sys

import numpy as np
import pytest

from llava_ial.calibration import (
    CALIBRATION,
    calibrate,
    calibration_error,
    choose_here_from,
    choose_sure_from,
    fit_temperature,
    load_calibration,
    save_calibration,
    softmax,
    street_shares,
)
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from serve import calibrate as command
from serve.examples import find_photos
from tests.tiny_models import TinyFolders

NOBODY = np.zeros(0)


def drawn(num: int, num_classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn with just the probabilities that the logits state."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2.0, size=(num, num_classes))
    truth = np.array([rng.choice(num_classes, p=row) for row in softmax(logits)])
    return logits, truth


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_the_temperature_that_was_put_in_is_found(factor) -> None:
    logits, truth = drawn(4000)
    assert fit_temperature(logits * factor, truth) == pytest.approx(factor, rel=0.08)


def test_right_probabilities_have_a_small_error_and_wrong_ones_a_large_one() -> None:
    logits, truth = drawn(4000)
    for factor, low, high in ((1.0, 0.0, 0.03), (4.0, 0.1, 1.0)):
        shares = softmax(logits * factor)
        error = calibration_error(shares.max(axis=1), shares.argmax(axis=1) == truth)
        assert low <= error < high


def test_calibration_error_by_hand() -> None:
    # One bin of 0.9 with one of two right, one of 0.1 with none right: (2 * |0.9 - 0.5| + 1 * |0.1 - 0|) / 3.
    error = calibration_error(np.array([0.9, 0.9, 0.1]), np.array([True, False, False]))
    assert error == pytest.approx((0.8 + 0.1) / 3)


def test_streets_gather_the_shares_of_their_pieces() -> None:
    shares = street_shares(np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([0, 1, 0, 2]))
    assert shares.tolist() == [pytest.approx([0.4, 0.2, 0.4])]


def test_answers_above_the_threshold_are_right_as_often_as_promised() -> None:
    confidence, is_right = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), np.array([1, 1, 0, 1, 1, 0], dtype=bool)
    assert choose_sure_from(confidence, is_right) == 0.5  # 4 of 5
    assert choose_sure_from(confidence, np.zeros(6, dtype=bool)) > 1


def test_other_places_are_told_apart() -> None:
    here = np.linspace(0.5, 0.9, 41)
    assert choose_here_from(here, NOBODY) == pytest.approx(0.52)
    threshold = choose_here_from(here, np.linspace(0.1, 0.45, 20))
    assert 0.45 < threshold <= 0.5
    # Told apart best at 0.8, where three of four of the city's own photos would be refused.
    alike = choose_here_from(here, np.concatenate([np.linspace(0.5, 0.54, 20), np.linspace(0.7, 0.79, 20)]))
    assert 0.05 < (here < alike).mean() <= 0.1
    assert choose_here_from(here, here + 1) == 0.5, "nothing is refused where the others look more like the city"


def test_the_command_calibrates_a_model_that_then_uses_it(tiny_folders: TinyFolders, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "stage1"
    shutil.copytree(tiny_folders.clip, folder)
    photo = next((tiny_folders.data.parent / "data_photos" / "train").iterdir())
    before = AddressPredictor.from_pretrained(folder)
    arguments = [
        "calibrate",
        "--model",
        str(folder),
        "--data",
        str(tiny_folders.data),
        "--elsewhere",
        str(photo.parent),
    ]
    for _ in range(2):  # the second run measures the encoder itself again, not what the first one made of it
        monkeypatch.setattr(sys, "argv", [*arguments, "--device", "cpu"])
        command.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    after = AddressPredictor.from_pretrained(folder)
    assert after.calibration.num_photos == 2
    assert after.calibration.num_elsewhere == 8
    expected = (before.logit_scale * before.cosines([photo]) / after.calibration.temperature).softmax(dim=1)
    assert after.probabilities([photo]).tolist() == [pytest.approx(expected[0].tolist(), abs=1e-6)]
    values = json.loads((folder / CALIBRATION).read_text())
    with monkeypatch.context() as patch:
        patch.setattr(command, "calibrate", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            command.main()
    assert json.loads((folder / CALIBRATION).read_text()) == values
    (folder / CALIBRATION).write_text(json.dumps(values | {"tower_hash": "another"}))
    with pytest.raises(UserError, match="belongs to another encoder"):
        AddressPredictor.from_pretrained(folder)
    (folder / CALIBRATION).write_text("{")
    with pytest.raises(UserError, match=r"unreadable .* run serve.calibrate again"):
        AddressPredictor.from_pretrained(folder)
    command.main()
    assert json.loads((folder / CALIBRATION).read_text()) == values


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_saved_and_loaded_are_equal(tmp_path) -> None:
    logits, truth = drawn(50)
    found = calibrate(logits, logits.max(axis=1), truth, np.array([0, 0, 1, 1, 2, 3]), NOBODY)
    assert found.accepted_elsewhere is None
    manifest = {"tower_hash": "t", "gallery_hash": "g"}
    save_calibration(tmp_path, found, manifest)
    assert load_calibration(tmp_path, manifest) == found
    assert load_calibration(tmp_path / "none", manifest) is None


def test_no_photo_is_said(tmp_path) -> None:
    with pytest.raises(UserError, match="this split has none"):
        calibrate(np.zeros((0, 3)), NOBODY, np.zeros(0, dtype=int), np.arange(3), NOBODY)
    with pytest.raises(UserError, match="no photos here"):
        find_photos(tmp_path)
