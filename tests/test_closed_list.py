"""Answers from a closed list: a tree in one pass against one sentence at a time."""

import json

import pytest
import torch

from llava_ial.conversation import Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.data.images import load_photo
from llava_ial.data.llava import IGNORE_INDEX, encode_dialogue, encode_prompt
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models import closed_list
from llava_ial.models.closed_list import TokenTree
from llava_ial.models.llava_folder import load_llava_ial
from llava_ial.prompts import WHERE, format_answer
from serve.evaluate import EvaluateConfig, evaluate
from tests.tiny_models import TinyFolders

QUESTION = [user_question("Where am I standing?")]


@pytest.fixture(scope="module")
def dataset(tiny_folders: TinyFolders) -> IALDataset:
    return IALDataset(tiny_folders.data)


@pytest.fixture(scope="module")
def texts(dataset: IALDataset) -> list[str]:
    return [format_answer(WHERE, record.address) for record in dataset.gallery] + ["Yes.", "The city is Tinytown."]


@pytest.fixture(scope="module")
def logits_of(tiny_folders: TinyFolders, dataset: IALDataset, texts: list[str]) -> list[tuple[list[int], torch.Tensor]]:
    """For each sentence its tokens and what the model expects before each of them, one whole pass per sentence."""
    llava = load_llava_ial(tiny_folders.llava)
    photo = load_photo(dataset.image_file(dataset.conversations("train")[0].image_path))
    pixels = llava.image_processor(photo, return_tensors="pt")["pixel_values"]
    found = []
    for text in texts:
        encoded = encode_dialogue(llava.tokenizer, [*QUESTION, Message("assistant", text)], llava.num_image_tokens)
        start = len(encode_prompt(llava.tokenizer, QUESTION, llava.num_image_tokens))
        ids = torch.tensor([encoded.input_ids])
        with torch.no_grad():
            logits = llava.model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits[0]
        assert all(label != IGNORE_INDEX for label in encoded.labels[start:])
        found.append((encoded.input_ids[start:], logits[start - 1 : -1].double()))
    return found


def _held_to_the_list(logits_of, permitted: list[list[int]]) -> torch.Tensor:
    """Product over tokens of the share among those tokens that go on to some sentence of the list."""
    scores = []
    for tokens, logits in logits_of:
        total = 0.0
        for i, token in enumerate(tokens):
            allowed = sorted({other[i] for other in permitted if other[:i] == tokens[:i]})
            total += float(logits[i][allowed].log_softmax(dim=0)[allowed.index(token)])
        scores.append(total)
    return torch.tensor(scores)


@pytest.mark.parametrize("tokens_at_a_time", [1024, 40, 1])
def test_a_tree_in_one_pass_is_one_sentence_at_a_time(
    tiny_folders, dataset, texts, logits_of, monkeypatch, tokens_at_a_time
) -> None:
    monkeypatch.setattr(closed_list, "_TOKENS_AT_A_TIME", tokens_at_a_time)
    predictor = AddressPredictor.from_pretrained(tiny_folders.llava)
    photo = load_photo(dataset.image_file(dataset.conversations("train")[0].image_path))
    (scores,) = predictor.choose_batch([QUESTION], [photo], [texts])
    likelihood = torch.tensor(
        [float(logits.log_softmax(dim=1)[range(len(tokens)), tokens].sum()) for tokens, logits in logits_of]
    )
    torch.testing.assert_close(scores.ranked, likelihood.log_softmax(dim=0), atol=2e-3, rtol=1e-3)
    held = _held_to_the_list(logits_of, [tokens for tokens, _ in logits_of])
    assert float(held.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(scores.constrained, held, atol=2e-3, rtol=1e-3)

    at, step = [tokens for tokens, _ in logits_of], 0
    while len(at) > 1 or step < len(at[0]):  # the walk, in words: always the likeliest permitted token
        logits = next(logits for tokens, logits in logits_of if tokens[:step] == at[0][:step] and len(tokens) > step)
        best = max({tokens[step] for tokens in at}, key=lambda token: float(logits[step][token]))
        at = [tokens for tokens in at if tokens[step] == best]
        step += 1
    assert logits_of[scores.walked][0] == at[0]


def test_sentences_that_cannot_be_told_apart_are_refused() -> None:
    tree = TokenTree([[1, 2, 9], [1, 3, 9], [4, 9]])
    assert (len(tree.tokens), tree.depths) == (7, [0, 1, 2, 1, 2, 0, 1])
    for sentences in ([[1, 2], [1, 2]], [[1], [1, 2]]):
        with pytest.raises(ValueError, match="two sentences"):
            TokenTree(sentences)


@pytest.mark.parametrize("mode", ["ranked", "constrained"])
def test_an_evaluation_with_a_closed_list(tiny_folders, tmp_path, mode) -> None:
    config = EvaluateConfig(tiny_folders.data, tmp_path / "out", str(tiny_folders.llava), split="train", answers=mode)
    metrics = evaluate(config)
    rates = metrics["answers"]["rates"]
    assert rates["sub_street_accuracy"]["value"] == 1.0
    assert rates["nonexistent_address_rate"]["value"] == rates["unparsed_rate"]["value"] == 0.0
    assert metrics["answer_reliability"]["expected_error"] < 0.2
    assert metrics["dialogues"]["rates"]["neighbourhood_question_accuracy"]["value"] == 1.0
    run = json.loads((config.output / "run.json").read_text())
    assert run["num_asked"] == 24  # eight alone, eight with shuffled photos, eight in their dialogues
    assert run["answers_per_s"] == pytest.approx(24 / run["answering_s"], rel=0.02)
    shuffled = [json.loads(line) for line in (config.output / "predictions_shuffled.jsonl").read_text().splitlines()]
    for row in shuffled:
        assert row["answer"] == row["candidates"][0]
        assert len(row["candidates"]) == len(set(row["candidates"])) == 5
        assert 0 < sum(row["probabilities"]) <= 1.00001


def test_a_closed_list_needs_a_model_that_can_be_read(tiny_folders, tmp_path) -> None:
    for change, message in (
        ({"answers": "guessed"}, "'guessed' is unknown"),
        ({"answers": "ranked", "server": "http://localhost/v1"}, "needs a model whose probabilities"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(EvaluateConfig(tiny_folders.data, tmp_path / "out", "m", **change))
