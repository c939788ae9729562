"""What the page says of itself: what it can be asked, how often it errs, what it keeps."""

from collections.abc import Sequence
from urllib.parse import urlparse

from llava_ial.inference import AddressPredictor
from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET
from llava_ial.records import GalleryRecord
from serve import texts

_RATES = ("accuracy", "share_sure", "accuracy_sure", "refused_here", "accepted_elsewhere")


def answerable_tasks(gallery: Sequence[GalleryRecord]) -> list[str]:
    """The questions that the addresses of this city can answer."""
    is_known = {
        STREET: True,
        BETWEEN: any(record.address.cross_streets for record in gallery),
        NEIGHBOURHOOD: any(record.address.neighbourhood for record in gallery),
        CITY: any(record.address.city for record in gallery),
    }
    return [task for task, known in is_known.items() if known]


def about_text(predictor: AddressPredictor, city: str, tiles: str = "") -> str:
    """The information panel, in Markdown.

    Args:
        predictor: Whose addresses and measured error rates are told.
        city: Its name.
        tiles: Address of the map's online background; "" for none.
    """
    found = predictor.calibration
    measured = texts.ABOUT_UNMEASURED
    if found is not None:
        facts = {name: texts.PERCENT.format(100 * (getattr(found, name) or 0)) for name in _RATES}
        facts |= {"num_photos": str(found.num_photos), "num_elsewhere": str(found.num_elsewhere)}
        elsewhere = texts.ABOUT_ELSEWHERE if found.num_elsewhere else texts.ABOUT_NO_ELSEWHERE
        measured = texts.ABOUT_MEASURED.format(elsewhere=elsewhere.format(**facts), **facts)
    background = texts.ABOUT_TILES.format(host=urlparse(tiles).netloc) if tiles else ""
    return texts.ABOUT_TEXT.format(count=len(predictor.gallery), city=city, measured=measured, tiles=background)
