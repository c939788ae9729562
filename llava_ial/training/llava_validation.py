"""What is measured of LLaVA-IAL while it trains: loss and generated answers on photos that it does not train on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from llava_ial import distributed
from llava_ial.data.apart import as_seen, drawn_apart
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import encode_prompt
from llava_ial.data.llava_dataset import LlavaCollator, LlavaDataset
from llava_ial.evaluation.metrics import Truth, score_answers
from llava_ial.evaluation.questions import Question, load_questions
from llava_ial.gazetteer import Gazetteer
from llava_ial.hints import with_hint
from llava_ial.models.greedy import encode_prefixes, end_token, greedy_tokens, image_features, split_prompt
from llava_ial.models.learned_logits import learned_alone
from llava_ial.prompts import WHERE
from llava_ial.records import PredictionRecord

MAX_NEW_TOKENS = 96
JUDGED_BY = "street_accuracy"


@dataclass(frozen=True)
class Validation:
    """A fixed sample of photos: their dialogues for the loss, a question "where" about each for the answers.

    Attributes:
        dialogues: All of the photos' dialogues.
        questions: One a photo.
        rows: For each question the first dialogue of its photo.
        truths: True addresses by photo.
        gazetteer: Of all candidate addresses.
        hints: Of the photos; none without an entry.
    """

    dialogues: LlavaDataset
    questions: list[Question]
    rows: list[int]
    truths: dict[str, Truth]
    gazetteer: Gazetteer
    hints: Mapping[str, str]


def build_validation(
    dataset: IALDataset,
    split: str,
    num_photos: int,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    *,
    hints: Mapping[str, str],
    questions_apart: float,
    seed: int,
    **encoding: Any,
) -> Validation:
    """The sample: ``num_photos`` of a split that are asked where they were taken, evenly spread over it.

    Args:
        dataset: Whose.
        split: Name.
        num_photos: At most so many.
        tokenizer: Of the base.
        image_processor: Of the tower.
        hints: Of the split's photos, by ``image_id``.
        questions_apart: Share of the dialogues whose questions do not see each other, as in training.
        seed: Of their draw.
        encoding: Further arguments of ``LlavaDataset``.

    Raises:
        UserError: No such split, no such question in it, or a dialogue that is none.
    """
    first = {question.image_id: question for question in reversed(load_questions(dataset, split, (WHERE,)).asked)}
    spread = list(first)[:: -(-len(first) // num_photos)]
    chosen = {image_id: first[image_id] for image_id in spread}
    records = [record for record in dataset.conversations(split) if record.image_id in chosen]
    place = {record.image_id: row for row, record in reversed(list(enumerate(records)))}
    truths = {
        sample.photo.image_id: Truth(sample.address.address, sample.photo.panorama)
        for sample in dataset.samples(split)
        if sample.photo.image_id in chosen
    }
    return Validation(
        LlavaDataset(
            dataset,
            records,
            tokenizer,
            image_processor,
            hints=[hints.get(record.image_id, "") for record in records],
            apart=drawn_apart(records, questions_apart, seed),
            **encoding,
        ),
        list(chosen.values()),
        [place[image_id] for image_id in chosen],
        truths,
        Gazetteer([record.address for record in dataset.gallery]),
        hints,
    )


@torch.no_grad()
def dialogue_loss(
    model: Any, dialogues: LlavaDataset, collator: LlavaCollator, batch_size: int, *, everyone: bool
) -> tuple[float, float]:
    """Mean loss of the supervised tokens of all dialogues, and the share of them that the model finds likeliest.

    Args:
        model: In evaluation mode; called with whole batches.
        dialogues: All of them count alike, token by token.
        collator: Of the training.
        batch_size: Dialogues at a time.
        everyone: Each process computes everything, as ZeRO-3 needs; else each its share.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for rows in _own_parts(len(dialogues), batch_size, everyone=everyone):
        batch = {name: value.to(model.device) for name, value in collator([dialogues[row] for row in rows]).items()}
        chosen = learned_alone(as_seen(batch))
        labels = chosen.pop("shift_labels")
        logits = model(**{name: value for name, value in chosen.items() if name != "labels"}).logits.float()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        hits = (logits.argmax(dim=-1) == labels).sum()
        sums += torch.tensor([float(loss), float(hits), len(labels)], dtype=torch.float64)
    total = sums if everyone else torch.stack(distributed.gather_objects(sums)).sum(dim=0)
    return float(total[0] / total[2]), float(total[1] / total[2])


