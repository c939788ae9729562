"""How far one gets without learning: the nearest training photo by raw pixels or by colours alone."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_gen.toy_city.arrays import Float32Array, IntArray
from data_gen.toy_city.photos import Photo
from llava_ial.evaluation.appearance import histogram_features, pixel_features

LIMIT = 0.25


def nearest_neighbour_accuracy(
    train: Float32Array, train_labels: IntArray, test: Float32Array, test_labels: IntArray
) -> float:
    """Return the share of test rows whose most similar training row (dot product) has the same label."""
    hits = 0
    for start in range(0, len(test), 512):
        best = (test[start : start + 512] @ train.T).argmax(axis=1)
        hits += int((train_labels[best] == test_labels[start : start + 512]).sum())
    return hits / len(test)


def measure_baselines(folder: Path, photos: list[Photo]) -> dict[str, float | int]:
    """Measure both nearest-neighbour baselines on the written files.

    Args:
        folder: The city's folder.
        photos: All rows; `train` is searched, `test` is asked.

    Returns:
        SSA@1 of each baseline as a fraction, chance, and the numbers of photos.
    """
    chosen = [photo for photo in photos if photo.split != "val"]
    pixels, colours = [], []
    for photo in chosen:
        with Image.open(folder / photo.image_path) as image:
            rgb = image.convert("RGB")
        pixels.append(pixel_features(rgb))
        colours.append(histogram_features(rgb))
    labels = np.array([photo.sub_street for photo in chosen])
    is_train = np.array([photo.split == "train" for photo in chosen])
    figures: dict[str, float | int] = {}
    for name, rows in (("pixels_16x16", pixels), ("colour_histogram", colours)):
        features = np.stack(rows)
        accuracy = nearest_neighbour_accuracy(
            features[is_train], labels[is_train], features[~is_train], labels[~is_train]
        )
        figures[f"{name}_1nn_ssa_at_1"] = round(accuracy, 4)
    figures["chance_ssa_at_1"] = round(1.0 / len(set(labels.tolist())), 4)
    figures["num_train_photos"], figures["num_test_photos"] = int(is_train.sum()), int((~is_train).sum())
    return figures
