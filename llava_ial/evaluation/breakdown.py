"""Where a model goes wrong: street by street, neighbourhood by neighbourhood, and what it takes for what."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llava_ial.evaluation.statistics import Rate, clustered_rate


@dataclass(frozen=True)
class Placing:
    """Where one answer, or the best candidate of one photo, puts a photo.

    Attributes:
        street: The true one, with its neighbourhood if it has one.
        neighbourhood: The true one.
        named: What was said instead, in the same form as ``street``; "" where nothing was named.
        is_right: The street is right.
        distance_m: From the photo to what was named.
    """

    panorama_id: str
    street: str
    neighbourhood: str
    named: str
    is_right: bool
    distance_m: float | None


@dataclass(frozen=True)
class Group:
    """Photos of one street or neighbourhood and the share of them that was placed right."""

    name: str
    rate: Rate


@dataclass(frozen=True)
class Confusion:
    """Photos of one street that were placed on another; ``distance_m`` is the mean, None if nothing tells it."""

    street: str
    named: str
    count: int
    distance_m: float | None


def by_street(placings: Sequence[Placing], *, seed: int = 0) -> list[Group]:
    """Every street, the worst first; of equally bad ones the one with more photos."""
    return _groups([(placing.street, placing) for placing in placings], seed)


def by_neighbourhood(placings: Sequence[Placing], *, seed: int = 0) -> list[Group]:
    """Every neighbourhood that has a name, the worst first."""
    return _groups([(placing.neighbourhood, placing) for placing in placings if placing.neighbourhood], seed)


def confusions(placings: Sequence[Placing]) -> list[Confusion]:
    """Pairs of a true street and what was named instead, the most frequent first."""
    found: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    for placing in placings:
        if not placing.is_right and placing.named:
            found[placing.street, placing.named].append(placing.distance_m)
    rows = []
    for (street, named), distances in found.items():
        known = [distance for distance in distances if distance is not None]
        rows.append(Confusion(street, named, len(distances), sum(known) / len(known) if known else None))
    return sorted(rows, key=lambda row: (-row.count, row.street, row.named))


def _groups(rows: Sequence[tuple[str, Placing]], seed: int) -> list[Group]:
    by_name: dict[str, list[Placing]] = defaultdict(list)
    for name, placing in rows:
        by_name[name].append(placing)
    groups = [
        Group(name, clustered_rate([p.is_right for p in part], [p.panorama_id for p in part], seed=seed))
        for name, part in by_name.items()
    ]
    return sorted(groups, key=lambda group: (group.rate.value, -group.rate.num_answers, group.name))
