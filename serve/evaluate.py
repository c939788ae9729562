"""Evaluates a model: asks every question of a split, reads the answers as addresses, measures.

    python -m serve.evaluate --model runs/demo/stage2 --data runs/demo/data --split test --output runs/demo/evaluation

    python -m serve.evaluate --model NAME --server https://api.openai.com/v1 --data runs/demo/data --output runs/hosted
    accelerate launch --multi_gpu --num_processes 8 -m serve.evaluate --model runs/large/stage2 ...
    python -m serve.evaluate --predictions answers.jsonl --data runs/demo/data --output runs/others

A folder of stage 1 is measured too, by its ranking alone. Beside the answers stands a control: the questions "where"
and "which street" asked again with the photos shuffled among them; a model that looks at its photos fails there.

Written: predictions.jsonl (and predictions_shuffled.jsonl), metrics.json, metrics.md, a line per answer in answers.csv
and per photo in photos.csv, report.html (one file, works from the disk), manifest.json. The same command continues an
interrupted evaluation and asks failed questions again.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))  # read once, when torch is imported

import contextlib
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llava_ial.config import parse_config, save_config
from llava_ial.data.dataset import IALDataset
from llava_ial.distributed import is_main_process, join_processes, run_on_main_process, shut_down, world_size
from llava_ial.errors import UserError, run_command
from llava_ial.evaluation.baselines import Baselines
from llava_ial.evaluation.questions import QuestionList, elsewhere_questions, load_questions
from llava_ial.evaluation.ranking import rank_photos
from llava_ial.inference import choose_device
from llava_ial.manifest import (
    FolderState,
    claim_folder,
    hold_folder,
    publish_manifest,
    read_manifest,
    write_json,
    write_text,
)
from llava_ial.records import PredictionRecord
from llava_ial.wider_prompts import ELSEWHERE
from serve.asking import PREDICTIONS, Asking
from serve.backends import Backend, can_answer, open_backend
from serve.comparison import KIND, compare, refuse_other
from serve.evaluate_settings import EvaluateConfig, identity_of, refuse_impossible
from serve.examples import find_photos
from serve.given_answers import read_answers
from serve.results import Results

SUMMARY, REPORT = "metrics.md", "report.html"


def main() -> None:
    """Reads the settings, checks, asks, measures, writes."""
    (config,) = parse_config(EvaluateConfig, description=__doc__ or "")
    join_processes()
    evaluate(config)
    shut_down()


def evaluate(config: EvaluateConfig, backend: Backend | None = None) -> dict[str, Any]:
    """Runs an evaluation and returns what ``metrics.json`` holds.

    Args:
        config: Settings.
        backend: Asked instead of ``config.model``, which is checked and stated all the same.

    Raises:
        UserError: Settings or inputs are wrong, or questions failed (after everything was written).
    """
    started = time.time()
    refuse_impossible(config)
    dataset = IALDataset(config.data, config.image_root)
    samples = dataset.samples(config.split)
    questions, elsewhere = _questions(config, dataset)
    given = read_answers(config.predictions, questions.asked) if config.predictions and questions else None
    baselines = None
    if config.baselines:
        baselines = Baselines(dataset, config.baselines, device=choose_device(config.device))
    if config.compare:
        refuse_other(config.compare, dataset, config.split)
    identity, parents = identity_of(config, dataset)
    results = Results(dataset, samples, config.split, config.seed)

    def claim() -> FolderState:
        state = claim_folder(config.output, KIND, identity)
        if state is not FolderState.COMPLETE:
            held.enter_context(hold_folder(config.output))
        return state

    def finish() -> dict[str, Any]:
        metrics = (
            _repeat(config) if state is FolderState.COMPLETE else _publish(config, results, identity, parents, started)
        )
        if config.compare:
            compare(config.output, config.compare, dataset, results.truths, config.seed)
        return metrics

    with contextlib.ExitStack() as held:
        state = run_on_main_process(claim)
        if state is not FolderState.COMPLETE:
            backend = backend or open_backend(config)
            _measure(config, results, backend, questions, given, elsewhere)
            if baselines and is_main_process():
                way = backend.locator.way if backend.locator and config.untuned_alike else None
                results.add_baselines(baselines.rank(samples, way))
        return run_on_main_process(finish)


def _questions(config: EvaluateConfig, dataset: IALDataset) -> tuple[QuestionList | None, dict[str, Path]]:
    """What is asked, None for a model that only ranks, and the photos of other places."""
    questions = load_questions(dataset, config.split, config.tasks) if can_answer(config, dataset) else None
    elsewhere = dict(questions.elsewhere) if questions else {}
    if config.elsewhere:
        files = find_photos(config.elsewhere)
        added = {f"other/{file.relative_to(config.elsewhere).as_posix()}": file for file in files}
        elsewhere |= added
        if questions and ELSEWHERE in config.tasks:
            asked = [*questions.asked, *elsewhere_questions(list(added), config.seed)]
            questions = replace(questions, asked=asked)
    return questions, elsewhere


def _measure(
    config: EvaluateConfig,
    results: Results,
    backend: Backend,
    questions: QuestionList | None,
    given: list[PredictionRecord] | None,
    elsewhere: dict[str, Path],
) -> None:
    """Ranks the photos and asks the questions; all processes do their share and have all results."""
    if backend.scores_of:
        results.add_ranking(rank_photos(backend.scores_of, results.dataset, results.samples))
    if backend.locator and elsewhere and is_main_process():
        results.add_elsewhere(backend.locator, list(elsewhere.values()))
    if not questions:
        return
    asking = Asking(config, results.dataset, results.samples, results.places, elsewhere)
    if given:
        results.add_answers(questions, asking.keep(questions, given), None, 0)
    elif backend.ask:
        ask = asking.timed(backend.ask)
        answers = asking.answers(ask, questions)
        results.add_answers(questions, answers, *asking.control(ask, questions))
        if dialogues := asking.dialogues(ask, questions, answers):
            results.add_dialogues(dialogues)
        results.num_asked, results.answering_s = asking.num_asked, asking.seconds


def _repeat(config: EvaluateConfig) -> dict[str, Any]:
    """Says again what a finished evaluation has found."""
    print((config.output / SUMMARY).read_text(encoding="utf-8"))
    print(f"{config.output}: already complete")
    return dict(read_manifest(config.output, KIND)["metrics"])


def _publish(
    config: EvaluateConfig, results: Results, identity: dict[str, Any], parents: dict[str, str], started: float
) -> dict[str, Any]:
    """Writes and prints the results; the manifest only if every question has an answer."""
    summary = results.summary()
    save_config(config.output / "config.yaml", config)
    for name, text in results.tables().items():
        write_text(config.output / name, text)
    write_json(config.output / "metrics.json", results.metrics)
    write_text(config.output / SUMMARY, summary)
    asked = Path(str(config.predictions or config.model)).name
    title = f"{asked} on {config.data.name}, split {config.split}"
    write_text(config.output / REPORT, results.report(title, has_photos=config.photos_in_report))
    run = {
        "started_at": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "batch_size": config.batch_size,
        "device": choose_device(config.device),
        "num_processes": world_size(),
        "dtype": identity.get("dtype"),
    }
    run |= {"num_answers": results.num_answers, **results.billed(config.price_in, config.price_out)}
    run |= results.speed()
    write_json(config.output / "run.json", run)
    print(f"\n{summary}")
    if results.num_asked:
        print(f"{results.num_asked} questions answered in {run['answering_s']} s, {run['answers_per_s']} a second")
    if results.num_failed:
        mend = "complete the file" if config.predictions else "the same command asks them again"
        raise UserError(
            f"{results.num_failed} questions have no answer; why stands in {config.output / PREDICTIONS}. "
            f"Everything else is measured; {mend}"
        )
    publish_manifest(config.output, KIND, identity, parents=parents, metrics=results.metrics)
    print(f"complete: {config.output} (open {config.output / REPORT})")
    return results.metrics


if __name__ == "__main__":
    run_command(main)
