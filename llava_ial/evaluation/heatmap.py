r"""Where in a city does a text light up? The encoder's answer at every photo of a split, drawn over the street map.

    python -m llava_ial.evaluation.heatmap --model runs/demo/stage1 --data runs/demo/data --text "Grant Street" \
        --output runs/demo/heatmap

The texts may be anything at any level: a neighbourhood, a street, a piece of one, or words that are no address. Writes
a PNG and an SVG for each and heatmaps.json; prints, for each level, how well the right places score above all others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor

from llava_ial.address import Address, format_canonical, format_spoken, format_verbose
from llava_ial.config import parse_config
from llava_ial.data.clip import clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.data.views import ONE
from llava_ial.errors import UserError, run_command
from llava_ial.evaluation.feature_space import mid_ranks
from llava_ial.evaluation.locate import encode_photos
from llava_ial.geo import FloatArray
from llava_ial.manifest import read_manifest, write_json, write_text
from llava_ial.models.address_clip import AddressCLIP, load_dual_encoder, load_tokenizer
from llava_ial.records import GalleryRecord
from llava_ial.splits import SPLIT_NAMES
from llava_ial.street_map import StreetMap

LEVELS = ("neighbourhood", "street", "piece of street")
_FORMS = (format_spoken, format_verbose, format_canonical)
_WIDTH_PX, _MARGIN_PX, _RADIUS_PX = 1200, 40, 5
_GROUND, _STREET = (246, 247, 244), (205, 211, 218)
_COLD, _WARM = (191, 219, 254), (185, 28, 28)


@dataclass
class HeatmapSettings:
    """Which encoder, which photos, which texts."""

    model: Path = field(metadata={"help": "folder of stage 1"})
    data: Path = field(metadata={"help": "data set folder"})
    output: Path = field(metadata={"help": "folder for the pictures; made if it is not there"})
    text: list[str] = field(default_factory=list, metadata={"help": "what to draw; several may be given"})
    split: str = field(default="test", metadata={"help": "whose photos are asked"})
    image_root: Path | None = field(default=None, metadata={"help": "where the photos lie, if they were moved"})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1 ..."})


def main() -> None:
    """Reads the settings, scores, draws."""
    (settings,) = parse_config(HeatmapSettings, description=__doc__ or "")
    if settings.split not in SPLIT_NAMES:
        raise UserError(f"--split {settings.split}: allowed: {', '.join(SPLIT_NAMES)}")
    manifest = read_manifest(settings.model, "address_clip")
    dataset = IALDataset(settings.data, settings.image_root)
    samples, rows = dataset.samples(settings.split), clip_examples(dataset, settings.split)
    model = AddressCLIP(load_dual_encoder(str(settings.model.resolve()))).to(settings.device).eval()
    tokenizer = load_tokenizer(str(settings.model))
    photos = encode_photos(
        model, rows, AutoImageProcessor.from_pretrained(settings.model, backend="pil"),
        device=torch.device(settings.device), batch_size=64, views=str(manifest.get("views", ONE)),
    )  # fmt: skip
    if not len(photos.row):
        raise UserError(f"split '{settings.split}': none of its {len(rows)} photos can be read")
    samples = [samples[i] for i in photos.row.tolist()]

    def scores_of(texts: Sequence[str]) -> torch.Tensor:
        cosines = photos.features @ model.embed_texts(texts, tokenizer).T  # (N, T), (N, V, T) of views kept apart
        return (cosines if cosines.ndim == 2 else cosines.mean(dim=1)).cpu()

    addresses = [sample.address.address for sample in samples]
    names = names_of_levels(dataset.gallery)
    levels: dict[str, float | None] = {}
    for level, texts in names.items():
        scores = scores_of(texts)
        found = [auc(scores[:, i], is_there(text, addresses)) for i, text in enumerate(texts)]
        known = [value for value in found if value is not None]
        levels[level] = sum(known) / len(known) if known else None
        print(f"{level:<16} AUC {_shown(levels[level])}, mean over {len(known)} of {len(texts)} names")
    settings.output.mkdir(parents=True, exist_ok=True)
    city = StreetMap(dataset.gallery)
    xy_m = city.to_xy_m(np.array([s.photo.lat for s in samples]), np.array([s.photo.lon for s in samples]))
    drawn = {}
    for number, text in enumerate(settings.text):
        score = scores_of([text])[:, 0]
        value = auc(score, is_there(text, addresses))
        picture = Heatmap(city, dataset.gallery, xy_m, score)
        name = f"heatmap-{number:02d}"
        picture.to_png().save(settings.output / f"{name}.png")
        write_text(settings.output / f"{name}.svg", picture.to_svg(text))
        drawn[text] = {"file": name, "auc": value}
        print(f"{settings.output / name}.png  '{text}': AUC {_shown(value)}")
    write_json(settings.output / "heatmaps.json", {"levels": levels, "texts": drawn, "num_photos": len(samples)})


def names_of_levels(gallery: Sequence[GalleryRecord]) -> Mapping[str, list[str]]:
    """What a city's places are called at each level, without the words of the training template."""
    return {
        LEVELS[0]: sorted({record.address.neighbourhood for record in gallery if record.address.neighbourhood}),
        LEVELS[1]: sorted({record.address.street for record in gallery}),
        LEVELS[2]: [record.spoken for record in gallery],
    }


