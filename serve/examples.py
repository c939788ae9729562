"""Photos that the page offers to try: of a data set's test split, which training never saw, or of any folder."""

from pathlib import Path

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.manifest import MANIFEST

NUM_EXAMPLES = 6
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find_examples(folder: Path) -> list[Path]:
    """Up to six photos, spread evenly over what is there.

    Raises:
        UserError: No folder, or no photo in it.
    """
    if (folder / MANIFEST).is_file():
        dataset = IALDataset(folder)
        found = [dataset.image_file(sample.photo.image_path) for sample in dataset.samples("test")]
    else:
        found = find_photos(folder)
    num = min(NUM_EXAMPLES, len(found))
    return [found[i * len(found) // num].resolve() for i in range(num)]


def find_photos(folder: Path) -> list[Path]:
    """The photos of a folder and of its folders, by name.

    Raises:
        UserError: No folder, or no photo in it.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not found:
        raise UserError(f"{folder}: no photos here ({', '.join(PHOTO_SUFFIXES)})")
    return found
