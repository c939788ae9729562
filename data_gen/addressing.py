"""From positions to streets, pieces of street and splits: part by part where a photo suffices, else all at once."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_gen.blocks import BlockSettings, split_by_block
from data_gen.gallery import City, PartitionSettings, build_gallery
from data_gen.geocode import (
    METHOD,
    VOTED,
    NearestStreets,
    distinct_places,
    nearest_streets,
    streets_in_range,
    vote_streets,
)
from data_gen.parts import Context, Facts
from data_gen.photo_check import format_reasons
from data_gen.places import NO_SPLIT, Places, load_places
from data_gen.positions import FloatArray, num_parts, read_columns
from data_gen.services import ServiceGeocoder, match_streets
from data_gen.settings import BuildSettings
from data_gen.streets import StreetMap
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint
from llava_ial.records import (
    AddressRecord,
    DroppedRecord,
    GalleryRecord,
    PhotoRecord,
    arrow_schema,
    read_part,
    to_table,
    write_part,
    write_records,
)
from llava_ial.splits import SPLIT_NAMES, panorama_rank, split_by_rank, straddling


def geocode_part(context: Context, part: int) -> Facts:
    """Metres, panorama and, where a photo alone decides, the nearest street of each photo of a part."""
    settings = context.settings
    photos = read_part(context.folder / "photos", PhotoRecord, part)
    panoramas = [str(name) for name in photos["panorama_id"].to_pylist()]
    ranks = {name: panorama_rank(name, settings.seed) for name in set(panoramas)}
    columns = {"panorama": pa.array([ranks[name] for name in panoramas], pa.uint64())}
    if settings.streets is not None:
        street_map = context.street_map
        xy_m = street_map.to_xy_m(photos["lat"].to_numpy(), photos["lon"].to_numpy())
        columns |= {"x_m": pa.array(xy_m[:, 0]), "y_m": pa.array(xy_m[:, 1])}
        if settings.geocoder == "map" and not settings.vote_radius_m:
            places, place_of = distinct_places(xy_m)  # the crops of a panorama stand at one
            found = nearest_streets(places, street_map, settings.max_distance_m, settings.ambiguous_margin_m)
            columns |= {
                "street": pa.array(found.street[place_of].astype(np.int32)),
                "distance_m": pa.array(found.distance_m[place_of]),
                "margin_m": pa.array(found.margin_m[place_of]),
            }
    write_part(context.work / "nearest", pa.table(columns), part)
    return {"rows": len(photos)}


def locate_photos(context: Context) -> Facts:
    """Street, piece of street and split of every photo: writes ``gallery/``, ``addresses/``, more of ``dropped/``.

    Raises:
        UserError: No photo is near a street of the map, or the given split leaks.
    """
    settings, street_map = context.settings, context.street_map
    places = load_places(context)
    nearest = _nearest(context, places, street_map)
    is_ambiguous = nearest.margin_m < settings.ambiguous_margin_m  # false for NaN: no second street near
    reasons = np.full(len(places.xy_m), "", dtype=object)
    reasons[nearest.street < 0] = "no_street"
    splits = _splits(context, places, is_ambiguous, reasons)
    is_kept = reasons == ""
    dropped = _dropped(context, places, reasons)
    if not is_kept.any():
        raise UserError(
            f"no photo got an address: {format_reasons(dropped)}; is {settings.streets} the map of their city?"
        )
    extract = context.compiled.city_name if context.compiled else ""
    city = City(settings.city or extract, settings.region, settings.country)
    kept = slice(None) if is_kept.all() else is_kept  # a slice copies nothing
    gallery = build_gallery(
        street_map,
        places.xy_m[kept],
        nearest.street[kept],
        places.panorama[kept],
        PartitionSettings(settings.min_piece_m, settings.min_positions, settings.snap_m),
        city,
    )
    classes = np.full(len(is_kept), -1, dtype=np.int32)
    classes[kept] = gallery.photo_class
    write_records(context.folder / "gallery", gallery.records, GalleryRecord)
    write_part(context.folder / "dropped", to_table(dropped, DroppedRecord), 1)
    _write_addresses(context, places, nearest, classes, splits, is_ambiguous, gallery.records)
    return {}


def _nearest(context: Context, places: Places, street_map: StreetMap) -> NearestStreets:
    settings = context.settings
    if settings.geocoder != "map":
        return _ask_service(context, places, street_map)
    if settings.vote_radius_m:
        return vote_streets(
            places.xy_m, street_map, settings.max_distance_m, settings.ambiguous_margin_m, settings.vote_radius_m
        )
    folder, names = context.work / "nearest", ("street", "distance_m", "margin_m")
    tables = [read_columns(folder, part, names).take(pa.array(rows)) for part, rows in enumerate(places.first)]
    return NearestStreets(*(np.concatenate([table[name].to_numpy() for table in tables]) for name in names))


def _ask_service(context: Context, places: Places, street_map: StreetMap) -> NearestStreets:
    """Streets as a service names them, of those that the map has in range; once for each position."""
    settings, photos = context.settings, context.folder / "photos"
    near = streets_in_range(places.xy_m, street_map, settings.max_distance_m + settings.ambiguous_margin_m)
    points: list[GeoPoint] = []
    for part, rows in enumerate(places.first):
        table = read_columns(photos, part, ["lat", "lon"]).take(pa.array(rows))
        points += [GeoPoint(*pair) for pair in zip(table["lat"].to_pylist(), table["lon"].to_pylist(), strict=True)]
    matched = match_streets(ServiceGeocoder(settings).streets(points), near, street_map.names)
    street, away_m = np.array([m[0] for m in matched]), np.array([m[1] for m in matched])
    street[~(away_m <= settings.max_distance_m)] = -1
    margin_m = np.full(len(points), np.nan)
    for i, found in near.items():
        others = [away for other, away in found if other != street[i]]
        if street[i] >= 0 and others:
            margin_m[i] = others[0] - away_m[i]
    return NearestStreets(street, away_m, margin_m)


def _splits(
    context: Context, places: Places, is_ambiguous: npt.NDArray[np.bool_], reasons: npt.NDArray[np.object_]
) -> npt.NDArray[np.int8]:
    """A split for each place; adds to ``reasons`` where the split leaves out its photos."""
    settings, train = context.settings, SPLIT_NAMES.index("train")
    splits = np.full(len(reasons), train, dtype=np.int8)
    kept = np.flatnonzero(reasons == "")
    if settings.split == "given":
        splits[:] = places.given
        reasons[kept[places.given[kept] == NO_SPLIT]] = "no_split"
        is_judge = places.given[kept] == SPLIT_NAMES.index("test")
        reasons[kept[is_judge & is_ambiguous[kept]]] = "ambiguous_in_test"
    elif settings.split == "fractions":
        splits[kept] = split_by_rank(
            places.panorama[kept],
            is_ambiguous[kept],
            val_fraction=settings.val_fraction,
            test_fraction=settings.test_fraction,
        )
    else:
        _split_by_block(settings, places, kept, is_ambiguous, reasons, splits)
    kept = np.flatnonzero(reasons == "")
    if len(leaking := straddling(places.panorama[kept], splits[kept])):
        refuse_leak(context, leaking, splits[places.of_photo], reasons[places.of_photo])
    return splits


def _split_by_block(
    settings: BuildSettings,
    places: Places,
    kept: npt.NDArray[np.int64],
    is_ambiguous: npt.NDArray[np.bool_],
    reasons: npt.NDArray[np.object_],
    splits: npt.NDArray[np.int8],
) -> None:
    blocks = BlockSettings(
        settings.block_m, settings.buffer_m, settings.val_fraction, settings.test_fraction, settings.seed
    )
    panoramas = places.panorama[kept].tolist()
    found = split_by_block(places.xy_m[kept], panoramas, is_ambiguous[kept].tolist(), blocks)
    for i, split in zip(kept.tolist(), found, strict=True):
        if split in SPLIT_NAMES:
            splits[i] = SPLIT_NAMES.index(split)
        else:
            reasons[i] = split


def refuse_leak(
    context: Context,
    leaking: npt.NDArray[np.uint64],
    splits: npt.NDArray[np.int8],
    reasons: npt.NDArray[np.object_],
) -> None:
    """Names up to three panoramas that stand in two splits.

    Raises:
        UserError: Always.
    """
    found: dict[str, set[str]] = {}
    start = 0
    for part in range(num_parts(context.work / "nearest")):
        ranks = read_columns(context.work / "nearest", part, ["panorama"])["panorama"].to_numpy()
        names = read_columns(context.folder / "photos", part, ["panorama_id"])["panorama_id"]
        for row in np.flatnonzero(np.isin(ranks, leaking) & (reasons[start : start + len(ranks)] == "")).tolist():
            found.setdefault(str(names[row]), set()).add(SPLIT_NAMES[splits[start + row]])
        start += len(ranks)
    examples = ", ".join(f"{name} ({' and '.join(sorted(where))})" for name, where in sorted(found.items())[:3])
    raise UserError(
        f"{len(leaking)} panorama(s) stand in two splits: {examples}; a test photo would have been seen in "
        "training. Mend the split column, draw the split by fractions, or make panorama_radius_m smaller"
    )


def _dropped(context: Context, places: Places, reasons: npt.NDArray[np.object_]) -> list[DroppedRecord]:
    dropped: list[DroppedRecord] = []
    start = 0
    for part, count in enumerate(places.rows):
        here = reasons[places.of_photo[start : start + count]]
        gone = np.flatnonzero(here != "")
        if len(gone):
            names = read_columns(context.folder / "photos", part, ["image_id"])["image_id"].take(pa.array(gone))
            dropped += [
                DroppedRecord(name, "addresses", why)
                for name, why in zip(names.to_pylist(), here[gone].tolist(), strict=True)
            ]
        start += count
    return dropped


def _write_addresses(
    context: Context,
    places: Places,
    nearest: NearestStreets,
    classes: npt.NDArray[np.int32],
    splits: npt.NDArray[np.int8],
    is_ambiguous: npt.NDArray[np.bool_],
    gallery: list[GalleryRecord],
) -> None:
    """``addresses/``, part by part; what all photos of a candidate have in common is taken from the gallery's table."""
    settings = context.settings
    candidates = to_table(gallery, GalleryRecord).select(["sub_street_id", "address"])
    method = settings.geocoder if settings.geocoder != "map" else VOTED if settings.vote_radius_m else METHOD
    names = np.array(SPLIT_NAMES, dtype=object)
    start = 0
    for part, count in enumerate(places.rows):
        of_photo = places.of_photo[start : start + count]
        kept = np.flatnonzero(classes[of_photo] >= 0)
        place = of_photo[kept]
        own = candidates.take(pa.array(classes[place]))
        image_ids = read_columns(context.folder / "photos", part, ["image_id"])["image_id"]
        margin_m = nearest.margin_m[place]
        columns = [
            image_ids.take(pa.array(kept)),
            own["sub_street_id"],
            own["address"],
            pa.array(names[splits[place]], pa.string()),
            pa.array(_rounded(nearest.distance_m[place])),
            pa.array(_rounded(margin_m), mask=np.isnan(margin_m)),
            pa.array(is_ambiguous[place]),
            pa.array([method] * len(kept), pa.string()),
        ]
        table = pa.Table.from_arrays(columns, schema=arrow_schema(AddressRecord)).combine_chunks()
        write_part(context.folder / "addresses", table, part)
        start += count


def _rounded(values_m: FloatArray) -> FloatArray:
    """To millimetres, as ``round`` does it, which is not as NumPy does it."""
    places, of_value = np.unique(values_m, return_inverse=True)
    return np.array([round(value, 3) for value in places.tolist()])[of_value]
