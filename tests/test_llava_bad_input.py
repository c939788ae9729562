"""Whatever is wrong with stage 2's input is told in one line, and no folder looks complete that is not."""

import errno
import itertools
import json
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoImageProcessor

from llava_ial.config import parse_config
from llava_ial.conversation import IMAGE_TOKEN
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava_json import draw_mixed, hash_of_json, read_llava_json
from llava_ial.errors import UserError
from llava_ial.models.address_clip import load_clip
from llava_ial.models.llava_folder import load_llava_ial
from llava_ial.training import llava_trainer
from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_run import read_inputs
from llava_ial.training.llava_settings import LlavaSettings
from llava_ial.training.train_log import TrainLog
from tests.stage2_runs import arguments_of, assert_same_weights, interrupt, start, train_here
from tests.tiny_models import TinyFolders, write_stage1
from tests.tiny_world import TinyWorld, build_tiny_dataset

HUMAN = {"from": "human", "value": f"{IMAGE_TOKEN}\nWhat is this?"}
GPT = {"from": "gpt", "value": "A house."}


def entry(*turns: dict, image: object = "photo.jpg", **more: object) -> dict:
    return {"id": "g-1", "image": image, "conversations": list(turns)} | more


@pytest.fixture
def general(tiny_folders: TinyFolders, tmp_path: Path) -> Callable[[object], Path]:
    """Writes a LLaVA JSON beside a photo."""
    data = tiny_folders.data
    shutil.copy(next(data.with_name(f"{data.name}_photos").rglob("*.jpg")), tmp_path / "photo.jpg")

    def write(content: object) -> Path:
        path = tmp_path / "general.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([entry(HUMAN, GPT, image="nowhere.jpg")], r"photo .*nowhere.jpg of g-1 is missing"),
        ([entry(HUMAN, GPT, image=None)], "conversation g-1: 1 <image> marks for 0 photos"),
        ([entry({"from": "human", "value": "What?"}, GPT)], "conversation g-1: 0 <image> marks for 1 photos"),
        ([entry({**HUMAN, "value": f"{IMAGE_TOKEN}{IMAGE_TOKEN} What?"}, GPT)], "2 <image> marks for 1 photos"),
        ([entry(HUMAN, GPT, image=["photo.jpg", "b.jpg"])], "'image' is a list; allowed: the path of one photo"),
        ([entry(GPT, HUMAN)], "conversation g-1: turn 1 is by assistant, expected user"),
        ([entry(HUMAN, {**GPT, "value": " "})], "conversation g-1: turn 2 is empty"),
        ([entry(HUMAN, {**GPT, "from": "system"})], "conversation g-1: turn from 'system'; allowed: human, gpt"),
        ([entry(HUMAN, "A house.")], "conversation g-1: turn from 'A house.'; allowed: human, gpt"),
        ([entry(HUMAN)], "conversation g-1: no token to learn"),
        ([entry()], "conversation g-1: no messages"),
        ([{"id": "g-1"}], "conversation g-1: 'conversations' is missing or no list"),
        (["g-1"], "entry 0 is a str, expected an object"),
        ({"g-1": 1}, "expected a list of dialogues, found something else"),
        ([], "expected a list of dialogues, found none"),
        (json.dumps([entry(HUMAN, GPT)])[:-30], "general.json: not JSON, it may be cut off"),
    ],
)
def test_a_bad_dialogue_ends_the_run_before_it_starts(
    tiny_folders: TinyFolders, tmp_path: Path, general: Callable[[object], Path], content: object, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        train_here(tiny_folders, tmp_path / "out", mix=f"{general(content)}:0.5")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["general.json", "general.json:", ":0.1", "general.json:-1", "general.json:nan"])
def test_a_mixture_of_another_form_is_refused(tiny_folders: TinyFolders, tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=f"--mix {text}: allowed: FILE.json:SHARE"):
        train_here(tiny_folders, tmp_path / "out", mix=text)


