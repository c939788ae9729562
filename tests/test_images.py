import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from llava_ial.data.images import load_photo, upright_rgb
from llava_ial.errors import UserError


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """Smooth, without any symmetry, so that each of the eight orientations is another picture."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * x * y], axis=-1).astype(np.uint8))


def save_turned(image: Image.Image, orientation: int, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


HEIC_HEAD = b"\0\0\0\x18ftypheic" + bytes(100)


def _unregistered(opener):
    """Pillow's opener as it is without the extra, which another test may have registered."""

    def opened(path):
        if Path(path).suffix == ".heic":
            raise UnidentifiedImageError(path)
        return opener(path)

    return opened


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).max())


def test_heic_is_read_with_the_extra(tmp_path: Path):
    """As a phone writes it: upright by the file's own turn, whatever its EXIF says."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install 'llava-ial[heif]'")
    pillow_heif.from_pillow(picture()).save(tmp_path / "a.heic", quality=100)
    loaded = load_photo(tmp_path / "a.heic")
    assert (loaded.mode, loaded.size) == ("RGB", (40, 24))
    assert difference(loaded, picture()) < 24
    (tmp_path / "half.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:-200])
    with pytest.raises(UserError, match=r"is damaged|is no image"):
        load_photo(tmp_path / "half.heic")


def test_heic_without_the_extra_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.heic").write_bytes(HEIC_HEAD)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("PIL.Image.open", _unregistered(Image.open))
    with pytest.raises(UserError, match=r"is in HEIC, which is not read here: pip install 'llava-ial\[heif\]'"):
        load_photo(tmp_path / "a.heic")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path: Path, orientation: int):
    save_turned(picture(), orientation, tmp_path / "a.png")
    loaded = load_photo(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        expected = ImageOps.exif_transpose(stored)  # an independent implementation
        assert difference(loaded, expected.convert("RGB")) == 0
    assert loaded.mode == "RGB"
    assert (loaded.size == (40, 24)) is (orientation <= 4)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_changes_nothing(tmp_path: Path, orientation: int):
    save_turned(picture(), orientation, tmp_path / "a.png")
    assert difference(load_photo(tmp_path / "a.png"), picture()) == 0


def test_missing_no_image_empty_and_truncated_are_refused_by_name(tmp_path: Path):
    picture(400, 300).save(tmp_path / "whole.jpg", quality=95)
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "header.jpg").write_bytes(content[:30])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    cases = {"truncated": "damaged", "header": "photo", "text": "no image", "empty": "no image", "absent": "missing"}
    for name, why in cases.items():
        with pytest.raises(UserError, match=why) as caught:
            load_photo(tmp_path / f"{name}.jpg")
        assert str(tmp_path / f"{name}.jpg") in str(caught.value)
    with pytest.raises(UserError):
        load_photo(tmp_path)  # a folder


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.parametrize("as_warnings", ["error", "ignore"])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, side: int, as_warnings: str):
    (tmp_path / "bomb.png").write_bytes(png_claiming(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter(as_warnings)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"bomb\.png has .*pixels"):
            load_photo(tmp_path / "bomb.png")


def test_colour_modes(tmp_path: Path):
    picture().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert difference(load_photo(tmp_path / "cmyk.jpg"), picture()) < 12
    grey = np.linspace(0, 65535, 40 * 24).reshape(24, 40).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    assert (
        difference(load_photo(tmp_path / "grey16.png"), Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB"))
        == 0
    )
    assert difference(upright_rgb(picture().convert("L")), picture().convert("L").convert("RGB")) == 0
    assert upright_rgb(picture().convert("P")).mode == "RGB"


def test_transparent_parts_are_white(tmp_path: Path):
    layer = Image.new("RGBA", (4, 4), (200, 10, 10, 0))
    layer.putpixel((1, 2), (10, 20, 30, 255))
    layer.save(tmp_path / "alpha.png")
    loaded = load_photo(tmp_path / "alpha.png")
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 2)) == (10, 20, 30)
    Image.new("LA", (2, 2), (9, 255)).save(tmp_path / "la.png")
    assert load_photo(tmp_path / "la.png").getpixel((0, 0)) == (9, 9, 9)


def test_of_an_animation_the_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_photo(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)


def test_fast_decoding_keeps_the_asked_side_and_the_picture(tmp_path: Path):
    picture(1600, 1200).save(tmp_path / "large.jpg", quality=95)
    fast = load_photo(tmp_path / "large.jpg", min_side=300)
    assert fast.size == (400, 300)
    assert difference(fast, picture(1600, 1200).resize((400, 300), Image.Resampling.BOX)) < 6
    assert load_photo(tmp_path / "large.jpg", min_side=301).size == (800, 600)


def test_real_photos_with_broken_exif_load(shared_data: Path):
    for path in sorted((shared_data / "exif").glob("*.jpg")):
        assert load_photo(path).mode == "RGB", path.name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_a_photo_twice_turns_it_once(tmp_path: Path, orientation: int) -> None:
    """An evaluation opens photos and hands them to a predictor that turns what it is given."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.linear_gradient("L").resize((40, 20)).convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    photo = load_photo(tmp_path / "turned.jpg")
    assert upright_rgb(photo).tobytes() == photo.tobytes()
    assert upright_rgb(photo).size == photo.size
    assert not photo.getexif()
