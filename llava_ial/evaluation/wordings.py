"""The candidate addresses in other words than the encoder was trained on.

Users write addresses as they like. An encoder that finds places in the training template alone has learnt labels, not
addresses, so it is measured in these wordings too.
"""

from collections.abc import Mapping, Sequence

from llava_ial.records import GalleryRecord

TRAINED = "verbose"
UNTRAINED = ("canonical", "spoken", "loose")


def gallery_texts(gallery: Sequence[GalleryRecord]) -> Mapping[str, list[str]]:
    """Every candidate in the trained wording and in three that are never trained on, by name, in gallery order."""
    return {
        TRAINED: [record.verbose for record in gallery],
        "canonical": [record.canonical for record in gallery],
        "spoken": [record.spoken for record in gallery],
        "loose": [_loose(record) for record in gallery],
    }


def _loose(record: GalleryRecord) -> str:
    """As somebody would type it: ``a photo of Elm Way close to Amber Street and Birch Avenue``, no neighbourhood."""
    crossings = " and ".join(cross.street for cross in record.address.cross_streets)
    return f"a photo of {record.address.street}" + (f" close to {crossings}" if crossings else "")