def answer_scores(
    model: LlavaForConditionalGeneration,
    validation: Validation,
    tokenizer: PreTrainedTokenizerBase,
    num_image_tokens: int,
    batch_size: int,
    *,
    everyone: bool,
) -> dict[str, float]:
    """Share of the photos whose street, and whose piece of street, the generated answer names.

    Args:
        model: In evaluation mode, with its adapter.
        validation: The photos.
        tokenizer: Of the base.
        num_image_tokens: Of a photo.
        batch_size: Questions at a time.
        everyone: As of ``dialogue_loss``.
    """
    found: list[PredictionRecord] = []
    for rows in _own_parts(len(validation.questions), batch_size, everyone=everyone):
        questions = [validation.questions[row] for row in rows]
        dialogues = [with_hint(q.messages, validation.hints.get(q.image_id, "")) for q in questions]
        prompts = [encode_prompt(tokenizer, dialogue, num_image_tokens) for dialogue in dialogues]
        pixels = torch.stack([validation.dialogues[validation.rows[row]]["pixel_values"] for row in rows])
        answers = _answers(model, tokenizer, prompts, pixels)
        found += [_as_prediction(question, answer) for question, answer in zip(questions, answers, strict=True)]
    everything = found if everyone else [record for part in distributed.gather_objects(found) for record in part]
    scored = score_answers(everything, validation.truths, validation.gazetteer)
    names = (JUDGED_BY, "sub_street_accuracy", "unparsed_rate")
    return {name: sum(answer.scores[name] for answer in scored) / len(scored) for name in names}


def best_so_far(log: Path) -> tuple[dict[str, float], int]:
    """The best measurement that a training's log holds, empty without one, and how many came after it.

    A log is cut to the checkpoint that a run resumes from, so a resumed run finds what the first one knew.
    """
    best: dict[str, float] = {}
    num_since = 0
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    for values in map(json.loads, lines):
        if JUDGED_BY not in values:
            continue
        if is_better(values, best):
            best, num_since = values, 0
        else:
            num_since += 1
    return best, num_since


def is_better(found: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """True for more streets named rightly, or as many at a lower loss."""
    return not best or (found[JUDGED_BY], -found["loss"]) > (best[JUDGED_BY], -best["loss"])


def _answers(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    pixels: torch.Tensor,
) -> list[str]:
    prefix = split_prompt(model, prompts[0])[0]
    prefixes = encode_prefixes(model, prefix, image_features(model, pixels))
    questions = [split_prompt(model, prompt)[1] for prompt in prompts]
    steps = list(greedy_tokens(model, prefixes, range(len(prompts)), questions, max_new_tokens=MAX_NEW_TOKENS))
    end = end_token(model)
    answers = []
    for ids in torch.stack(steps, dim=1).tolist():
        spoken = ids[: ids.index(end)] if end in ids else ids
        answers.append(tokenizer.decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip())
    return answers


def _as_prediction(question: Question, answer: str) -> PredictionRecord:
    return PredictionRecord(
        question.question_id, question.image_id, question.task, question.text, question.expected, answer, "stop"
    )


def _own_parts(num_rows: int, size: int, *, everyone: bool) -> list[range]:
    """Batches of rows: all of them, or those of this process.

    ZeRO-3 gathers weights from all processes for every step of every module, so all must take the same steps.
    """
    parts = [range(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    return parts if everyone else parts[distributed.rank() :: distributed.world_size()]
