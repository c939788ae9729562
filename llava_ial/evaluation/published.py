"""Figures that the AddressCLIP paper prints (arXiv 2407.08156, tables 2 and 3), to stand beside one's own.

They are of the paper's test sets. Beside figures of another city they say how hard the task is, not who is better.
"""

from collections.abc import Mapping

# SSA@1, SSA@5, SA@1, SA@5 in per cent.
PUBLISHED: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {
    "Pitts-IAL": {
        "zero-shot CLIP": (0.85, 3.69, 1.28, 5.64),
        "CLIP tuned on addresses": (77.66, 93.28, 80.86, 94.17),
        "CLIP + CoOp": (67.91, 86.60, 71.19, 88.18),
        "CLIP + CoCoOp": (69.04, 88.34, 73.28, 89.78),
        "CLIP + MaPLe": (72.98, 91.85, 76.04, 92.27),
        "AddressCLIP": (80.39, 96.27, 82.62, 96.74),
    },
    "SF-IAL-Base": {
        "zero-shot CLIP": (1.25, 5.30, 2.80, 9.06),
        "CLIP tuned on addresses": (83.66, 96.32, 85.76, 96.85),
        "CLIP + CoOp": (77.77, 94.05, 79.90, 94.91),
        "CLIP + CoCoOp": (79.19, 95.27, 81.15, 96.32),
        "CLIP + MaPLe": (81.46, 96.98, 83.69, 97.77),
        "AddressCLIP": (86.32, 99.09, 87.44, 99.23),
    },
    "SF-IAL-Large": {
        "zero-shot CLIP": (0.26, 0.97, 0.50, 2.85),
        "CLIP tuned on addresses": (81.84, 95.38, 84.56, 95.79),
        "CLIP + CoOp": (74.84, 92.38, 78.23, 93.79),
        "CLIP + CoCoOp": (76.92, 93.58, 79.85, 94.04),
        "CLIP + MaPLe": (79.63, 94.47, 82.34, 95.96),
        "AddressCLIP": (85.92, 97.28, 88.10, 98.33),
    },
}

# The same of the losses' combinations.
PUBLISHED_LOSSES: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {
    "Pitts-IAL": {
        "CLIP + address": (77.66, 93.28, 80.86, 94.17),
        "CLIP + caption": (69.27, 87.23, 71.39, 88.92),
        "CLIP + address + caption": (79.20, 94.15, 81.26, 94.64),
        "CLIP + address + geography": (79.27, 95.15, 81.45, 95.61),
        "AddressCLIP": (80.39, 96.27, 82.62, 96.74),
    },
    "SF-IAL-Base": {
        "CLIP + address": (83.66, 96.32, 85.76, 96.85),
        "CLIP + caption": (75.85, 89.21, 77.24, 91.46),
        "CLIP + address + caption": (84.86, 97.46, 86.03, 98.04),
        "CLIP + address + geography": (85.54, 98.98, 86.64, 98.15),
        "AddressCLIP": (86.32, 99.09, 87.44, 99.23),
    },
}
