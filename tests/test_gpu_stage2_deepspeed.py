"""Stage 2's GPU benchmark through its launcher, tried on the CPU: interrupted, resumed, merged, and what it reports."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import _watched_training, gpu_stage2_deepspeed
from benchmarks._random_stage2 import RandomInputs
from benchmarks._watched_training import ROOT, Start, last_words, train_watched
from llava_ial.errors import UserError, run_command

SCRIPT = "benchmarks/gpu_stage2_deepspeed.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_stages_are_interrupted_resumed_and_merged(tmp_path):
    output, work = tmp_path / "out.json", tmp_path / "work"
    given = ["--device=cpu", "--model=tiny", "--num_processes=2", "--steps=8", "--batch_size=4"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *given, f"--work={work}", f"--output={output}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(output.read_text())
    assert {"torch", "transformers", "deepspeed"} <= found["versions"].keys()
    assert [row["zero_stage"] for row in found["runs"]] == [2, 3]
    for row in found["runs"]:
        assert row["resumed"]
        assert row["merged"]
        assert 4 <= row["steps_before"] < 8 == row["steps_before"] + row["steps_after"]
        assert row["saved_on_sigterm"] == (row["steps_before"] > 4)
        assert row["seconds_per_step"] > 0 < row["supervised_tokens_per_second"]
    assert {path.suffix for path in work.iterdir()} == {".log"}, "the models are gone"


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--model=70b", "error: --model 70b: allowed: 7b, tiny\n"),
        ("--num_processes=1", "error: --num_processes 1: 0 GPUs here; --device cpu --model tiny tries the script\n"),
    ],
)
def test_an_unknown_model_and_a_missing_gpu_are_told_in_a_line(tmp_path, monkeypatch, capsys, option, told):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("sys.argv", [SCRIPT, option, f"--output={tmp_path / 'out.json'}"])
    with pytest.raises(SystemExit) as ended:
        run_command(gpu_stage2_deepspeed.main)
    assert (ended.value.code, capsys.readouterr().err) == (2, told)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--zero_stages=1", "--zero_stages 1: allowed: 2, 3"),
        ("--steps=3", "--steps 3: allowed: at least 4"),
        ("--device=mps", "--device mps: allowed: cuda, cpu"),
    ],
)
def test_other_values_are_refused(monkeypatch, option, told):
    monkeypatch.setattr("sys.argv", [SCRIPT, "--device=cpu", option])
    with pytest.raises(UserError, match=told):
        gpu_stage2_deepspeed.main()


def test_missing_packages_are_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("hjson", "cpuinfo") else find(name))
    config = gpu_stage2_deepspeed.BenchmarkConfig(model="tiny", device="cpu")
    with pytest.raises(UserError, match="hjson, py-cpuinfo: not installed; pip install hjson py-cpuinfo"):
        gpu_stage2_deepspeed.refuse_impossible(config)


@pytest.fixture
def no_models(monkeypatch):
    inputs = RandomInputs(Path("data"), Path("base"), Path("stage1"), supervised_tokens=36.0)
    monkeypatch.setattr(gpu_stage2_deepspeed, "build_inputs", lambda *_, **__: inputs)
    return inputs


def test_an_old_transformers_is_told(monkeypatch):
    monkeypatch.setattr(gpu_stage2_deepspeed, "LlavaArguments", object)
    config = gpu_stage2_deepspeed.BenchmarkConfig(model="tiny", device="cpu")
    with pytest.raises(UserError, match=r"transformers 5\..*: too old for stage 2"):
        gpu_stage2_deepspeed.refuse_impossible(config)


def test_a_case_that_fails_keeps_the_other(tmp_path, monkeypatch, no_models):
    output, known = tmp_path / "out.json", []

    def train_watched(command, environment, trained, log, *, stop_at=None, **_):
        known.append(len(json.loads(output.read_text())["runs"]) if output.exists() else 0)
        if trained.name == "zero2":
            raise UserError("torch.OutOfMemoryError: CUDA out of memory")
        (trained / "checkpoints" / "step-000010").mkdir(parents=True, exist_ok=True)
        (trained / "checkpoints" / "step-000010" / "manifest.json").touch()
        log.write_text("" if stop_at else "continues from step-000010")
        (trained / "train_log.jsonl").write_text("".join(f'{{"step": {n + 1}}}\n' for n in range(20)))
        with (trained / "train_log.jsonl").open("a") as measured:
            measured.write('{"step": 20, "loss": 1.0, "street_accuracy": 0.0}\n')
        return Start(step_ends={n: 2.0 * n for n in range(1, 11)}, peak_memory_gb=3.0)

    monkeypatch.setattr(gpu_stage2_deepspeed, "train_watched", train_watched)
    monkeypatch.setattr(gpu_stage2_deepspeed, "run_logged", lambda *_, **__: 5.0)
    monkeypatch.setattr("sys.argv", [SCRIPT, "--device=cpu", "--model=tiny", f"--output={output}"])
    with pytest.raises(UserError, match=r"1 of 2 cases failed, see .*: torch.OutOfMemoryError: CUDA out of memory"):
        gpu_stage2_deepspeed.main()
    assert known == [0, 1, 1], "what is known is written before the next case"
    failed, other = json.loads(output.read_text())["runs"]
    assert (failed["error"], failed["resumed"]) == ("torch.OutOfMemoryError: CUDA out of memory", False)
    assert (other["steps_before"], other["steps_after"], other["resumed"]) == (10, 10, True)
    assert (other["seconds_per_step"], other["dialogues_per_second"], other["peak_memory_gb"]) == (2.0, 8.0, 3.0)
    assert other["supervised_tokens_per_second"] == 8 * 36
    assert not other["merged"], "there is no manifest, whatever the command's exit code"


def test_nothing_is_begun_when_the_time_is_used_up(tmp_path, monkeypatch, no_models):
    output = tmp_path / "out.json"
    given = ["--device=cpu", "--model=tiny", "--seconds=0", f"--output={output}"]
    monkeypatch.setattr("sys.argv", [SCRIPT, *given])
    gpu_stage2_deepspeed.main()
    assert json.loads(output.read_text())["runs"] == []
    config = gpu_stage2_deepspeed.BenchmarkConfig(seconds=7)
    case = gpu_stage2_deepspeed.Case(3, tmp_path, no_models, config, deadline=time.monotonic())
    assert case.run()["error"] == "--seconds 7: used up before train_first"


def test_work_must_be_empty(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="not empty; name a new folder"), gpu_stage2_deepspeed.working_folder(tmp_path):
        pass


def test_a_step_that_waits_for_a_checkpoint_is_not_counted():
    ends = {step: float(step) for step in range(1, 11)} | {11: 40.0, 12: 41.0}
    assert gpu_stage2_deepspeed.step_seconds(ends, 10) == [1.0] * 9, "2 to 12 but the second and the eleventh"
    assert gpu_stage2_deepspeed.step_seconds({11: 5.0, 12: 9.0, 13: 10.0, 15: 14.0}, 10) == [1.0], "14 was not seen"


TRAINING = """
import json, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[1])
(out / "checkpoints").mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(143)))
for step in range(1, 400):
    with (out / "train_log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
    if step == 3:
        (out / "checkpoints" / "step-000003").mkdir()
    time.sleep(0.1)
"""


def test_sigterm_goes_to_the_whole_group_and_its_last_process_is_waited_for(tmp_path):
    """The launcher dies at once, as DeepSpeed's does; what it had started takes its time."""
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TRAINING!r}, sys.argv[1]])"
    start = train_watched(
        [sys.executable, "-c", launcher, str(tmp_path / "out")], {}, tmp_path / "out", tmp_path / "log",
        limit_s=30, stop_at=3,
    )  # fmt: skip
    assert start.stop_s >= 0.3
    assert start.step_ends.keys() >= {1, 2, 3}
    assert max(start.step_ends) < 100


