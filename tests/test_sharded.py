"""FSDP2's spreading of weights over processes, here over two on the CPU: the same training, folders and resumption.

Accelerate itself spreads on GPUs alone, so its ``prepare`` is stood in for by the few lines that it comes down to.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers import CLIPModel

from llava_ial import distributed
from llava_ial.errors import UserError
from llava_ial.manifest import file_hash, read_manifest
from llava_ial.training import clip_run
from llava_ial.training.clip_run import refuse_unsuited
from llava_ial.training.sharded import load_weights, make_shardable
from tests.test_stage1_launch import assert_same_training
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset
from train import stage1_clip

ROOT = Path(__file__).resolve().parents[1]


class SpreadingAccelerator(Accelerator):
    """Does on the CPU what accelerate does on GPUs with ``fsdp_version: 2``."""

    def prepare(self, *parts: Any, **_: Any) -> Any:  # type: ignore[override]
        model, optimizer = parts
        before = list(model.parameters())
        for tower in (model.clip.vision_model, model.clip.text_model):
            for layer in tower.encoder.layers:
                fully_shard(layer)
        fully_shard(model)
        spread = dict(zip(map(id, before), model.parameters(), strict=True))
        for group in optimizer.param_groups:
            group["params"] = [spread[id(parameter)] for parameter in group["params"]]
        return model, self.prepare_optimizer(optimizer)

    def no_sync(self, model: Any) -> Any:
        accelerator = self

        class Held:
            def __enter__(self) -> None:
                model.set_requires_gradient_sync(False)

            def __exit__(self, *_: object) -> None:
                model.set_requires_gradient_sync(True)

        assert accelerator.num_processes == 2
        return Held()

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> torch.Tensor:
        return nn.utils.clip_grad_norm_(list(parameters), max_norm, norm_type)


def train_spread(stop_at: int, arguments: list[str]) -> None:
    """Stage 1 with spread weights; asked to stop after some steps, if that is above 0."""
    stage1_clip.Accelerator = SpreadingAccelerator  # type: ignore[misc]
    clip_run.is_sharded = lambda accelerator: True
    clip_run.refuse_unsuited = lambda accelerator: None
    shown, steps = stage1_clip.show, []

    def show(*given: Any) -> None:
        shown(*given)
        steps.append(1)
        if len(steps) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    stage1_clip.show = show
    sys.argv = ["stage1_clip.py", *arguments]
    stage1_clip.main()


def launch(code: str, port: int) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
                 "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"},
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors[0][-3000:]


def options(world: Path, output: Path, *more: str) -> list[str]:
    places = [f"--data={world / 'data'}", f"--base={world / 'base'}", f"--output={output}"]
    return [*places, "--cpu=true", "--num_workers=0", "--num_epochs=4", "--batch_size=5", "--learning_rate=1e-3",
            "--log_every=1", "--eval_splits=val", "--checkpoint_every=0", "--text_rate_factor=0.5",
            "--weight_decay=0.1", *more]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    build_tiny_dataset(folder / "data")
    build_tiny_base_clip(folder / "base", folder / "data")
    return folder


def spread(world: Path, output: Path, port: int, *more: str, stop_at: int = 0) -> Path:
    arguments = options(world, output, "--num_processes=2", *more)
    launch(f"from tests.test_sharded import train_spread; train_spread({stop_at}, {arguments})", port)
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), ("--chunk_size=2", "--image_tower=lora", "--lora_rank=2")], ids=["whole", "chunks"]
)
def test_spread_weights_train_as_whole_ones_and_are_written_whole(
    world: Path, tmp_path: Path, monkeypatch, more
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("sys.argv", ["stage1_clip.py", *options(world, tmp_path / "one", *more)])
    stage1_clip.main()
    two = spread(world, tmp_path / "two", 29810 + len(more), *more)
    assert_same_training(tmp_path / "one", two, world / "base", num_lines=5)
    clip, info = CLIPModel.from_pretrained(two, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert clip.logit_scale.shape == ()


@pytest.mark.slow
def test_a_resumed_run_of_spread_weights_equals_one_without_interruption(world: Path, tmp_path: Path) -> None:
    whole = spread(world, tmp_path / "whole", 29820)
    parts = spread(world, tmp_path / "parts", 29822, stop_at=2)
    assert not (parts / "manifest.json").exists()
    spread(world, parts, 29824)
    for name in ("model.safetensors", "train_log.jsonl", "metrics.json"):
        assert file_hash(whole / name) == file_hash(parts / name)
    assert read_manifest(parts, "address_clip")["step"] == 4


def test_numbers_become_vectors_and_weights_fit_both_ways(world: Path) -> None:
    clip, vectors = (CLIPModel.from_pretrained(world / "base") for _ in range(2))
    vectors.logit_scale.data.zero_()
    make_shardable(vectors)
    assert vectors.logit_scale.shape == (1,)
    assert vectors.logit_scale.requires_grad
    load_weights(vectors, clip.state_dict())
    assert distributed.to_number(vectors.logit_scale) == distributed.to_number(clip.logit_scale) != 0
    clip.logit_scale.data.zero_()
    load_weights(clip, vectors.state_dict())
    assert clip.logit_scale.shape == ()
    assert distributed.to_number(clip.logit_scale) != 0
    with pytest.raises(RuntimeError, match="nonsense"):
        load_weights(clip, {**vectors.state_dict(), "nonsense": torch.zeros(1)})


class AskedForFSDP:
    """As much of an accelerator as is looked at before a training."""

    distributed_type, gradient_accumulation_steps = DistributedType.FSDP, 1

    def __init__(self, device: str, version: int) -> None:
        self.device, self.is_fsdp2 = torch.device(device), version == 2


def test_fsdp_of_the_first_version_and_without_a_gpu_is_refused() -> None:
    refuse_unsuited(AskedForFSDP("cuda", 2))
    with pytest.raises(UserError, match=r"fsdp_version 1: allowed: 2.*fsdp2.yaml"):
        refuse_unsuited(AskedForFSDP("cuda", 1))
    with pytest.raises(UserError, match="shards nothing on the CPU"):
        refuse_unsuited(AskedForFSDP("cpu", 2))


def test_the_config_for_accelerate_names_layers_that_there_are(world: Path) -> None:
    config = yaml.safe_load((ROOT / "train" / "configs" / "fsdp2.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config["fsdp_version"], auto_wrap_policy=config["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=[config["fsdp_transformer_layer_cls_to_wrap"]],
    )  # fmt: skip
    model = CLIPModel.from_pretrained(world / "base")
    plugin.set_auto_wrap_policy(model)
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {type(model.vision_model.encoder.layers[0])}
