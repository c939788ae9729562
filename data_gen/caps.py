"""The cap: how many training photos of one sub-street are talked about, so that no busy street outweighs the others."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_gen.measured_dialogues import NamedNumbers
from data_gen.parts import Context, Facts
from data_gen.positions import num_parts, read_columns
from data_gen.settings import BuildSettings
from llava_ial.records import write_part

CAPPED = "capped"


def cap_photos(context: Context) -> Facts:
    """Notes the training photos beyond the cap of their sub-street: which ones, the seed decides."""
    addresses = context.folder / "addresses"
    photos_of: Counter[str] = Counter()
    for part in range(num_parts(addresses)):
        counted = _training(addresses, part)["sub_street_id"].combine_chunks().value_counts()
        photos_of.update(dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)))
    most = photos_a_sub_street(context.settings, photos_of)
    if most is None:
        return {}
    full = pa.array(sorted(name for name, count in photos_of.items() if count > most), pa.string())
    names, numbers, classes = [], [], []
    for part in range(num_parts(addresses)):
        table = _training(addresses, part)
        table = table.filter(pc.is_in(table["sub_street_id"], value_set=full))
        names.append(table["image_id"].combine_chunks())
        numbers.append(NamedNumbers(context.settings.seed, names[-1].to_pylist()).of("cap"))
        classes.append(pc.index_in(table["sub_street_id"], value_set=full).to_numpy().astype(np.int64))
    is_over = over_cap(np.concatenate(numbers), np.concatenate(classes), most)
    start = 0
    for part, here in enumerate(names):
        own = pa.array(is_over[start : start + len(here)])
        write_part(context.work / CAPPED, pa.table({"image_id": here.filter(own)}), part)
        start += len(here)
    return {"photos_a_sub_street": most, "sub_streets_over_cap": len(full), "photos_over_cap": int(is_over.sum())}


def photos_a_sub_street(settings: BuildSettings, photos_of: Counter[str]) -> int | None:
    """The cap, given the training photos of each sub-street; None without one."""
    caps = []
    if settings.max_photos_per_sub_street:
        caps.append(settings.max_photos_per_sub_street)
    if settings.max_times_mean and photos_of:
        caps.append(math.ceil(settings.max_times_mean * photos_of.total() / len(photos_of)))
    return min(caps, default=None)


def over_cap(numbers: npt.NDArray[np.uint64], classes: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.bool_]:
    """Which photos ``(N,)`` come after the first ``most`` of their class in the order of their numbers."""
    order = np.lexsort((numbers, classes))
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    is_over = np.zeros(len(order), dtype=bool)
    is_over[order[place >= most]] = True
    return is_over


def _training(addresses: Path, part: int) -> pa.Table:
    """Names and sub-streets of the training photos of a part."""
    table = read_columns(addresses, part, ["image_id", "sub_street_id", "split"])
    return table.filter(pc.equal(table["split"], "train"))
