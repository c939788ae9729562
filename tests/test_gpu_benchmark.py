"""The GPU benchmarks, tried on the CPU: their counts of operations and their reports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import evaluate, gpu_stage1, gpu_stage2
from llava_ial.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def test_the_operations_of_vit_b16_are_the_published_17_5_gmacs():
    photo = gpu_stage1.training_flops("b16", 1) / 3 - 2 * _text_flops()
    assert photo / 2 == pytest.approx(17.5e9, rel=0.02)


def _text_flops() -> float:
    """Mean of an address and a caption of ViT-B/16's text tower, each different once in a batch of one."""
    lengths = (gpu_stage1.ADDRESS_TOKENS, gpu_stage1.CAPTION_TOKENS)
    return sum(12 * (24 * n * 512**2 + 4 * n**2 * 512) for n in lengths) / 2


def test_it_reports_every_model_and_batch(tmp_path, monkeypatch):
    output = tmp_path / "out.json"
    given = ["--models", "tiny", "--batch_sizes", "2", "4", "--device=cpu", "--counted_seconds=0", "--peak_tflops=1"]
    monkeypatch.setattr("sys.argv", ["gpu_stage1.py", *given, f"--output={output}"])
    gpu_stage1.main()
    found = json.loads(output.read_text())
    assert [run["batch_size"] for run in found["runs"]] == [2, 4]
    for run in found["runs"]:
        assert run["images_per_second"] > 0 < run["utilisation"] < 1
        assert run["share_of_bare"] > 0 < run["gain_of_shared_texts"]
    assert set(found["memory_per_photo_mb"]) == {"tiny"}


def test_the_ways_of_stage_1_differ_in_what_they_say():
    device = torch.device("cpu")
    shared, each = (gpu_stage1.build_batch("tiny", 512, device, shares_texts=way)[0] for way in (True, False))
    assert len(shared["address_input_ids"]) == gpu_stage1.num_texts(512) < 428
    assert len(each["address_input_ids"]) == len(each["caption_input_ids"]) == 512
    rows = [{"model": "b16", "batch_size": n, "peak_memory_gb": 2 + 0.01 * n} for n in (64, 256)]
    rows += [{"model": "b16", "batch_size": 512, "out_of_memory": True}]
    assert gpu_stage1.memory_per_photo(rows) == {"b16": pytest.approx(10)}


def test_the_operations_of_a_7b_step_are_four_a_weight_and_token():
    case = gpu_stage2.Case("7b", 1, False, False, False)
    tokens = gpu_stage2.shape(case)[1]
    assert 690 < tokens < 710, "a dialogue of a city"
    assert gpu_stage2.training_flops(case) == pytest.approx(4 * 6.6e9 * tokens, rel=0.1)
    alone = gpu_stage2.Case("7b", 1, False, False, True)
    assert 2.7 < gpu_stage2.training_flops(alone) / gpu_stage2.training_flops(case) < 2.8


def test_stage_2_reports_both_ways_and_four_bits(tmp_path, monkeypatch):
    output = tmp_path / "out.json"
    given = ["--models", "tiny", "--batch_sizes", "2", "--device=cpu", "--counted_seconds=0", "--peak_tflops=1"]
    monkeypatch.setattr("sys.argv", ["gpu_stage2.py", *given, "--lora_rank=2", f"--output={output}"])
    gpu_stage2.main()
    found = json.loads(output.read_text())
    assert [(r["is_checkpointed"], r["is_quantized"], r["one_question_a_sequence"]) for r in found["runs"]] == [
        (False, False, False), (False, False, True), (True, False, False), (True, False, True), (True, True, False),
    ]  # fmt: skip
    assert [row["is_checkpointed"] for row in found["ratios"]] == [False, True]
    for run in found["runs"]:
        assert run["questions_per_second"] > 0 < run["utilisation"] < 1


def test_a_case_that_fails_keeps_the_others(tmp_path, monkeypatch):
    output, measured = tmp_path / "out.json", []

    def step_seconds(case, *_):
        measured.append(len(json.loads(output.read_text())["runs"]) if output.exists() else 0)
        if case.is_quantized:
            raise RuntimeError("no kernel\nfor this chip")
        return 0.5

    given = ["--models", "tiny", "--batch_sizes", "2", "--device=cpu", f"--output={output}"]
    monkeypatch.setattr("sys.argv", ["gpu_stage2.py", *given])
    monkeypatch.setattr(gpu_stage2, "step_seconds", step_seconds)
    with pytest.raises(UserError, match=r"1 of 5 measurements failed, see .*: RuntimeError: no kernel for this chip"):
        gpu_stage2.main()
    assert measured == [0, 1, 2, 3, 4], "what is known is written before the next case"
    found = json.loads(output.read_text())
    assert ["error" in run for run in found["runs"]] == [False] * 4 + [True]
    assert len(found["ratios"]) == 2


@pytest.mark.parametrize("name", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
def test_checkpointing_is_switched_on_by_either_name(monkeypatch, name):
    class Model:
        def enable_input_require_grads(self):
            pass

        def get_base_model(self):
            return type("Base", (), {name: lambda _: called.append(name)})()

        def parameters(self):
            return []

        def train(self):
            return self

    called = []
    monkeypatch.setattr(gpu_stage2, "add_adapter", lambda *_: Model())
    gpu_stage2.build_model(gpu_stage2.Case("tiny", 1, True, False, False), torch.device("cpu"), 2)
    assert called == [name]


def test_the_ways_of_asking_are_compared_and_say_the_same(tmp_path, monkeypatch):
    output = tmp_path / "out.json"
    given = ["--shapes", "tiny", "--questions", "3", "--photos=2", "--new_tokens=4", "--repeats=1", "--batch_size=4"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *given, "--static_cache=true", f"--output={output}"])
    evaluate.main()
    (row,) = json.loads(output.read_text())["rows"]
    assert set(row["answers_per_s"]) == set(row["peak_mib"]) == {"loop", "batched", "static", "ours"}
    assert row["times_loop"] == pytest.approx(row["answers_per_s"]["ours"] / row["answers_per_s"]["loop"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gpu_stage1", ["peft"]),
        ("gpu_stage2", ["pyarrow", "rapidfuzz"]),
        ("gpu_stage2_deepspeed", ["rapidfuzz", "utm"]),
        ("evaluate", ["rapidfuzz", "utm"]),
    ],
)
def test_it_needs_no_library_beyond_the_named_ones(name, more):
    absent = ["deepspeed", "gradio", "datasets", "osmium", "shapely", "bitsandbytes", *more]
    code = f"import sys\nfor name in {absent}:\n    sys.modules[name] = None\nimport benchmarks.{name}\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
