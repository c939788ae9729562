"""Reverse geocoding services: each one's documented JSON, and every trouble that a service makes."""

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from data_gen.services import ServiceGeocoder, ServiceSettings, match_streets
from data_gen.web import JsonClient, Manners
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint
from tests.web_stub import Stub, serve

HERE = GeoPoint(48.78, 9.18)
NOMINATIM = {"place_id": 1, "address": {"road": "Ash Street", "suburb": "West", "city": "Gridville", "country": "G"}}
PHOTON = {
    "type": "FeatureCollection",
    "features": [
        {"type": "Feature", "properties": {"osm_key": "shop", "name": "Bakery", "street": "Ash Street"}},
        {"type": "Feature", "properties": {"osm_key": "highway", "name": "Beech Street", "type": "street"}},
        {"type": "Feature", "properties": {"osm_key": "shop", "name": "Kiosk"}},
    ],
}
PELIAS = {
    "type": "FeatureCollection",
    "features": [
        {"type": "Feature", "properties": {"layer": "address", "name": "5 Ash Street", "street": "Ash Street"}},
        {"type": "Feature", "properties": {"layer": "street", "name": "Beech Street", "distance": 0.01}},
    ],
}
GOOGLE = {
    "status": "OK",
    "results": [
        {"address_components": [{"long_name": "5", "types": ["street_number"]}]},
        {"address_components": [{"long_name": "Ash Street", "types": ["route"]}]},
        {"address_components": [{"long_name": "Beech Street", "types": ["route"]}]},
    ],
}
EMPTY = {
    "nominatim": {"error": "Unable to geocode"},
    "photon": {"type": "FeatureCollection", "features": []},
    "pelias": {"features": []},
    "google": {"status": "ZERO_RESULTS", "results": []},
}
ANSWERS = {"nominatim": NOMINATIM, "photon": PHOTON, "pelias": PELIAS, "google": GOOGLE}


def _settings(kind: str, url: str, tmp_path: Path) -> ServiceSettings:
    return ServiceSettings(
        geocoder=kind, geocoder_url=url, geocoder_cache=tmp_path / "cache.sqlite", i_accept_google_terms=True
    )


def _client(waits: list[float], **manners: float) -> JsonClient:
    chosen = Manners(**{"rate_per_s": 1e6, "first_wait_s": 1.0, "timeout_s": 5.0, **manners})  # type: ignore[arg-type]
    return JsonClient(chosen, sleep=waits.append)


@pytest.fixture
def stub():
    with serve(lambda path, body: (200, NOMINATIM, {})) as found:
        yield found


@pytest.mark.parametrize("kind", sorted(ANSWERS))
def test_documented_answers_are_read_and_true_empties_kept(kind: str, stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda path, body: (200, ANSWERS[kind], {})
    settings = _settings(kind, stub.url, tmp_path)
    (named,) = ServiceGeocoder(settings, _client([])).streets([HERE])
    assert named == (["Ash Street"] if kind == "nominatim" else ["Ash Street", "Beech Street"])
    query = parse_qs(urlsplit(stub.asked[0]).query)
    assert any("48.78000" in value for values in query.values() for value in values)
    stub.answer = lambda path, body: (200, EMPTY[kind], {})
    far = GeoPoint(48.5, 9.0)
    assert ServiceGeocoder(settings, _client([])).streets([far, far]) == [[], []]
    num_asked = len(stub.asked)
    ServiceGeocoder(settings, _client([])).streets([HERE, far])
    # Google's answers are not kept; the others' are, the empty ones too.
    assert len(stub.asked) - num_asked == (2 if kind == "google" else 0)
    if kind == "google":
        assert not (tmp_path / "cache.sqlite").exists()


def test_nominatim_is_asked_on_a_ring_and_its_answers_vote(stub: Stub, tmp_path: Path) -> None:
    names = iter(["Odd Lane", "Ash Street", "Ash Street", "Beech Street", "Ash Street"])
    stub.answer = lambda path, body: (200, {"address": {"road": next(names)}}, {})
    (named,) = ServiceGeocoder(_settings("nominatim", stub.url, tmp_path), _client([])).streets([HERE])
    assert named == ["Ash Street", "Odd Lane", "Beech Street"]
    assert len(stub.asked) == 5
    assert stub.headers[0]["User-Agent"].startswith("llava-ial")


def test_troubles_are_waited_out(stub: Stub) -> None:
    stub.first = [(429, {}, {"Retry-After": "7"}), (500, {}, {}), (200, "{broken", {}), (503, "", {})]
    waits: list[float] = []
    assert _client(waits).get(stub.url, {"q": "1"}) == NOMINATIM
    assert waits[0] == 7.0
    assert 1.6 <= waits[1] <= 2.4
    assert 3.2 <= waits[2] <= 4.8
    assert len(stub.asked) == 5


def test_retry_after_may_be_a_date_and_is_never_endless(stub: Stub) -> None:
    stub.first = [(429, {}, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}), (429, {}, {"Retry-After": "soon"})]
    waits: list[float] = []
    _client(waits).get(stub.url, {})
    assert waits[0] == 120.0
    assert 1.6 <= waits[1] <= 2.4


