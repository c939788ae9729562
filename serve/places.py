"""What stands beside the conversation, as HTML: candidates, map, and the regions that carried the answer."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from llava_ial.exif import read_metadata
from llava_ial.geo import FloatArray
from llava_ial.inference import Candidate
from llava_ial.prompts import format_piece
from llava_ial.records import GalleryRecord
from llava_ial.street_map import Highlight, StreetMap
from serve import texts
from serve.talk import Agreement, Finding
from serve.why import NUM_MARKED, Attribution, region

MAP_PX = (460, 340)
# Pieces with less than this share of the best one's fit are not drawn: a map of nearly nothing everywhere says nothing.
_FAINTEST = 0.02


class Places:
    """Draws the panels for one city.

    Args:
        gallery: Its addresses.
        tiles: Address of an online background of the map; "" for none.
    """

    def __init__(self, gallery: Sequence[GalleryRecord], *, tiles: str = "") -> None:
        self._gallery = gallery
        self._by_id = {record.sub_street_id: record for record in gallery}
        has_geometry = any(any(record.lines) for record in gallery)
        self._map = StreetMap(gallery) if has_geometry else None
        self._tiles = tiles

    def candidates(self, finding: Finding | None, agreement: Agreement | None) -> str:
        """The candidates, with marks where the conversation's answer is among them."""
        if finding is None:
            return f'<div class="places"><h2>{texts.CANDIDATES}</h2><p class="note">{texts.CANDIDATES_EMPTY}</p></div>'
        verdict = ""
        if agreement is not None:
            if agreement.exact:
                kind, text, rank = "agrees", texts.AGREES, agreement.exact[0]
            elif agreement.same_street:
                kind, text, rank = "street", texts.SAME_STREET, agreement.same_street[0]
            else:
                kind, text, rank = "disagrees", texts.DISAGREES, 0
            verdict = f'<p class="verdict {kind}">{text.format(rank=rank + 1)}</p>'
        exact = agreement.exact if agreement else []
        rows = "".join(_candidate_row(c, i + 1, i in exact) for i, c in enumerate(finding.candidates))
        note = texts.CANDIDATES_NOTE.format(count=len(self._gallery))
        head = f'<h2>{texts.CANDIDATES}</h2><p class="note">{escape(note)}</p>'
        return f'<div class="places">{head}{verdict}<ol>{rows}</ol></div>'

    def map(self, finding: Finding | None, agreement: Agreement | None) -> str:
        """The streets: the candidates by their probability, with their numbers, and the answered piece over them."""
        if finding is None:
            return self._frame([], texts.MAP_EMPTY)
        best = finding.candidates[0].probability or 1.0
        highlights = [
            Highlight(c.sub_street_id, c.probability / best, tag=str(i + 1)) for i, c in enumerate(finding.candidates)
        ]
        answered = agreement.pieces if agreement else []
        named = [self._by_id[i].spoken for i in answered]
        highlights = [
            Highlight(i, is_answer=True) for i in answered if i not in {h.sub_street_id for h in highlights}
        ] + [
            Highlight(h.sub_street_id, h.shade, is_answer=h.sub_street_id in answered, tag=h.tag)
            for h in reversed(highlights)
        ]
        label = texts.MAP_ALT.format(answer="; ".join(named[:3]) or texts.MAP_NO_ANSWER)
        return self._frame(highlights, label, focus=[*answered, *(c.sub_street_id for c in finding.candidates[:3])])

    def heat(self, fit: Sequence[float], label: str) -> str:
        """The streets by how well a photo fits them and a text: ``fit`` has one value per address of the gallery."""
        best = max(fit) or 1.0
        order = sorted(zip(fit, self._gallery, strict=True), key=lambda pair: pair[0])
        highlights = [Highlight(r.sub_street_id, value / best) for value, r in order if value >= _FAINTEST * best]
        return self._frame(highlights, label)

    def check_position(self, photo: Path, answered: Sequence[str]) -> str:
        """A sentence that compares the position which a camera stored with the answer; read only when asked for."""
        with Image.open(photo) as image:
            point = read_metadata(image).point
        if point is None:
            return texts.NO_POSITION
        if self._map is None:
            return texts.NO_GEOMETRY
        ((x, y),) = self._map.to_xy_m(np.array([point.lat]), np.array([point.lon]))
        here = np.array([x, y])
        reach = {record.sub_street_id: self._distance_m(self._map, record, here) for record in self._gallery}
        nearest = min(reach, key=lambda piece: reach[piece])
        street = self._by_id[nearest].address.street
        if not answered:
            return texts.POSITION_ALONE.format(street=street, distance=format_metres(reach[nearest]))
        apart = min(reach[piece] for piece in answered)
        return texts.POSITION_CHECK.format(street=street, distance=format_metres(apart))

    def why(self, found: Attribution, address: str) -> str:
        """The photo with the regions that carried an address marked."""
        jpeg = io.BytesIO()
        found.photo.save(jpeg, "JPEG", quality=85)
        source = base64.b64encode(jpeg.getvalue()).decode("ascii")
        best = max(float(found.loss.max()), 1e-9)
        marks = ""
        for cell in found.marked():
            left, top, right, bottom = region(found.photo.size, cell)
            strength = float(found.loss[cell]) / best
            marks += (
                f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" '
                f'style="opacity: {0.25 + 0.75 * strength:.2f}"/>'
            )
        width, height = found.photo.size
        alt = texts.WHY_ALT.format(address=address)
        return (
            f'<figure class="why"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}">'
            f'<image href="data:image/jpeg;base64,{source}" width="{width}" height="{height}"/>{marks}</svg>'
            f"<figcaption>{escape(texts.WHY_CAPTION.format(address=address, count=NUM_MARKED))}</figcaption></figure>"
        )

    def _frame(self, highlights: Sequence[Highlight], label: str, focus: Sequence[str] | None = None) -> str:
        if self._map is None:
            return f'<div class="map-frame"><p class="note">{texts.NO_GEOMETRY}</p></div>'
        svg = self._map.draw(
            highlights, label=label, focus=focus or None, width_px=MAP_PX[0], height_px=MAP_PX[1], tiles=self._tiles
        )
        keys = "".join(
            f'<button type="button" data-map-key="{key}" aria-label="{name}" title="{name}">{sign}</button>'
            for key, sign, name in (
                ("+", "+", texts.ZOOM_IN), ("-", "−", texts.ZOOM_OUT), ("0", "⌂", texts.ZOOM_HOME),
            )
        )  # fmt: skip
        return (
            f'<div class="map-frame">{svg}<div class="map-keys">{keys}</div><p class="note">{escape(label)}</p></div>'
        )

    @staticmethod
    def _distance_m(street_map: StreetMap, record: GalleryRecord, here: FloatArray) -> float:
        """From a point of the map to a piece of street."""
        best = np.inf
        for line in record.lines:
            lon, lat = np.asarray(line, dtype=np.float64)[:, :2].T
            points = street_map.to_xy_m(lat, lon)
            starts, steps = points[:-1], np.diff(points, axis=0)
            squared = np.maximum((steps**2).sum(axis=1), 1e-12)
            along = (((here - starts) * steps).sum(axis=1) / squared).clip(0, 1)
            reached = np.concatenate([starts + along[:, None] * steps, points])
            best = min(best, float(np.hypot(*(reached - here).T).min()))
        return best


