"""What ``toy-llava`` hears: scenes described with their photos, addresses talked about without."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llava_ial.conversation import IMAGE_TOKEN, Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError

SCENE_QUESTIONS = (
    "What does this photo show?",
    "Describe this view.",
    "What can be seen here?",
    "Describe the scene in one sentence.",
    "What do you see?",
    "Tell me what is in this picture.",
)
# Half of the talk says first where the photo was taken: the language model learns to take names from what it was told.
_TOLD = ("This photo was taken at {}. ", "I am standing at {}. ", "The photo shows {}. ")


def scene_dialogues(captions: Sequence[str], seed: int) -> list[list[Message]]:
    """One question and the description as its answer, for every photo in order."""
    chosen = np.random.default_rng(seed).integers(len(SCENE_QUESTIONS), size=len(captions))
    return [
        [user_question(SCENE_QUESTIONS[which]), Message("assistant", caption)]
        for which, caption in zip(chosen, captions, strict=True)
    ]


def address_dialogues(data_sets: Sequence[Path], seed: int) -> list[list[Message]]:
    """The dialogues of data sets as text; every second one, by chance, is told the address."""
    draw = np.random.default_rng(seed)
    talks: list[list[Message]] = []
    for folder in data_sets:
        dataset = IALDataset(folder)
        spoken = {record.sub_street_id: record.spoken for record in dataset.gallery}
        for record in dataset.conversations("train"):
            first, *rest = record.messages
            question = first.content.replace(IMAGE_TOKEN, "").strip()
            if draw.random() < 0.5:
                question = _TOLD[draw.integers(len(_TOLD))].format(spoken[record.sub_street_id]) + question
            talks.append([Message("user", question), *rest])
    return talks


def build_data_sets(cities: Sequence[Path], folder: Path) -> list[Path]:
    """Runs ``python -m data_gen.build`` on each city that has no data set yet.

    Raises:
        UserError: The build failed.
    """
    built = []
    for city in tqdm(cities, desc="data sets", unit="city"):
        output = folder / f"data-{city.name}"
        command = [sys.executable, "-m", "data_gen.build", "--config", "data_gen/configs/toy_city.yaml"]
        command += ["--output", str(output), "--image_root", str(city), "--photos_csv", str(city / "photos.csv")]
        command += ["--streets", str(city / "city.osm.pbf"), "--captions_csv", str(city / "captions.csv")]
        command += ["--neighbourhoods", str(city / "neighbourhoods.geojson")]
        made = subprocess.run(command, check=False, capture_output=True, text=True)
        if made.returncode:
            raise UserError(f"{' '.join(command)} failed: {(made.stderr.strip().splitlines() or [''])[-1]}")
        built.append(output)
    return built
