"""Stage 1 through its real ``main()``: what it learns and publishes, what its options change, what it refuses."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from accelerate import DistributedType
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor, CLIPVisionModel

from llava_ial.data.dataset import IALDataset
from llava_ial.data.images import load_photo
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.manifest import file_hash, read_manifest
from llava_ial.models.address_clip import MAX_LOG_LOGIT_SCALE, AddressCLIP
from llava_ial.models.identity import hash_tensors, tower_hash
from llava_ial.training import clip_run, clip_step
from llava_ial.training.clip_run import refuse_unsuited
from tests.stage1_runs import RESULT_FILES, broken_photo, lines, train, world
from tests.tiny_world import TinyWorld, build_tiny_dataset
from train import stage1_clip

__all__ = ["train", "world"]


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    """A run that learned its eight photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        options = (
            "--cpu=True --num_workers=0 --num_epochs=60 --batch_size=8 --learning_rate=3e-3 --eval_splits train val"
        )
        places = [f"--data={world / 'data'}", f"--base={world / 'base'}", f"--output={world / 'trained'}"]
        patch.setattr("sys.argv", ["stage1_clip.py", *options.split(), *places])
        stage1_clip.main()
    return world / "trained"


def test_a_tiny_model_learns_eight_photos(trained: Path):
    metrics = json.loads((trained / "metrics.json").read_text())
    known = {"num_photos": 8, "SSA@1": 1.0, "SA@1": 1.0, "SSA@5": 1.0, "SA@5": 1.0}
    assert known.items() <= metrics["train"].items()
    for wording in ("canonical", "spoken", "loose"):
        assert 0 <= metrics["train"][f"{wording} SSA@1"] <= 1
    assert metrics["train"]["alignment"] < 1 > metrics["train"]["uniformity"]
    assert -1 <= metrics["train"]["distance_correlation"] <= 1
    assert metrics["val"]["num_photos"] == 2
    log = [json.loads(line) for line in (trained / "train_log.jsonl").read_text().splitlines()]
    losses = [entry for entry in log if "loss" in entry]
    assert losses[-1]["loss"] < 0.3 * losses[0]["loss"]
    for entry in losses:
        parts = entry["image_address_loss"] + 0.2 * entry["image_caption_loss"] + 0.8 * entry["image_geography_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-5)


def test_the_output_is_plain_transformers_and_finds_the_photos_without_this_code(world: Path, trained: Path):
    clip, info = CLIPModel.from_pretrained(trained, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = CLIPProcessor.from_pretrained(trained)
    assert file_hash(trained / "tokenizer.json") == file_hash(world / "base" / "tokenizer.json")
    dataset = IALDataset(world / "data")
    gallery = [record.verbose for record in dataset.gallery]
    photos = [load_photo(dataset.image_file(s.photo.image_path)) for s in dataset.samples("train")]
    with torch.no_grad():
        inputs = processor(text=gallery, images=photos, return_tensors="pt", padding=True)
        best = clip(**inputs).logits_per_image.argmax(dim=-1)
    assert [dataset.gallery[i].sub_street_id for i in best] == [
        s.address.sub_street_id for s in dataset.samples("train")
    ]


def test_quick_gelu_and_the_tower_survive_saving(trained: Path):
    manifest = read_manifest(trained, "address_clip")
    vision = CLIPVisionModel.from_pretrained(trained)
    assert vision.config.hidden_act == "quick_gelu"
    assert type(vision.encoder.layers[0].mlp.activation_fn).__name__ == "QuickGELUActivation"
    assert tower_hash(CLIPModel.from_pretrained(trained).vision_model) == manifest["tower_hash"]
    assert tower_hash(vision) == manifest["tower_hash"]


def test_the_gallery_and_its_features_are_the_ones_of_the_data_set(world: Path, trained: Path):
    dataset, manifest = IALDataset(world / "data"), read_manifest(trained, "address_clip")
    assert file_hash(trained / "gallery" / "part-00000.parquet") == manifest["gallery_hash"] == dataset.gallery_hash
    stored = load_file(trained / "gallery_embeddings.safetensors")["verbose"]
    model = AddressCLIP(CLIPModel.from_pretrained(trained))
    again = model.embed_texts(
        [r.verbose for r in dataset.gallery], AutoTokenizer.from_pretrained(trained), batch_size=3
    )
    torch.testing.assert_close(stored, again)
    torch.testing.assert_close(stored.norm(dim=-1), torch.ones(8))


def test_the_manifest_names_base_and_parents_and_no_absolute_path(world: Path, trained: Path):
    manifest = read_manifest(trained, "address_clip")
    assert (trained / manifest["base"]).resolve() == (world / "base").resolve()
    base_hash = hash_tensors(CLIPModel.from_pretrained(world / "base").state_dict())
    assert manifest["parents"] == {"data": IALDataset(world / "data").identity, "base": base_hash}
    assert str(world) not in (trained / "manifest.json").read_text()
    assert not (trained / "building.json").exists()
    assert {"config.yaml", "run.json", *RESULT_FILES} <= {path.name for path in trained.iterdir()}


def test_what_must_move_moves_and_what_must_not_stays(world: Path, trained: Path):
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "base", trained))
    assert set(before) == set(after)
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    assert unmoved == []  # both encoders are tuned as a whole, the temperature too
    assert after["logit_scale"] <= MAX_LOG_LOGIT_SCALE
    tokenizer = AutoTokenizer.from_pretrained(trained)
    seen = {i for r in IALDataset(world / "data").gallery for i in tokenizer(r.verbose)["input_ids"]}
    samples = IALDataset(world / "data").samples("train")
    seen |= {i for s in samples for i in tokenizer(s.caption)["input_ids"]}
    moved_rows = (before[TOKENS] != after[TOKENS]).any(dim=-1).nonzero().flatten().tolist()
    assert set(moved_rows) == seen  # words of no text keep their vectors
    length = max(
        len(tokenizer(f"{s.caption} {r.verbose}")["input_ids"])
        for s, r in zip(samples, IALDataset(world / "data").gallery, strict=True)
    )
    moved_positions = (before[POSITIONS] != after[POSITIONS]).any(dim=-1).nonzero().flatten().tolist()
    assert moved_positions == list(range(length))


