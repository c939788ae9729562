"""How far an encoder gets that was never tuned on this city: by its nearest training photo, and by its texts."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from data_gen.toy_city.arrays import Float32Array
from data_gen.toy_city.baselines import nearest_neighbour_accuracy
from data_gen.toy_city.photos import Photo
from data_gen.toy_city.place import Place
from data_gen.toy_city.plan import Plan
from llava_ial.address import Address, CrossStreet, format_verbose
from llava_ial.models.address_clip import AddressCLIP, load_clip

_BATCH = 256


def measure_clip(folder: Path, photos: list[Photo], plan: Plan, place: Place, clip_folder: Path) -> dict[str, float]:
    """Measure an encoder on the written files.

    Args:
        folder: The city's folder.
        photos: All rows; `train` is searched, `test` is asked.
        plan, place: Where the sub-streets lie and what they are called.
        clip_folder: A CLIP in the form of `transformers`, with tokenizer and image processor.

    Returns:
        SSA@1 as a fraction, of the nearest training photo by the encoder's features, and of the most similar address.

    Raises:
        UserError: If there is no CLIP in `clip_folder`.
    """
    model = AddressCLIP(load_clip(str(clip_folder))).eval()
    chosen = [photo for photo in photos if photo.split != "val"]
    features = _encode_photos(model, folder, chosen, clip_folder)
    labels = np.array([photo.sub_street for photo in chosen])
    is_train = np.array([photo.split == "train" for photo in chosen])
    nearest = nearest_neighbour_accuracy(features[is_train], labels[is_train], features[~is_train], labels[~is_train])
    candidates = sorted(set(labels.tolist()))
    texts = [format_verbose(name_sub_street(plan, place, index)) for index in candidates]
    address_features = model.embed_texts(texts, AutoTokenizer.from_pretrained(clip_folder)).numpy()
    best = (features[~is_train] @ address_features.T).argmax(axis=1)
    zero_shot = float((np.array(candidates)[best] == labels[~is_train]).mean())
    return {"clip_1nn_ssa_at_1": round(nearest, 4), "clip_zero_shot_ssa_at_1": round(zero_shot, 4)}


def name_sub_street(plan: Plan, place: Place, index: int) -> Address:
    """Return the address of a sub-street: its street, neighbourhood, and a street that meets it at either end."""
    part = plan.sub_streets[index]
    crossings = []
    for node in (part.start, part.end):
        meeting = (p for p in plan.sub_streets if node in (p.start, p.end) and p.street != part.street)
        other = next(meeting, None)
        if other is not None:
            crossings.append(CrossStreet(place.streets[other.street], place.neighbourhoods[other.neighbourhood]))
    return Address(place.streets[part.street], place.neighbourhoods[part.neighbourhood], tuple(crossings))


@torch.no_grad()
def _encode_photos(model: AddressCLIP, folder: Path, photos: list[Photo], clip_folder: Path) -> Float32Array:
    processor = AutoImageProcessor.from_pretrained(clip_folder, backend="pil")
    rows = []
    for start in range(0, len(photos), _BATCH):
        images = []
        for photo in photos[start : start + _BATCH]:
            with Image.open(folder / photo.image_path) as image:
                images.append(image.convert("RGB"))
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        rows.append(model.encode_images(pixels).float().numpy())
    features: Float32Array = np.concatenate(rows)
    return features