def test_a_training_that_fails_hangs_or_is_too_fast_is_told(tmp_path):
    def run(code: str, limit_s: float = 30, stop_at: int | None = None) -> None:
        command = [sys.executable, "-c", code]
        train_watched(command, {}, tmp_path / "out", tmp_path / "log", limit_s=limit_s, stop_at=stop_at)

    with pytest.raises(UserError, match=r"^ValueError: no room$"):
        run("raise ValueError('no room')")
    with pytest.raises(UserError, match=r"^killed after 1 s: it said nothing$"):
        run("import time; time.sleep(60)", limit_s=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").touch()
    with pytest.raises(UserError, match="finished before it could be interrupted"):
        run("pass", stop_at=3)


def test_the_last_words_are_the_reason_and_not_the_launcher_s(tmp_path):
    log = tmp_path / "log"
    for text, words in (
        ("error: --data x: no manifest\n[ERROR] [launch.py:325] exits with return code = 2\n",
         "error: --data x: no manifest"),
        ("[rank1]: torch.OutOfMemoryError: CUDA out of memory\n[launch.py] exits",
         "torch.OutOfMemoryError: CUDA out of memory"),
        ("first\nKilled\n", "Killed"),
    ):  # fmt: skip
        log.write_text(text)
        assert last_words(log) == words


def test_memory_is_that_of_the_fullest_gpu_beyond_what_it_held(monkeypatch):
    readings = iter([[100.0, 5.0], [1100.0, 3005.0], [200.0, 5.0]])
    monkeypatch.setattr(_watched_training, "_memory_mb", lambda: next(readings, [100.0, 5.0]))
    start = Start()
    with _watched_training.memory_watched(start):
        time.sleep(0.7)
    assert start.peak_memory_gb == pytest.approx(3000 * 2**20 / 1e9)
    monkeypatch.setattr(_watched_training, "_memory_mb", list)
    start = Start()
    with _watched_training.memory_watched(start):
        pass
    assert start.peak_memory_gb is None
