"""What stands beside the conversation: the map, the check of a stored position, the regions that carried the answer."""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageFilter

from llava_ial.exif import read_metadata
from llava_ial.geo import GeoPoint, LocalFrame
from llava_ial.prompts import PUBLISHED_QUESTION
from serve import texts
from serve.places import answer_address
from serve.talk import Talk
from serve.uploads import MAX_AGE_S, STRAY_S, UNUSED_S, Uploads, open_folder
from serve.why import GRID, attribute, cover
from tests.test_chat import photos, predictor
from tests.test_chat_page import page
from tests.tiny_world import ORIGIN

__all__ = ["page", "photos", "predictor"]

ROOT = Path(__file__).resolve().parents[1]
KILLED = """
import os, signal
from serve.uploads import open_folder
with open_folder() as folder:
    (folder / "photo.jpg").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_map_shows_candidates_and_answer(page, photos) -> None:
    *_, last = page.start(str(photos[0][0]), None, PUBLISHED_QUESTION)
    talk, svg = last[0], last[3]
    (answered,) = page.talker.agreement(talk).pieces
    assert f'class="answer" data-piece="{answered}"' in svg
    for candidate in talk.finding.candidates:
        assert f'data-piece="{candidate.sub_street_id}"' in svg


@pytest.mark.parametrize("text", ["Amber Street", "old town", "coloured wall"])
def test_text_and_photo_make_a_heat_over_the_streets(page, photos, text) -> None:
    finding = page.talker.look([photos[0][0]])
    svg, _ = page.find(Talk([photos[0][0]], [], finding), text)
    fit, _ = page.talker.fit_text(finding, text)
    named = {"Amber Street": "street", "old town": "neighbourhood"}.get(text)
    for value, record, share in zip(fit, page._predictor.gallery, finding.probabilities.tolist(), strict=True):
        if named:
            is_meant = getattr(record.address, named).casefold() == text.casefold()
            assert value == pytest.approx(share if is_meant else 0.0)
        assert (f'data-piece="{record.sub_street_id}"' in svg) == (value >= 0.02 * max(fit))
    assert texts.NO_PHOTO in page.find(Talk(), text)[1]


def with_position(photo: Path, path: Path, point: GeoPoint) -> Path:
    """The very bytes of a JPEG with a position put in front of them."""
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (point.lat, 0.0, 0.0), 3: "E", 4: (point.lon, 0.0, 0.0)}
    segment = exif.tobytes()
    data = photo.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:])
    return path


def test_a_stored_position_is_a_check_and_never_an_input(page, photos, tmp_path, predictor) -> None:
    """The same pixels answer the same with and without a position, even a wrong one; it is read only when asked for."""
    path, expected = photos[0]
    frame = LocalFrame(ORIGIN)
    lat, lon = frame.to_lat_lon([[60.0, 30.0]])  # 30 m north of Amber Street's first piece
    tagged = with_position(path, tmp_path / "tagged.jpg", GeoPoint(float(lat[0]), float(lon[0])))
    with Image.open(tagged) as image:
        assert read_metadata(image).point is not None
    plain, other = (list(page.start(str(p), None, PUBLISHED_QUESTION))[-1] for p in (path, tagged))
    assert other[1] == plain[1]
    assert other[0].finding.probabilities.tolist() == plain[0].finding.probabilities.tolist()
    assert other[7] == "", "not asked for"
    assert page.check_position(other[0], True).count("Amber Street") == 1
    assert "30 m from my answer" in page.check_position(other[0], True)
    assert texts.NO_POSITION in page.check_position(plain[0], True)
    asked = list(page.start(str(tagged), None, PUBLISHED_QUESTION, True))[-1]
    assert "30 m" in asked[7]
    assert asked[1][1]["content"] == expected


@pytest.mark.parametrize("cover_with", ["black", "blur"])
def test_the_regions_that_are_marked_carry_the_answer(page, photos, cover_with) -> None:
    """Blacking or blurring them out hurts more than as many others: on the mean of all photos and draws."""
    draw = random.Random(0)
    marked_loss, other_loss = 0.0, 0.0
    cells = [(r, c) for r in range(GRID) for c in range(GRID)]
    for path, _ in photos:
        finding = page.talker.look([path])
        row, _ = answer_address(finding, None, page._predictor.gallery)
        found = attribute(page._predictor, path, row)
        marked = found.marked()
        assert len(set(marked)) == len(marked) <= 6
        others = [draw.sample([c for c in cells if c not in marked], len(marked)) for _ in range(5)]
        hidden = found.photo.filter(ImageFilter.GaussianBlur(max(found.photo.size) / 8))
        if cover_with == "black":
            hidden = Image.new("RGB", found.photo.size)
        views = [found.photo, *(cover(found.photo, hidden, choice) for choice in [marked, *others])]
        logs = page._predictor.to_probabilities(page._predictor.cosines(views))[:, row].log()
        marked_loss += float(logs[0] - logs[1])
        other_loss += float((logs[0] - logs[2:]).mean())
    assert marked_loss > other_loss
    assert marked_loss > 0


def test_photos_of_a_killed_chat_are_deleted_at_the_next_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=environment, check=False, timeout=60)
    (killed,) = tmp_path.iterdir()
    with open_folder() as first:
        assert not killed.exists()
        (first / "photo.jpg").touch()
        with open_folder() as second:
            assert sorted(tmp_path.iterdir()) == sorted([first, second])
        assert (first / "photo.jpg").exists(), "its chat runs"
    assert not list(tmp_path.iterdir())


def test_photos_that_nobody_uses_any_more_are_deleted(tmp_path) -> None:
    uploads = Uploads(tmp_path / "uploads")
    names = ("uploads/a/1.jpg", "uploads/b/2.jpg", "uploads/tmp123", "3.jpg")
    shared, own, half, outside = paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    now = time.time()

    def left(after_s: float) -> list[Path]:
        uploads.sweep(now + after_s)
        return [path for path in paths if path.exists()]

    uploads.remember("one", [shared, own, outside])
    uploads.remember("two", [shared])
    assert left(STRAY_S - 5) == paths
    assert left(STRAY_S + 5) == [shared, own, outside], "half of an upload"
    assert left(UNUSED_S + 5) == [shared, own, outside], "both are used"
    uploads.forget_visitor(SimpleNamespace(session_hash="one"))
    assert left(UNUSED_S - 5) == [shared, own, outside], "its visitor may be one who waits in the queue"
    assert left(UNUSED_S + 5) == [shared, outside]
    assert left(MAX_AGE_S + 5) == [outside], "used or not"
    assert not half.exists()


def test_a_call_keeps_its_photo_while_it_lasts(tmp_path) -> None:
    uploads = Uploads(tmp_path)
    photo = tmp_path / "a" / "1.jpg"
    photo.parent.mkdir()
    photo.touch()
    with uploads.borrow([photo]):
        uploads.sweep(time.time() + UNUSED_S + 5)
        assert photo.exists()
    uploads.sweep(time.time() + UNUSED_S + 5)
    assert not photo.exists()