def is_there(text: str, addresses: Sequence[Address]) -> torch.Tensor:
    """Which photos a name is true of, ``(N,)``: of its neighbourhood, its street or its piece, whatever it names."""
    return torch.tensor(
        [
            text.casefold() in {name.casefold() for name in (a.neighbourhood, a.street, *(form(a) for form in _FORMS))}
            for a in addresses
        ]
    )


def auc(scores: torch.Tensor, is_right: torch.Tensor) -> float | None:
    """Chance that a right place scores above another one, ties half; None where one kind is missing.

    Args:
        scores: ``(N,)``.
        is_right: ``(N,)``.
    """
    num_right = int(is_right.sum())
    num_wrong = len(is_right) - num_right
    if not num_right or not num_wrong:
        return None
    above = float(mid_ranks(scores)[is_right].sum()) - num_right * (num_right + 1) / 2
    return above / (num_right * num_wrong)


class Heatmap:
    """Photos at their positions over the streets, from pale blue for the lowest score to red for the highest.

    Args:
        city: The projection.
        gallery: Its streets.
        xy_m: ``(N, 2)`` metres east and south, of ``city``.
        scores: ``(N,)``.
    """

    def __init__(
        self, city: StreetMap, gallery: Sequence[GalleryRecord], xy_m: FloatArray, scores: torch.Tensor
    ) -> None:
        lines = [np.asarray(line, dtype=np.float64) for record in gallery for line in record.lines if line]
        streets = [city.to_xy_m(line[:, 1], line[:, 0]) for line in lines]
        every = np.concatenate([*streets, xy_m])
        low, high = every.min(axis=0), every.max(axis=0)
        self._scale = (_WIDTH_PX - 2 * _MARGIN_PX) / max(float(high[0] - low[0]), 1.0)
        self._low = low
        self._height = math.ceil(float(high[1] - low[1]) * self._scale) + 2 * _MARGIN_PX
        self._streets = [self._place(line) for line in streets]
        spread = float(scores.max() - scores.min()) or 1.0
        shares = ((scores - scores.min()) / spread).tolist()
        # The best ones are drawn last, over the others.
        self._dots = sorted(zip(shares, self._place(xy_m).tolist(), strict=True))

    def to_png(self) -> Image.Image:
        """As pixels."""
        image = Image.new("RGB", (_WIDTH_PX, self._height), _GROUND)
        canvas = ImageDraw.Draw(image)
        for line in self._streets:
            canvas.line([(x, y) for x, y in line.tolist()], fill=_STREET, width=3)
        for share, (x, y) in self._dots:
            canvas.circle((x, y), _RADIUS_PX, fill=_colour(share))
        return image

    def to_svg(self, label: str) -> str:
        """As a drawing."""
        streets = "".join(
            f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in line.tolist())}"/>' for line in self._streets
        )
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS_PX}" fill="#{bytes(_colour(share)).hex()}"/>'
            for share, (x, y) in self._dots
        )
        title = label.replace("&", "&amp;").replace("<", "&lt;")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH_PX} {self._height}" role="img">'
            f'<title>{title}</title><rect width="100%" height="100%" fill="#{bytes(_GROUND).hex()}"/>'
            f'<g fill="none" stroke="#{bytes(_STREET).hex()}" stroke-width="3">{streets}</g>{dots}</svg>\n'
        )

    def _place(self, xy_m: FloatArray) -> FloatArray:
        placed: FloatArray = (xy_m - self._low) * self._scale + _MARGIN_PX
        return placed


def _colour(share: float) -> tuple[int, int, int]:
    red, green, blue = (round(cold + share * (warm - cold)) for cold, warm in zip(_COLD, _WARM, strict=True))
    return red, green, blue


def _shown(value: float | None) -> str:
    return "not known: no photo, or every photo, is there" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    run_command(main)