def format_metres(distance_m: float) -> str:
    """A distance as people say it."""
    return f"{distance_m:.0f} m" if distance_m < 1000 else f"{distance_m / 1000:.1f} km"


def answer_address(finding: Finding, agreement: Agreement | None, gallery: Sequence[GalleryRecord]) -> tuple[int, str]:
    """The address that a conversation is about, as its row in the gallery and in words.

    The answered one, of several the likeliest; without an answer the best candidate.
    """
    wanted = agreement.pieces if agreement and agreement.pieces else [finding.candidates[0].sub_street_id]
    rows = [i for i, record in enumerate(gallery) if record.sub_street_id in wanted]
    row = max(rows, key=lambda i: float(finding.probabilities[i]))
    return row, gallery[row].spoken


def _candidate_row(candidate: Candidate, number: int, is_answer: bool) -> str:
    address = candidate.address
    rest = ", ".join(part for part in (format_piece(address), address.neighbourhood) if part)
    share = f"{100 * candidate.probability:.0f}&nbsp;%" if candidate.probability >= 0.005 else "&lt;&nbsp;1&nbsp;%"
    mark = f'<span class="mark">{texts.AGREES_MARK}</span>' if is_answer else ""
    return (
        f'<li class="{"agrees" if is_answer else ""}"><div class="line"><span class="number">{number}</span>'
        f'<span class="name"><b>{escape(address.street)}</b>{mark}<small>{escape(rest)}</small></span>'
        f'<span class="share">{share}</span></div>'
        f'<div class="bar" aria-hidden="true"><div style="width: {100 * candidate.probability:.1f}%"></div></div></li>'
    )
