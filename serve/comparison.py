"""Two evaluations of the same questions: who is better, by how much, and could it be luck?"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.evaluation.generation import PredictionFile
from llava_ial.evaluation.metrics import Truth, score_answers
from llava_ial.evaluation.places import Places
from llava_ial.evaluation.report import RATE_LABELS, format_table
from llava_ial.evaluation.statistics import Difference, paired_difference
from llava_ial.gazetteer import Gazetteer
from llava_ial.manifest import read_manifest, write_json, write_text
from serve.asking import PREDICTIONS
from serve.results import PHOTOS

COMPARED = "compared"
KIND = "evaluation"
_RANKS = {"SSA@1": ("sub_street_rank", 1), "SSA@5": ("sub_street_rank", 5), "SA@1": ("street_rank", 1),
          "SA@5": ("street_rank", 5)}  # fmt: skip
Scores = Mapping[str, Mapping[str, float]]


def refuse_other(other: Path, dataset: IALDataset, split: str) -> None:
    """Checks before anything expensive that an evaluation can be compared with.

    Raises:
        UserError: It is unfinished, of other data, or of another split.
    """
    manifest = read_manifest(other, KIND)
    if manifest["parents"].get("data") != dataset.identity or manifest["config"].get("split") != split:
        raise UserError(f"--compare {other}: an evaluation of other questions; give one of the same --data and --split")


def compare(
    output: Path, other: Path, dataset: IALDataset, truths: Mapping[str, Truth], seed: int
) -> dict[str, Difference]:
    """Writes ``compared.json`` and ``compared.md`` into ``output``, prints the latter, returns the differences.

    Every metric is compared over the questions, or photos, that both evaluations have.

    Args:
        output: A finished evaluation.
        other: Another one.
        dataset: Of both.
        truths: Of its photos.
        seed: Of the draws.
    """
    found: dict[str, Difference] = {}
    gazetteer = Gazetteer([record.address for record in dataset.gallery])
    places = Places(dataset.gallery)
    answers = [_answer_scores(folder, truths, gazetteer, places) for folder in (output, other)]
    ranks = [_rank_scores(folder) for folder in (output, other)]
    for first, second in (answers, ranks):
        for name in first:
            common = sorted(first[name].keys() & second.get(name, {}).keys())
            if common:
                found[name] = paired_difference(
                    [first[name][key] for key in common],
                    [second[name][key] for key in common],
                    [truths[key.split("\t")[0]].panorama_id for key in common],
                    seed=seed,
                )
    if not found:
        raise UserError(f"--compare {other}: no question that both evaluations have")
    text = _format(found, output, other)
    write_json(output / f"{COMPARED}.json", {name: asdict(difference) for name, difference in found.items()})
    write_text(output / f"{COMPARED}.md", text)
    print(f"\n{text}")
    return found


def _answer_scores(folder: Path, truths: Mapping[str, Truth], gazetteer: Gazetteer, places: Places) -> Scores:
    """By metric and question; the key begins with the photo."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return {}
    scores: dict[str, dict[str, float]] = {}
    for answer in score_answers(list(PredictionFile(path).by_question.values()), truths, gazetteer, places):
        key = f"{answer.prediction.image_id}\t{answer.prediction.question_id}"
        for name, hit in answer.scores.items():
            scores.setdefault(name, {})[key] = float(hit)
    return scores


def _rank_scores(folder: Path) -> Scores:
    path = folder / PHOTOS
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: {row["image_id"]: float(int(row[column]) <= k) for row in rows} for name, (column, k) in _RANKS.items()
    }


def _format(found: Mapping[str, Difference], output: Path, other: Path) -> str:
    rows: list[Sequence[str]] = []
    for name in [*RATE_LABELS, *_RANKS]:
        if difference := found.get(name):
            rows.append([
                RATE_LABELS.get(name, name).strip(),
                f"{100 * difference.value:+.1f}",
                f"{100 * difference.low:+.1f} - {100 * difference.high:+.1f}",
                f"{difference.p_value:.3f}",
                f"{difference.num_only_first} / {difference.num_only_second}",
                f"{100 * difference.smallest_visible:.1f}",
                str(difference.num_answers),
            ])  # fmt: skip
    head = ["points", "difference", "95 % interval", "p", "only this / only other", "visible from", "pairs"]
    lines = [
        f"# `{output.name}` against `{other.name}`",
        "",
        *format_table(head, rows),
        "",
        "Paired by question or photo; intervals and p draw whole panoramas. p: how often two equal models would differ",
        "this much. Visible from: the difference that these pairs would show in four of five tests. With so many rows",
        "one p below 0.05 is no surprise: decide beforehand which row counts.",
    ]
    return "\n".join(lines) + "\n"
