"""Where a photo was taken, by AddressCLIP alone: the addresses of a gallery, ranked, with probabilities."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedTokenizerBase

from llava_ial.address import Address
from llava_ial.calibration import Calibration, load_calibration
from llava_ial.data.images import load_photo, upright_rgb
from llava_ial.data.views import NUM_VIEWS, ONE, PARTS, views_of
from llava_ial.errors import UserError
from llava_ial.hints import HintSettings, format_hint
from llava_ial.manifest import file_hash, read_manifest
from llava_ial.models.address_clip import AddressCLIP, load_tokenizer
from llava_ial.models.llava import ADDRESS_CLIP_KIND, load_address_encoder
from llava_ial.models.photo_memory import MEMORY, PhotoMemory, address_scores, load_memory
from llava_ial.records import GalleryRecord, name_key, read_records

Photo = Path | Image.Image
# A row of similarities to all photos kept is held for each.
_PHOTOS_AT_A_TIME = 64
# On a CPU more at a time leave its caches, and take twice as long each.
_VIEWS_AT_A_TIME = 64


@dataclass(frozen=True)
class Way:
    """How photos are located; the attributes are options of ``train/stage1_clip.py``."""

    views: str = ONE
    memory_weight: float = 0.0
    memory_sharpness: float = 2.0


@dataclass(frozen=True)
class Candidate:
    """An address of the gallery and how probable it is, among all of the gallery, for a photo."""

    address_text: str
    sub_street_id: str
    probability: float
    address: Address


@dataclass(frozen=True)
class Encoder:
    """AddressCLIP with its candidates.

    Attributes:
        gallery_embeddings: ``(C, D)``, length one, of the candidates' texts.
        views: Of a photo, see ``llava_ial.data.views``.
        memory: Of the training photos, which are candidates' witnesses beside the texts; None for none.
    """

    model: AddressCLIP
    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase
    calibration: Calibration | None
    gallery: list[GalleryRecord]
    gallery_embeddings: torch.Tensor
    views: str = ONE
    memory: PhotoMemory | None = None


class Locator:
    """Locates photos by an encoder and its gallery.

    Args:
        encoder: Of a stage 1 folder, see ``load_encoder``.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.gallery = encoder.gallery
        self.calibration = encoder.calibration
        self._kept: dict[bytes, torch.Tensor] | None = None

    def keep_cosines(self) -> None:
        """From now on every photo is looked at once: for evaluations, which come back to it. A row of ``C`` is kept."""
        self._kept = {}

    @overload
    def locate(self, photo: Photo, top_k: int = 5) -> list[Candidate]: ...

    @overload
    def locate(self, photo: Photo, top_k: int = 5, *, candidates: Sequence[str]) -> list[tuple[str, float]]: ...

    def locate(
        self, photo: Photo, top_k: int = 5, *, candidates: Sequence[str] | None = None
    ) -> list[Candidate] | list[tuple[str, float]]:
        """The likeliest addresses of a photo, best first: of the gallery, or of any ``candidates``.

        Args:
            photo: File or picture.
            top_k: How many.
            candidates: As of ``locate_among``; what comes then are pairs of text and probability.
        """
        if candidates is not None:
            return self.locate_among(photo, candidates)[:top_k]
        return self.locate_batch([photo], top_k)[0]

    def locate_among(self, photo: Photo, texts: Sequence[str]) -> list[tuple[str, float]]:
        """All of any texts, likeliest first, with probabilities among them.

        The texts may be streets, neighbourhoods or descriptions in anybody's words; they need not be in the gallery.
        The temperature of a calibration was fitted on the gallery's addresses.

        Raises:
            UserError: No texts, or the photo cannot be read.
        """
        if not texts:
            raise UserError("texts: none to choose from; give at least one")
        encoder = self._encoder
        candidates = encoder.model.embed_texts(texts, encoder.tokenizer)
        scores = address_scores(self.photo_features([photo]), candidates, logit_scale=self.logit_scale)
        probabilities = self.to_probabilities(scores.cpu())[0].tolist()
        return sorted(zip(texts, probabilities, strict=True), key=lambda pair: -pair[1])

    def locate_batch(self, photos: Sequence[Photo], top_k: int = 5) -> list[list[Candidate]]:
        """``locate`` for several photos at once."""
        return [self.rank(row, top_k) for row in self.probabilities(photos)]

    def rank(self, probabilities: torch.Tensor, top_k: int = 5) -> list[Candidate]:
        """The candidates with the highest of ``(C,)`` probabilities, best first."""
        best = probabilities.sort(descending=True, stable=True)
        pairs = zip(best.indices[:top_k].tolist(), best.values[:top_k].tolist(), strict=True)
        found = [(self.gallery[row], value) for row, value in pairs]
        return [Candidate(record.spoken, record.sub_street_id, value, record.address) for record, value in found]

    def probabilities(self, photos: Sequence[Photo]) -> torch.Tensor:
        """Of every candidate address for every photo, ``(N, C)`` float32 on the CPU; rows sum to one.

        Calibrated where the folder has a calibration, see ``llava_ial.calibration``.

        Raises:
            UserError: A photo cannot be read.
        """
        return self.to_probabilities(self.cosines(photos))

    def to_probabilities(self, cosines: torch.Tensor) -> torch.Tensor:
        """Probabilities of candidates, rows of ``(..., C)``, from the cosines with them."""
        temperature = self.calibration.temperature if self.calibration else 1.0
        return (self.logit_scale / temperature * cosines).softmax(dim=-1)

    @property
    def logit_scale(self) -> float:
        """The factor on cosines that stage 1 has learnt."""
        return float(self._encoder.model.clip.logit_scale.detach().exp())

    @torch.no_grad()
    def cosines(self, photos: Sequence[Photo]) -> torch.Tensor:
        """Of every photo and every candidate address, ``(N, C)`` float32 on the CPU.

        Raises:
            UserError: A photo cannot be read.
        """
        if self._kept is None:
            return self.scores(self.photo_features(photos)).cpu()
        opened = [_opened(photo) for photo in photos]
        keys = [hashlib.sha256(f"{photo.size}".encode() + photo.tobytes()).digest() for photo in opened]
        if new := {key: photo for key, photo in zip(keys, opened, strict=True) if key not in self._kept}:
            rows = self.scores(self.photo_features(list(new.values()))).cpu()
            self._kept.update(zip(new, rows, strict=True))
        return torch.stack([self._kept[key] for key in keys])

    @torch.no_grad()
    def scores(self, features: torch.Tensor, own_panoramas: torch.Tensor | None = None) -> torch.Tensor:
        """Scores ``(N, C)`` of features with the candidates: cosines with their texts, and with their photos if kept.

        Args:
            features: Of ``photo_features``.
            own_panoramas: ``(N,)`` keys; of the photos kept, those of the same panorama do not count.
        """
        encoder = self._encoder
        rows = [slice(start, start + _PHOTOS_AT_A_TIME) for start in range(0, len(features), _PHOTOS_AT_A_TIME)]
        parts = [(features[r], None if own_panoramas is None else own_panoramas[r]) for r in rows]
        texts, memory = encoder.gallery_embeddings, encoder.memory
        scale = self.logit_scale
        return torch.cat([address_scores(part, texts, memory, own, logit_scale=scale) for part, own in parts])

    @property
    def way(self) -> Way:
        """How it locates, in terms that hold for any encoder."""
        views, memory = self._encoder.views, self._encoder.memory
        return Way(views, memory.weight, memory.sharpness / self.logit_scale) if memory else Way(views)

    @property
    def gallery_embeddings(self) -> torch.Tensor:
        """``(C, D)`` of the gallery's addresses, length one."""
        return self._encoder.gallery_embeddings

    def hints_of(self, cosines: torch.Tensor, settings: HintSettings) -> list[str]:
        """What a language model is told of photos, from their cosines ``(N, C)``; see ``llava_ial.hints``."""
        best = (self.logit_scale / settings.temperature * cosines).softmax(dim=-1).sort(descending=True, stable=True)
        pairs = zip(best.indices[:, : settings.count].tolist(), best.values[:, : settings.count].tolist(), strict=True)
        return [
            format_hint([(self.gallery[row].address, share) for row, share in zip(rows, shares, strict=True)])
            for rows, shares in pairs
        ]

    @torch.no_grad()
    def photo_features(self, photos: Sequence[Photo]) -> torch.Tensor:
        """``(N, D)`` float32 of length one; ``(N, V, D)`` of an encoder whose views are kept apart."""
        encoder = self._encoder
        num_views = NUM_VIEWS[encoder.views]
        step = max(1, _VIEWS_AT_A_TIME // num_views)
        features = []
        for start in range(0, len(photos), step):
            views = [view for photo in photos[start : start + step] for view in views_of(_opened(photo), encoder.views)]
            pixels = photo_pixels(views, encoder.image_processor).to(encoder.gallery_embeddings.device)
            pixels = pixels.reshape(-1, num_views, *pixels.shape[1:])
            features.append(encoder.model.encode_views(pixels, apart=encoder.views == PARTS).float())
        return torch.cat(features)

    def remembered_features(self, names: Sequence[str]) -> torch.Tensor | None:
        """As of ``photo_features``, of photos by their ``image_id``, without a look at them.

        None if the folder does not remember them all: it remembers training photos, rounded to 16 bits.
        """
        memory = self._encoder.memory
        found = memory.features_of([name_key(name) for name in names]) if memory else None
        return found if found is None or self._encoder.views == PARTS else found[:, 0]

    @torch.no_grad()
    def text_cosines(self, texts: Sequence[str]) -> torch.Tensor:
        """Of texts in anybody's words and every candidate address, ``(N, C)`` float32 on the CPU."""
        encoder = self._encoder
        return (encoder.model.embed_texts(texts, encoder.tokenizer) @ encoder.gallery_embeddings.T).cpu()


def load_encoder(folder: Path, device: str) -> Encoder:
    """The encoder of a finished stage 1 folder, verified.

    Raises:
        UserError: A part is missing or is not the one that the manifest names.
    """
    manifest = read_manifest(folder, ADDRESS_CLIP_KIND)
    part = folder / "gallery" / "part-00000.parquet"
    if not part.is_file() or file_hash(part) != manifest["gallery_hash"]:
        raise UserError(f"{folder}: its gallery is not the one it was trained with; restore it or train again")
    gallery = read_records(part.parent, GalleryRecord)
    path = folder / "gallery_embeddings.safetensors"
    try:
        embeddings = load_file(path, device=device)["verbose"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: unreadable: {error}; restore it or train stage 1 again") from error
    if len(embeddings) != len(gallery):
        raise UserError(f"{path}: {len(embeddings)} rows for {len(gallery)} addresses; train stage 1 again")
    model = AddressCLIP(load_address_encoder(folder).float()).to(device).eval()
    return Encoder(
        model,
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
        load_tokenizer(str(folder)),
        load_calibration(folder, manifest),
        gallery,
        embeddings,
        str(manifest.get("views", ONE)),
        _load_memory(folder, manifest, device),
    )


def _load_memory(folder: Path, manifest: Mapping[str, Any], device: str) -> PhotoMemory | None:
    if not manifest.get("memory"):
        return None
    path = folder / MEMORY
    if not path.is_file() or file_hash(path) != manifest["memory_hash"]:
        raise UserError(f"{folder}: its {MEMORY} is not the one it was written with; restore it or train again")
    return load_memory(folder, device=device, **manifest["memory"])


def photo_pixels(photos: Sequence[Photo], image_processor: BaseImageProcessor) -> torch.Tensor:
    """Photos as the processor of the model wants them, ``(N, 3, H, W)``."""
    pixels: torch.Tensor = image_processor([_opened(photo) for photo in photos], return_tensors="pt")["pixel_values"]
    return pixels


def _opened(photo: Photo) -> Image.Image:
    return load_photo(photo) if isinstance(photo, Path) else upright_rgb(photo)
