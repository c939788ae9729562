"""The captions of a part: what a model, a table or published annotations say, without the names of the map."""

import numpy as np

from data_gen.annotations import import_addresses, parse_sources
from data_gen.caption import LeakMask, caption_photos, constant_captions, model_captions, read_captions
from data_gen.gallery import City
from data_gen.parts import Context, Facts
from data_gen.positions import read_columns
from llava_ial.records import (
    CaptionRecord,
    PhotoRecord,
    from_table,
    read_part,
    to_table,
    write_part,
)

SAID = "said"  # what a model said so far, until the part is written


def caption_part(context: Context, part: int) -> Facts:
    """Writes a part of ``captions/``."""
    settings = context.settings
    names = read_columns(context.folder / "addresses", part, ["image_id"])["image_id"]
    if settings.captioner == "constant":
        table = constant_captions(names.combine_chunks(), settings.caption, _mask(context))
        write_part(context.folder / "captions", table, part)
        return {"masked": int(np.count_nonzero(table["num_masked"].to_numpy()))}
    image_ids = names.to_pylist()
    captions, captioner = dict[str, str](), settings.captioner
    if captioner in ("model", "server"):
        photos = read_columns(context.folder / "photos", part, ["image_id", "image_path"])
        path_of = dict(zip(photos["image_id"].to_pylist(), photos["image_path"].to_pylist(), strict=True))
        files = [settings.image_root / path_of[image_id] for image_id in image_ids]
        captions = model_captions(settings, image_ids, files, context.work / SAID / f"{part:05d}")
    elif captioner == "annotation":
        own = from_table(read_part(context.folder / "photos", PhotoRecord, part), PhotoRecord)
        captions = import_addresses(own, parse_sources(settings.annotations), City()).captions if own else {}
    elif captioner == "csv" and settings.captions_file is not None:
        file, columns = settings.captions_file, (settings.image_id_column, settings.caption_column)
        captions = read_captions(file, image_ids, *columns)
    mask = _mask(context)
    records = caption_photos(image_ids, captions, settings.caption, mask, captioner)
    write_part(context.folder / "captions", to_table(records, CaptionRecord), part)
    return {"masked": sum(record.num_masked > 0 for record in records)}


def _mask(context: Context) -> LeakMask:
    addresses = read_columns(context.folder / "gallery", 0, ["address"])["address"].to_pylist()
    if context.compiled is not None:
        names, regions = set(context.compiled.street_map.names), set(context.compiled.street_map.neighbourhoods)
    else:
        names = {address["street"] for address in addresses}
        regions = {address["neighbourhood"] for address in addresses}
    city = [addresses[0][part] for part in ("city", "region", "country")]
    return LeakMask(sorted(names), [*sorted(regions), *city])
