from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, CLIPImageProcessorPil

from data_gen.streets import DEFAULT_HIGHWAYS, load_street_map
from llava_ial.address import Address, CrossStreet, format_verbose
from llava_ial.data.augmentation import Augmentation
from llava_ial.data.batches import GlobalBatches
from llava_ial.data.clip import ClipCollator, ClipPhotos, clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint, distance_m
from tests.tiny_world import build_tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> IALDataset:
    return IALDataset(build_tiny_dataset(tmp_path_factory.mktemp("world") / "data"))


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path):
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "clip")


def processor(side: int = 32) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def photos(dataset: IALDataset, **options: object) -> ClipPhotos:
    return ClipPhotos(clip_examples(dataset, "train"), processor(), **options)  # type: ignore[arg-type]


def test_a_batch_has_the_shapes_and_values_it_promises(dataset: IALDataset, tokenizer):
    items = photos(dataset)
    batch = ClipCollator(tokenizer, 77)([items[i] for i in (0, 3, 5)])
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert batch["pixel_values"].dtype == batch["xy_m"].dtype == torch.float32
    assert batch["address_id"].tolist() == [0, 3, 5]
    assert batch["image_id"] == ["tiny-000", "tiny-003", "tiny-005"]
    decoded = tokenizer.batch_decode(batch["caption_input_ids"], skip_special_tokens=True)
    sample = dataset.samples("train")[3]
    assert decoded[1].replace(" ", "") == f"{sample.caption} {dataset.gallery[3].verbose}".lower().replace(" ", "")
    for name in ("address", "caption"):
        assert batch[f"{name}_input_ids"].shape == batch[f"{name}_attention_mask"].shape


def test_positions_are_metres_between_the_photos(dataset: IALDataset):
    examples, samples = clip_examples(dataset, "train"), dataset.samples("train")
    points = [GeoPoint(s.photo.lat, s.photo.lon) for s in samples]
    for i in range(len(points)):
        measured = torch.dist(torch.tensor(examples[0].xy_m), torch.tensor(examples[i].xy_m))
        assert measured.item() == pytest.approx(distance_m(points[0], points[i]), rel=5e-3, abs=0.05)


LONG_NAMES = (
    "located in the Bad Cannstatt-Neckarvorstadt, specifically on a section of Philip J. McArdle Roadway Extension "
    "that lies between Ferdinand-Hanauer-Strasse and Prof.-Dr.-Karl-Heinrich-Schellenberger-Promenade"
)


@pytest.mark.parametrize("num_words", [0, 1, 30, 60, 400])
@pytest.mark.parametrize("address", [LONG_NAMES, "located on Elm Way"])
def test_the_address_is_never_cut_however_long_the_caption(tokenizer, num_words: int, address: str):
    collator = ClipCollator(tokenizer, 77)
    caption = " ".join(["weatherboarded"] * num_words)
    text = collator.caption_text(caption, address)
    ids = tokenizer(text, truncation=True, max_length=77)["input_ids"]
    address_ids = tokenizer(address)["input_ids"][1:]  # with the mark of the end
    assert ids[-len(address_ids) :] == address_ids
    assert len(ids) <= 77
    kept = len(text.removesuffix(address).split())
    assert kept == num_words or len(tokenizer(f"weatherboarded {text}")["input_ids"]) > 77


def test_an_address_longer_than_the_encoder_reads_is_refused(tokenizer):
    with pytest.raises(UserError, match="tokens, the text encoder reads 20"):
        ClipCollator(tokenizer, 20).refuse_long_addresses([LONG_NAMES])
    ClipCollator(tokenizer, 77).refuse_long_addresses([LONG_NAMES])


def test_a_broken_photo_is_named_in_one_line_also_from_a_worker(tmp_path: Path, tokenizer):
    dataset = IALDataset(build_tiny_dataset(tmp_path / "data"))
    broken = dataset.image_file(dataset.samples("train")[2].photo.image_path)
    broken.write_bytes(broken.read_bytes()[:200])
    loader = DataLoader(photos(dataset), batch_sampler=[[1, 2]], collate_fn=ClipCollator(tokenizer, 77), num_workers=1)
    (batch,) = loader
    assert str(broken) in batch["error"]
    assert "\n" not in batch["error"]


