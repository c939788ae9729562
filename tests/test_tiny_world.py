from pathlib import Path

from llava_ial.data.dataset import IALDataset
from llava_ial.manifest import file_hash
from tests.tiny_world import TinyWorld, build_tiny_dataset


def test_the_drawn_folder_reads_like_a_built_one(tmp_path: Path):
    dataset = IALDataset(build_tiny_dataset(tmp_path / "data"))
    samples = [s for split in ("train", "val", "test") for s in dataset.samples(split)]
    assert len(samples) == 12
    assert len(dataset.gallery) == len({record.verbose for record in dataset.gallery}) == 8
    assert all(dataset.image_file(s.photo.image_path).is_file() for s in samples)
    assert [c.is_given_away for c in dataset.conversations("val")] == [[False, True]] * 2


def test_photos_differ_and_are_drawn_alike_each_time(tmp_path: Path):
    def photos(folder: Path) -> list[str]:
        dataset = IALDataset(build_tiny_dataset(folder, TinyWorld(num_train=16)))
        return [file_hash(dataset.image_file(s.photo.image_path)) for s in dataset.samples("train")]

    first = photos(tmp_path / "a")
    assert len(set(first)) == 16
    assert first == photos(tmp_path / "b")
