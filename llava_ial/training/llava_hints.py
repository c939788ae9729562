"""Hints for training: as unreliable as those of photos that the encoder was not trained on.

Stage 1 has learned its training photos, so its candidates for them are right far more often than for others, and a
language model that saw those would learn to copy the first one. Here the embedding of a training photo is moved, by the
difference of two other photos' embeddings, as far as it takes for the first candidate to be right as often as on
validation photos. Further hints are left out or are another photo's, so that the photo itself stays worth looking at.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from llava_ial import distributed
from llava_ial.calibration import fit_temperature
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.hints import HintSettings, hinted_name
from llava_ial.locating import Locator
from llava_ial.records import ConversationRecord, name_key

_MOST_NOISE = 3.0
# As many photos say well enough how often the encoder is right: to some two points, as a split of validation does.
_PHOTOS_TO_FIT = 384
_SCORED_AT_A_TIME = 1024
_PHOTOS_AT_A_TIME = 64


@dataclass(frozen=True)
class HintPlan:
    """What is asked for.

    Attributes:
        count: Addresses in a hint.
        dropout: Share of the training dialogues without one.
        shuffled: Share with another photo's.
        keeps_misses: Whether a dialogue keeps a hint of its own photo that does not hold the truth.
        seed: Of all draws.
    """

    count: int
    dropout: float
    shuffled: float
    keeps_misses: bool
    seed: int


@dataclass(frozen=True)
class TrainingHints:
    """Hints of all dialogues, and how they came about.

    Attributes:
        settings: What inference needs to make its own.
        train: One for each dialogue of the training split, in order; "" for none.
        own: What inference would say of the photos of the measured split, by ``image_id``.
        noise: Length of the differences that were added to the embeddings of training photos.
        right_first: Share of photos whose first candidate is right: of validation, of training, of training with noise.
    """

    settings: HintSettings
    train: list[str]
    own: dict[str, str]
    noise: float
    right_first: tuple[float, float, float]

    def describe(self) -> str:
        """One line for the log."""
        val, train, noisy = self.right_first
        return (
            f"hints: AddressCLIP's first of {self.settings.count} is right for {val:.1%} of the validation photos and "
            f"{train:.1%} of the training photos, {noisy:.1%} with the noise that they get ({self.noise:.2f})"
        )


def build_hints(locator: Locator, dataset: IALDataset, plan: HintPlan, measured_split: str | None) -> TrainingHints:
    """Hints for every training dialogue, a function of its id and the seed, and for the photos that are measured on.

    Raises:
        UserError: There are no validation photos, or a photo cannot be read.
    """
    try:
        val_truth = _true_rows(dataset, locator, "val")
    except UserError as error:
        raise UserError(
            f"--hints {plan.count} needs validation photos, which tell how far to trust the encoder: {error}; "
            "or take --hints 0"
        ) from error
    records = {split: dataset.conversations(split) for split in {"train", "val", measured_split or "val"}}
    features = _embed(locator, dataset, [record for split in sorted(records) for record in records[split]])
    witness = _Witness(locator, dataset)
    val, val_rows, val_names = _labelled(features, val_truth)
    train, train_rows, train_names = _labelled(features, _true_rows(dataset, locator, "train"))
    val_scores = witness.scores(val, val_names)
    temperature = fit_temperature((locator.logit_scale * val_scores).double().numpy(), val_rows.numpy())
    settings = HintSettings(plan.count, temperature)
    right_on_val = _right_first(val_scores, val_rows)
    few = slice(None, None, -(-len(train) // _PHOTOS_TO_FIT))  # evenly over the town

    def rate_of(moved: torch.Tensor) -> float:
        return witness.shared_rate(moved[few], train_names[few], train_rows[few])

    rates = _Rates(train, rate_of, len(train_names[few]), plan.seed)
    noise = rates.noise_for(right_on_val)
    shown = [_shown_photo(record, train_names, plan) for record in records["train"]]
    # Photos of elsewhere were not in stage 1: they are as new to it as they will be.
    known = set(train_names)
    moves = [_difference(train, record.conversation_id, plan.seed) for record in records["train"]]
    sizes = torch.tensor([noise if name in known else 0.0 for name in shown]).reshape(-1, *[1] * (train.ndim - 1))
    noisy = functional.normalize(torch.stack([features[name] for name in shown]) + sizes * torch.stack(moves), dim=-1)
    hints = witness.shared_hints(noisy, shown, settings)
    measured = sorted({record.image_id for record in records[measured_split]}) if measured_split else []
    spoken = {record.sub_street_id: hinted_name(record.address) for record in locator.gallery}
    own = witness.hints(torch.stack([features[name] for name in measured]), measured, settings) if measured else []
    return TrainingHints(
        settings,
        [
            hint if _is_told(record, hint, plan, spoken) else ""
            for record, hint in zip(records["train"], hints, strict=True)
        ],
        dict(zip(measured, own, strict=True)),
        noise,
        (right_on_val, rates.with_noise(0.0), rates.with_noise(noise)),
    )


class _Witness:
    """What the encoder says of embeddings of photos; of photos that it remembers without their own panorama."""

    def __init__(self, locator: Locator, dataset: IALDataset) -> None:
        self._locator = locator
        samples = dataset.samples("train")
        self._panorama_of = {s.photo.image_id: s.photo.panorama for s in samples}

    def scores(self, features: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """``(N, C)`` on the CPU, of the features of the photos named."""
        device = self._locator.gallery_embeddings.device
        keys = torch.tensor([name_key(self._panorama_of.get(name, name)) for name in names], device=device)
        return self._locator.scores(features.to(device), keys).cpu()

    def shared_rate(self, features: torch.Tensor, names: Sequence[str], rows: torch.Tensor) -> float:
        """Share of the photos whose best address is the true one; each process looks at its part of them."""
        rank, world = distributed.rank(), distributed.world_size()
        own = features[rank::world], names[rank::world], rows[rank::world]
        num_right = int((self.scores(*own[:2]).argmax(dim=1) == own[2]).sum()) if len(own[1]) else 0
        everyone: list[int] = distributed.gather_objects(num_right)
        return sum(everyone) / len(names)

    def hints(self, features: torch.Tensor, names: Sequence[str], settings: HintSettings) -> list[str]:
        """One for each photo; the scores of a part of them are in memory at a time."""
        parts = [slice(start, start + _SCORED_AT_A_TIME) for start in range(0, len(names), _SCORED_AT_A_TIME)]
        found = [self._locator.hints_of(self.scores(features[part], names[part]), settings) for part in parts]
        return [hint for part in found for hint in part]

    def shared_hints(self, features: torch.Tensor, names: Sequence[str], settings: HintSettings) -> list[str]:
        """The same on every process, each of which looks at its share."""
        rank, world = distributed.rank(), distributed.world_size()
        found = [""] * len(names)
        own = self.hints(features[rank::world], names[rank::world], settings)
        for share, part in enumerate(distributed.gather_objects(own)):
            found[share::world] = part
        return found


def _shown_photo(record: ConversationRecord, others: Sequence[str], plan: HintPlan) -> str:
    """The photo whose hint a dialogue gets: its own, or for some another one."""
    draw = _draw(plan.seed, record.conversation_id, "which")
    if plan.dropout <= draw.random() < plan.dropout + plan.shuffled:
        return others[int(draw.integers(len(others)))]
    return record.image_id


def _is_told(record: ConversationRecord, hint: str, plan: HintPlan, spoken: dict[str, str]) -> bool:
    """Whether a dialogue gets its hint; ``spoken`` is what a hint says of each address."""
    which = _draw(plan.seed, record.conversation_id, "which").random()
    if which < plan.dropout:
        return False
    is_own = which >= plan.dropout + plan.shuffled
    truth = spoken.get(record.sub_street_id, "")
    return plan.keeps_misses or not is_own or any(f"{before} {truth} " in hint for before in ":;")


def _difference(train: torch.Tensor, name: str, seed: int) -> torch.Tensor:
    """Of two random training photos' embeddings, ``(D,)``."""
    first, second = _draw(seed, name, "noise").integers(len(train), size=2)
    return train[first] - train[second]