TOKENS, POSITIONS = (f"text_model.embeddings.{kind}_embedding.weight" for kind in ("token", "position"))


def test_a_dry_run_shows_what_would_be_trained_and_writes_nothing(tmp_path: Path, train, capsys):
    train(tmp_path / "a", dry_run=True)
    shown = capsys.readouterr().out
    for expected in ("8 train", "tiny-000", "(3, 32, 32)", "amber street", "16 of 4 photos on 1 process"):
        assert expected in shown
    for part in ("vision_model", "text_model", "visual_projection", "logit_scale", "MB with gradients and moments"):
        assert part in shown
    assert not (tmp_path / "a").exists()


def test_a_dry_run_estimates_what_is_kept_for_the_way_back(tmp_path: Path, train, world, capsys):
    def megabytes(**options: object) -> tuple[int, int]:
        train(tmp_path / "a", dry_run=True, batch_size=8, **options)
        found = re.search(r"activations some ([\d,]+) MB for (\d+) photos", capsys.readouterr().out)
        assert found is not None
        return int(found.group(1).replace(",", "")), int(found.group(2))

    config = CLIPModel.from_pretrained(world / "base").config
    length = config.text_config.max_position_embeddings

    def expected(num_texts: int, num_photos: int = 8, bytes_each: int = 68) -> tuple[int, int]:
        tokens = 2 * 17 + num_texts * length  # of two layers for a photo and of one for a text, width 32
        return round(num_photos * bytes_each * 32 * tokens / 1e6), num_photos

    assert megabytes() == expected(2)
    assert megabytes(chunk_size=4) == expected(2, num_photos=4)
    assert megabytes(caption_weight=0) == expected(1)
    assert megabytes(text_tower="locked") == expected(0)
    assert megabytes(gradient_checkpointing=True) == expected(2, bytes_each=4)


