"""python -m data_gen.build: what comes of a hand-made town, drawn photos, a generated city and a real one."""

import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_gen.build import main
from data_gen.toy_city.build import CityOptions, build_city
from llava_ial.conversation import from_llava_json
from llava_ial.data.dataset import KIND, IALDataset
from llava_ial.evaluation.questions import SCORED_TASKS, load_questions
from llava_ial.manifest import read_manifest
from llava_ial.prompts import TASKS
from llava_ial.records import DroppedRecord, read_records
from llava_ial.splits import check_leakage
from llava_ial.wider_prompts import WIDER_TASKS
from tests.build_runs import ROOT, arguments_of, build_here, error_of, town
from tests.grid_town import COLUMNS, draw_photo, grid_lines, photo_row, write_csv, write_streets

__all__ = ["town"]


def test_town_becomes_a_data_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], town: dict[str, str], tmp_path: Path
) -> None:
    build_here(monkeypatch, town, tmp_path / "data")
    printed = capsys.readouterr().out
    assert "photos             19       18  1 no_image" in printed
    assert "addresses          18       17  1 no_street" in printed
    assert printed.count("  Q: ") >= 6
    data = IALDataset(tmp_path / "data")
    samples = [sample for split in ("train", "val", "test") for sample in data.samples(split)]
    assert len(samples) == 17
    assert all(data.image_file(sample.photo.image_path).is_file() for sample in samples)
    by_id = {sample.photo.image_id: sample for sample in samples}
    assert by_id["photo000"].address.address.street == "First Avenue"
    assert by_id["photo000"].address.address.city == "Gridville"
    assert by_id["photo000"].caption == "a house on the street"
    assert [d.sub_street_id for d in data.gallery if d.num_positions == 0] == []
    check_leakage([str(s.photo.panorama_id) for s in samples], [s.address.split for s in samples])
    dropped = {(d.image_id, d.step, d.reason) for d in read_records(tmp_path / "data" / "dropped", DroppedRecord)}
    assert dropped == {("photo901", "photos", "no_image"), ("photo900", "addresses", "no_street")}
    steps = data.manifest["counts"]["steps"]
    assert steps["addresses"] == {"in": 18, "out": 17, "dropped": {"no_street": 1}}
    for split in ("train", "val", "test"):
        entries = json.loads((tmp_path / "data" / "llava" / f"{split}.json").read_text())
        dialogues = data.conversations(split)
        assert [from_llava_json(e) for e in entries] == [
            (d.conversation_id, d.image_path, d.messages) for d in dialogues
        ]
        ids = [question_id for dialogue in dialogues for question_id in dialogue.question_ids]
        assert len(ids) == len(set(ids))


def _with_split(town: dict[str, str], **split_of: str) -> dict[str, str]:
    path = Path(town["photos_csv"])
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["split"] = split_of.get(row["image_id"], "train")
        row["panorama_id"] = "shared" if row["image_id"] in ("photo000", "photo001") else row["image_id"]
    write_csv(path, rows, COLUMNS)
    return {**town, "split": "given"}


def test_given_split_is_kept_and_a_leak_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], town: dict[str, str], tmp_path: Path
) -> None:
    settings = _with_split(town, photo004="test", photo005="val")
    build_here(monkeypatch, settings, tmp_path / "data")
    data = IALDataset(tmp_path / "data")
    assert [sample.photo.image_id for sample in data.samples("test")] == ["photo004"]
    assert [sample.photo.image_id for sample in data.samples("val")] == ["photo005"]
    leaking = _with_split(town, photo000="test")
    assert "stand in two splits: shared (test and train)" in error_of(monkeypatch, capsys, leaking, tmp_path / "b")
    unknown = _with_split(town, photo004="dev")
    assert "split 'dev' is unknown" in error_of(monkeypatch, capsys, unknown, tmp_path / "c")


def test_ambiguous_photo_is_never_a_test_photo(
    monkeypatch: pytest.MonkeyPatch, town: dict[str, str], tmp_path: Path
) -> None:
    path = Path(town["photos_csv"])
    rows = [photo_row(0, 2.0, 2.0), *(photo_row(i, 30.0 + 75 * i, 1.0) for i in range(1, 6))]
    write_csv(path, [{**row, "split": "test" if i < 3 else "train"} for i, row in enumerate(rows)])
    build_here(
        monkeypatch, {**town, "split": "given", "panorama_radius_m": "0", "captioner": "constant"}, tmp_path / "data"
    )
    data = IALDataset(tmp_path / "data")
    assert [sample.photo.image_id for sample in data.samples("test")] == ["photo001", "photo002"]
    assert data.manifest["counts"]["steps"]["addresses"]["dropped"] == {"ambiguous_in_test": 1}


