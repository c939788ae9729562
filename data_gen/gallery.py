"""The candidate addresses of a data set: the sub-streets that its photos are on."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from tqdm import tqdm

from data_gen.crossings import FloatArray, IntArray, build_street_graph, find_touches
from data_gen.partition import CutStreet, Piece, cut_street, end_crossings, merge_sparse
from data_gen.streets import StreetMap
from llava_ial.address import (
    Address,
    CrossStreet,
    format_canonical,
    format_spoken,
    format_verbose,
)
from llava_ial.records import GalleryRecord

_SLUG_LENGTH = 60


@dataclass(frozen=True)
class PartitionSettings:
    """How streets are cut.

    Attributes:
        min_piece_m: Crossings nearer than this to a more important one do not cut.
        min_positions: Sub-streets with fewer photo positions join a neighbour (5 in the paper).
        snap_m: Lines this near each other meet.
    """

    min_piece_m: float = 60.0
    min_positions: int = 5
    snap_m: float = 0.5


@dataclass(frozen=True)
class City:
    """What follows the street and the neighbourhood in a spoken address; "" is left out."""

    name: str = ""
    region: str = ""
    country: str = ""


@dataclass(frozen=True)
class Gallery:
    """Candidate addresses in the order of their class index, and the class of each photo (-1 for none)."""

    records: list[GalleryRecord]
    photo_class: IntArray


def build_gallery(
    street_map: StreetMap,
    xy_m: FloatArray,
    street: IntArray,
    positions: Sequence[str] | npt.NDArray[np.uint64],
    settings: PartitionSettings,
    city: City,
) -> Gallery:
    """Cuts the streets that have photos and names the pieces.

    Args:
        street_map: The map.
        xy_m: ``(N, 2)`` photo positions.
        street: ``(N,)`` index of each photo's street, -1 for none.
        positions: ``(N,)`` panorama of each photo, by name or number: its crops are one position.
        settings: How to cut.
        city: Common to all addresses.
    """
    touches = find_touches(street_map, settings.snap_m)
    parts: list[CutStreet] = []
    used = np.unique(street[street >= 0]).tolist()
    for index in tqdm(used, desc="cutting streets", unit="street", disable=None):
        graph = build_street_graph(street_map, index, touches, settings.snap_m, settings.min_piece_m)
        parts += cut_street(graph, street_map.names, settings.min_piece_m)
    pieces = [piece for part in parts for piece in part.pieces]
    photo_piece = _nearest_pieces(pieces, xy_m, street)
    for number, piece in enumerate(pieces):
        piece.numbers = {number}
    for number, position in _distinct_pairs(photo_piece, positions):
        pieces[number].positions.add(position)
    for part in parts:
        merge_sparse(part, settings.min_positions)
    return _name_pieces(parts, photo_piece, street_map, settings.snap_m, city)


def sub_street_id(address: Address) -> str:
    """A readable and stable name of a sub-street: a slug of its address and a hash of the whole of it.

    Example:
        >>> sub_street_id(Address("Breite Straße", "", (CrossStreet("Hohe Straße"),)))
        'breite-strasse-hohe-strasse-24dbe93e'
    """
    text = " ".join([address.street, address.neighbourhood, *(cross.street for cross in address.cross_streets)])
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss")).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_LENGTH].strip("-")
    digest = hashlib.sha256(format_canonical(address).encode()).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest


def _distinct_pairs(
    photo_piece: IntArray, positions: Sequence[str] | npt.NDArray[np.uint64]
) -> Iterator[tuple[int, int]]:
    """Each piece with the number of each position on it, once."""
    number = np.unique(np.asarray(positions), return_inverse=True)[1].reshape(-1)
    count = int(number.max(initial=0)) + 1
    number += photo_piece * count
    for key in np.unique(number[photo_piece >= 0]).tolist():
        yield divmod(key, count)


def _nearest_pieces(pieces: list[Piece], xy_m: FloatArray, street: IntArray) -> IntArray:
    """The piece of its own street that each photo is nearest to, -1 for a photo without a street."""
    found = np.full(len(xy_m), -1, dtype=np.int64)
    # The crops of a panorama follow each other at one place: the first of them stands for all.
    is_first = np.ones(len(xy_m), dtype=bool)
    is_first[1:] = (xy_m[1:] != xy_m[:-1]).any(axis=1) | (street[1:] != street[:-1])
    with_street = np.flatnonzero(is_first & (street >= 0))
    if not len(with_street):
        return found
    lines = np.array([shapely.LineString(block) for piece in pieces for block in piece.blocks])
    piece_of = np.repeat(np.arange(len(pieces)), [len(piece.blocks) for piece in pieces])
    street_of = np.array([piece.street for piece in pieces])[piece_of]
    order = with_street[np.argsort(street[with_street], kind="stable")]
    for photos in np.split(order, np.flatnonzero(np.diff(street[order])) + 1):
        own = np.flatnonzero(street_of == street[photos[0]])
        photo, line = shapely.STRtree(lines[own]).query_nearest(shapely.points(xy_m[photos]))
        # Of equally near blocks the first one, so that the answer does not depend on the tree's order.
        first = np.full(len(photos), len(lines))
        np.minimum.at(first, photo, own[line])
        found[photos] = piece_of[first]
    return np.asarray(found[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]])


def _name_pieces(
    parts: list[CutStreet], photo_piece: IntArray, street_map: StreetMap, snap_m: float, city: City
) -> Gallery:
    """Addresses of the pieces that have photos; pieces of one address become one candidate."""
    by_address: dict[Address, list[Piece]] = defaultdict(list)
    for part in parts:
        for piece in part.pieces:
            if piece.positions:
                by_address[_address(part, piece, street_map, city)].append(piece)
    addresses = sorted(by_address)
    class_of = np.full(int(photo_piece.max(initial=-1)) + 2, -1, dtype=np.int64)
    for index, address in enumerate(addresses):
        for piece in by_address[address]:
            for number in piece.numbers:
                if number < len(class_of) - 1:
                    class_of[number] = index
    groups = [by_address[address] for address in addresses]
    adjacent = _adjacent(groups, snap_m)
    ids = [sub_street_id(address) for address in addresses]
    records = [
        _record(address, group, [ids[n] for n in near], street_map)
        for address, group, near in zip(addresses, groups, adjacent, strict=True)
    ]
    return Gallery(records, class_of[photo_piece])  # -1 reads the last entry, which is -1


def _address(part: CutStreet, piece: Piece, street_map: StreetMap, city: City) -> Address:
    crossings = [
        CrossStreet(street_map.names[c.street], piece.neighbourhood if c.neighbourhood is None else c.neighbourhood)
        for c in end_crossings(part, piece)
    ]
    return Address(
        street=street_map.names[piece.street],
        neighbourhood=piece.neighbourhood,
        cross_streets=tuple(sorted(crossings)),
        city=city.name,
        region=city.region,
        country=city.country,
    )


def _record(address: Address, pieces: list[Piece], adjacent_ids: list[str], street_map: StreetMap) -> GalleryRecord:
    blocks = [block for piece in pieces for block in piece.blocks]
    merged = shapely.get_parts(shapely.line_merge(shapely.MultiLineString([block.tolist() for block in blocks])))
    lines = []
    for line in merged:
        lat, lon = street_map.frame.to_lat_lon(shapely.get_coordinates(line))
        lines.append([[round(x, 7), round(y, 7)] for x, y in zip(lon.tolist(), lat.tolist(), strict=True)])
    num_positions = len(set().union(*(piece.positions for piece in pieces)))
    return gallery_record(address, sorted(lines), num_positions, adjacent_ids)


def gallery_record(
    address: Address, lines: list[list[list[float]]], num_positions: int, adjacent_ids: list[str]
) -> GalleryRecord:
    """A candidate with its texts."""
    return GalleryRecord(
        sub_street_id=sub_street_id(address),
        address=address,
        verbose=format_verbose(address),
        canonical=format_canonical(address),
        spoken=format_spoken(address),
        street_text=format_verbose(address.at_street_level()),
        neighbourhood_text=f"located in the {address.neighbourhood}" if address.neighbourhood else "",
        lines=lines,
        num_positions=num_positions,
        adjacent_ids=adjacent_ids,
    )


def _adjacent(groups: list[list[Piece]], snap_m: float) -> list[list[int]]:
    """For each candidate, the others that it meets: blocks end at every crossing, so their ends tell."""
    if not groups:
        return []
    tips, owner = [], []
    for index, pieces in enumerate(groups):
        for block in (block for piece in pieces for block in piece.blocks):
            tips += [block[0], block[-1]]
            owner += [index, index]
    points, owners = shapely.points(np.array(tips)), np.array(owner)
    left, right = shapely.STRtree(points).query(points, predicate="dwithin", distance=max(snap_m, 0.01))
    near: list[set[int]] = [set() for _ in groups]
    for a, b in np.unique(np.stack([owners[left], owners[right]], axis=1), axis=0).tolist():
        if a != b:
            near[a].add(b)
    return [sorted(found) for found in near]