def test_the_best_state_is_kept_and_published_where_that_is_asked_for(tmp_path: Path, train):
    options = {"num_epochs": 5, "eval_every": 2, "learning_rate": 3e-3, "eval_splits": "val"}
    last, best = train(tmp_path / "last", **options), train(tmp_path / "best", publish="best", **options)
    measured = {entry["step"]: entry["SSA@1"] for entry in lines(best, "split")}
    first_best = min(step for step, value in measured.items() if value == max(measured.values()))
    for folder in (best, best / "checkpoints" / "best", last / "checkpoints" / "best"):
        manifest = read_manifest(folder, "address_clip")
        assert manifest["step"] == first_best
        assert manifest["metrics"]["val"]["SSA@1"] == max(measured.values())
        assert tower_hash(CLIPVisionModel.from_pretrained(folder)) == manifest["tower_hash"]
        assert (folder / manifest["base"]).resolve().name == "base"
    assert file_hash(best / "model.safetensors") == file_hash(best / "checkpoints" / "best" / "model.safetensors")
    assert read_manifest(last, "address_clip")["step"] == 10
    assert f"after step {first_best}" in (best / "README.md").read_text()
    with pytest.raises(UserError, match="--publish best: allowed: last"):
        train(tmp_path / "never", publish="best")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's compiler itself
def test_compiled_encoders_train_to_the_same_weights(tmp_path: Path, train, world):
    options = {"num_epochs": 2, "batch_size": 8, "ema_decay": 0.5, "learning_rate": 1e-4}
    plain, compiled = train(tmp_path / "a", **options), train(tmp_path / "b", compile=True, **options)
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, compiled))
    base = load_file(world / "base" / "model.safetensors")
    moved = sum((one[name] - base[name]).norm() ** 2 for name in one) ** 0.5
    parted = sum((one[name] - other[name]).norm() ** 2 for name in one) ** 0.5
    assert parted < 0.05 * moved


class MemoryTracker(GeneralTracker):
    """Keeps what it is told."""

    name, requires_logging_directory, tracker = "memory", False, None
    told: ClassVar[list[tuple[int | None, dict[str, Any]]]] = []

    def __init__(self, run_name: str, **_: object) -> None:
        super().__init__()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append((0, values))

    def log(self, values: dict[str, float], step: int | None = None, **_: object) -> None:
        self.told.append((step, values))


def test_trackers_get_the_log_and_missing_ones_are_refused(tmp_path: Path, train, monkeypatch):
    with pytest.raises(UserError, match="--trackers tensorbored: not installed"):
        train(tmp_path / "a", trackers="tensorbored")
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "memory", MemoryTracker)
    monkeypatch.setattr(clip_run, "get_available_trackers", lambda: ["memory"])
    output = train(tmp_path / "a", trackers="memory", num_epochs=1)
    (_, config), *logged = MemoryTracker.told
    assert config["batch_size"] == "4"
    assert [(step, values["loss"]) for step, values in logged if "loss" in values] == [
        (e["step"], e["loss"]) for e in lines(output, "loss")
    ]
    (entry,) = lines(output, "split")
    (measured,) = [(step, values) for step, values in logged if "loss" not in values]
    assert measured == (
        entry["step"],
        {f"train/{name}": entry[name] for name in entry if name not in ("step", "split")},
    )


