"""How should a finished encoder look at photos? Every way of locating without other weights, measured side by side.

    python -m llava_ial.evaluation.ways --model runs/demo/stage1 --data runs/demo/data
    python -m llava_ial.evaluation.ways --model runs/demo/stage1 --data runs/demo/data --aspect 1.33

Views as of ``llava_ial.data.views``, with the addresses' texts alone and with the training photos beside them. The
first row is CLIP's own way; the others are compared with it, photo by photo, by a permutation test that swaps whole
panoramas. With --aspect photos are cut to that shape before: what another camera would have seen. Prints Markdown.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor

from llava_ial.config import parse_config
from llava_ial.data.clip import ClipExample, clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.data.views import ONE, VIEWS
from llava_ial.errors import UserError, run_command
from llava_ial.evaluation.locate import PhotoFeatures, address_ranks, encode_photos, remember
from llava_ial.evaluation.retrieval import retrieval_metrics, street_classes, street_ranks, sub_street_ranks
from llava_ial.evaluation.statistics import paired_difference
from llava_ial.locating import Way
from llava_ial.manifest import write_json
from llava_ial.models.address_clip import AddressCLIP, load_dual_encoder, load_tokenizer
from llava_ial.models.half_precision import BFLOAT16, FLOAT32, PRECISIONS, choose_precision, suit_attention
from llava_ial.models.photo_memory import PhotoMemory, address_scores
from llava_ial.splits import SPLIT_NAMES

_TIMED_QUERIES = 200
_METRICS = ("SSA@1", "SSA@5", "SA@1", "SA@5")


@dataclass
class WaysSettings:
    """Which encoder, which photos, which ways."""

    model: str = field(metadata={"help": "folder of stage 1, or any CLIP"})
    data: Path = field(metadata={"help": "data set folder"})
    split: str = field(default="test", metadata={"help": "whose photos are located"})
    views: list[str] = field(default_factory=lambda: list(VIEWS), metadata={"help": f"of {', '.join(VIEWS)}"})
    memory_weights: list[float] = field(
        default_factory=lambda: [0.0, 3.0], metadata={"help": "weights of the training photos; 0: the texts alone"}
    )
    memory_sharpness: float = field(default=2.0, metadata={"help": "as of train/stage1_clip.py"})
    aspect: float = field(
        default=0.0, metadata={"help": "width over height that photos are cut to before; 0 leaves them as they are"}
    )
    output: Path | None = field(default=None, metadata={"help": "JSON to write, with the places of each photo"})
    image_root: Path | None = field(default=None, metadata={"help": "where the photos lie, if they were moved"})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1 ..."})
    mixed_precision: str = field(default=FLOAT32, metadata={"help": "of the encoder, as of train/stage1_clip.py"})

    def refuse_impossible(self) -> None:
        """Checks the values before anything expensive.

        Raises:
            UserError: Names option, value and what is allowed.
        """
        for views in self.views:
            if views not in VIEWS:
                raise UserError(f"--views {views}: allowed: {', '.join(VIEWS)}")
        if self.mixed_precision not in PRECISIONS:
            raise UserError(f"--mixed_precision {self.mixed_precision}: allowed: {', '.join(PRECISIONS)}")
        if self.split not in SPLIT_NAMES:
            raise UserError(f"--split {self.split}: allowed: {', '.join(SPLIT_NAMES)}")
        if min([*self.memory_weights, self.aspect]) < 0 or self.memory_sharpness <= 0:
            raise UserError("--memory_weights, --aspect: allowed: at least 0; --memory_sharpness: above 0")


class EncodedCity:
    """The photos of a data set as an encoder sees them, each split encoded once for each kind of views.

    Args:
        model: Folder or name of the encoder.
        dataset: The city.
        device: Where to compute.
        aspect: As of ``WaysSettings``.
        precision: Of photos, one of ``llava_ial.models.half_precision.PRECISIONS``.

    Raises:
        UserError: There is no such encoder.
    """

    def __init__(
        self, model: str, dataset: IALDataset, *, device: str = "cpu", aspect: float = 0.0, precision: str = FLOAT32
    ) -> None:
        name = str(Path(model).resolve()) if Path(model).is_dir() else model
        self._encoder = AddressCLIP(load_dual_encoder(name)).to(device).eval()
        chosen = choose_precision(precision, cpu=torch.device(device).type == "cpu")
        suit_attention(self._encoder.clip, chosen, torch.device(device).type)
        self._is_half = chosen == BFLOAT16
        self._image_processor = AutoImageProcessor.from_pretrained(model, backend="pil")
        self._dataset, self._device = dataset, torch.device(device)
        self._change = partial(cut_to, aspect) if aspect else None
        self._streets = street_classes([record.address.street_key for record in dataset.gallery])
        texts = [record.verbose for record in dataset.gallery]
        self._gallery = self._encoder.embed_texts(texts, load_tokenizer(model))
        self._known: dict[tuple[str, str], PhotoFeatures] = {}
        self.cpu_milliseconds: dict[str, float] = {}  # of a photo, by views

    def photos(self, split: str, views: str = ONE) -> PhotoFeatures:
        """Features of all photos of a split.

        Raises:
            UserError: One cannot be read: ways are compared on the same photos.
        """
        if (split, views) not in self._known:
            rows, started = clip_examples(self._dataset, split), time.process_time()
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_half):
                found = encode_photos(
                    self._encoder, rows, self._image_processor, device=self._device, batch_size=64, views=views,
                    change=self._change,
                )  # fmt: skip
            if len(found.row) < len(rows):
                raise UserError(
                    f"{len(rows) - len(found.row)} photos of split '{split}' cannot be read: a comparison needs the "
                    "same for all"
                )
            self.cpu_milliseconds[views] = 1000 * (time.process_time() - started) / len(rows)
            self._known[split, views] = found
        return self._known[split, views]

    def ranks(self, split: str, way: Way) -> tuple[torch.Tensor, torch.Tensor]:
        """Place of the true piece of street, and of the true street, for each photo: two ``(N,)`` on the CPU."""
        photos, memory = self.photos(split, way.views), self._memory(way)
        pieces, roads = address_ranks(
            photos, self._gallery, self._streets, logit_scale=self._encoder.logit_scale, memory=memory
        )
        return pieces.cpu(), roads.cpu()

    def search_cost(self, split: str, way: Way) -> dict[str, float]:
        """``gallery_bytes`` of the candidates' features and ``query_milliseconds`` to find the best for one photo."""
        memory, scale = self._memory(way), self._encoder.logit_scale

        def find(feature: torch.Tensor) -> None:
            address_scores(feature[None], self._gallery, memory, logit_scale=scale).argmax()

        kept = [self._gallery, *([memory.features, memory.rows] if memory else [])]
        return _search_cost(kept, find, self.photos(split, way.views).features)

    def retrieve(self, split: str) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, float]]:
        """The nearest training photo by its features, and the address of where that was taken: places, and the cost."""
        known, asked = self.photos("train"), self.photos(split)
        scores = torch.full((len(asked.features), len(self._dataset.gallery)), -torch.inf, device=self._device)
        similarity = asked.features @ known.features.T
        scores.scatter_reduce_(1, known.address_id.expand_as(similarity), similarity, "amax")
        streets = self._streets.to(self._device)
        ranks = sub_street_ranks(scores, asked.address_id), street_ranks(scores, asked.address_id, streets)

        def find(feature: torch.Tensor) -> None:
            known.address_id[(known.features @ feature).argmax()]

        cost = _search_cost([known.features, known.address_id], find, asked.features)
        return (ranks[0].cpu(), ranks[1].cpu()), cost

    def _memory(self, way: Way) -> PhotoMemory | None:
        if not way.memory_weight:
            return None
        sharpness = way.memory_sharpness * self._encoder.logit_scale
        return remember(self._dataset, self.photos("train", way.views), weight=way.memory_weight, sharpness=sharpness)


