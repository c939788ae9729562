"""Maps as SVG: everything that is asked for is there, in its place, readable, and nothing else gets in."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from llava_ial.geo import GeoPoint, LocalFrame
from llava_ial.street_labels import FONT_PX, LabelPlacer, StreetRun
from llava_ial.street_map import Highlight, MapPoint, StreetMap, pan_and_zoom_script
from tests.tiny_world import ORIGIN, TinyWorld, tiny_gallery_record

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def gallery():
    return [tiny_gallery_record(i, TinyWorld(), 12) for i in range(8)]


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def by_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_lengths_on_the_map_are_metres(gallery) -> None:
    streets = StreetMap(gallery)
    frame = LocalFrame(ORIGIN)
    east_north = np.array([[0.0, 0.0], [700.0, 150.0], [-900.0, 2000.0]])
    drawn = streets.to_xy_m(*frame.to_lat_lon(east_north))
    apart = [np.hypot(*(a - b)) for a, b in combinations(east_north, 2)]
    assert [np.hypot(*(a - b)) for a, b in combinations(drawn, 2)] == pytest.approx(apart, rel=5e-3)  # a sphere and UTM
    assert drawn[2, 1] < drawn[0, 1], "north is up"


def test_highlights_stand_out_with_their_shade_and_say_what_they_are(gallery) -> None:
    highlights = [
        Highlight("piece-02", 0.2, tag="2"),
        Highlight("piece-05", 0.9),
        Highlight("piece-00", is_answer=True),
    ]
    root = parse(StreetMap(gallery).draw([*highlights, Highlight("gone")], label="a town"))
    assert root.get("aria-label") == "a town"
    faint, strong = by_class(root, "hot")
    assert (faint.get("data-piece"), strong.get("data-piece")) == ("piece-02", "piece-05")
    assert numbers(faint.get("style")) < numbers(strong.get("style"))
    (answer,) = by_class(root, "answer")
    assert answer.find(f"{SVG}title").text == gallery[0].spoken
    (tag,) = by_class(root, "tag")
    assert tag.find(f"{SVG}text").text == "2"


def test_the_view_holds_what_is_highlighted_and_can_hold_all(gallery) -> None:
    streets = StreetMap(gallery)
    for focus in (["piece-07"], [record.sub_street_id for record in gallery]):
        root = parse(streets.draw([Highlight(i) for i in focus], label="x"))
        left, top, width, height = numbers(root.get("viewBox"))
        assert width / height == pytest.approx(560 / 400, rel=0.01)
        for path in by_class(root, "hot"):
            xs, ys = numbers(path.get("d"))[::2], numbers(path.get("d"))[1::2]
            assert left < min(xs) <= max(xs) < left + width
            assert top < min(ys) <= max(ys) < top + height


def test_what_lies_far_from_the_view_is_not_sent(gallery) -> None:
    far = replace(gallery[1], sub_street_id="far", lines=[[[9.9, 48.9], [9.901, 48.9]]])
    streets = StreetMap(
        [*gallery, far], background=[[[[9.9, 48.91], [9.91, 48.91]]], [[[9.18, 48.78], [9.181, 48.781]]]]
    )
    near = parse(streets.draw([Highlight("piece-00")], label="x"))
    everything = parse(streets.draw(label="x"))
    assert by_class(near, "quiet")[0].get("d").count("M") == 1
    assert by_class(everything, "quiet")[0].get("d").count("M") == 2
    assert by_class(near, "street")[0].get("d").count("M") == len(gallery)


def test_points_are_told_apart_by_more_than_colour(gallery) -> None:
    points = [MapPoint(ORIGIN, True, "right"), MapPoint(ORIGIN, False), MapPoint(ORIGIN)]
    svg = StreetMap(gallery).draw(label="x", points=points)
    assert [p.get("class").split()[1:] for p in by_class(parse(svg), "point")] == [["right"], ["wrong"], []]
    assert "stroke-linecap: square" in svg


def test_markup_in_names_stays_text(gallery) -> None:
    evil = "</title><script>alert(1)</script>\"'"
    record = replace(gallery[0], spoken=evil, address=replace(gallery[0].address, street=evil))
    svg = StreetMap([record]).draw(
        [Highlight("piece-00", tag="<b>")], label=evil, points=[MapPoint(ORIGIN, title=evil)]
    )
    assert "<script" not in svg
    assert parse(svg).get("aria-label") == evil


def test_a_map_of_nothing_is_refused(gallery) -> None:
    with pytest.raises(ValueError, match="at least one piece"):
        StreetMap([replace(gallery[0], lines=[])])


def test_names_are_upright_and_never_over_each_other() -> None:
    rng = np.random.default_rng(0)
    lines = [rng.uniform(-600, 600, 2) + np.outer(np.linspace(0, 300, 4), rng.normal(size=2)) for _ in range(60)]
    streets = [StreetRun(f"Street Number {i}", [line]) for i, line in enumerate(lines)]
    unit = 2.0
    labels = LabelPlacer(unit).place(streets, np.zeros(2), np.array([500.0, 400.0]))
    assert {label.level for label in labels} == {1, 2, 4}
    assert all(-90 <= label.angle_deg <= 90 for label in labels)
    for level in (1, 2, 4):
        shown = [label for label in labels if label.level <= level]
        height = FONT_PX * unit / level
        rows = []
        for label in shown:
            turn = np.radians(label.angle_deg)
            steps = np.linspace(-0.25, 0.25, 21)[:, None] * height * len(label.text)  # narrow letters: half a height
            rows.append(np.array([label.x, label.y]) + steps * np.array([np.cos(turn), np.sin(turn)]))
        for a, b in combinations(rows, 2):
            assert np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)).min() > 0.8 * height


def test_tiles_lie_where_the_streets_are(gallery) -> None:
    streets = StreetMap(gallery)
    assert "<image" not in streets.draw(label="x")
    root = parse(streets.draw(label="x", tiles="https://tiles.example/{z}/{x}/{y}.png?a=1&b=2"))
    images = root.findall(f"{SVG}image")
    zoom, column, row = numbers(images[0].get("href"))[:3]
    # The corner of a tile by the published formula (OpenStreetMap wiki, "Slippy map tilenames").
    lon = column / 2**zoom * 360 - 180
    lat = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * row / 2**zoom))))
    corner = streets.to_xy_m(np.array([lat]), np.array([lon]))[0]
    assert [float(images[0].get(axis)) for axis in "xy"] == pytest.approx(corner.tolist(), abs=0.2)
    left, top, width, height = numbers(root.get("viewBox"))
    for x, y in ((left, top), (left + width, top + height)):
        assert any(
            float(i.get("x")) <= x <= float(i.get("x")) + float(i.get("width"))
            and float(i.get("y")) <= y <= float(i.get("y")) + float(i.get("height"))
            for i in images
        )


def test_the_script_is_javascript() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine; the browser tests run the script")
    source = f"new Function({json.dumps(pan_and_zoom_script())})"
    assert subprocess.run([node, "-e", source], capture_output=True).returncode == 0


def test_a_position_is_drawn_on_its_street(gallery) -> None:
    lon, lat = gallery[3].lines[0][0]
    root = parse(StreetMap(gallery).draw([Highlight("piece-03")], label="x", points=[MapPoint(GeoPoint(lat, lon))]))
    (piece,), (dot,) = by_class(root, "hot"), by_class(root, "point")
    assert numbers(dot.get("d"))[:2] == pytest.approx(numbers(piece.get("d"))[:2], abs=0.1)
