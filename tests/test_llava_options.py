"""Ways to tune in stage 2: four and eight bits, 16-bit bases, rsLoRA, DoRA, batches of similar length."""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llava_ial.config import parse_config
from llava_ial.errors import UserError
from llava_ial.manifest import claim_folder
from llava_ial.models.llava import PROJECTOR, TOWER, LoraSettings, add_adapter, load_base
from llava_ial.models.llava_folder import load_llava_ial
from llava_ial.models.quantized import SKIPPED, quantization_config, refuse_quantized_elsewhere
from llava_ial.models.trainable import trainable_table
from llava_ial.training.by_length import ByLength
from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_preview import memory_need
from llava_ial.training.llava_run import refuse_unshared
from llava_ial.training.llava_settings import LlavaSettings
from tests.stage2_runs import adapter, arguments_of, assert_same_weights, crash_at, train_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders


def base_of(folders: TinyFolders) -> str:
    return str(folders.llava.parent / "base_llava")


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_the_language_model_alone_is_quantised_and_its_folder_opens_without(
    tiny_folders: TinyFolders, tmp_path: Path, how: str
) -> None:
    run = run_of(tiny_folders, tmp_path / "dry", quantize=how)
    kinds = {
        name.split("model.")[-1].split(".")[0]
        for name, module in run.model.named_modules()
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    }
    assert kinds == {"language_model"} or kinds == {"layers"}
    for part in (PROJECTOR, TOWER):
        assert all(p.is_floating_point() for name, p in run.model.named_parameters() if part in name)
    plain = run_of(tiny_folders, tmp_path / "dry")
    assert trainable_table(run.model) == trainable_table(plain.model), "the same weights, held in fewer bits"
    need, most = (memory_need(r.model, r.arguments, 50, 10, stage=0).weights for r in (run, plain))
    assert need < most
    out = train_here(tiny_folders, tmp_path / "out", quantize=how, max_steps=2)
    moved = adapter(out)
    assert any(bool(tensor.any()) for name, tensor in moved.items() if "lora_B" in name)
    assert torch.isfinite(next(iter(load_llava_ial(out).model.parameters()))).all()


def test_a_skip_list_without_the_first_name_is_found_out(tiny_folders: TinyFolders) -> None:
    config = quantization_config("nf4", torch.float32)
    config.llm_int8_skip_modules = [name.removeprefix("model.") for name in SKIPPED]
    with pytest.raises(UserError, match=r"--quantize: quantised is model\.(vision_tower|multi_modal_projector)"):
        refuse_quantized_elsewhere(load_base(base_of(tiny_folders), quantization=config))


def test_16_bit_bases_train_32_bit_adapters(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    run = run_of(tiny_folders, tmp_path / "dry", bf16=True)
    held = {p.dtype for n, p in run.model.named_parameters() if not p.requires_grad and p.is_floating_point()}
    assert held == {torch.bfloat16}
    assert {p.dtype for p in run.model.parameters() if p.requires_grad} == {torch.float32}
    measured = {"eval_strategy": "steps", "eval_steps": 2, "eval_split": "train", "eval_photos": 2}
    out = train_here(tiny_folders, tmp_path / "out", bf16=True, max_steps=2, **measured)
    assert load_llava_ial(out).manifest["tower_hash"] == load_llava_ial(tiny_folders.llava).manifest["tower_hash"]
    with pytest.raises(UserError, match="--base_dtype bfloat16: allowed: with --bf16 true"):
        train_here(tiny_folders, tmp_path / "other", base_dtype="bfloat16")


@pytest.mark.parametrize(("option", "mark"), [("use_rslora", "lora_A"), ("use_dora", "lora_magnitude_vector")])
def test_other_kinds_of_lora_train_and_open(tiny_folders: TinyFolders, tmp_path: Path, option: str, mark: str) -> None:
    out = train_here(tiny_folders, tmp_path / "out", max_steps=2, **{option: True})
    assert any(mark in name for name in adapter(out))
    merged, beside = (load_llava_ial(out, merge=merge).model for merge in (True, False))
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, beside(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    model = add_adapter(load_base(base_of(tiny_folders)), LoraSettings(4, 8, 0.0, use_rslora=option == "use_rslora"))
    scale = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
    assert scale == ({4.0} if option == "use_rslora" else {2.0})


def test_batches_of_similar_length_have_less_padding_and_are_the_same_after_a_resume(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [(7 * i) % 50 + 1 for i in range(64)]
    order = ByLength(8, lengths, seed=1)
    rows = list(order)
    assert sorted(rows) == list(range(64))

    def padded(rows: list[int]) -> int:
        batches = [rows[i : i + 8] for i in range(0, len(rows), 8)]
        return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)

    assert padded(rows) < 0.8 * padded(list(range(64)))
    order.set_epoch(1)
    assert list(order) != rows
    options = {"train_sampling_strategy": "group_by_length", "max_steps": 7, "save_steps": 5}  # in the second epoch
    straight = train_here(tiny_folders, tmp_path / "straight", **options)

    crash_at(monkeypatch, 6, lambda: train_here(tiny_folders, tmp_path / "resumed", **options))
    assert_same_weights(straight, train_here(tiny_folders, tmp_path / "resumed", **options))
    with pytest.raises(UserError, match="--train_sampling_strategy batch_rebalance: allowed: random"):
        train_here(tiny_folders, tmp_path / "other", train_sampling_strategy="batch_rebalance")


@pytest.fixture
def alone_again() -> Iterator[None]:
    """DeepSpeed's settings make this process a group of one, noted in three places: undone in all."""
    with patch.dict(os.environ):
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"quantize": "int2"}, "--quantize int2: allowed: none, nf4, int8"),
        ({"base_dtype": "float16"}, "--base_dtype float16: allowed: auto, float32, bfloat16"),
        ({"quantize": "nf4", "deepspeed": "train/configs/zero3.json"}, "--quantize nf4: allowed: none with ZeRO-3"),
    ],
)
@pytest.mark.usefixtures("alone_again")
def test_bad_settings_are_told(
    tiny_folders: TinyFolders, tmp_path: Path, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        train_here(tiny_folders, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_one_process_with_several_gpus_is_told_to_start_one_for_each(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``transformers`` would split each batch over copies, and no figure of the run would say so."""
    monkeypatch.setattr(LlavaArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(UserError, match=r"sees 2 GPUs: start one for each .*CUDA_VISIBLE_DEVICES=0"):
        train_here(tiny_folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_processes_wait_for_a_main_one_that_works_for_long(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    argv = arguments_of(tiny_folders, tmp_path / "out")
    _, arguments = parse_config(LlavaSettings, LlavaArguments, description="", argv=argv)
    assert arguments.ddp_timeout_delta == timedelta(hours=2)


def test_a_process_that_does_not_see_the_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="process 0 does not see it; all machines must share"):
        refuse_unshared(tmp_path / "out")
    claim_folder(tmp_path / "out", "any", {})
    refuse_unshared(tmp_path / "out")