def main() -> None:
    """Reads the settings, locates in every way, prints the table."""
    (settings,) = parse_config(WaysSettings, description=__doc__ or "")
    settings.refuse_impossible()
    dataset = IALDataset(settings.data, settings.image_root)
    rows = clip_examples(dataset, settings.split)
    samples = dataset.samples(settings.split)
    panoramas = [sample.photo.panorama for sample in samples]
    city = EncodedCity(
        settings.model, dataset, device=settings.device, aspect=settings.aspect, precision=settings.mixed_precision
    )
    ways = [Way(v, weight, settings.memory_sharpness) for weight in settings.memory_weights for v in settings.views]
    found = {way: city.ranks(settings.split, way) for way in ways}
    print(format_ways(found, city.cpu_milliseconds, panoramas))
    if settings.output:
        write_json(settings.output, {
            "split": settings.split, "aspect": settings.aspect,
            "ways": [_as_json(way, rows, *ranks) for way, ranks in found.items()],
        })  # fmt: skip


def cut_to(aspect: float, photo: Image.Image, _: torch.Generator | None = None) -> Image.Image:
    """The largest part of a photo, around its middle, that is ``aspect`` times as wide as high."""
    width, height = min(photo.width, round(photo.height * aspect)), min(photo.height, round(photo.width / aspect))
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    return photo.crop((left, top, left + width, top + height))


