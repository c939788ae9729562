"""A data set folder drawn at test time: small photos that can be told apart, with everything the real folder holds.

Photo ``i`` stands at address ``i % num_addresses``. Photos of one address share colours and figure and differ in where
the figure stands, as views of one street do, so a tiny model can learn them and has something to generalise.
"""

import colorsys
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from llava_ial.address import Address, CrossStreet, format_canonical, format_spoken, format_verbose
from llava_ial.config import save_config
from llava_ial.conversation import Message, to_llava_json, user_question
from llava_ial.data.dataset import KIND
from llava_ial.geo import GeoPoint, LocalFrame
from llava_ial.manifest import claim_folder, publish_manifest, write_json
from llava_ial.prompts import NEIGHBOURHOOD, PUBLISHED_QUESTION, WHERE, format_answer
from llava_ial.records import (
    AddressRecord,
    CaptionRecord,
    ConversationRecord,
    DroppedRecord,
    GalleryRecord,
    PhotoRecord,
    write_records,
)
from train.toy_base.clip import BaseClipConfig, build_base_clip

STREETS = (
    "Amber Street",
    "Birch Avenue",
    "Cedar Lane",
    "Dune Road",
    "Elm Way",
    "Fern Walk",
    "Gable Row",
    "Harbour Street",
)
NEIGHBOURHOODS = ("Old Town", "Riverside")
CITY, REGION, COUNTRY = "Tinytown", "TT", "Toyland"
ORIGIN = GeoPoint(lat=48.78, lon=9.18)
BLOCK_M = 120.0


@dataclass(frozen=True)
class TinyWorld:
    """What to draw; also the configuration that the folder's manifest states."""

    num_train: int = 8
    num_val: int = 2
    num_test: int = 2
    num_addresses: int = 8
    width: int = 96
    height: int = 72
    seed: int = 0


def tiny_address(index: int) -> Address:
    """Piece ``index``: two pieces a street, the second one with one cross street alone, as at a street's end."""
    street = index // 2 % len(STREETS)
    where = NEIGHBOURHOODS[street % 2]
    crossings = [CrossStreet(STREETS[(street + 1 + step) % len(STREETS)], where) for step in (index % 2, 2)]
    return Address(STREETS[street], where, tuple(crossings[: 2 - index % 2]), CITY, REGION, COUNTRY)


