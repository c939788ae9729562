"""From photos with positions to addresses, candidates and splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from data_gen.blocks import BlockSettings, nearest_train_m, split_by_block
from data_gen.gallery import City, PartitionSettings, build_gallery
from data_gen.geocode import METHOD, VOTED, NearestStreets, nearest_streets, streets_in_range, vote_streets
from data_gen.photo_check import STEP, format_reasons
from data_gen.services import ServiceGeocoder, match_streets
from data_gen.settings import BuildSettings
from data_gen.streets import StreetMap
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint, LocalFrame
from llava_ial.records import AddressRecord, DroppedRecord, GalleryRecord, PhotoRecord
from llava_ial.splits import check_leakage, split_by_panorama

FloatArray = npt.NDArray[np.float64]
_UTM_SOURCES = ("file_name", "pitts250k", "utm_table")


@dataclass(frozen=True)
class Located:
    """Addresses of the photos that got one, the candidates among them, and the photos left out."""

    addresses: list[AddressRecord]
    gallery: list[GalleryRecord]
    dropped: list[DroppedRecord]


def positions_m(photos: Sequence[PhotoRecord], street_map: StreetMap | None) -> FloatArray:
    """Metres ``(N, 2)`` of the map's frame, NaN off the map; without a map, of a frame at the photos' middle."""
    lat, lon = np.array([p.lat for p in photos]), np.array([p.lon for p in photos])
    if street_map is not None:
        return street_map.to_xy_m(lat, lon)
    return LocalFrame(GeoPoint(float(np.median(lat)), float(np.median(lon)))).to_xy_m(lat, lon)


def drop_misplaced(
    photos: Sequence[PhotoRecord], street_map: StreetMap
) -> tuple[list[PhotoRecord], list[DroppedRecord]]:
    """Leaves out photos off the map whose position becomes one on it by a mistake that is often made.

    Latitude and longitude swapped, or metres read in the wrong UTM zone, which moves a place by six degrees of
    longitude each.
    """
    off = np.flatnonzero(np.isnan(positions_m(photos, street_map)).any(axis=1)).tolist()
    reasons: dict[int, str] = {}
    for i in off:
        photo = photos[i]
        mended = {"swapped_lat_lon": [(photo.lon, photo.lat)]}
        if photo.source in _UTM_SOURCES:
            mended["wrong_utm_zone"] = [(photo.lat, photo.lon + 6.0 * zones) for zones in (-2, -1, 1, 2)]
        for reason, places in mended.items():
            lat, lon = np.array(places).T
            if np.isfinite(street_map.to_xy_m(lat, lon)).all(axis=1).any():
                reasons[i] = reason
    kept = [photo for i, photo in enumerate(photos) if i not in reasons]
    return kept, [DroppedRecord(photos[i].image_id, STEP, reason) for i, reason in reasons.items()]


def locate_photos(settings: BuildSettings, photos: Sequence[PhotoRecord], street_map: StreetMap, city: City) -> Located:
    """Street, piece of street and split of every photo.

    Raises:
        UserError: No photo is near a street of the map, or the given split leaks.
    """
    xy_m = positions_m(photos, street_map)
    if settings.geocoder != "map":
        nearest = _ask_service(settings, photos, xy_m, street_map)
    elif settings.vote_radius_m:
        nearest = vote_streets(
            xy_m, street_map, settings.max_distance_m, settings.ambiguous_margin_m, settings.vote_radius_m
        )
    else:
        nearest = nearest_streets(xy_m, street_map, settings.max_distance_m, settings.ambiguous_margin_m)
    is_ambiguous = nearest.margin_m < settings.ambiguous_margin_m  # false for NaN: no second street near
    reasons = ["no_street" if street < 0 else "" for street in nearest.street.tolist()]
    splits = _splits(settings, photos, is_ambiguous.tolist(), reasons, xy_m)
    kept = np.array([i for i, reason in enumerate(reasons) if not reason], dtype=np.int64)
    dropped = [DroppedRecord(p.image_id, "addresses", r) for p, r in zip(photos, reasons, strict=True) if r]
    if not len(kept):
        raise UserError(
            f"no photo got an address: {format_reasons(dropped)}; is {settings.streets} the map of their city?"
        )
    gallery = build_gallery(
        street_map,
        xy_m[kept],
        nearest.street[kept],
        [str(photos[i].panorama_id) for i in kept.tolist()],
        PartitionSettings(settings.min_piece_m, settings.min_positions, settings.snap_m),
        city,
    )
    records = []
    for i, number in zip(kept.tolist(), gallery.photo_class.tolist(), strict=True):
        margin = float(nearest.margin_m[i])
        records.append(
            AddressRecord(
                image_id=photos[i].image_id,
                sub_street_id=gallery.records[number].sub_street_id,
                address=gallery.records[number].address,
                split=splits[i],
                distance_m=round(float(nearest.distance_m[i]), 3),
                street_margin_m=None if np.isnan(margin) else round(margin, 3),
                is_ambiguous=bool(is_ambiguous[i]),
                method=_method(settings),
            )
        )
    return Located(records, gallery.records, dropped)


def _method(settings: BuildSettings) -> str:
    if settings.geocoder != "map":
        return settings.geocoder
    return VOTED if settings.vote_radius_m else METHOD


def _ask_service(
    settings: BuildSettings, photos: Sequence[PhotoRecord], xy_m: FloatArray, street_map: StreetMap
) -> NearestStreets:
    """Streets as a service names them, of those that the map has in range; once for each position."""
    near = streets_in_range(xy_m, street_map, settings.max_distance_m + settings.ambiguous_margin_m)
    named = ServiceGeocoder(settings).streets([GeoPoint(photo.lat, photo.lon) for photo in photos])
    matched = match_streets(named, near, street_map.names)
    street, away_m = np.array([m[0] for m in matched]), np.array([m[1] for m in matched])
    street[~(away_m <= settings.max_distance_m)] = -1
    margin_m = np.full(len(photos), np.nan)
    for i, found in near.items():
        others = [away for other, away in found if other != street[i]]
        if street[i] >= 0 and others:
            margin_m[i] = others[0] - away_m[i]
    return NearestStreets(street, away_m, margin_m)


def leakage_facts(
    photos: Sequence[PhotoRecord], addresses: Sequence[AddressRecord], dropped: Sequence[DroppedRecord]
) -> dict[str, object]:
    """How far the test photos are from what was trained on.

    ``nearest_train_m`` is, for every test panorama, the metres to the nearest training photo.
    """
    by_id = {photo.image_id: photo for photo in photos}
    kept = [by_id[record.image_id] for record in addresses]
    splits = [record.split for record in addresses]
    panoramas = [str(photo.panorama_id) for photo in kept]
    check_leakage(panoramas, splits)
    away_m = nearest_train_m(positions_m(kept, None), panoramas, splits)
    values = np.array(sorted(away_m.values()))
    quantiles = {f"p{q}": round(float(np.percentile(values, q)), 1) for q in (0, 10, 50, 90)} if len(values) else {}
    return {
        "panoramas_in_two_splits": 0,
        "duplicate_photos_dropped": sum(d.reason == "duplicate_content" for d in dropped),
        "test_panoramas": len(values),
        "nearest_train_m_quantiles": quantiles,
        "share_of_test_panoramas_under_25_m": round(float((values < 25.0).mean()), 4) if len(values) else None,
        "nearest_train_m": {name: round(value, 1) for name, value in sorted(away_m.items())},
    }


def _splits(
    settings: BuildSettings,
    photos: Sequence[PhotoRecord],
    is_ambiguous: Sequence[bool],
    reasons: list[str],
    xy_m: FloatArray,
) -> list[str]:
    """A split for each photo; adds to ``reasons`` where the split leaves no place for it."""
    splits = [photo.given_split or "train" for photo in photos]
    if settings.split == "given":
        for i, photo in enumerate(photos):
            if not reasons[i] and photo.given_split is None:
                reasons[i] = "no_split"
            elif not reasons[i] and photo.given_split == "test" and is_ambiguous[i]:
                reasons[i] = "ambiguous_in_test"
    kept = [i for i, reason in enumerate(reasons) if not reason]
    panoramas = [str(photos[i].panorama_id) for i in kept]
    unsure = [is_ambiguous[i] for i in kept]
    if settings.split == "fractions":
        drawn = split_by_panorama(
            panoramas,
            unsure,
            val_fraction=settings.val_fraction,
            test_fraction=settings.test_fraction,
            seed=settings.seed,
        )
        by_photo = dict(zip(kept, drawn, strict=True))
        splits = [by_photo.get(i, "train") for i in range(len(photos))]
    elif settings.split == "blocked":
        blocks = BlockSettings(
            settings.block_m, settings.buffer_m, settings.val_fraction, settings.test_fraction, settings.seed
        )
        found = split_by_block(xy_m[kept], panoramas, unsure, blocks)
        for i, split in zip(kept, found, strict=True):
            splits[i] = split
            if split not in ("train", "val", "test"):
                reasons[i] = split
        kept = [i for i in kept if not reasons[i]]
        panoramas = [str(photos[i].panorama_id) for i in kept]
    check_leakage(panoramas, [splits[i] for i in kept])
    return splits


def with_utm_source(photos: Sequence[PhotoRecord]) -> list[PhotoRecord]:
    """Photos of a table whose positions were metres, marked so."""
    return [replace(photo, source="utm_table") for photo in photos]
