"""The model card of a base model, written from what its folder says of itself."""

import json
from pathlib import Path
from typing import Any

from llava_ial.manifest import MANIFEST, write_text

_HEAD = """\
---
license: apache-2.0
library_name: transformers
---
# {name}

{what}

Made for machines without a network: it stands for the pretrained {stands_for} from which one starts otherwise.
It knows invented street scenes and nothing else.

    from transformers import {architecture}
    model = {architecture}.from_pretrained("train/toy_base/models/{name}", dtype="float32")

- **Size**: {millions:.2f} M parameters, float16 safetensors of {megabytes:.1f} MB.
- **Data**: {num_cities} invented towns, seeds {first_seed} to {last_seed} of `python -m data_gen.toy_city` (generator
  version {generator_version}); of these, {num_held_out} never trained on.
  {data}
- **Never seen**: towns with a seed below 1000, their photos, and the names of their streets: names below and from 1000
  are drawn from different roots. A test reads the vocabulary's source and the manifest for it.
- **Training**: {training}
- **Made by**: `{command}`
  in {minutes:.0f} minutes on {cpu_count} CPU cores; `train_log.jsonl` has the course, `manifest.json` every setting and
  the versions of the libraries.
- **Measured on the held-out towns**: {measured}.

**Not for** real photos, real streets, or any conclusion about them.
"""

_TEXTS: dict[str, dict[str, str]] = {
    "toy_clip": {
        "what": "A small CLIP (ViT at {image_size} px, byte-level BPE) for the toy city.",
        "stands_for": "CLIP",
        "architecture": "CLIPModel",
        "data": "{scenes[photos_per_city]} photos each, with a description of what can be seen: colours, roofs, "
        "windows, cars, sky. For the text tower alone, address-shaped texts put together at random.",
        "training": "First CLIP's contrastive loss between photos and descriptions, {scenes[steps]} steps of "
        "{scenes[batch_size]}, AdamW with a cosine from {scenes[learning_rate]}, random crops of at least "
        "{scenes[min_crop]} of the area and changes of light. Then, for the text tower alone, InfoNCE between two "
        "wordings of the same invented address, {steps} steps of {batch_size}, with descriptions held where they were.",
        "measured": "of 256 photos {recall@1:.0%} find their own description first, {recall@5:.0%} among five (chance "
        "0.4 %, 2 %; before the second half, which leaves descriptions nearly in place); of 192 addresses with unread "
        "names {other_wording_is_nearest:.0%} find their other wording first",
        "command": "python -m train.toy_base.pretrain_clip --output runs/toy_base/toy-clip-scenes`, then "
        "`python -m train.toy_base.pretrain_names --scenes runs/toy_base/toy-clip-scenes "
        "--output train/toy_base/models/toy-clip",
    },
    "toy_llava": {
        "what": "A small LLaVA (the frozen tower of toy-clip, a projector of two layers, a LLaMA of {talk[layers]} "
        "layers of width {talk[width]}) for the toy city.",
        "stands_for": "LLaVA-1.5",
        "architecture": "LlavaForConditionalGeneration",
        "data": "{talk[scenes_per_city]} photos each were described; the addresses of {talk[talking_cities]} were "
        "spoken of in dialogues without any photo, most of them with made-up names in place of the town's, and most "
        "with the address told or listed among likely ones first. In the second half, half of the made-up names are "
        "pieces of the vocabulary in any order, so that none of them stays unread.",
        "training": "First {talk[steps]} steps of {talk[batch_size]} dialogues, one third descriptions with the photo, "
        "the rest talk about addresses; then {steps} steps of {scenes_per_step} descriptions, {talks_per_step} "
        "dialogues and {drills_per_step} drills, which ask for an address of a list by its place, beside a photo "
        "whose features are disturbed. AdamW with a cosine "
        "from {talk[learning_rate]} and {learning_rate}; projector and language model; the tower is frozen.",
        "measured": "loss of a description's tokens {scene_loss:.2f} with its photo, {scene_loss_of_another_photo:.2f} "
        "with another one; {answers_copied:.1%} of the answers to drills with unread names without a wrong token",
        "command": "python -m train.toy_base.pretrain_llava --clip train/toy_base/models/toy-clip --output "
        "runs/toy_base/toy-llava-talk`, then `python -m train.toy_base.pretrain_copying --talk "
        "runs/toy_base/toy-llava-talk --output train/toy_base/models/toy-llava",
    },
}


def write_card(folder: Path) -> None:
    """Writes ``README.md`` into a finished folder of ``pretrain_names`` or ``pretrain_copying``."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts: dict[str, Any] = {
        **manifest["config"],
        **manifest["held_out"],
        "name": folder.name,
        "num_cities": len(manifest["city_seeds"]),
        "num_held_out": {**manifest["config"], **manifest["config"].get("scenes", manifest["config"].get("talk"))}[
            "held_out_cities"
        ],
        "image_size": model["vision_config"]["image_size"],
        "first_seed": min(manifest["city_seeds"]),
        "last_seed": max(manifest["city_seeds"]),
        "generator_version": manifest["generator_version"],
        "millions": manifest["num_parameters"] / 1e6,
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "minutes": run["seconds"] / 60,
        "cpu_count": run["cpu_count"],
    }
    texts = {key: text.format(**facts) for key, text in _TEXTS[manifest["kind"]].items()}
    write_text(folder / "README.md", _HEAD.format(**facts, **texts))
