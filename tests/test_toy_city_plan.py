"""Towns on paper: their names, their map, their streets."""

from pathlib import Path

import numpy as np
import osmium
import pytest

from data_gen.toy_city.build import CityOptions
from data_gen.toy_city.names import FIRST_PRETRAINING_SEED, name_streets, street_roots
from data_gen.toy_city.place import build_place
from data_gen.toy_city.plan import build_plan
from data_gen.toy_city.street_map import write_osm

SEED = 7
OPTIONS = CityOptions(SEED, "tiny", pixels=64)


def test_names_of_demo_and_pretraining_cities_never_meet() -> None:
    assert not set(street_roots(3)) & set(street_roots(FIRST_PRETRAINING_SEED + 3))
    demo, pretraining = (
        {name for seed in seeds for name in name_streets(seed, build_plan(seed, "small"))}
        for seeds in (range(12), range(FIRST_PRETRAINING_SEED, FIRST_PRETRAINING_SEED + 12))
    )
    assert not demo & pretraining
    assert {name.split()[0] for name in demo} <= set(street_roots(0))


def test_seeds_share_few_names() -> None:
    names = [set(name_streets(seed, build_plan(seed, "small"))) for seed in range(12)]
    shared = [len(a & b) / len(a) for a in names for b in names if a is not b]
    assert np.mean(shared) < 0.05


class MapReader(osmium.SimpleHandler):
    """Collects the ways of a PBF."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[tuple[dict[str, str], list[int]]] = []
        self.places: dict[str, str] = {}

    def way(self, way: osmium.osm.Way) -> None:
        self.ways.append(({tag.k: tag.v for tag in way.tags}, [node.ref for node in way.nodes]))

    def node(self, node: osmium.osm.Node) -> None:
        if "place" in node.tags:
            self.places[node.tags["name"]] = node.tags["place"]


@pytest.mark.parametrize("seed", [0, 7, 42])
def test_the_map_has_what_real_maps_have(seed: int, tmp_path: Path) -> None:
    plan = build_plan(seed, "small")
    place = build_place(plan)
    write_osm(tmp_path / "city.osm.pbf", plan, place)
    reader = MapReader()
    reader.apply_file(str(tmp_path / "city.osm.pbf"))
    streets = [(tags, nodes) for tags, nodes in reader.ways if "highway" in tags]
    assert {tags["name"] for tags, _ in streets} == set(place.streets)
    assert any(tags.get("bridge") == "yes" and tags.get("layer") == "1" for tags, _ in streets)
    assert any(tags.get("waterway") == "river" for tags, _ in reader.ways)
    assert reader.places[place.city] == "city"
    assert sum(kind == "neighbourhood" for kind in reader.places.values()) == len(plan.neighbourhoods) >= 4
    one_way = [tags["name"] for tags, _ in streets if tags.get("oneway") == "yes"]
    assert any(one_way.count(name) >= 2 for name in one_way)
    ends = [node for _, nodes in streets for node in (nodes[0], nodes[-1])]
    everywhere = [node for _, nodes in streets for node in nodes]
    assert any(everywhere.count(node) == 1 for node in ends), "no dead end"
    assert len(place.streets) > len(set(place.streets)), "no name shared by two streets"
    assert all(len(set(nodes)) == len(nodes) >= 2 for _, nodes in streets)
    assert is_connected([nodes for _, nodes in streets])


def is_connected(ways: list[list[int]]) -> bool:
    reached, size = set(ways[0]), 0
    while len(reached) > size:
        size = len(reached)
        for nodes in ways:
            if reached & set(nodes):
                reached |= set(nodes)
    return reached == {node for nodes in ways for node in nodes}


@pytest.mark.parametrize("seed", range(4))
def test_plans_are_towns(seed: int) -> None:
    plan = build_plan(seed, "small")
    kinds = {street.kind for street in plan.streets}
    assert {"plain", "diagonal", "curve", "dual", "dead_end"} <= kinds
    assert 28 <= len(plan.sub_streets) <= 40
    assert all(45 < part.length_m < 190 for part in plan.sub_streets)
    (first, second), *_ = plan.twins
    cells = [{plan.sub_streets[i].neighbourhood for i in plan.streets[s].sub_streets} for s in (first, second)]
    assert not cells[0] & cells[1]