def test_photos_in_memory_are_the_ones_of_the_files(tmp_path: Path):
    dataset = IALDataset(build_tiny_dataset(tmp_path / "data"))
    strong = Augmentation(min_crop_area=0.3, colour_jitter=0.4)
    from_files, kept = photos(dataset, augmentation=strong), photos(dataset, augmentation=strong)
    kept.keep_decoded(3)
    expected = [from_files[i]["pixel_values"] for i in range(2 * len(from_files))]
    for i, pixels in enumerate(expected):
        assert torch.equal(kept[i]["pixel_values"], pixels)
    for example in kept.examples:
        example.path.unlink()
    assert ["error" in kept[i] for i in range(5)] == [False, False, False, True, True]
    assert torch.equal(kept[len(kept)]["pixel_values"], expected[len(kept)])


def test_augmentation_is_a_function_of_seed_and_position(dataset: IALDataset):
    strong = Augmentation(min_crop_area=0.3, colour_jitter=0.4)
    first, again = photos(dataset, augmentation=strong, seed=3), photos(dataset, augmentation=strong, seed=3)
    other = photos(dataset, augmentation=strong, seed=4)
    assert torch.equal(first[2]["pixel_values"], again[2]["pixel_values"])
    assert not torch.equal(first[2]["pixel_values"], other[2]["pixel_values"])
    next_epoch = first[2 + len(first)]
    assert next_epoch["example"].image_id == first[2]["example"].image_id
    assert not torch.equal(first[2]["pixel_values"], next_epoch["pixel_values"])