def format_ways(
    found: dict[Way, tuple[torch.Tensor, torch.Tensor]], cpu_milliseconds: dict[str, float], panoramas: Sequence[str]
) -> str:
    """A Markdown table of ways; all but the first one are compared with it.

    Args:
        found: Places of the true piece of street and the true street in each way.
        cpu_milliseconds: Of a photo, by views.
        panoramas: ``(N,)`` of the photos.
    """
    lines = [
        f"| views | weight of training photos | {' | '.join(_METRICS)} | SSA@1 to the first | p | CPU ms a photo |",
        f"|{' --- |' * (len(_METRICS) + 5)}",
    ]
    first: list[float] = []
    for way, (pieces, roads) in found.items():
        metrics = retrieval_metrics(pieces, roads)
        hits = (pieces == 1).double().tolist()
        cells = [way.views, f"{way.memory_weight:g}", *(f"{100 * metrics[name]:.1f}" for name in _METRICS)]
        if first:
            against = paired_difference(hits, first, panoramas)
            low, high = (f"{100 * bound:+.1f}" for bound in (against.low, against.high))
            cells += [f"{100 * against.value:+.1f} [{low}, {high}]", f"{against.p_value:.4f}"]
        else:
            first, cells = hits, [*cells, "", ""]
        lines.append(f"| {' | '.join([*cells, f'{cpu_milliseconds[way.views]:.1f}'])} |")
    return "\n".join(lines)


def _search_cost(
    kept: Sequence[torch.Tensor], find: Callable[[torch.Tensor], None], features: torch.Tensor
) -> dict[str, float]:
    some = features[:_TIMED_QUERIES]
    started = time.perf_counter()
    for feature in some:
        find(feature)
    milliseconds = 1000 * (time.perf_counter() - started) / len(some)
    return {"gallery_bytes": sum(tensor.nbytes for tensor in kept), "query_milliseconds": milliseconds}


def _as_json(way: Way, rows: Sequence[ClipExample], pieces: torch.Tensor, roads: torch.Tensor) -> dict[str, Any]:
    places = zip(rows, pieces.tolist(), roads.tolist(), strict=True)
    return {
        **vars(way),
        "metrics": retrieval_metrics(pieces, roads),
        "ranks": {row.image_id: [piece, road] for row, piece, road in places},
    }


if __name__ == "__main__":
    run_command(main)