def test_stage_1_of_another_city_is_refused(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    """Its tower would fit, and its list of addresses would be published with dialogues about others."""
    other = build_tiny_dataset(tmp_path / "other", TinyWorld(num_addresses=4))
    for options in ({}, {"hints": 1}, {"dry_run": True}):
        with pytest.raises(UserError, match=r"--data .*other has other addresses than --clip .*stage1; name the stage"):
            train_here(tiny_folders, tmp_path / "out", data=other, **options)
    assert not (tmp_path / "out").exists()


def test_a_probe_tells_what_was_forgotten(
    tiny_folders: TinyFolders, tmp_path: Path, general: Callable[[object], Path]
) -> None:
    """The base knows its photos by heart, so a rate that destroys it is seen; one of zero changes nothing."""
    entries = json.loads((tiny_folders.data / "llava" / "train.json").read_text(encoding="utf-8"))
    photos = tiny_folders.data.with_name(f"{tiny_folders.data.name}_photos")
    probe = general([{**entry, "image": str(photos / entry["image"])} for entry in entries[:3]])
    same = {"learning_rate": 0, "projector_learning_rate": 0, "max_steps": 1, "vision_feature_layer": -2}
    found = []
    for name, options in (("same", same), ("broken", {"learning_rate": 0.5, "warmup_steps": 0})):
        out = train_here(tiny_folders, tmp_path / name, forgetting_probe=probe, **options)
        found.append(json.loads((out / "forgetting.json").read_text(encoding="utf-8")))
    kept, lost = found
    assert kept["loss_before"] == pytest.approx(kept["loss_after"], rel=1e-4)
    assert kept["token_accuracy_before"] == 1.0
    assert lost["loss_before"] == pytest.approx(kept["loss_before"])
    assert lost["loss_after"] > 10 * lost["loss_before"]
    assert lost["token_accuracy_after"] < 1.0
    full = {**same, "vision_feature_select_strategy": "full"}  # one image token more than the base has
    out = train_here(tiny_folders, tmp_path / "full", forgetting_probe=probe, **full)
    other = json.loads((out / "forgetting.json").read_text(encoding="utf-8"))
    assert other["loss_before"] == pytest.approx(kept["loss_before"]) != other["loss_after"]
    out = train_here(with_another_tower(tiny_folders, tmp_path), tmp_path / "tower", forgetting_probe=probe, **same)
    other = json.loads((out / "forgetting.json").read_text(encoding="utf-8"))
    assert other["loss_before"] == pytest.approx(kept["loss_before"]), "the base sees with the tower that it came with"
    assert other["loss_after"] > 2 * other["loss_before"]
    with pytest.raises(UserError, match="not JSON"):
        train_here(tiny_folders, tmp_path / "bad", forgetting_probe=general("["), max_steps=1)


def with_another_tower(folders: TinyFolders, folder: Path) -> TinyFolders:
    """Stage 1 of the CLIP as it was before the tiny LLaVA was trained as a whole."""
    base_clip = folders.llava.parent / "base_clip"
    image_processor = AutoImageProcessor.from_pretrained(base_clip, backend="pil")
    write_stage1(folder / "other", IALDataset(folders.data), load_clip(str(base_clip)), base_clip, image_processor)
    return replace(folders, clip=folder / "other")


def test_general_dialogues_are_mixed_in_by_their_share(
    tiny_folders: TinyFolders, tmp_path: Path, general: Callable[[object], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text_only = {"from": "human", "value": "What is two and two?"}
    path = general([
        *({"id": i, "conversations": [text_only, GPT]} for i in range(9)), entry(HUMAN, GPT),
    ])  # fmt: skip
    assert [record.image_path == "" for record in read_llava_json(path)] == [True] * 9 + [False]
    drawn = draw_mixed([f"{path}:0.5"], 8, seed=3)
    assert len(drawn) == 4
    assert drawn == draw_mixed([f"{path}:0.5"], 8, seed=3) != draw_mixed([f"{path}:0.5"], 8, seed=4)
    assert len(draw_mixed([f"{path}:9"], 8, seed=0)) == 10
    out = train_here(tiny_folders, tmp_path / "out", mix=f"{path}:2", max_steps=2)
    assert "18 dialogues of" in capsys.readouterr().out
    load_llava_ial(out)
    with pytest.raises(UserError, match="holds another run"):
        train_here(tiny_folders, tmp_path / "out", mix=f"{path}:0.1", max_steps=2)


def test_a_file_may_begin_with_dialogues_without_a_photo_or_have_no_others(
    tiny_folders: TinyFolders, tmp_path: Path, general: Callable[[object], Path]
) -> None:
    text_only = {"id": "t-1", "conversations": [{"from": "human", "value": "What is two and two?"}, GPT]}
    for name, entries in (("first", [text_only, entry(HUMAN, GPT)]), ("alone", [text_only, {**text_only, "id": 2}])):
        load_llava_ial(train_here(tiny_folders, tmp_path / name, dialogues=general(entries), max_steps=2))


def test_every_mixture_belongs_to_the_identity_of_a_run(
    tiny_folders: TinyFolders, tmp_path: Path, general: Callable[[object], Path]
) -> None:
    first = general([entry(HUMAN, GPT)])
    second = tmp_path / "second.json"
    second.write_text(json.dumps([entry(HUMAN, GPT, id="g-2")]), encoding="utf-8")

    def identity(*files: Path) -> dict[str, object]:
        given = arguments_of(tiny_folders, tmp_path / "out")
        mix = ["--mix", *(f"{file}:0.1" for file in files)] if files else []
        settings, arguments = parse_config(LlavaSettings, LlavaArguments, description="", argv=[*given, *mix])
        return read_inputs(settings, arguments).identity

    chosen = [(), (first,), (second,), (first, second), (second, first), (second, second)]
    found = [identity(*files) for files in chosen]
    assert all(a != b for a, b in itertools.combinations(found, 2))
    assert found[1]["mix 0.1"] == hash_of_json(first), "the name that it had before two were told apart"


@pytest.mark.parametrize("size", [40_000, 1_000], ids=["the adapter", "its manifest"])
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_that_looks_complete(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Files may not grow beyond a size, which the system answers like a full disk."""
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        interrupt(patch, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1])))
        try:
            with pytest.raises(UserError, match=r"out: there is no room to write .*; make room"):
                train_here(tiny_folders, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]
    assert not (out / "manifest.json").exists()
    load_llava_ial(out / "checkpoints" / "step-000002")
    train_here(tiny_folders, out)
    assert_same_weights(train_here(tiny_folders, tmp_path / "straight"), out)


@pytest.mark.parametrize("what", ["write_json", "copy_llava_ial", "TrainLog.write", "measured probe"])
def test_no_room_for_the_last_files_is_told_in_one_line(
    tiny_folders: TinyFolders,
    tmp_path: Path,
    general: Callable[[object], Path],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """``run.json``, the copy of the best state, ``train_log.jsonl`` and ``forgetting.json``."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    options: dict[str, object] = {"max_steps": 2}
    if what == "TrainLog.write":
        monkeypatch.setattr(TrainLog, "write", full)
    elif what == "copy_llava_ial":
        monkeypatch.setattr(llava_trainer, what, full)
        options |= {
            "publish": "best",
            "eval_strategy": "steps",
            "eval_steps": 2,
            "eval_split": "train",
            "eval_photos": 1,
        }
    else:
        monkeypatch.setattr(llava_trainer, "write_json", full)
    if what == "measured probe":
        text_only = {"id": 1, "conversations": [{"from": "human", "value": "What is two and two?"}, GPT]}
        options["forgetting_probe"] = general([text_only])
    with pytest.raises(UserError, match=r"out: there is no room to write .*; make room"):
        train_here(tiny_folders, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_a_file_system_that_is_full_ends_with_one_line_and_exit_code_2(
    tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    """A file system with room for one checkpoint; what is left of it is copied out before it is gone."""
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a file system of his own")
    whole = train_here(tiny_folders, tmp_path / "straight", max_steps=2)
    files = [path for path in whole.rglob("*") if path.is_file()]
    once = sum(path.stat().st_size for path in files if "checkpoints" in path.parts or "address_clip" in path.parts)
    mount, kept = tmp_path / "mount", tmp_path / "kept"
    mount.mkdir()
    command = shlex.join([sys.executable, "train/stage2_llava.py", *arguments_of(tiny_folders, mount / "out")])
    steps = f"mount -t tmpfs -o size={int(1.2 * once)} none {mount} && {command}; code=$?; cp -r {mount}/out {kept}"
    process = start(["unshare", "-rm", "sh", "-c", f"{steps}; exit $code"])
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 2, text
    assert "there is no room to write" in text.splitlines()[-1]
    assert "Traceback" not in text
    assert not (kept / "manifest.json").exists()
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["step-000002"]