def _true_rows(dataset: IALDataset, locator: Locator, split: str) -> dict[str, int]:
    """Row in the gallery of every photo of a split."""
    row_of = {record.sub_street_id: row for row, record in enumerate(locator.gallery)}
    return {sample.photo.image_id: row_of[sample.address.sub_street_id] for sample in dataset.samples(split)}


def _embed(locator: Locator, dataset: IALDataset, records: Sequence[ConversationRecord]) -> dict[str, torch.Tensor]:
    """``(D,)`` of every photo on every process; each looks at its share of those that the encoder does not remember."""
    paths = {record.image_id: record.image_path for record in records if record.image_path}
    names = sorted(paths)
    rank, world = distributed.rank(), distributed.world_size()
    own = names[rank::world]
    found: dict[str, torch.Tensor] = {}

    def look() -> None:
        for name in own:
            if (kept := locator.remembered_features([name])) is not None:
                found[name] = kept[0].cpu()
        unknown = [name for name in own if name not in found]
        starts = range(0, len(unknown), _PHOTOS_AT_A_TIME)
        for start in tqdm(starts, desc="hints", unit="batch", disable=not distributed.is_main_process()):
            part = unknown[start : start + _PHOTOS_AT_A_TIME]
            embedded = locator.photo_features([dataset.image_file(paths[name]) for name in part]).cpu()
            found.update(zip(part, embedded, strict=True))

    distributed.run_on_every_process(look)
    # As one tensor: a row that is sent on its own takes all of the batch with it that it is a view of.
    everyones = distributed.gather_objects(torch.stack([found[name] for name in own]) if own else None)
    return {
        name: row
        for part, rows in enumerate(everyones)
        if rows is not None
        for name, row in zip(names[part::world], rows, strict=True)
    }


