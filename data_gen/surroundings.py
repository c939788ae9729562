"""What is near a candidate address: hard wrong answers, likely alternatives, streets around it."""

from collections import defaultdict
from collections.abc import Sequence

from llava_ial.address import Address
from llava_ial.prompts import stable_number
from llava_ial.records import GalleryRecord
from llava_ial.wider_prompts import format_option


class Surroundings:
    """Looks up the neighbours of candidates in a gallery."""

    def __init__(self, gallery: Sequence[GalleryRecord]) -> None:
        self._records = {record.sub_street_id: record for record in gallery}
        self._ids_of_street: dict[str, list[str]] = defaultdict(list)
        for record in gallery:
            self._ids_of_street[record.address.street].append(record.sub_street_id)
        self._all_ids = [record.sub_street_id for record in gallery]

    def distractors(self, sub_street_id: str, count: int, *key: object) -> list[Address]:
        """Wrong addresses that are hard to tell from the right one, the hardest kinds first, mixed within a kind.

        The kinds: the adjacent piece of the street, a street that crosses it, the street in another neighbourhood,
        other adjacent pieces, any other address. No two read alike.
        """
        own = self._records[sub_street_id]
        adjacent = own.adjacent_ids
        crossing = {cross.street for cross in own.address.cross_streets}
        pools = [
            [i for i in adjacent if self._street(i) == own.address.street],
            [i for street in sorted(crossing) for i in self._ids_of_street.get(street, ())],
            [
                i
                for i in self._ids_of_street[own.address.street]
                if self._records[i].address.neighbourhood != own.address.neighbourhood
            ],
        ]
        picked: list[Address] = []
        seen = {format_option(own.address)}

        def pick(pool: Sequence[str], limit: int) -> None:
            for other in sorted(pool, key=lambda i: stable_number(*key, i)):
                address = self._records[other].address
                if limit > 0 and len(picked) < count and format_option(address) not in seen:
                    seen.add(format_option(address))
                    picked.append(address)
                    limit -= 1

        for pool in pools:
            pick(pool, 1)  # one of each kind before two of one
        for pool in (*pools, adjacent):
            pick(pool, count)
        if len(picked) < count:
            start = stable_number(*key, "any") % len(self._all_ids)
            pick([*self._all_ids[start:], *self._all_ids[:start]][: 4 * count], count)
        return picked

    def nearby_streets(self, sub_street_id: str) -> list[str]:
        """Other streets that cross the piece or touch it, sorted."""
        own = self._records[sub_street_id]
        streets = {cross.street for cross in own.address.cross_streets}
        streets |= {self._street(other) for other in own.adjacent_ids}
        return sorted(streets - {own.address.street})

    def _street(self, sub_street_id: str) -> str:
        return self._records[sub_street_id].address.street
