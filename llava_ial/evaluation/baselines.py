"""What one gets without training on the city: the figures that a trained model has to beat.

    zero-shot              a CLIP that was never tuned ranks the addresses' texts (the paper's first row)
    1-NN pixels            the address of the training photo with the most similar 16 x 16 thumbnail
    1-NN histogram         the one with the most similar colours
    1-NN untuned features  the one that the untuned CLIP finds most similar
    untuned, located alike the untuned CLIP with the views and the memory of photos of the model that is measured: what
                           the model has more was learnt

A nearest neighbour scores an address by its most similar training photo, so it ranks all addresses that have one.
Photos of the same panorama are never a photo's neighbours: they would show the same place at the same moment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoImageProcessor

from llava_ial.data.dataset import IALDataset, Sample
from llava_ial.evaluation.appearance import histogram_features, pixel_features
from llava_ial.evaluation.locate import PhotoFeatures, remember
from llava_ial.evaluation.ranking import RankedPhoto, Ranker, read_photo
from llava_ial.locating import Encoder, Locator, Way
from llava_ial.models.address_clip import AddressCLIP, load_dual_encoder, load_tokenizer
from llava_ial.models.half_precision import AUTO, BFLOAT16, choose_precision, suit_attention
from llava_ial.records import name_key

ZERO_SHOT = "zero-shot"
PIXELS, HISTOGRAM, FEATURES = "1-NN pixels", "1-NN histogram", "1-NN untuned features"
ALIKE = "untuned, located alike"
_ROWS_AT_A_TIME = 256
_PHOTOS_AT_A_TIME = 32


@dataclass(frozen=True)
class _Photos:
    """Readable photos of a split and their features by baseline, each ``(N, D)`` of length one."""

    samples: list[Sample]
    features: Mapping[str, torch.Tensor]


class Baselines:
    """The baselines of a data set.

    Args:
        dataset: Its training photos are the neighbours.
        base: Untuned CLIP, by folder or hub name; stage 1 started from it.
        device: For the CLIP.

    Raises:
        UserError: ``base`` is no CLIP.
    """

    def __init__(self, dataset: IALDataset, base: str, *, device: str) -> None:
        self._dataset = dataset
        self._clip = AddressCLIP(load_dual_encoder(base)).to(device).eval()
        precision = choose_precision(AUTO, cpu=torch.device(device).type == "cpu")
        suit_attention(self._clip.clip, precision, torch.device(device).type)
        self._is_half = precision == BFLOAT16
        self._tokenizer = load_tokenizer(base)
        self._image_processor = AutoImageProcessor.from_pretrained(base, backend="pil")

    def rank(self, samples: Sequence[Sample], way: Way | None = None) -> dict[str, list[RankedPhoto]]:
        """The places of photos by each baseline.

        Args:
            samples: The photos.
            way: How the measured model locates; None or without a memory of photos: ``ALIKE`` is left out.
        """
        gallery = self._clip.embed_texts([record.verbose for record in self._dataset.gallery], self._tokenizer)
        asked = self._describe(samples, "baselines: photos")
        known = self._describe(self._dataset.samples("train"), "baselines: training photos")
        ranker = Ranker(self._dataset)
        if way and way.memory_weight:
            scores = self._scores_alike(asked.samples, known.samples, gallery, way)
            alike = {ALIKE: ranker.rank(asked.samples, scores)}
        else:
            alike = {}
        ranked: dict[str, list[RankedPhoto]] = {
            ZERO_SHOT: ranker.rank(asked.samples, asked.features[FEATURES] @ gallery.cpu().T)
        }
        for name in (PIXELS, HISTOGRAM, FEATURES):
            ranked[name] = []
            for start in range(0, len(asked.samples), _ROWS_AT_A_TIME):
                rows = slice(start, start + _ROWS_AT_A_TIME)
                part = _Photos(asked.samples[rows], {name: asked.features[name][rows]})
                ranked[name] += ranker.rank(part.samples, self._neighbour_scores(part, known, name))
        return ranked | alike

    def _scores_alike(
        self, asked: Sequence[Sample], known: Sequence[Sample], gallery: torch.Tensor, way: Way
    ) -> torch.Tensor:
        """Scores ``(N, C)`` of readable photos, located as the measured model locates."""
        encoder = Encoder(
            self._clip, self._image_processor, self._tokenizer, None, self._dataset.gallery, gallery, way.views
        )
        place = {sample.photo.image_id: i for i, sample in enumerate(self._dataset.samples("train"))}
        row = torch.tensor([place[sample.photo.image_id] for sample in known])
        features = self._look(Locator(encoder), known, "baselines: training photos' views")
        photos = PhotoFeatures(row, features, self._classes(known), torch.zeros(len(row), 2))
        memory = remember(
            self._dataset, photos.map(lambda tensor: tensor.to(gallery.device)), weight=way.memory_weight,
            sharpness=way.memory_sharpness * self._clip.logit_scale,
        )  # fmt: skip
        locator = Locator(replace(encoder, memory=memory))
        own = torch.tensor([name_key(sample.photo.panorama) for sample in asked], device=gallery.device)
        return locator.scores(self._look(locator, asked, "baselines: photos' views").to(gallery.device), own).cpu()

    def _look(self, locator: Locator, samples: Sequence[Sample], title: str) -> torch.Tensor:
        """As of ``Locator.photo_features``, on the CPU; at 16 bits where that is faster."""
        files = [self._dataset.image_file(sample.photo.image_path) for sample in samples]
        rows = []
        with torch.autocast(self._clip.clip.device.type, torch.bfloat16, enabled=self._is_half):
            for start in tqdm(range(0, len(files), _PHOTOS_AT_A_TIME), desc=title, unit=" batches"):
                rows.append(locator.photo_features(files[start : start + _PHOTOS_AT_A_TIME]).cpu())
        return torch.cat(rows)

    def _classes(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Row of each photo's address in the gallery, ``(N,)``."""
        class_of = {record.sub_street_id: i for i, record in enumerate(self._dataset.gallery)}
        return torch.tensor([class_of[sample.address.sub_street_id] for sample in samples])

    def _neighbour_scores(self, asked: _Photos, known: _Photos, name: str) -> torch.Tensor:
        """Similarity of the nearest training photo at each address, ``(N, C)``; minus infinity where there is none."""
        classes = self._classes(known.samples)
        similarity = asked.features[name] @ known.features[name].T  # (N, M)
        panorama_index: dict[str, int] = {}
        asked_panorama, known_panorama = (
            torch.tensor([panorama_index.setdefault(s.photo.panorama, len(panorama_index)) for s in part.samples])
            for part in (asked, known)
        )
        similarity[asked_panorama[:, None] == known_panorama[None, :]] = -torch.inf
        scores = torch.full((len(asked.samples), len(self._dataset.gallery)), -torch.inf)
        return scores.scatter_reduce(1, classes.expand_as(similarity), similarity, "amax")

    @torch.no_grad()
    def _describe(self, samples: Sequence[Sample], title: str) -> _Photos:
        readable: list[Sample] = []
        rows: dict[str, list[torch.Tensor]] = {PIXELS: [], HISTOGRAM: [], FEATURES: []}
        with tqdm(total=len(samples), desc=title, unit=" photos") as progress:
            for start in range(0, len(samples), _PHOTOS_AT_A_TIME):
                part = samples[start : start + _PHOTOS_AT_A_TIME]
                photos = {i: photo for i, sample in enumerate(part) if (photo := read_photo(self._dataset, sample))}
                if photos:
                    images = list(photos.values())
                    readable += [part[i] for i in photos]
                    rows[PIXELS].append(torch.from_numpy(np.stack([pixel_features(image) for image in images])))
                    rows[HISTOGRAM].append(torch.from_numpy(np.stack([histogram_features(image) for image in images])))
                    rows[FEATURES].append(self._encode(images))
                progress.update(len(part))
        return _Photos(readable, {name: torch.cat(parts) for name, parts in rows.items()})

    def _encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = self._image_processor(list(images), return_tensors="pt")["pixel_values"]
        return self._clip.encode_images(pixels.to(self._clip.clip.device)).float().cpu()
