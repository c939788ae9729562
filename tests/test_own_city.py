"""The commands of docs/own_city.md, one after the other, on a tiny town's photos with positions in their EXIF."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASES = ROOT / "train" / "toy_base" / "models"
# By command: small models in the place of large ones, one processor in the place of a GPU, some steps.
SMALLER = {
    "data_gen.build": "",
    "train/stage1_clip.py": f"--base {BASES}/toy-clip --cpu true --batch_size 16 --chunk_size 8 --num_epochs 1 "
    "--num_workers 0",
    # In four bits on CPUs bitsandbytes answers nothing with layers of 96 numbers, as toy-llava's are.
    "train/stage2_llava.py": f"--base {BASES}/toy-llava --use_cpu true --quantize none --lora_rank 4 --max_steps 2 "
    "--gradient_accumulation_steps 1 --save_steps 1 --eval_steps 1 --eval_photos 2 --dataloader_num_workers 0",
    "serve.evaluate": f"--baselines {BASES}/toy-clip",
    "serve.calibrate": "",
    "train.merge": "--dtype float32",  # answers of so few steps are near ties, which 16 bits decide anew
}  # fmt: skip


def commands_of(document: str) -> list[list[str]]:
    """The indented commands for one GPU, continued lines joined."""
    text = document.partition("## Several GPUs")[0].replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    (python .+)$", text, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_lead_from_photos_to_a_model_that_answers(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    for name in ("train", "serve", "data_gen", "llava_ial"):
        (tmp_path / name).symlink_to(ROOT / name)
    run("-m", "data_gen.toy_city", "--seed", "7", "--size", "tiny", "--output", "town")
    (tmp_path / "photos").symlink_to(tmp_path / "town" / "photos")
    (tmp_path / "city.osm.pbf").symlink_to(tmp_path / "town" / "city.osm.pbf")
    settings = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert settings is not None
    (tmp_path / "my_city.yaml").write_text(settings[1], encoding="utf-8")

    document = (ROOT / "docs" / "own_city.md").read_text(encoding="utf-8")
    commands = [command for command in commands_of(document) if "serve.chat" not in command]
    assert len(commands) == 7
    for _, *command in commands:
        module = command[1] if command[0] == "-m" else command[0]
        run(*command, *shlex.split(SMALLER[module]))
    for made in ("evaluation_stage1/report.html", "evaluation/report.html", "merged/model.safetensors"):
        assert (tmp_path / "runs/my_city" / made).exists()
