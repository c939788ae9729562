"""Everything an evaluation has found out, and the files that say it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_ial.data.dataset import IALDataset, Sample
from llava_ial.evaluation.against_encoder import against_encoder
from llava_ial.evaluation.analysis import (
    break_down,
    placings_of_answers,
    placings_of_ranking,
    reliability,
    reliability_of_ranking,
)
from llava_ial.evaluation.consistency import consistency
from llava_ial.evaluation.gallery import collect_cases
from llava_ial.evaluation.html_report import format_html
from llava_ial.evaluation.places import Places
from llava_ial.evaluation.questions import QuestionList
from llava_ial.evaluation.ranking import RankedPhoto, best_cosines, ranking_metrics
from llava_ial.evaluation.reliability import clustered_auroc
from llava_ial.evaluation.report import format_summary
from llava_ial.evaluation.samples import answers_csv, photos_csv
from llava_ial.evaluation.statistics import Rate
from llava_ial.inference import AddressPredictor
from llava_ial.prompts import WHERE
from serve.asking import AnswerSet, truths_of

ENCODER = "AddressCLIP"
PHOTOS, ANSWERS = "photos.csv", "answers.csv"


class Results:
    """What was measured; ``metrics`` is what ``metrics.json`` holds.

    Args:
        dataset: Whose split is evaluated.
        samples: Its photos.
        split: Its name.
        seed: Of all intervals.
    """

    def __init__(self, dataset: IALDataset, samples: Sequence[Sample], split: str, seed: int) -> None:
        self.dataset = dataset
        self.samples = samples
        self.truths = truths_of(samples)
        self.places = Places(dataset.gallery)
        self.ranked: list[RankedPhoto] = []
        self.answers: AnswerSet | None = None
        self.control: AnswerSet | None = None
        self.dialogues: AnswerSet | None = None
        self.metrics: dict[str, Any] = {"split": split, "num_photos": len(samples)}
        self.num_asked, self.answering_s = 0, 0.0
        self._seed = seed
        self._agreement: dict[str, Rate] = {}
        self._image_path = {sample.photo.image_id: sample.photo.image_path for sample in samples}

    @property
    def num_answers(self) -> int:
        """Questions that were answered, those of the control and of the dialogues with them."""
        return sum(answers.metrics.num_answers for answers in self._all)

    @property
    def num_failed(self) -> int:
        """Questions without an answer, because of an error."""
        return sum(answers.metrics.num_failed for answers in self._all)

    @property
    def _all(self) -> list[AnswerSet]:
        return [answers for answers in (self.answers, self.control, self.dialogues) if answers]

    def add_ranking(self, ranked: list[RankedPhoto]) -> None:
        """The places of the photos by the model's encoder."""
        self.ranked = ranked
        self.metrics["ranking"] = self._ranking_metrics(ranked)
        placings = placings_of_ranking(ranked, self.truths, self.dataset.gallery, self.places)
        self.metrics["ranking_by_place"] = break_down(placings, seed=self._seed)
        self.metrics["ranking_reliability"] = reliability_of_ranking(ranked)

    def add_baselines(self, baselines: Mapping[str, list[RankedPhoto]]) -> None:
        """The places of the photos by baselines."""
        self.metrics["baselines"] = {name: self._ranking_metrics(ranked) for name, ranked in baselines.items()}

    def add_elsewhere(self, locator: AddressPredictor, elsewhere: Sequence[Path]) -> None:
        """How well photos of other places are told from the city's own, by the best cosine of each."""
        files = [self.dataset.image_file(sample.photo.image_path) for sample in self.samples]
        here = best_cosines(locator.cosines, files, title="photos of the city")
        others = [c for c in best_cosines(locator.cosines, elsewhere, title="photos of elsewhere") if c is not None]
        pairs = [
            (cosine, self.truths[sample.photo.image_id].panorama_id)
            for sample, cosine in zip(self.samples, here, strict=True)
            if cosine is not None
        ]
        found: dict[str, Any] = {"num_here": len(pairs), "num_elsewhere": len(others)}
        found["num_failed"] = len(files) + len(elsewhere) - len(pairs) - len(others)
        if pairs and others:
            cosines, panoramas = zip(*pairs, strict=True)
            found["auroc"] = asdict(clustered_auroc(cosines, panoramas, others, seed=self._seed))
            if locator.calibration:
                limit = locator.calibration.here_from
                found["refused_here"] = sum(cosine < limit for cosine in cosines) / len(cosines)
                found["accepted_elsewhere"] = sum(cosine >= limit for cosine in others) / len(others)
        self.metrics["elsewhere"] = found

    def add_answers(
        self, questions: QuestionList, answers: AnswerSet, control: AnswerSet | None, num_same_street: int
    ) -> None:
        """What the model said.

        Args:
            questions: All of the split.
            answers: To those that were asked.
            control: With shuffled photos.
            num_same_street: Photos of the control that show the true street all the same.
        """
        self.answers, self.control = answers, control
        self.metrics["questions"] = {
            "asked": len(questions.asked),
            "num_given_away": questions.num_given_away,
            "num_other_tasks": questions.num_other_tasks,
        }
        self.metrics["answers"] = asdict(answers.metrics)
        self._agreement = consistency(answers.scored, seed=self._seed)
        self.metrics["consistency"] = {name: asdict(rate) for name, rate in self._agreement.items()}
        if sure := [a for a in answers.scored if a.prediction.task == WHERE and a.prediction.probabilities]:
            confidence = [(answer.prediction.probabilities or [0.0])[0] for answer in sure]
            self.metrics["answer_reliability"] = reliability(
                confidence, [bool(a.scores["sub_street_accuracy"]) for a in sure]
            )
        if placings := placings_of_answers(answers.scored, self.dataset.gallery):
            self.metrics["answers_by_place"] = break_down(placings, seed=self._seed)
        if found := against_encoder(answers.scored, self.ranked, self.dataset.gallery, seed=self._seed):
            self.metrics["against_encoder"] = {level: asdict(pairs) for level, pairs in found.items()}
        if control:
            self.metrics["shuffled_photos"] = asdict(control.metrics) | {"num_same_street": num_same_street}

    def add_dialogues(self, dialogues: AnswerSet) -> None:
        """Questions that an earlier turn of their dialogue gives away, with the model's own earlier answers."""
        self.dialogues = dialogues
        said = [*(self.answers.scored if self.answers else []), *dialogues.scored]
        agreement = consistency(said, seed=self._seed)
        self.metrics["dialogues"] = asdict(dialogues.metrics) | {
            "consistency": {name: asdict(rate) for name, rate in agreement.items()}
        }

    def summary(self) -> str:
        """The evaluation in Markdown."""
        facts = {name: self.metrics[name] for name in ("split", "num_photos")}
        facts |= {"num_given_away": 0, "num_other_tasks": 0} | self.metrics.get("questions", {})
        facts["num_same_street"] = self.metrics.get("shuffled_photos", {}).get("num_same_street", 0)
        rankings = {ENCODER: self.metrics["ranking"]} if "ranking" in self.metrics else {}
        rankings |= self.metrics.get("baselines", {})
        answers, control = (part.metrics if part else None for part in (self.answers, self.control))
        dialogues = self.dialogues.metrics if self.dialogues else None
        elsewhere = self.metrics.get("elsewhere", {})
        against = self.metrics.get("against_encoder", {})
        return format_summary(answers, control, rankings, facts, self._agreement, dialogues, elsewhere, against)

    def report(self, title: str, *, has_photos: bool) -> str:
        """The evaluation as one HTML file; without photos where they are not to be shown."""
        files = {name: self.dataset.image_file(path) for name, path in self._image_path.items()} if has_photos else {}
        cases = collect_cases(self.truths, self.answers.scored if self.answers else [], self.ranked)
        return format_html(self.metrics, cases, self.dataset.gallery, files, title=title, seed=self._seed)

    def tables(self) -> dict[str, str]:
        """Files with one line per answer and per photo."""
        files = {PHOTOS: photos_csv(self.ranked, self.dataset.gallery)} if self.ranked else {}
        if self.answers:
            files[ANSWERS] = answers_csv(self.answers.predictions, self.answers.scored)
        return files

    def speed(self) -> dict[str, float]:
        """How fast this process was answered, in this run; nothing if it asked nothing."""
        if not self.num_asked:
            return {}
        rate = self.num_asked / max(self.answering_s, 1e-9)
        return {"num_asked": self.num_asked, "answering_s": round(self.answering_s, 2), "answers_per_s": round(rate, 2)}

    def billed(self, price_in: float, price_out: float) -> dict[str, float]:
        """Tokens that a server has counted, and what they cost at prices per million; nothing if none were counted."""
        lines = [line for part in self._all for line in part.predictions]
        counted = [line for line in lines if line.prompt_tokens is not None]
        if not counted:
            return {}
        asked = sum(line.prompt_tokens or 0 for line in counted)
        answered = sum(line.completion_tokens or 0 for line in counted)
        cost = (asked * price_in + answered * price_out) / 1e6
        return {"prompt_tokens": asked, "completion_tokens": answered, "cost": round(cost, 6)}

    def _ranking_metrics(self, ranked: Sequence[RankedPhoto]) -> dict[str, Any]:
        num_failed = self.metrics["num_photos"] - len(ranked)
        return ranking_metrics(ranked, num_failed=num_failed, seed=self._seed)