def test_tables_load_without_this_project(
    monkeypatch: pytest.MonkeyPatch, town: dict[str, str], tmp_path: Path
) -> None:
    import datasets

    build_here(monkeypatch, town, tmp_path / "data")
    loaded = datasets.load_dataset(str(tmp_path / "data" / "conversations"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation", "test"}
    dialogue = loaded["train"][0]
    assert [message["role"] for message in dialogue["messages"][:2]] == ["user", "assistant"]
    gallery = datasets.load_dataset(str(tmp_path / "data" / "gallery"), cache_dir=str(tmp_path / "cache"))["train"]
    assert gallery[0]["address"]["city"] == "Gridville"


def test_folder_of_photos_with_exif_and_geojson_streets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "phone"
    folder.mkdir()
    for i in range(4):
        row = photo_row(i, 75.0 + 100 * i, 1.0)
        image = Image.new("RGB", (32, 24), (60 * i, 80, 90))
        exif = image.getexif()
        exif.get_ifd(0x8825).update(
            {1: "N", 2: (float(row["lat"]), 0.0, 0.0), 3: "E", 4: (float(row["lon"]), 0.0, 0.0)}
        )
        image.save(folder / f"{i}.jpg", exif=exif)
    streets = write_streets(tmp_path / "streets.geojson", grid_lines())
    settings = {"image_root": str(folder), "streets": str(streets), "city": "Gridville", "min_positions": "1"}
    build_here(monkeypatch, settings, tmp_path / "data")
    data = IALDataset(tmp_path / "data")
    assert {sample.photo.source for sample in data.samples("train")} == {"exif"}
    assert len(data.samples("train")) + len(data.samples("test")) == 4
    assert "note:" not in capsys.readouterr().out
    build_here(monkeypatch, {**settings, "panorama_radius_m": "160"}, tmp_path / "near")
    assert "note: no test photos: 1 panoramas" in capsys.readouterr().out
    build_here(monkeypatch, {**settings, "panorama_radius_m": "120"}, tmp_path / "walk")
    assert len({s.photo.panorama_id for s in IALDataset(tmp_path / "walk").samples("train")}) == 2


def test_generated_city_is_a_city_like_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    city = tmp_path / "city"
    build_city(CityOptions(seed=7, size="tiny", pixels=32, photos=144), city, workers=1)
    paths = {"image_root": city, "photos_csv": city / "photos.csv", "streets": city / "city.osm.pbf"}
    paths |= {"neighbourhoods": city / "neighbourhoods.geojson", "captions_csv": city / "captions.csv"}
    arguments = arguments_of({name: str(path) for name, path in paths.items()}, tmp_path / "data")
    monkeypatch.setattr(sys, "argv", ["build", "--config", str(ROOT / "data_gen/configs/toy_city.yaml"), *arguments])
    main()
    data = IALDataset(tmp_path / "data")
    with (city / "truth.csv").open(encoding="utf-8") as file:
        truth = {row["image_id"]: row for row in csv.DictReader(file)}
    samples = [sample for split in ("train", "val", "test") for sample in data.samples(split)]
    sure = [sample for sample in samples if not sample.address.is_ambiguous]
    assert len(sure) > 100
    assert all(sample.address.address.street == truth[sample.photo.image_id]["street"] for sample in sure)
    assert all(sample.address.address.city and sample.address.address.neighbourhood for sample in samples)
    assert all(sample.caption for sample in samples)


def test_real_demo_configuration(monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["--config", "data_gen/configs/stuttgart_demo.yaml", "--output", str(tmp_path / "data")]
    monkeypatch.setattr(sys, "argv", ["build", *arguments])
    main()
    manifest = read_manifest(tmp_path / "data", KIND)
    assert manifest["counts"]["steps"]["photos"]["dropped"] == {"no_image": 2294}
    assert manifest["counts"]["steps"]["addresses"] == {"in": 25, "out": 18, "dropped": {"no_street": 7}}
    data = IALDataset(tmp_path / "data")
    with (shared_data / "stuttgart" / "mapillary_positions.csv").open(encoding="utf-8") as file:
        truth = {row["image_id"]: row["osm_street"] for row in csv.DictReader(file) if row["file"]}
    found = [sample for split in ("train", "test") for sample in data.samples(split)]
    assert all(sample.address.address.street == truth[sample.photo.image_id] for sample in found)
    assert len(data.samples("test")) >= 3


def test_every_kind_of_question_and_refusals(
    monkeypatch: pytest.MonkeyPatch, town: dict[str, str], tmp_path: Path
) -> None:
    for number in range(30):
        draw_photo(tmp_path / "elsewhere" / f"{number}.jpg", 500 + number)
    (tmp_path / "elsewhere" / "broken.jpg").write_text("no photo")
    settings = {**town, "questions": "all", "num_dialogues": "9", "negatives": str(tmp_path / "elsewhere")}
    build_here(monkeypatch, {**settings, "max_photos_per_sub_street": "1"}, tmp_path / "data")
    data = IALDataset(tmp_path / "data")
    numbers = data.manifest["counts"]["splits"]
    assert numbers["train"]["kinds"]["elsewhere"]["asked"] + numbers["test"]["kinds"]["elsewhere"]["asked"] == 30
    assert set(numbers["train"]["kinds"]) == {*TASKS, *WIDER_TASKS}
    for split in ("train", "test"):
        dialogues = data.conversations(split)
        assert all(data.image_file(dialogue.image_path).is_file() for dialogue in dialogues)
        questions = load_questions(data, split)
        assert {question.task for question in questions.asked} <= set(SCORED_TASKS)
        assert questions.num_other_tasks > 0
        assert len(questions.elsewhere) == numbers[split]["kinds"]["elsewhere"]["asked"]
        assert all(file.is_file() for file in questions.elsewhere.values())
    talked_about = {d.image_id for d in data.conversations("train") if d.sub_street_id}
    classes = {s.address.sub_street_id for s in data.samples("train")}
    assert len(talked_about) == len(classes)


def test_misplaced_photos_and_a_split_by_area(
    monkeypatch: pytest.MonkeyPatch, town: dict[str, str], tmp_path: Path
) -> None:
    path = Path(town["photos_csv"])
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[0]["lat"], rows[0]["lon"] = rows[0]["lon"], rows[0]["lat"]
    (tmp_path / "town" / "photos" / "photo001.jpg").write_bytes(
        (tmp_path / "town" / "photos" / "photo002.jpg").read_bytes()
    )
    write_csv(path, rows, COLUMNS)
    settings = {**town, "split": "blocked", "block_m": "150", "buffer_m": "60"}
    build_here(monkeypatch, settings, tmp_path / "data")
    steps = IALDataset(tmp_path / "data").manifest["counts"]["steps"]
    assert steps["photos"]["dropped"] == {"duplicate_content": 1, "no_image": 1, "swapped_lat_lon": 1}
    leakage = json.loads((tmp_path / "data" / "leakage.json").read_text())
    assert leakage["duplicate_photos_dropped"] == 1
    assert min(leakage["nearest_train_m"].values()) > 60


# The fields that LLaVA's documentation of custom data names (docs/Finetune_Custom_Data.md).
LLAVA_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["id", "image", "conversations"],
        "properties": {
            "id": {"type": "string"},
            "image": {"type": "string"},
            "conversations": {
                "type": "array",
                "minItems": 2,
                "items": {
                    "type": "object",
                    "required": ["from", "value"],
                    "properties": {"from": {"enum": ["human", "gpt"]}, "value": {"type": "string", "minLength": 1}},
                    "additionalProperties": False,
                },
                "prefixItems": [
                    {"properties": {"from": {"const": "human"}, "value": {"pattern": "^<image>\\n"}}},
                    {"properties": {"from": {"const": "gpt"}, "value": {"not": {"pattern": "<image>"}}}},
                ],
            },
        },
    },
}


@pytest.mark.parametrize("questions", ["measured", "all"])
def test_folder_is_published_with_card_preview_and_llava_form(
    monkeypatch: pytest.MonkeyPatch, town: dict[str, str], tmp_path: Path, questions: str
) -> None:
    import datasets
    import jsonschema

    output = tmp_path / "data"
    build_here(monkeypatch, {**town, "questions": questions, "photo_licence": "CC BY 4.0, A. Person"}, output)
    for split in ("train", "val", "test"):
        jsonschema.validate(json.loads((output / "llava" / f"{split}.json").read_text()), LLAVA_SCHEMA)
    loaded = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    data = IALDataset(output)
    names = {"train": "train", "val": "validation", "test": "test"}
    assert {split: len(data.conversations(split)) for split in names} == {
        split: loaded[name].num_rows for split, name in names.items()
    }
    for table in ("photos", "addresses", "captions", "gallery", "dropped"):
        found = datasets.load_dataset(str(output), table, cache_dir=str(tmp_path / "cache"))["train"]
        assert found.num_rows > 0
    card = (output / "README.md").read_text()
    for text in ("OpenStreetMap contributors", "Open Database License", "CC BY 4.0, A. Person", "1 no_street"):
        assert text in card
    train = data.samples("train")
    assert f"| train | {len(train)} |" in card
    page = (output / "preview.html").read_text()
    assert page.count("<article>") == 12
    assert page.count("data:image/jpeg;base64,") == 12
    assert 'src="http' not in page
    assert "<script" not in page
