"""``preview.html``: sampled photos with address, map and dialogue, on one page that needs nothing else."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from data_gen.publish import ShownPhoto
from llava_ial.conversation import IMAGE_TOKEN
from llava_ial.data.images import load_photo
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint
from llava_ial.records import AddressRecord, ConversationRecord, GalleryRecord, PhotoRecord
from llava_ial.street_map import STYLE, Highlight, MapPoint, StreetMap

_SIDE_PX = 320
_MAX_MAP_PIECES = 3_000  # of the nearest: a map of a whole region in each card would be megabytes
_MAX_BARS = 200
_PAGE_STYLE = """
:root { color-scheme: light dark; --ink: #1e293b; --quiet: #64748b; --ground: #fff; --line: #e2e8f0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e8f0; --quiet: #94a3b8; --ground: #0f172a; --line: #334155;
  --map-ground: #1e293b; --map-street: #475569; --map-ink: #cbd5e1; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
  max-width: 72rem; padding: 1rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
article { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
article img { width: 100%; display: block; }
article > div { padding: .75rem 1rem; overflow-wrap: anywhere; }
article h2 { font-size: 1rem; margin: 0 0 .25rem; }
.quiet { color: var(--quiet); font-size: .875rem; }
dl { margin: .5rem 0 0; } dt { font-weight: 600; margin-top: .5rem; }
dt, dd { margin-left: 0; white-space: pre-line; }
.bars { width: 100%; height: auto; display: block; } .bars rect { fill: #2563eb; }
"""


def preview_page(
    image_root: Path, shown: Sequence[ShownPhoto], gallery: Sequence[GalleryRecord], photos_of: Counter[str]
) -> str:
    """The page.

    Args:
        image_root: Where the photos are; one that is not there is shown without its pixels.
        shown: The sampled photos.
        gallery: The candidates.
        photos_of: Photos of each sub-street.
    """
    addresses = [item.address for item in shown]
    street_map = StreetMap(gallery if len(gallery) <= _MAX_MAP_PIECES else _around(gallery, addresses))
    cards = [_card(item.address, item.photo, item.dialogues, street_map, image_root) for item in shown]
    first = gallery[0].address
    title = ", ".join(part for part in (first.city, first.region, first.country) if part) or "Data set"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}: preview</title><style>{_PAGE_STYLE}{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{photos_of.total():,} photos on {len(gallery):,} sub-streets. Photos of each sub-street, the fullest "
            f"first{_shown_part(len(photos_of))}:</p>",
            _bars(sorted(photos_of.values(), reverse=True)[:_MAX_BARS]),
            f'<p class="quiet">From {max(photos_of.values()):,} photos down to {min(photos_of.values()):,}.</p>',
            f'<div class="cards">{"".join(cards)}</div></body></html>\n',
        ]
    )


def _shown_part(total: int) -> str:
    return f" ({_MAX_BARS} of {total:,})" if total > _MAX_BARS else ""


def _card(
    record: AddressRecord,
    photo: PhotoRecord,
    dialogues: Sequence[ConversationRecord],
    street_map: StreetMap,
    image_root: Path,
) -> str:
    drawing = street_map.draw(
        [Highlight(record.sub_street_id, is_answer=True)],
        points=[MapPoint(GeoPoint(photo.lat, photo.lon), title="position of the photo")],
        label=f"map of {record.address.street}",
    )
    facts = [record.split, f"{record.distance_m:.1f} m from its street", "ambiguous" if record.is_ambiguous else ""]
    turns = []
    for dialogue in dialogues[:2]:
        for message in dialogue.messages:
            text = escape(message.content.replace(IMAGE_TOKEN, "").strip())
            turns.append(f"<dt>{text}</dt>" if message.role == "user" else f"<dd>{text}</dd>")
    spoken = escape(", ".join(part for part in (record.address.street, record.address.neighbourhood) if part))
    return (
        f"<article>{_thumbnail(image_root / photo.image_path)}{drawing}<div><h2>{spoken}</h2>"
        f'<p class="quiet">{escape(photo.image_id)} · {" · ".join(fact for fact in facts if fact)}</p>'
        f"<dl>{''.join(turns)}</dl></div></article>"
    )


def _thumbnail(path: Path) -> str:
    try:
        image = load_photo(path, min_side=_SIDE_PX)
    except UserError:
        return '<div class="quiet">the photo is not here</div>'
    image.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="photo" width="{image.width}" height="{image.height}" src="data:image/jpeg;base64,{data}">'


def _bars(counts: Sequence[int]) -> str:
    width, height = 1000.0, 160.0
    step = width / max(len(counts), 1)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height * (1 - count / counts[0]):.1f}" width="{step * 0.9:.1f}" '
        f'height="{height * count / counts[0]:.1f}"><title>{count:,} photos</title></rect>'
        for i, count in enumerate(counts)
    )
    return (
        f'<svg class="bars" viewBox="0 0 {width:g} {height:g}" role="img" preserveAspectRatio="none" '
        f'aria-label="photos of each sub-street">{bars}</svg>'
    )


def _around(gallery: Sequence[GalleryRecord], shown: Sequence[AddressRecord]) -> list[GalleryRecord]:
    """The pieces that are shown, and those nearest to them."""
    wanted = {record.sub_street_id for record in shown}
    corners = [record.lines[0][0] for record in gallery if record.sub_street_id in wanted]

    def away(record: GalleryRecord) -> float:
        lon, lat = record.lines[0][0]
        return min((lon - x) ** 2 + (lat - y) ** 2 for x, y in corners)

    return sorted(gallery, key=away)[:_MAX_MAP_PIECES]