def test_augmentation_never_mirrors_and_none_changes_nothing():
    ramp = Image.linear_gradient("L").rotate(90).convert("RGB")  # dark to bright from left to right
    left_to_right = [ramp.getpixel((x, 128))[0] for x in (20, 236)]
    for position in range(40):
        generator = torch.Generator().manual_seed(position)
        changed = Augmentation(min_crop_area=0.2, colour_jitter=0.3)(ramp, generator)
        ends = [changed.getpixel((x, changed.height // 2))[0] for x in (1, changed.width - 2)]
        assert (ends[0] < ends[1]) == (left_to_right[0] < left_to_right[1])
    assert Augmentation()(ramp, torch.Generator()) is ramp


def test_white_balance_changes_each_channel_by_a_factor_of_its_own_within_bounds():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    changed = Augmentation(white_balance_jitter=0.2)(grey, torch.Generator().manual_seed(1)).getpixel((0, 0))
    assert len(set(changed)) == 3
    assert all(80 <= value <= 120 for value in changed)
    bright = Augmentation(white_balance_jitter=0.2)(Image.new("RGB", (1, 1), (255,) * 3), torch.Generator())
    assert max(bright.getpixel((0, 0))) == 255


def test_crops_keep_the_asked_share_of_the_photo():
    photo = Image.new("RGB", (640, 480))
    for position in range(50):
        crop = Augmentation(min_crop_area=0.5)(photo, torch.Generator().manual_seed(position))
        assert 0.49 <= crop.width * crop.height / (640 * 480) <= 1
        assert 0.74 <= crop.width / crop.height <= 1.35


def test_fast_decoding_gives_nearly_the_same_pixels(dataset: IALDataset, tmp_path: Path):
    source = dataset.image_file(dataset.samples("train")[0].photo.image_path)
    with Image.open(source) as small:
        small.resize((960, 720), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    example = clip_examples(dataset, "train")[0]
    example = type(example)(**{**vars(example), "path": tmp_path / "large.jpg"})
    slow, fast = (ClipPhotos([example], processor(), fast_decoding=f)[0]["pixel_values"] for f in (False, True))
    assert (slow - fast).abs().mean() < 0.05


def shares(num_rows: int, batch_size: int, world: int, *, num_steps: int, start_step: int = 0) -> list[list[list[int]]]:
    return [
        list(
            GlobalBatches(num_rows, batch_size, num_steps=num_steps, start_step=start_step, rank=r, world=world, seed=7)
        )
        for r in range(world)
    ]


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "world"), [(20, 6, 1), (20, 6, 2), (7, 100, 3), (18, 18, 2), (5, 2, 2)]
)
def test_processes_share_the_batches_of_one_process(num_rows: int, batch_size: int, world: int):
    together = shares(num_rows, batch_size, world, num_steps=12)
    (alone,) = shares(num_rows, batch_size, 1, num_steps=12)
    for step, whole in enumerate(alone):
        parts = [together[r][step] for r in range(world)]
        assert sorted(row for part in parts for row in part) == sorted(whole)
        assert all(parts)
        assert len({row % num_rows for row in whole}) == min(batch_size, num_rows)  # no row twice in a batch


def test_an_epoch_is_a_new_shuffle_and_a_resumed_run_gets_the_same_batches():
    (whole,) = shares(10, 5, 1, num_steps=8)
    epochs = [whole[i] + whole[i + 1] for i in range(0, 8, 2)]
    assert all(sorted(row % 10 for row in epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(row % 10 for row in epoch) for epoch in epochs}) == 4
    assert shares(10, 5, 1, num_steps=8, start_step=3)[0] == whole[3:]


def test_fewer_photos_than_processes_is_refused():
    with pytest.raises(UserError, match="1 photos for 2 processes"):
        GlobalBatches(1, 4, num_steps=1, rank=0, world=2, seed=0)


def test_a_limit_for_each_address_holds_as_long_as_other_rows_last_and_loses_none():
    class_of_row = [0] * 8 + [1] * 4 + list(range(2, 26))  # one long street, one short one, 24 photos alone

    def batches(**options) -> list[list[int]]:
        share = GlobalBatches(36, 6, num_steps=12, rank=0, world=1, seed=1, class_of_row=class_of_row, **options)
        return [[row % 36 for row in batch] for batch in share]

    def most(found: list[list[int]]) -> list[int]:
        return [max(Counter(class_of_row[row] for row in batch).values()) for batch in found]

    limited = batches(max_per_class=2)
    assert max(most(limited)) == 2
    assert sum(most(batches())) > sum(most(limited))
    for epoch in (limited[:6], limited[6:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(36))
    alone = most(batches(max_per_class=1))  # eight rows of one class in six batches: two must be too many
    assert alone[:5] == [1] * 5 < alone[5:6]
    with pytest.raises(UserError, match="2 addresses fill no batch of 6; allow at least 3"):
        GlobalBatches(8, 6, num_steps=1, rank=0, world=1, seed=0, class_of_row=[0, 1] * 4, max_per_class=2)


def test_a_broken_photo_is_replaced_by_the_same_other_one_each_time(tmp_path: Path):
    dataset = IALDataset(build_tiny_dataset(tmp_path / "data"))
    strict, lenient = photos(dataset), photos(dataset, replace_broken=True)
    lenient.examples[3].path.write_bytes(b"no photo")
    assert "error" in strict[3]
    first, again, later = lenient[3], lenient[3], lenient[3 + 8]
    assert first["example"] == again["example"] != lenient.examples[3]
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    for item in (first, later):
        assert list(item["broken"]) == ["tiny-003"]
        assert "no image that can be read" in item["broken"]["tiny-003"]
    for example in lenient.examples:
        example.path.write_bytes(b"no photo")
    assert "error" in lenient[0]


def test_the_longest_names_of_a_real_city_are_never_cut(tokenizer, shared_data: Path):
    folder = shared_data / "pittsburgh"
    city = load_street_map(folder / "pittsburgh.osm.pbf", DEFAULT_HIGHWAYS, folder / "neighbourhoods.geojson")
    streets = sorted(city.names, key=lambda name: len(tokenizer(name)["input_ids"]))[-12:]
    area = max(city.neighbourhoods, key=lambda name: len(tokenizer(name)["input_ids"]))
    collator = ClipCollator(tokenizer, 77)
    for i, street in enumerate(streets):
        crossings = (CrossStreet(streets[i - 1], area), CrossStreet(streets[i - 2], area))
        address = format_verbose(Address(street, area, crossings))
        collator.refuse_long_addresses([address])
        text = collator.caption_text("a street view of a wide road with parked cars and brick houses", address)
        ids = tokenizer(text, truncation=True, max_length=77)["input_ids"]
        address_ids = tokenizer(address)["input_ids"][1:]
        assert ids[-len(address_ids) :] == address_ids
