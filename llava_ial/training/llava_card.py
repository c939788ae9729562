"""The model card of LLaVA-IAL: ``README.md`` in its folder, as model hubs show it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_ial.data.dataset import IALDataset

_CARD = """---
library_name: peft
pipeline_tag: image-text-to-text
tags: [llava, lora, image-address-localization, addressclip]
---
# LLaVA-IAL for one city

{purpose}, and the vision tower of an AddressCLIP that was tuned on the same city; `address_clip/` holds that encoder
and the list of addresses.

```python
from pathlib import Path
from llava_ial.conversation import user_question
from llava_ial.inference import AddressPredictor
predictor = AddressPredictor.from_pretrained(Path(FOLDER))
predictor.answer([user_question("Where was this taken?")], Path("photo.jpg"))  # words
predictor.locate(Path("photo.jpg"), top_k=5)                                   # addresses with probabilities
```

With `peft` alone the features that it reads must be named:

```python
base = LlavaForConditionalGeneration.from_pretrained(BASE, {features})
model = PeftModel.from_pretrained(base, FOLDER)
```

`python -m train.merge` makes a plain `transformers` model of it, which knows them.

## Data

{data}

## Measured after step {step}

{metrics}

`street_accuracy` and `sub_street_accuracy`: of the generated answers to "where", on photos of split `{split}` that were
not trained on. These are figures of the training; `python -m serve.evaluate` measures with intervals.

## How it was tuned

{settings}

The exact configuration is `config.yaml`; hashes of base, tower, adapter, projector, prompt and data set stand in
`manifest.json`, and every command of the project verifies them.

## Intended use

Studying where photos of a city were taken, sorting archives of street views, and research on image geo-localization, in
the city that it was tuned on. Not for deciding anything about people, and not for finding where a private person is or
lives: a photo is personal data of whoever took it or stands in it. Ask for consent.

## Limits and risks

It names a street of its own city for a photo of any place, unless it was trained to refuse. It may name an address that
does not exist. It answers in fluent sentences whether or not it is right, and how sure it sounds says little:
`locate` gives probabilities. Places change with season and year. What it learned beside addresses is that of its base,
with the base's errors.

## Licence of the parts

The weights made here are a work derived from all of these, so every licence applies at once: that of the base model
(`{base}`; LLaVA-1.5 builds on LLaMA 2 and its community licence), that of the CLIP whose tower was tuned, and the data
set's, as its own card states it:

{licence}
"""
_TUNED = """Looks at a street photo without GPS and says in words where it was taken. LoRA on the language model of
`{base}`, its projector"""
_ALIGNED = """A base to go on from, not an answerer: the projector of `{base}`, trained alone beside an
untouched language model"""
_IMAGE_TEXT_CARD = """---
library_name: peft
pipeline_tag: image-text-to-text
tags: [lora, image-address-localization]
---
# {base} for one city

Says in words where a street photo was taken. LoRA on the language model and the projector, trained on {num_dialogues}
dialogues about the photos of one city; tower, template and processor are the base's own.

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("{base}"), FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```

{settings}

The licences of the base and of the data apply at once. It names a street of its city for a photo of any place, and may
name one that does not exist. A photo is personal data of whoever took it or stands in it: not for finding where a
private person is.
"""
_SHOWN = (
    "dialogues", "lora_rank", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "quantize", "learning_rate",
    "projector_learning_rate", "tune_vision_tower", "vision_tower_learning_rate", "interpolate_positions",
    "vision_feature_layer", "join_last_layer", "vision_feature_select_strategy", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "hints", "hint_dropout", "hint_shuffle", "mix",
    "seed",
)  # fmt: skip


def format_card(
    *,
    base: str,
    dataset: IALDataset,
    num_dialogues: int,
    num_photos: int,
    step: int,
    split: str,
    log: Path,
    forgetting: Path,
    settings: Mapping[str, Any],
) -> str:
    """The card as Markdown.

    Args:
        base: As the manifest names it.
        dataset: That was trained on.
        num_dialogues: That were trained on, those mixed in counted.
        num_photos: That they are about.
        step: That the weights are of.
        split: Measured on.
        log: ``train_log.jsonl`` of the run.
        forgetting: ``forgetting.json`` of the run, if there is one.
        settings: Of the run.
    """
    return _CARD.format(
        base=base,
        purpose=(_TUNED if settings.get("lora_rank") else _ALIGNED).format(base=base),
        data=f"{num_dialogues} dialogues about {num_photos} photos; {len(dataset.gallery)} addresses.",
        features=_features(settings),
        step=step,
        split=split,
        metrics=_metrics(log, forgetting, step),
        settings="\n".join(f"- {name}: {settings[name]}" for name in _SHOWN if settings.get(name) not in (None, [])),
        licence=_licence(dataset.folder / "README.md"),
    )


def _features(settings: Mapping[str, Any]) -> str:
    """What the base's configuration may have otherwise; a projector for two layers is none that the base knows."""
    layer, strategy = settings.get("vision_feature_layer"), settings.get("vision_feature_select_strategy")
    is_joined = bool(settings.get("join_last_layer"))
    wider = ", ignore_mismatched_sizes=True" if is_joined else ""
    return (
        f'vision_feature_layer={[layer, -1] if is_joined else layer}, vision_feature_select_strategy="{strategy}"'
        + wider
    )


def _metrics(log: Path, forgetting: Path, step: int) -> str:
    """The last loss of the training, the last measurement, and what was forgotten, as far as they are known."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    known = [values for values in map(json.loads, lines) if values["step"] <= step]
    training = [values for values in known if "street_accuracy" not in values]
    measured = [values for values in known if "street_accuracy" in values]
    rows = [f"- loss of the training: {training[-1]['loss']:.4f}"] if training else []
    if measured:
        rows += [f"- {name}: {value:.4f}" for name, value in sorted(measured[-1].items()) if name != "step"]
    found = json.loads(forgetting.read_text(encoding="utf-8")) if forgetting.exists() else {}
    if found.get("step") == step:  # of these weights, not of the best ones
        rows.append(f"- loss on general dialogues: {found['loss_before']:.3f} before, {found['loss_after']:.3f} after")
    return "\n".join(rows) or "Nothing was measured yet."


def _licence(card: Path) -> str:
    """What the data set's card says of licence and attribution."""
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    _, found, rest = text.partition("## Licence and attribution\n")
    said = rest.split("\n## ")[0].strip() if found else "It states none; ask whoever made it."
    return "\n".join(f"> {line}".rstrip() for line in said.splitlines())


def format_image_text_card(base: str, num_dialogues: int, settings: Mapping[str, Any]) -> str:
    """The card of another image-text model, tuned with its own tower."""
    shown = "\n".join(f"- {name}: {settings[name]}" for name in _SHOWN if settings.get(name) not in (None, []))
    return _IMAGE_TEXT_CARD.format(base=base, num_dialogues=num_dialogues, settings=shown)
