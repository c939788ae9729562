"""Reading a photo: the one function for training, evaluation and chat, so that all see the same pixels."""

import importlib.util
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from llava_ial.errors import UserError

# About 90 megapixels, Pillow's own limit for files that unpack to more than a machine can hold.
MAX_PIXELS = 89_478_485
# ISO/IEC 23008-12, annex B: what a file of HEVC pictures calls itself.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_EXIF_ORIENTATION = 0x0112
# EXIF 2.3, section 4.6.4 A: what turns the stored picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_photo(path: Path, *, min_side: int | None = None) -> Image.Image:
    """A photo as upright RGB, fully decoded.

    Args:
        path: Any format Pillow reads, and HEIC with the extra ``heif``; of an animation the first frame.
        min_side: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side stays at
            least this long; several times faster on large photos, with slightly other pixels.

    Raises:
        UserError: Names the file: missing, no image, truncated, or larger than ``MAX_PIXELS``.
    """
    try:
        with _open(path) as image:
            _refuse_bomb(image, path)
            if min_side is not None:
                # The tuple is a lower bound for both sides, so asking for the shorter one twice keeps it.
                image.draft(None, (min_side, min_side))
            return upright_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"photo {path} is missing") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"photo {path} has too many pixels, at most {MAX_PIXELS:,} are read; shrink it") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        why = "is no image that can be read" if isinstance(error, UnidentifiedImageError) else "is damaged"
        raise UserError(f"photo {path} {why}: {error}") from error


def can_read_heif() -> bool:
    """Whether the extra ``heif`` is installed; Pillow reads HEIC from then on."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            head = file.read(12)
        if head[4:8] != b"ftyp" or head[8:] not in _HEIF_BRANDS:
            raise
        if not can_read_heif():
            raise UserError(f"photo {path} is in HEIC, which is not read here: pip install 'llava-ial[heif]'") from None
        return Image.open(path)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture turned as its EXIF orientation says and converted to 8-bit RGB.

    Transparent parts become white. 16-bit greys are scaled, where Pillow's own conversion would clip nearly all of
    them to white. The result carries no metadata, so it may be given to this function again.
    """
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode.startswith("I"):
        rgb = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        rgb = Image.new("RGB", layer.size, (255, 255, 255))
        rgb.paste(layer, mask=layer.getchannel("A"))
    else:
        rgb = image.convert("RGB")
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info = {}  # Pillow copies the EXIF data along, and the next one would turn the picture by it again
    return upright


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if there is none; a photo with damaged EXIF is still a photo."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of corrupt directories and reads what is left of them
        try:
            value = image.getexif().get(_EXIF_ORIENTATION, 1)
        except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
            return 1
    return value if isinstance(value, int) else 1


def _refuse_bomb(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"photo {path} has {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read; shrink it"
        )