def test_locked_towers_stay_and_the_rest_moves(tmp_path: Path, train, world):
    output = train(tmp_path / "a", num_epochs=1, image_tower="locked", text_tower="locked", gradient_checkpointing=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "base", output))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"visual_projection.weight", "text_projection.weight", "logit_scale"}


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path, train):
    plain, recomputed = (train(tmp_path / f"{on}", num_epochs=2, gradient_checkpointing=on) for on in (False, True))
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, recomputed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_large_batch_is_compared_some_rows_at_a_time_with_the_same_gradients(tmp_path: Path, train, monkeypatch):
    options = {"num_epochs": 2, "batch_size": 8, "photo_weight": 0.5, "street_weight": 0.3, "photo_queue": 8}
    whole = train(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(clip_step, "_MOST_PAIRS", 8 * 3)  # three rows of the first batch, one of those with a queue
        parts = train(tmp_path / "parts", **options)
    for one, other in zip(lines(whole, "loss"), lines(parts, "loss"), strict=True):
        for name in (name for name in one if name.endswith("loss") or name == "gradient_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_probabilities_are_calibrated_on_val_and_on_nothing_else(trained: Path, world: Path, train, tmp_path: Path):
    calibration = json.loads((trained / "calibration.json").read_text())
    assert calibration["num_photos"] == 2  # of val; never of training
    assert 0 <= calibration["address_error"] <= 1
    card = (trained / "README.md").read_text()
    assert f"temperature {calibration['temperature']:.2f}, fitted on 2 photos of `val`" in card
    blind = train(tmp_path / "blind", num_epochs=1, eval_splits="train")
    assert not (blind / "calibration.json").exists()
    assert "as confident as training made it" in (blind / "README.md").read_text()
    shutil.copytree(trained, tmp_path / "moved")
    predictor = AddressPredictor.from_pretrained(tmp_path / "moved")
    assert predictor.calibration.temperature == calibration["temperature"]
    dataset = IALDataset(world / "data")
    photo = dataset.image_file(dataset.samples("train")[0].photo.image_path)
    cosines = predictor.cosines([photo])
    expected = (predictor.logit_scale / calibration["temperature"] * cosines).softmax(dim=-1).amax()
    assert predictor.locate(photo, top_k=1)[0].probability == pytest.approx(float(expected), rel=1e-5)


def test_losses_without_captions_or_geography_and_other_positives_train_too(tmp_path: Path, train):
    train(tmp_path / "a", num_epochs=1, caption_weight=0, geography_weight=0, positives="multi")
    train(
        tmp_path / "b", num_epochs=1, positives="geo", sigma_m=100, colour_jitter=0.3, fast_decoding=True,
        num_workers=1, street_weight=0.5, neighbourhood_weight=0.1, geography_reading="printed", chunk_size=3,
    )  # fmt: skip
    (logged, *_) = (json.loads(line) for line in (tmp_path / "b" / "train_log.jsonl").read_text().splitlines())
    assert logged["image_street_loss"] > 0 < logged["image_neighbourhood_loss"]


def test_moved_photos_are_found_by_image_root(tmp_path: Path, train):
    build_tiny_dataset(tmp_path / "data", TinyWorld(num_train=4))
    (tmp_path / "data_photos").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--image_root"):
        train(tmp_path / "a", data=tmp_path / "data")
    train(tmp_path / "a", data=tmp_path / "data", image_root=tmp_path / "elsewhere", num_epochs=1)


def test_what_the_launcher_would_quietly_change_is_refused(tmp_path: Path, train, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(UserError, match=r"steps 4: a contrastive loss needs the whole batch.*--chunk_size"):
        train(tmp_path / "a")
    sharded = SimpleNamespace(
        gradient_accumulation_steps=1, distributed_type=DistributedType.FSDP, device=torch.device("cpu")
    )
    with pytest.raises(UserError, match="FSDP shards nothing on the CPU"):
        refuse_unsuited(sharded)


def other_size(folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(folder / "base", backend="pil")
    processor.crop_size = {"height": 64, "width": 64}
    processor.save_pretrained(folder / "base")


def missing_weights(folder: Path) -> None:
    state = load_file(folder / "base" / "model.safetensors")
    state.pop("visual_projection.weight")
    CLIPModel.from_pretrained(folder / "base").save_pretrained(folder / "base", state_dict=state)


@pytest.mark.parametrize(
    ("options", "spoil", "why"),
    [
        ({"data": "nowhere"}, None, "nowhere: no manifest.json"),
        ({"base": "./nowhere"}, None, "base model ./nowhere: no such folder"),
        ({"base": "nobody/no-clip"}, None, "base model nobody/no-clip"),
        ({"eval_splits": "test"}, lambda f: shutil.rmtree(f / "data" / "addresses"), "no table here"),
        ({"num_processes": 2}, None, "--num_processes 2: 1 process"),
        ({"positives": "some"}, None, "--positives some"),
        ({}, broken_photo, "tiny-001.jpg is damaged"),
        ({"image_tower": "some"}, None, "--image_tower some: allowed: tuned, locked, lora"),
        ({}, other_size, "image processor makes 64 pixels"),
        ({}, missing_weights, "1 weights are missing, for example visual_projection"),
    ],
    ids=["data", "folder", "name", "table", "processes", "positives", "photo", "tower", "processor", "weights"],
)  # fmt: skip
def test_what_the_user_can_mend_is_said_in_one_line(world, tmp_path: Path, train, options, spoil, why):
    places = {}
    if spoil is not None:
        build_tiny_dataset(tmp_path / "data")
        shutil.copytree(world / "base", tmp_path / "base")
        places = {"data": tmp_path / "data", "base": tmp_path / "base"}
        spoil(tmp_path)
    with pytest.raises(UserError, match=why) as caught:
        train(tmp_path / "out", **places, **options)
    assert str(caught.value)
    if spoil is not broken_photo:
        assert not (tmp_path / "out").exists()