def _labelled(features: dict[str, torch.Tensor], truth: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """``(N, D)`` and ``(N,)`` of the photos with a dialogue and an address, in the order of their names."""
    names = sorted(truth.keys() & features.keys())
    return torch.stack([features[name] for name in names]), torch.tensor([truth[name] for name in names]), names


class _Rates:
    """How often training photos are right first under a noise; the same draws for every noise.

    Args:
        train: ``(N, D)`` or ``(N, V, D)`` of length one.
        rate_of: Of moved ones.
        num_photos: That a rate is of.
        seed: Of the draws.
    """

    def __init__(
        self, train: torch.Tensor, rate_of: Callable[[torch.Tensor], float], num_photos: int, seed: int
    ) -> None:
        self.train, self.rate_of, self.num_photos, self.seed = train, rate_of, num_photos, seed
        self._known: dict[float, float] = {}

    def with_noise(self, noise: float) -> float:
        """The rate, computed once."""
        if noise not in self._known:
            self._known[noise] = self._measure(noise)
        return self._known[noise]

    def _measure(self, noise: float) -> float:
        draw = np.random.default_rng(self.seed)
        first, second = draw.integers(len(self.train), size=(2, len(self.train)))
        return self.rate_of(functional.normalize(self.train + noise * (self.train[first] - self.train[second]), dim=-1))

    def noise_for(self, target: float) -> float:
        """By bisection, as near as the error of such a rate allows; 0 if they are right no more often as they are."""
        error = math.sqrt(target * (1 - target) / self.num_photos)
        if self.with_noise(0.0) <= target + error:
            return 0.0
        low, high = 0.0, _MOST_NOISE
        for _ in range(12):
            middle = (low + high) / 2
            rate = self.with_noise(middle)
            if abs(rate - target) <= error:
                return middle
            low, high = (middle, high) if rate > target else (low, middle)
        return high


def _right_first(scores: torch.Tensor, rows: torch.Tensor) -> float:
    """Share of photos ``(N, C)`` whose best address is the true one, SSA@1."""
    return float((scores.argmax(dim=1) == rows).float().mean())


def _draw(seed: int, name: str, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
