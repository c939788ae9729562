"""Measures what a model's confidence is worth, for the chat: when to say "I am not sure" and "not this city".

    python -m serve.calibrate --model runs/demo/stage2 --data runs/demo/data
    python -m serve.calibrate --model runs/demo/stage2 --data runs/demo/data --elsewhere photos_of_other_places

Writes calibration.json into the model's folder (that of its encoder) and prints it. Every later use of the model takes
its temperature and its thresholds; measured again, it is written anew. Take a split that was not trained on.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from llava_ial.calibration import CALIBRATION, calibrate, load_calibration, save_calibration
from llava_ial.config import parse_config
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError, run_command
from llava_ial.evaluation.retrieval import street_classes
from llava_ial.inference import AddressPredictor, choose_device
from llava_ial.manifest import read_manifest
from llava_ial.models.llava import ADDRESS_CLIP_KIND
from llava_ial.models.llava_folder import ADDRESS_CLIP
from serve.examples import find_photos


@dataclass
class CalibrateConfig:
    """Settings of a calibration."""

    model: Path = field(metadata={"help": "folder of stage 1 or 2"})
    data: Path = field(metadata={"help": "data set whose photos are measured with"})
    split: str = field(default="val", metadata={"help": "split that the model was not trained on"})
    elsewhere: Path | None = field(
        default=None, metadata={"help": "folder with photos of other places; without it only their own are judged"}
    )
    image_root: Path | None = field(default=None, metadata={"help": "where the photos are now, if they were moved"})
    batch_size: int = field(default=32, metadata={"help": "photos at a time"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1 ...; auto takes a GPU where there is one"})


def main() -> None:
    """Scores the photos, fits, writes."""
    (config,) = parse_config(CalibrateConfig, description=__doc__ or "")
    if config.batch_size < 1:
        raise UserError(f"--batch_size {config.batch_size}: at least 1")
    elsewhere = find_photos(config.elsewhere) if config.elsewhere else []
    dataset = IALDataset(config.data, config.image_root)
    samples = dataset.samples(config.split)
    folder = config.model / ADDRESS_CLIP if (config.model / ADDRESS_CLIP).is_dir() else config.model
    manifest = read_manifest(folder, ADDRESS_CLIP_KIND)
    if manifest["gallery_hash"] != dataset.gallery_hash:
        raise UserError(f"--data {config.data} has other addresses than --model {config.model}; name its own data set")
    _remove_unusable(folder, manifest)
    predictor = AddressPredictor.from_pretrained(folder, device=choose_device(config.device))
    row = {record.sub_street_id: i for i, record in enumerate(predictor.gallery)}
    here = _cosines(predictor, [dataset.image_file(s.photo.image_path) for s in samples], config.batch_size)
    others = _cosines(predictor, elsewhere, config.batch_size)
    result = calibrate(
        predictor.logit_scale * here.double().numpy(),
        here.amax(dim=1).double().numpy(),
        np.array([row[s.address.sub_street_id] for s in samples]),
        street_classes([record.address.street_key for record in predictor.gallery]).numpy(),
        others.amax(dim=1).double().numpy() if len(others) else np.zeros(0),
    )
    save_calibration(folder, result, manifest)
    for name, value in dataclasses.asdict(result).items():
        print(f"{name:20} {value}")


def _remove_unusable(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Takes away a calibration that nothing opens the folder with; a good one is there until it is written anew.

    What is measured, cosines, is the encoder's alone.
    """
    try:
        load_calibration(folder, manifest)
    except UserError:
        (folder / CALIBRATION).unlink()


def _cosines(predictor: AddressPredictor, photos: list[Path], batch_size: int) -> torch.Tensor:
    starts = tqdm(range(0, len(photos), batch_size), desc="photos", unit="batch", leave=False)
    parts = [predictor.cosines(photos[start : start + batch_size]) for start in starts]
    return torch.cat(parts) if parts else torch.zeros(0, len(predictor.gallery))


if __name__ == "__main__":
    run_command(main)
