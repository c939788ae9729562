"""Evaluates a model: asks every question of a split, reads the answers as addresses, measures.

    python -m serve.evaluate --model runs/demo/stage2 --data runs/demo/data --split test --output runs/demo/evaluation

A folder of stage 1 is measured too, by its ranking alone. Beside the answers stands a control: the questions "where"
and "which street" asked again with the photos shuffled among them; a model that looks at its photos fails there.

Written: predictions.jsonl (and predictions_shuffled.jsonl), metrics.json, summary.md, manifest.json. The same command
continues an interrupted evaluation and asks failed questions again.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))  # read once, when torch is imported

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers.utils import logging as transformers_logging

from llava_ial.config import parse_config, save_config
from llava_ial.data.dataset import IALDataset, Sample
from llava_ial.errors import UserError, run_command
from llava_ial.evaluation.baselines import Baselines
from llava_ial.evaluation.generation import ask_all
from llava_ial.evaluation.metrics import AddressMetrics, Truth, measure, score_answer
from llava_ial.evaluation.questions import Question, QuestionList, load_questions, with_shuffled_photos
from llava_ial.evaluation.ranking import rank_photos, ranking_metrics
from llava_ial.evaluation.report import format_summary
from llava_ial.gazetteer import Gazetteer
from llava_ial.inference import AddressPredictor, choose_device
from llava_ial.manifest import FolderState, claim_folder, publish_manifest, read_manifest, write_json, write_text
from llava_ial.prompts import STREET, WHERE
from llava_ial.records import PredictionRecord
from serve.evaluate_settings import DTYPES, EvaluateConfig, identity_of, refuse_impossible

KIND = "evaluation"
CONTROL_TASKS = (WHERE, STREET)


def main() -> None:
    """Reads the settings, checks, asks, measures, writes."""
    (config,) = parse_config(EvaluateConfig, description=__doc__ or "")
    evaluate(config)


def evaluate(config: EvaluateConfig, predictor: AddressPredictor | None = None) -> dict[str, Any]:
    """Runs an evaluation and returns what ``metrics.json`` holds.

    Args:
        config: Settings.
        predictor: Asked instead of ``config.model``, whose manifest is stated all the same.

    Raises:
        UserError: Settings or inputs are wrong, or questions failed (after everything was written).
    """
    started = time.time()
    refuse_impossible(config)
    dataset = IALDataset(config.data, config.image_root)
    samples = dataset.samples(config.split)
    manifest = read_manifest(config.model, "llava_ial", "address_clip")
    if manifest["gallery_hash"] != dataset.gallery_hash:
        raise UserError(f"{config.model} was trained on another list of addresses than {config.data} holds")
    questions = None
    if manifest["kind"] == "llava_ial":
        questions = load_questions(dataset, config.split, config.tasks)
    baselines = None
    if config.baselines:
        device = choose_device(config.device)
        baselines = Baselines(dataset, config.baselines, device=device, batch_size=config.batch_size)
    identity, parents = identity_of(config, dataset)
    if claim_folder(config.output, KIND, identity) is FolderState.COMPLETE:
        print((config.output / "summary.md").read_text(encoding="utf-8"))
        print(f"{config.output}: already complete")
        return dict(read_manifest(config.output, KIND)["metrics"])
    predictor = predictor or load_predictor(config)
    save_config(config.output / "config.yaml", config)

    metrics: dict[str, Any] = {"split": config.split, "num_photos": len(samples)}
    ranked = rank_photos(predictor.probabilities, dataset, samples, batch_size=config.batch_size)
    metrics["ranking"] = ranking_metrics(ranked, num_failed=len(samples) - len(ranked), seed=config.seed)
    if baselines:
        metrics["baselines"] = {
            name: ranking_metrics(places, num_failed=len(samples) - len(places), seed=config.seed)
            for name, places in baselines.rank(samples).items()
        }
    answers = control = None
    if questions:
        evaluation = _Asking(config, predictor, dataset, samples)
        answers = evaluation.answers(questions)
        control, num_same_street = evaluation.control(questions)
        metrics["questions"] = {
            "asked": len(questions.asked),
            "num_given_away": questions.num_given_away,
            "num_other_tasks": questions.num_other_tasks,
        }
        metrics["answers"] = asdict(answers)
        if control:
            metrics["shuffled_photos"] = asdict(control) | {"num_same_street": num_same_street}
    return _publish(config, metrics, answers, control, identity, parents, started)


class _Asking:
    """The questions of a split put to a model."""

    def __init__(
        self, config: EvaluateConfig, predictor: AddressPredictor, dataset: IALDataset, samples: Sequence[Sample]
    ) -> None:
        self._config = config
        self._predictor = predictor
        self._gazetteer = Gazetteer([record.address for record in dataset.gallery])
        self._truths = {
            s.photo.image_id: Truth(s.address.address, s.photo.panorama_id or s.photo.image_id) for s in samples
        }
        self._image_file = {s.photo.image_id: dataset.image_file(s.photo.image_path) for s in samples}

    def answers(self, questions: QuestionList) -> AddressMetrics:
        """Metrics of all questions with their own photos."""
        return self._measure(questions.asked, "predictions.jsonl", "answering")

    def control(self, questions: QuestionList) -> tuple[AddressMetrics | None, int]:
        """Metrics of the street questions with shuffled photos, and how many of these photos show the true street."""
        asked = [question for question in questions.asked if question.task in CONTROL_TASKS]
        if not self._config.shuffle_photos or not asked or len(self._truths) < 2:
            return None, 0
        street_of = {image_id: truth.address.street_key for image_id, truth in self._truths.items()}
        shuffled = with_shuffled_photos(asked, street_of, self._config.seed)
        pairs = {(question.image_id, question.shown_image_id) for question in shuffled}
        num_same = sum(street_of[image] == street_of[shown] for image, shown in pairs)
        return self._measure(shuffled, "predictions_shuffled.jsonl", "photos shuffled"), num_same

    def _measure(self, questions: Sequence[Question], file: str, title: str) -> AddressMetrics:
        predictions = ask_all(
            self._predictor,
            questions,
            self._config.output / file,
            self._image_file,
            batch_size=self._config.batch_size,
            max_new_tokens=self._config.max_new_tokens,
            is_right=self._names_street,
            title=title,
        )
        return measure(predictions, self._truths, self._gazetteer, seed=self._config.seed)

    def _names_street(self, prediction: PredictionRecord) -> bool | None:
        truth = self._truths[prediction.image_id]
        return score_answer(prediction, truth, self._gazetteer).scores.get("street_accuracy")


def load_predictor(config: EvaluateConfig) -> AddressPredictor:
    """The model, on the device that the settings name."""
    transformers_logging.disable_progress_bar()
    device = choose_device(config.device)
    return AddressPredictor.from_pretrained(config.model, base=config.base, device=device, dtype=DTYPES[config.dtype])


def _publish(
    config: EvaluateConfig,
    metrics: dict[str, Any],
    answers: AddressMetrics | None,
    control: AddressMetrics | None,
    identity: dict[str, Any],
    parents: dict[str, str],
    started: float,
) -> dict[str, Any]:
    """Writes and prints the results; the manifest only if every question has an answer."""
    facts = {"split": config.split, "num_photos": metrics["num_photos"], "num_given_away": 0, "num_other_tasks": 0}
    facts |= {k: v for k, v in metrics.get("questions", {}).items() if k in facts}
    facts["num_same_street"] = metrics.get("shuffled_photos", {}).get("num_same_street", 0)
    rankings = {"AddressCLIP": metrics["ranking"], **metrics.get("baselines", {})}
    summary = format_summary(answers, control, rankings, facts)
    write_json(config.output / "metrics.json", metrics)
    write_text(config.output / "summary.md", summary)
    num_answers = sum(m.num_answers for m in (answers, control) if m)
    run = {"seconds": round(time.time() - started, 1), "batch_size": config.batch_size, "device": config.device}
    write_json(config.output / "run.json", run | {"num_answers": num_answers})
    print(f"\n{summary}")
    num_failed = sum(m.num_failed for m in (answers, control) if m)
    if num_failed:
        raise UserError(
            f"{num_failed} questions have no answer; why stands in {config.output}/predictions.jsonl. "
            "Everything else is measured; the same command asks them again"
        )
    publish_manifest(config.output, KIND, identity, parents=parents, metrics=metrics)
    print(f"complete: {config.output}")
    return metrics


if __name__ == "__main__":
    run_command(main)
