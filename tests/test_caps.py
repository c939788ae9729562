"""The cap by sub-street: what is over it, what a build says of it, and that none is the build it was before."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_gen.build import main
from data_gen.caps import over_cap, photos_a_sub_street
from data_gen.settings import BuildSettings
from llava_ial.errors import UserError
from tests.grid_town import write_town


def test_cap_counts_photos_of_each_sub_street() -> None:
    draw = np.random.default_rng(0)
    numbers, classes = draw.permutation(60).astype(np.uint64), draw.integers(0, 4, 60)
    naive = [int(np.sum((classes == classes[i]) & (numbers < numbers[i]))) >= 4 for i in range(60)]
    assert over_cap(numbers, classes, 4).tolist() == naive
    assert not over_cap(numbers, classes, 60).any()


@pytest.mark.parametrize(
    ("times", "number", "expected"),
    [(4.0, 0, 20), (1.5, 0, 8), (0.0, 7, 7), (4.0, 7, 7), (4.0, 70, 20), (0.0, 0, None)],
)
def test_the_smaller_cap_counts(times: float, number: int, expected: int | None) -> None:
    settings = BuildSettings(image_root=Path(), max_times_mean=times, max_photos_per_sub_street=number)
    assert photos_a_sub_street(settings, Counter(a=2, b=3, c=10)) == expected


def _settings(tmp_path: Path, **more: object) -> dict[str, object]:
    """The grid town, one of its panoramas photographed so often that its street outweighs the others."""
    town = write_town(tmp_path / "town")
    rows = pq.read_table(_as_parquet(Path(town["photos_csv"]), tmp_path)).to_pylist()
    busy = [{**rows[0], "image_path": f"more/{number}.jpg", "image_id": f"more{number}"} for number in range(200)]
    table = pa.Table.from_pylist([*rows, *busy])
    pq.write_table(table, tmp_path / "photos.parquet")
    return {**town, "photos_csv": tmp_path / "photos.parquet", "require_images": "false", "test_fraction": 0, **more}


def _as_parquet(file: Path, tmp_path: Path) -> Path:
    import pyarrow.csv

    pq.write_table(pyarrow.csv.read_csv(file), tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def _build(monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], output: Path) -> dict[str, object]:
    pairs = {**settings, "output": output, "val_fraction": 0}
    arguments = [text for name, value in pairs.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["build", *arguments])
    main()
    manifest: dict[str, object] = json.loads((output / "manifest.json").read_text())
    return manifest


def test_a_busy_street_is_capped_and_the_cap_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    data = tmp_path / "data"
    counts = _build(monkeypatch, settings, data)["counts"]
    addresses = pq.read_table(data / "addresses")["sub_street_id"].to_pylist()
    most = int(np.ceil(4 * len(addresses) / len(set(addresses))))
    (busy, count), *_ = Counter(addresses).most_common(1)
    assert count > most
    over = {"photos_a_sub_street": most, "sub_streets_over_cap": 1, "photos_over_cap": count - most}
    assert counts["cap"] == over
    assert counts["splits"]["train"]["photos_over_cap"] == count - most
    talk = pq.read_table(data / "conversations" / "train").to_pylist()
    talked_about = {row["image_id"]: row["sub_street_id"] for row in talk}
    assert Counter(talked_about.values())[busy] == most
    assert (
        f"at most {most}; {count - most} photos of 1 sub-streets are over that cap" in (data / "README.md").read_text()
    )


def test_without_a_cap_a_build_is_the_one_it_was_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    manifest = _build(monkeypatch, _settings(tmp_path, max_times_mean=0), tmp_path / "data")
    assert "max_times_mean" not in manifest["config"]
    assert "cap" not in manifest["counts"]


def test_a_cap_below_the_mean_is_refused() -> None:
    with pytest.raises(UserError, match=r"max_times_mean: 0\.5; at least 1, or 0"):
        BuildSettings(image_root=Path(), streets=Path("pyproject.toml"), max_times_mean=0.5).check()