def tiny_photo(address_index: int, variant: int, *, width: int = 96, height: int = 72) -> Image.Image:
    """A view of a place: its sky, wall and ground colours, and a door whose place depends on the view."""
    draw_colour = random.Random(1000 + address_index)  # the place's looks depend on the place alone
    hues = [draw_colour.random() for _ in range(3)]
    sky, wall, door = (tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.8, 0.9)) for hue in hues)
    photo = Image.new("RGB", (width, height), sky)
    canvas = ImageDraw.Draw(photo)
    left = width * (10 + 7 * (address_index % 5)) // 100
    canvas.rectangle([left, height // 4, left + width // 2, height - 1], fill=wall)
    shift = (variant * 5) % (width // 4)
    canvas.ellipse([left + shift, height // 2, left + shift + width // 6, height - 4], fill=door)
    canvas.rectangle([0, height - 6, width, height], fill=(90 + 12 * (address_index % 8),) * 3)
    return photo


def build_tiny_dataset(folder: Path, world: TinyWorld | None = None, *, image_root: Path | None = None) -> Path:
    """Writes a complete data set folder of kind ``ial_dataset``.

    Args:
        folder: New or empty.
        world: Sizes; the default is 8 / 2 / 2 photos at 8 addresses on 4 streets.
        image_root: Where the photos are drawn; ``<folder>_photos`` beside the data set by default.
    """
    world = world or TinyWorld()
    config = vars(world)
    claim_folder(folder, KIND, config)
    image_root = image_root or folder.with_name(f"{folder.name}_photos")
    splits = ["train"] * world.num_train + ["val"] * world.num_val + ["test"] * world.num_test
    photos = [_photo_record(i, i % world.num_addresses, split) for i, split in enumerate(splits)]
    for i, photo in enumerate(photos):
        path = image_root / photo.image_path
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_photo(i % world.num_addresses, i // world.num_addresses, width=world.width, height=world.height).save(
            path, quality=95
        )
    gallery = [tiny_gallery_record(i, world, len(splits)) for i in range(world.num_addresses)]
    addresses = [
        AddressRecord(p.image_id, gallery[i % len(gallery)].sub_street_id, gallery[i % len(gallery)].address,
                      splits[i], 4.0 + i % 3, 40.0, False, "nearest")
        for i, p in enumerate(photos)
    ]  # fmt: skip
    captions = [
        CaptionRecord(p.image_id, f"a street view of a coloured wall number {i % len(gallery)}", "drawn", 0)
        for i, p in enumerate(photos)
    ]
    write_records(folder / "photos", photos, PhotoRecord)
    write_records(folder / "addresses", addresses, AddressRecord)
    write_records(folder / "captions", captions, CaptionRecord)
    write_records(folder / "gallery", gallery, GalleryRecord)
    write_records(folder / "dropped", [DroppedRecord("far-away", "addresses", "no_street_in_range")], DroppedRecord)
    counts = _write_conversations(folder, photos, addresses)
    save_config(folder / "config.yaml", world)
    write_json(folder / "run.json", {"seconds": 0.0})
    publish_manifest(
        folder,
        KIND,
        config,
        image_root=os.path.relpath(image_root, folder),
        num_photos_in=len(photos) + 1,
        num_photos_out=len(photos),
        num_photos_dropped={"no_street_in_range": 1},
        num_conversations=counts,
    )
    return folder


def _photo_record(index: int, address_index: int, split: str) -> PhotoRecord:
    frame = LocalFrame(ORIGIN)
    east, north = BLOCK_M * (address_index % 2), BLOCK_M * (address_index // 2)
    lat, lon = frame.to_lat_lon([[east + index, north + 2.0 * index]])
    name = f"tiny-{index:03d}"
    return PhotoRecord(
        name, f"{split}/{name}.jpg", float(lat[0]), float(lon[0]), None, f"pano-{index:03d}", None, "drawn", split
    )


def tiny_gallery_record(index: int, world: TinyWorld, num_photos: int) -> GalleryRecord:
    address = tiny_address(index)
    frame = LocalFrame(ORIGIN)
    east, north = BLOCK_M * (index % 2), BLOCK_M * (index // 2)
    lat, lon = frame.to_lat_lon([[east, north], [east + BLOCK_M, north]])
    line = [[float(x), float(y)] for x, y in zip(lon, lat, strict=True)]
    return GalleryRecord(
        sub_street_id=f"piece-{index:02d}",
        address=address,
        verbose=format_verbose(address),
        canonical=format_canonical(address),
        spoken=format_spoken(address),
        street_text=address.street,
        neighbourhood_text=address.neighbourhood,
        lines=[line],
        num_positions=sum(i % world.num_addresses == index for i in range(num_photos)),
        adjacent_ids=[f"piece-{index ^ 1:02d}"],
    )


def _write_conversations(
    folder: Path, photos: Sequence[PhotoRecord], addresses: Sequence[AddressRecord]
) -> dict[str, int]:
    """Two turns a photo: its address, then the neighbourhood, which the first answer already gives away."""
    counts = {}
    for split in sorted({a.split for a in addresses}):
        records = []
        for photo, address in zip(photos, addresses, strict=True):
            if address.split != split:
                continue
            messages = [
                user_question(PUBLISHED_QUESTION),
                Message("assistant", format_answer(WHERE, address.address)),
                Message("user", "Which neighbourhood is that?"),
                Message("assistant", format_answer(NEIGHBOURHOOD, address.address)),
            ]
            records.append(
                ConversationRecord(
                    f"{photo.image_id}-0",
                    photo.image_id,
                    photo.image_path,
                    address.sub_street_id,
                    split,
                    messages,
                    [f"{photo.image_id}-0-0", f"{photo.image_id}-0-1"],
                    [WHERE, NEIGHBOURHOOD],
                    [False, True],
                )
            )
        write_records(folder / "conversations" / split, records, ConversationRecord)
        (folder / "llava").mkdir(exist_ok=True)
        entries = [to_llava_json(r.conversation_id, r.image_path, r.messages) for r in records]
        write_json(folder / "llava" / f"{split}.json", entries)
        counts[split] = len(records)
    return counts


def build_tiny_base_clip(folder: Path, data: Path, *, image_size: int = 32, seed: int = 0) -> Path:
    """A base model for stage 1 of some ten thousand weights, with a tokenizer of the data set's texts."""
    build_base_clip(
        BaseClipConfig(
            output=folder, data=data, image_size=image_size, patch_size=8, vision_width=32, vision_layers=2,
            text_width=32, text_layers=1, embed_dim=32, seed=seed,
        )
    )  # fmt: skip
    return folder