def test_a_time_out_is_retried_and_then_said(stub: Stub) -> None:
    stub.delay_s = 0.3
    with pytest.raises(UserError, match=r"no usable answer in 2 attempts \(.*timed out"):
        _client([], timeout_s=0.05, max_attempts=2).get(stub.url, {})


def test_a_refusal_is_not_repeated(stub: Stub) -> None:
    stub.first = [(403, {}, {})]
    with pytest.raises(UserError, match="refuses: 403"):
        _client([]).get(stub.url, {})
    assert len(stub.asked) == 1
    with pytest.raises(UserError, match="not a web address"):
        _client([]).get("file:///etc/passwd", {})


def test_google_refuses_with_status_200(stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda path, body: (200, {"status": "REQUEST_DENIED", "error_message": "bad key"}, {})
    with pytest.raises(UserError, match="REQUEST_DENIED bad key"):
        ServiceGeocoder(_settings("google", stub.url, tmp_path), _client([])).streets([HERE])


def test_the_rate_is_held(stub: Stub) -> None:
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    client = JsonClient(Manners(rate_per_s=2.0), clock=lambda: now[0], sleep=sleep)
    for _ in range(4):
        client.get(stub.url, {})
    assert waits == pytest.approx([0.5, 0.5, 0.5])


def test_quota_ends_cleanly_and_the_next_run_goes_on(stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda path, body: (200, PHOTON, {})
    settings = _settings("photon", stub.url, tmp_path)
    points = [GeoPoint(48.0 + n / 100, 9.0) for n in range(5)]
    with pytest.raises(UserError, match="quota of 3 requests is used up"):
        ServiceGeocoder(settings, _client([], quota=3)).streets(points)
    assert len(stub.asked) == 3
    assert len(ServiceGeocoder(settings, _client([], quota=3)).streets(points)) == 5
    assert len(stub.asked) == 5
    assert len(set(stub.asked)) == 5


def test_secrets_are_sent_and_not_kept(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    stub.answer = lambda path, body: (200, PELIAS, {})
    settings = _settings("pelias", stub.url, tmp_path)
    settings.geocoder_key_variable = "MY_KEY"
    ServiceGeocoder(settings, _client([])).streets([HERE])
    assert "api_key=s3cret" in stub.asked[0]
    assert b"s3cret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_what_must_not_be_done_is_refused_before_anything(tmp_path: Path) -> None:
    for settings, message in (
        (ServiceSettings(geocoder="google"), "i-accept-google-terms"),
        (ServiceSettings(geocoder="bing"), "allowed: map, nominatim"),
        (ServiceSettings(geocoder="pelias"), "geocoder_url"),
        (ServiceSettings(geocoder="nominatim"), "geocoder_contact"),
        (ServiceSettings(geocoder="photon", geocoder_url="http://x", geocoder_key_variable="NO_SUCH"), "NO_SUCH"),
    ):
        with pytest.raises(UserError, match=message):
            settings.check_service()
    ServiceSettings().check_service()


def test_names_meet_the_streets_of_the_map() -> None:
    near = {0: [(2, 4.0), (1, 9.0)], 1: [(0, 1.0)]}
    matched = match_streets([["Nowhere", "beech street"], ["Ash Street"], []], near, ["Oak", "Beech Street", "Elm"])
    assert matched[0] == (1, 9.0)
    assert [street for street, _ in matched[1:]] == [-1, -1]


def test_a_service_names_the_streets_of_a_data_set(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_gen.build import main
    from llava_ial.data.dataset import IALDataset
    from tests.grid_town import write_town

    town = write_town(tmp_path / "town")
    feature = {"properties": {"osm_key": "highway", "name": "First Avenue"}}
    stub.answer = lambda path, body: (200, {"features": [feature]}, {})
    service = {"geocoder": "photon", "geocoder_url": stub.url, "geocoder_rate": "1e6"}
    service["geocoder_cache"] = str(tmp_path / "cache.sqlite")
    arguments = [part for name, value in {**town, **service}.items() for part in (f"--{name}", value)]
    monkeypatch.setattr("sys.argv", ["build", *arguments, "--output", str(tmp_path / "data")])
    main()
    data = IALDataset(tmp_path / "data")
    assert {record.address.street for record in data.gallery} == {"First Avenue"}
    counts = data.manifest["counts"]["steps"]["addresses"]
    assert counts["in"] == len(stub.asked)
    assert counts["dropped"]["no_street"] == counts["in"] - counts["out"]
    assert {s.address.method for s in data.samples("train")} == {"photon"}
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["config"]["geocoder"] == "photon"
