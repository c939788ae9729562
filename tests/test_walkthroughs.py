"""The commands of the documents, one after the other, as they stand there, on photos that are made on the spot."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_published_sets import fake_pitts

ROOT = Path(__file__).resolve().parents[1]
BASES = ROOT / "train" / "toy_base" / "models"
# By command: small models in the place of large ones, one processor in the place of GPUs, some steps.
SMALLER = {
    "data_gen.build": "",
    "train/stage1_clip.py": f"--base {BASES}/toy-clip --cpu true --num_processes 1 --batch_size 4 --num_epochs 1 "
    "--num_workers 0",
    # In four bits on CPUs bitsandbytes answers nothing with layers of 96 numbers, as toy-llava's are.
    "train/stage2_llava.py": f"--base {BASES}/toy-llava --use_cpu true --num_processes 1 --quantize none --lora_rank 4 "
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 1 --max_steps 2 --save_steps 1 --eval_steps 1 "
    "--eval_photos 2 --dataloader_num_workers 0",
    "serve.evaluate": f"--baselines {BASES}/toy-clip",
    "serve.calibrate": "",
    "train.merge": "--dtype float32",  # answers of so few steps are near ties, which 16 bits decide anew
}
Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command in a folder that looks like the checkout, with what makes it small."""
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
    }  # fmt: skip
    for name in ("train", "serve", "data_gen", "llava_ial"):
        (tmp_path / name).symlink_to(ROOT / name)

    def run_one(*command: str) -> None:
        module = command[1] if command[0] == "-m" else command[0]
        done = subprocess.run(
            [sys.executable, *command, *shlex.split(SMALLER.get(module, ""))],
            cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    return run_one


def commands_of(document: str) -> list[list[str]]:
    """The indented commands of one process, continued lines joined, without the leading ``python``."""
    text = document.replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.findall(r"^    (python .+)$", text, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ones_own_city_leads_from_photos_to_a_model_that_answers(run: Run, tmp_path: Path) -> None:
    """docs/own_city.md with the README's ``my_city.yaml``; the photos' positions stand in their EXIF."""
    run("-m", "data_gen.toy_city", "--seed", "7", "--size", "tiny", "--output", "town")
    (tmp_path / "photos").symlink_to(tmp_path / "town" / "photos")
    (tmp_path / "city.osm.pbf").symlink_to(tmp_path / "town" / "city.osm.pbf")
    settings = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert settings is not None
    (tmp_path / "my_city.yaml").write_text(settings[1], encoding="utf-8")
    document = (ROOT / "docs" / "own_city.md").read_text(encoding="utf-8")
    commands = [command for command in commands_of(document) if "serve.chat" not in command]
    assert len(commands) == 7
    for command in commands:
        run(*command)
    for made in ("evaluation_stage1/report.html", "evaluation/report.html", "merged/model.safetensors"):
        assert (tmp_path / "runs/my_city" / made).exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_configurations_for_pittsburgh_fit_one_another(run: Run, tmp_path: Path) -> None:
    """Published photos and annotations through data, both stages under their configurations, and evaluation."""
    fake_pitts(tmp_path / "datasets" / "Pitts-IAL", num_panoramas=12)
    run(
        "-m",
        "data_gen.build",
        "--config",
        "data_gen/configs/pitts_ial.yaml",
        "--output",
        "data",
        "--val_fraction",
        "0.2",
    )
    for config in ("pitts_ial.yaml", "pitts_ial_l14_336.yaml", "recommended.yaml"):
        run(
            "train/stage1_clip.py", "--config", f"train/configs/{config}", "--data", "data", "--output", f"out/{config}"
        )
    clip = "out/pitts_ial_l14_336.yaml"
    config = "train/configs/pitts_ial_llava.yaml"
    run("train/stage2_llava.py", "--config", config, "--data", "data", "--clip", clip, "--output_dir", "out/llava")
    run("-m", "serve.calibrate", "--model", "out/llava", "--data", "data")
    run(
        "-m",
        "serve.evaluate",
        "--model",
        "out/llava",
        "--data",
        "data",
        "--split",
        "test",
        "--output",
        "out/evaluation",
    )
    assert (tmp_path / "out/evaluation/report.html").exists()
