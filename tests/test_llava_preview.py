"""``--dry_run`` of stage 2 tells the truth: steps, supervised tokens, memory; and writes nothing."""

from pathlib import Path

import pytest

from llava_ial.config import parse_config
from llava_ial.data.llava import IGNORE_INDEX
from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_preview import memory_need, num_steps, preview, rendered
from llava_ial.training.llava_run import LlavaRun, build_run, read_inputs
from llava_ial.training.llava_settings import LlavaSettings
from llava_ial.training.llava_trainer import LlavaTrainer
from tests.stage2_runs import arguments_of, train_here
from tests.tiny_models import TinyFolders


def run_of(folders: TinyFolders, output: Path, **options: object) -> LlavaRun:
    settings, arguments = parse_config(
        LlavaSettings, LlavaArguments, description="", argv=arguments_of(folders, output, **options)
    )
    return build_run(settings, arguments, read_inputs(settings, arguments))


def test_it_shows_everything_and_writes_nothing(
    tiny_folders: TinyFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(tiny_folders, tmp_path / "out", dry_run=True, max_steps=-1, num_train_epochs=3)
    text = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert "<image>x16" in text
    assert "USER:" in text
    assert "12 steps of 2 dialogues" in text
    assert "vision tower" in text
    for name in ("without ZeRO", "ZeRO-2", "ZeRO-3"):
        assert f"\n{name} " in text


def test_one_process_shows_what_eight_would_need(
    tiny_folders: TinyFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"dry_run": True, "max_steps": -1, "per_device_train_batch_size": 1}
    train_here(tiny_folders, tmp_path / "out", **options)
    alone = capsys.readouterr().out
    train_here(tiny_folders, tmp_path / "out", num_processes=8, **options)
    text = capsys.readouterr().out
    assert "8 steps of 1 dialogues" in alone
    assert "1 steps of 8 dialogues: 1 a process x 1 micro-batches x 8 process(es)" in text
    assert "GiB a process, of 8" in text
    assert not (tmp_path / "out").exists()


def test_the_marked_part_is_the_supervised_one(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    run = run_of(tiny_folders, tmp_path / "out")
    text = rendered(run.tokenizer, run.train_set.encoded[0], has_colours=False)
    spoken = [part.split("⟧")[0] for part in text.split("⟦")[1:]]
    messages = run.train_set.conversations[0].messages
    assert [part.strip() for part in spoken] == [f"{m.content}</s>" for m in messages if m.role == "assistant"]
    learned = sum(label != IGNORE_INDEX for d in run.train_set.encoded for label in d.labels)
    assert f"{learned:,} of them learned" in preview(run)


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 3},
        {"max_steps": -1, "num_train_epochs": 2.5},
        {"max_steps": -1, "per_device_train_batch_size": 3},
        {"max_steps": -1, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
        {"max_steps": -1, "per_device_train_batch_size": 3, "dataloader_drop_last": True},
    ],
)
def test_it_counts_the_steps_that_trainer_makes(
    tiny_folders: TinyFolders, tmp_path: Path, options: dict[str, object]
) -> None:
    run = run_of(tiny_folders, tmp_path / "out", **options)
    trainer = LlavaTrainer(run, stop_request=None)  # type: ignore[arg-type]
    theirs = trainer.set_initial_training_values(run.arguments, trainer.get_train_dataloader())[-1]
    assert num_steps(len(run.train_set), run.arguments, 1) == theirs


def test_the_memory_of_a_model_counted_by_hand(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    run = run_of(tiny_folders, tmp_path / "out")
    model = run.model
    counted = [(p.numel(), p.requires_grad) for n, p in model.named_parameters() if "original_module" not in n]
    held, trained = sum(n for n, _ in counted), sum(n for n, is_trained in counted if is_trained)
    alone = memory_need(model, run.arguments, 50, 10, stage=0)
    assert (alone.weights, alone.gradients, alone.optimizer) == (4 * held, 4 * trained, 8 * trained)
    two = memory_need(model, run.arguments, 50, 10, stage=2, processes=4)
    assert (two.weights, two.gradients, two.optimizer) == (4 * held, trained, 3 * trained)
    three = memory_need(model, run.arguments, 50, 10, stage=3, processes=4)
    assert (three.weights, three.gradients) == (held, trained)
    assert alone.activations == two.activations > memory_need(model, run.arguments, 25, 10, stage=0).activations
