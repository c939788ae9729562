"""What an encoder's scores are worth, measured on photos it was not trained on.

    temperature   by which its logits are divided, so that of the photos it calls 70 % likely about 70 % are right
                  (Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599)
    sure_from     probability of the best street from which an answer is stated without a caution
    here_from     cosine of the best address under which a photo does not look like one of this city

``python -m serve.calibrate`` writes them into the encoder's folder as ``calibration.json``; ``AddressPredictor`` reads
them there. They belong to one encoder and one gallery, whose hashes they carry.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_ial.errors import UserError
from llava_ial.geo import FloatArray
from llava_ial.manifest import write_json

CALIBRATION = "calibration.json"
IDENTITY = ("tower_hash", "gallery_hash")
IntArray = npt.NDArray[np.int64]
# An answer that is stated without a caution shall be right as often as this, on the photos this is measured on.
SURE_ACCURACY = 0.8
# Where nothing is known of other places, this share of the city's own photos is given up to refuse others.
REFUSED_HERE = 0.05
# And at most this much where it is known.
MOST_REFUSED_HERE = 0.1
NUM_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """The result of ``calibrate``; shares are fractions.

    Attributes:
        num_photos: Photos of the city it was measured on.
        accuracy: Share of them whose best street is right.
        calibration_error: Of the best street's probability, with this temperature; ``calibration_error``.
        share_sure: Share that is answered without a caution.
        accuracy_sure: Share of those that are right.
        refused_here: Share of the city's photos that are taken for another place.
        num_elsewhere: Photos of other places; 0 if there were none to measure with.
        accepted_elsewhere: Share of those that are taken for this city; None if there were none.
        address_error: As ``calibration_error``, of the best address's probability; None in files of earlier versions.
    """

    temperature: float
    sure_from: float
    here_from: float
    num_photos: int
    accuracy: float
    calibration_error: float
    share_sure: float
    accuracy_sure: float
    refused_here: float
    num_elsewhere: int
    accepted_elsewhere: float | None
    address_error: float | None = None


def calibrate(
    logits: FloatArray,
    best_cosine: FloatArray,
    true_class: IntArray,
    street_of_class: IntArray,
    elsewhere_cosine: FloatArray,
) -> Calibration:
    """Fits the temperature and chooses both thresholds.

    Args:
        logits: ``(N, C)`` cosines times the encoder's learnt scale, photos of the city it was not trained on.
        best_cosine: ``(N,)`` of each of these photos to its best address.
        true_class: ``(N,)`` the right address.
        street_of_class: ``(C,)`` street of each address.
        elsewhere_cosine: ``(M,)`` best cosine of photos of other places; may be empty.

    Raises:
        UserError: No photo.
    """
    if not len(logits):
        raise UserError("calibration needs photos that the encoder was not trained on; this split has none")
    temperature = fit_temperature(logits, true_class)
    probabilities = softmax(logits / temperature)  # (N, C)
    shares = street_shares(probabilities, street_of_class)  # (N, S)
    confidence = shares.max(axis=1)
    is_right = shares.argmax(axis=1) == street_of_class[true_class]
    sure_from = choose_sure_from(confidence, is_right)
    is_sure = confidence >= sure_from
    here_from = choose_here_from(best_cosine, elsewhere_cosine)
    return Calibration(
        temperature=temperature,
        sure_from=sure_from,
        here_from=here_from,
        num_photos=len(logits),
        accuracy=float(is_right.mean()),
        calibration_error=calibration_error(confidence, is_right),
        share_sure=float(is_sure.mean()),
        accuracy_sure=float(is_right[is_sure].mean()) if is_sure.any() else 0.0,
        refused_here=float((best_cosine < here_from).mean()),
        num_elsewhere=len(elsewhere_cosine),
        accepted_elsewhere=float((elsewhere_cosine >= here_from).mean()) if len(elsewhere_cosine) else None,
        address_error=calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == true_class),
    )


def softmax(logits: FloatArray) -> FloatArray:
    """Rows of ``(N, C)`` to probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def street_shares(probabilities: FloatArray, street_of_class: IntArray) -> FloatArray:
    """Probabilities of addresses ``(N, C)`` summed over their streets, ``(N, S)``."""
    shares = np.zeros((len(probabilities), int(street_of_class.max()) + 1))
    for column, street in enumerate(street_of_class.tolist()):
        shares[:, street] += probabilities[:, column]
    return shares


def fit_temperature(logits: FloatArray, true_class: IntArray) -> float:
    """The divisor of the logits under which the right addresses are likeliest, from 1/20 to 20.

    The mean negative log-likelihood is convex in the inverse temperature, so a golden-section search finds its minimum.
    """

    def loss(log_temperature: float) -> float:
        chances = softmax(logits / np.exp(log_temperature))[np.arange(len(logits)), true_class]
        return float(-np.log(np.maximum(chances, 1e-300)).mean())

    low, high = -np.log(20.0), np.log(20.0)
    golden = (np.sqrt(5.0) - 1) / 2
    while high - low > 1e-4:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def calibration_error(confidence: FloatArray, is_right: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error: the gap between stated and true share of right answers, over 15 equal bins."""
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [abs(float((confidence[bins == b] - is_right[bins == b]).sum())) for b in np.unique(bins)]
    return sum(gaps) / len(confidence)


def choose_sure_from(confidence: FloatArray, is_right: npt.NDArray[np.bool_]) -> float:
    """The lowest confidence from which on ``SURE_ACCURACY`` of the answers are right; above 1 if there is none."""
    order = np.argsort(-confidence, kind="stable")
    accuracy = is_right[order].cumsum() / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(accuracy >= SURE_ACCURACY)
    return float(confidence[order][enough[-1]]) if len(enough) else 1.01


def choose_here_from(here: FloatArray, elsewhere: FloatArray) -> float:
    """The score that tells best between photos of the city and others; a low quantile where there are no others.

    At most ``MOST_REFUSED_HERE`` of the city's own lie below it: most photos that are asked about are of the city.
    """
    if not len(elsewhere):
        return float(np.quantile(here, REFUSED_HERE))
    choices = np.unique(np.concatenate([here, elsewhere]))
    choices = choices[choices <= np.quantile(here, MOST_REFUSED_HERE)]
    rates = [float((here >= choice).mean() + (elsewhere < choice).mean()) for choice in choices]
    return float(choices[int(np.argmax(rates))])


def save_calibration(folder: Path, calibration: Calibration, manifest: Mapping[str, Any]) -> None:
    """Writes it into the folder of the encoder that ``manifest`` describes."""
    write_json(
        folder / CALIBRATION, {**dataclasses.asdict(calibration), **{name: manifest.get(name) for name in IDENTITY}}
    )


def load_calibration(folder: Path, manifest: Mapping[str, Any]) -> Calibration | None:
    """The calibration of an encoder's folder, None if it has none.

    Raises:
        UserError: Unreadable, or of another encoder.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        identity = {name: values.pop(name) for name in IDENTITY}
        calibration = Calibration(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: unreadable ({error}); delete it or run serve.calibrate again") from error
    if identity != {name: manifest.get(name) for name in IDENTITY}:
        raise UserError(f"{path} belongs to another encoder or gallery; delete it or run serve.calibrate again")
    return calibration
