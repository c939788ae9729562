"""The model card of a tuned encoder: ``README.md`` in its folder, as model hubs show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava_ial.calibration import Calibration

_CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [clip, image-address-localization, addressclip]
---
# AddressCLIP for one city

A CLIP whose photos find their addresses: tuned from `{base}` on {num_photos} photos with the losses of AddressCLIP
(arXiv 2407.08156), so that a street photo without GPS is near the text of its address. `gallery/` holds the
{num_addresses} candidate addresses, `gallery_embeddings.safetensors` their features.

```python
from transformers import CLIPModel, CLIPProcessor
clip, processor = CLIPModel.from_pretrained(FOLDER), CLIPProcessor.from_pretrained(FOLDER)
```

```python
from llava_ial.inference import AddressPredictor
predictor = AddressPredictor.from_pretrained(FOLDER)
predictor.locate(photo, top_k=5)                                  # addresses with probabilities
predictor.locate(photo, candidates=["Old Town", "Riverside"])     # any texts
```

## Measured after step {measured_step}

{metrics}

`SSA@k`: the true piece of street is among the k best of all candidates. `SA@k`: the street of any of the k best is
right. The wordings `canonical`, `spoken` and `loose` of the candidates were never trained on.{remembered}

## How it was tuned

{settings}

{num_skipped} training photos could not be read. The exact configuration is `config.yaml`; the hashes of tower, gallery,
data set and base are in `manifest.json`.

## Limits

It knows the streets of its training photos and puts every photo on one of them, also one of another city.
{probabilities} Places change; photos of a season or year it never saw are harder. Where
somebody lives or stood is personal: do not locate photos of people without their consent.
"""
_REMEMBERED = """

`AddressPredictor` also compares a photo with `photo_memory.safetensors`, the features of the training photos; `plain`
figures are without. Hand it on only as you would hand on a list of where these photos were taken."""
_UNCALIBRATED = "Probabilities are those of a softmax over the candidates, as confident as training made it."
_CALIBRATED = """Probabilities are calibrated (temperature {temperature:.2f}, fitted on {num_photos} photos of `val`):
of the best address they are {address_error:.1%} off in the mean (expected calibration error, the same photos), of
the best street {calibration_error:.1%}."""
_SHOWN_SETTINGS = (
    "num_epochs", "batch_size", "learning_rate", "address_weight", "caption_weight", "geography_weight",
    "street_weight", "neighbourhood_weight", "photo_weight", "positives", "max_per_address", "image_tower",
    "text_tower", "ema_decay", "views", "memory_weight", "publish", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What is known of an encoder.

    Attributes:
        metrics: By split; empty where nothing was measured yet.
        step: Finished steps of the weights that the metrics are of; a checkpoint's own may be later ones.
        calibration: Of the probabilities, None for none.
    """

    metrics: Mapping[str, Mapping[str, float]]
    step: int = 0
    calibration: Calibration | None = None


def format_card(
    *,
    base: str,
    measured: Measured,
    num_photos: int,
    num_addresses: int,
    num_skipped: int,
    settings: Mapping[str, Any],
    has_memory: bool = False,
) -> str:
    """The card as Markdown.

    Args:
        base: Of the tuning, as the manifest names it.
        measured: What is known of it.
        num_photos: Trained on.
        num_addresses: Of the gallery.
        num_skipped: Photos that could not be read.
        settings: Of the run.
        has_memory: The folder holds features of the training photos.
    """
    calibration = measured.calibration
    return _CARD.format(
        base=base,
        measured_step=measured.step,
        num_photos=num_photos,
        num_addresses=num_addresses,
        num_skipped=num_skipped,
        metrics=_table(measured.metrics) if measured.metrics else "Nothing was measured yet.",
        settings="\n".join(f"- {name}: {settings[name]}" for name in _SHOWN_SETTINGS if name in settings),
        remembered=_REMEMBERED if has_memory else "",
        probabilities=_CALIBRATED.format(**vars(calibration)) if calibration else _UNCALIBRATED,
    )


def _table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = [["", *metrics], ["---"] * (len(metrics) + 1)]
    rows += [[name, *(_cell(name, values.get(name)) for values in metrics.values())] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if "@" in name:
        return f"{value:.2%}"
    return f"{value:.0f}" if name.startswith("num_") else f"{value:.3f}"
