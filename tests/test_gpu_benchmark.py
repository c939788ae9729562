"""The GPU benchmark, tried on the CPU: its count of operations and its report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_stage1

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


@pytest.mark.slow
def test_it_needs_no_library_beyond_the_named_ones():
    code = (
        "import sys\n"
        "for name in ('peft', 'deepspeed', 'gradio', 'datasets', 'osmium', 'shapely', 'bitsandbytes'):\n"
        "    sys.modules[name] = None\n"
        "import benchmarks.gpu_stage1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
