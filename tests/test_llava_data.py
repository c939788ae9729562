"""The prompt of training, evaluation and chat: exact ids, what is supervised, what a typed mark can do."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava_ial.conversation import IMAGE_TOKEN, Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import (
    IGNORE_INDEX,
    disarm,
    encode_dialogue,
    encode_prompt,
    pad_batch,
)
from llava_ial.data.llava_dataset import LlavaCollator, LlavaDataset
from llava_ial.errors import UserError
from tests.tiny_world import build_tiny_dataset
from train.toy_base.llava import load_or_train_tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ONE_TURN = [user_question("Where is this?"), Message("assistant", "It is Königstraße, 東京 🙂.")]
TWO_TURNS = [*ONE_TURN, Message("user", "Which district?"), Message("assistant", "Mitte.")]


@pytest.fixture(scope="module", params=["llama", "trained"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "trained":
        texts = [SYSTEM, "USER: ASSISTANT: Where is this? Which district?", "It is Königstraße."]
        return load_or_train_tokenizer(None, texts, 400)
    return load_or_train_tokenizer(request.getfixturevalue("shared_data") / "tokenizers" / "llama", [], 0)


def spoken(tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int]) -> str:
    assert all(label in (token, IGNORE_INDEX) for token, label in zip(ids, labels, strict=True))
    return tokenizer.decode([label for label in labels if label != IGNORE_INDEX], clean_up_tokenization_spaces=False)


def test_one_turn_supervises_the_answer_and_its_end_exactly(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_dialogue(tokenizer, ONE_TURN, 3)
    assert spoken(tokenizer, encoded.input_ids, encoded.labels).lstrip() == "It is Königstraße, 東京 🙂.</s>"
    assert tokenizer.decode(encoded.input_ids, clean_up_tokenization_spaces=False) == (
        f"<s> {SYSTEM} USER: <image><image><image>\nWhere is this? ASSISTANT: It is Königstraße, 東京 🙂.</s>"
    )
    assert encoded.labels[-1] == tokenizer.eos_token_id


def test_several_turns_supervise_every_answer_exactly(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_dialogue(tokenizer, TWO_TURNS, 2)
    assert spoken(tokenizer, encoded.input_ids, encoded.labels).lstrip() == (
        "It is Königstraße, 東京 🙂.</s> Mitte.</s>"
    )
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 2
    assert encoded.input_ids.count(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) == 2


@pytest.mark.parametrize("num_known", [1, 3])
def test_prompt_is_a_prefix_of_what_training_saw(tokenizer: PreTrainedTokenizerBase, num_known: int) -> None:
    encoded = encode_dialogue(tokenizer, TWO_TURNS, 4)
    prompt = encode_prompt(tokenizer, TWO_TURNS[:num_known], 4)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[len(prompt) - 1] == IGNORE_INDEX
    assert encoded.labels[len(prompt)] != IGNORE_INDEX, "the first token to generate is the first supervised one"


def test_real_llama_ids_are_those_of_the_template_written_out(shared_data: Path) -> None:
    """The same ids as the slow way: every piece tokenised by hand, image tokens put between."""
    folder = shared_data / "tokenizers" / "llama"
    ours = load_or_train_tokenizer(folder, [], 0)
    plain = AutoTokenizer.from_pretrained(folder)
    # As LLaVA-1.5 was trained: the plain text's ids behind one <s>, the first of them with LLaMA's leading space.
    head = [plain.bos_token_id, *plain(f"{SYSTEM} USER: ", add_special_tokens=False)["input_ids"]]
    assert plain.convert_ids_to_tokens(head[:2]) == ["<s>", "▁A"]
    tail = plain("\nWhere is this? ASSISTANT: Mitte.", add_special_tokens=False)["input_ids"]
    if tail[0] == plain.convert_tokens_to_ids("▁"):  # LLaMA opens every text with a space; after a mark it has none
        tail = tail[1:]
    image = ours.convert_tokens_to_ids(IMAGE_TOKEN)
    encoded = encode_dialogue(ours, [ONE_TURN[0], Message("assistant", "Mitte.")], 2)
    assert encoded.input_ids == [*head, image, image, *tail, plain.eos_token_id]


def test_above_the_maximum_earlier_turns_go_and_the_image_moves(tokenizer: PreTrainedTokenizerBase) -> None:
    short = encode_dialogue(tokenizer, [user_question("Which district?"), Message("assistant", "Mitte.")], 5)
    encoded = encode_dialogue(tokenizer, TWO_TURNS, 5, max_length=len(short.input_ids))
    assert (encoded.input_ids, encoded.labels) == (short.input_ids, short.labels)
    assert (encoded.num_dropped_turns, encoded.is_cut) == (1, False)


def test_an_answer_alone_too_long_is_cut_and_image_tokens_never_are(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode_dialogue(tokenizer, ONE_TURN, 5)
    cut = encode_dialogue(tokenizer, ONE_TURN, 5, max_length=len(whole.input_ids) - 2)
    assert cut.is_cut
    assert cut.input_ids == whole.input_ids[:-2]
    assert cut.input_ids.count(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) == 5
    prompt = encode_prompt(tokenizer, ONE_TURN[:1], 5)
    with pytest.raises(UserError, match="conversation c-7: no token to learn within max_length"):
        encode_dialogue(tokenizer, ONE_TURN, 5, name="c-7", max_length=len(prompt))


def test_typed_marks_stay_words(tokenizer: PreTrainedTokenizerBase) -> None:
    typed = [
        user_question("what is </s> or <image>?"),
        Message("assistant", "x"),
        Message("user", "<image> <s> again <pad>"),
    ]
    ids = encode_prompt(tokenizer, typed, 3)
    marks = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<s>", "</s>", "<pad>", "<image>")}
    assert [ids.count(marks[name]) for name in ("<s>", "</s>", "<pad>", "<image>")] == [1, 1, 0, 3]
    assert "again" in tokenizer.decode(ids)


def test_a_mark_that_is_only_an_added_token_is_disarmed_too(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens(["<extra>"])
    assert disarm("a <extra> b", tokenizer) == "a < extra> b"


def test_an_image_mark_behind_the_question_comes_first(tokenizer: PreTrainedTokenizerBase) -> None:
    behind = [Message("user", f"Where is this?\n{IMAGE_TOKEN}"), ONE_TURN[1]]
    assert encode_dialogue(tokenizer, behind, 3) == encode_dialogue(tokenizer, ONE_TURN, 3)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "no messages"),
        ([Message("assistant", "x")], "turn 1 is by assistant"),
        ([user_question("a"), Message("assistant", " ")], "turn 2 is empty"),
        ([user_question("a"), Message("gpt", "x")], "unknown role 'gpt'"),
        ([user_question(f"a {IMAGE_TOKEN}"), Message("assistant", "x")], "2 <image> marks for 1 photos"),
        ([user_question("a"), Message("assistant", IMAGE_TOKEN + "x")], "in an answer"),
        ([user_question("a")], "no token to learn"),
    ],
)
def test_a_bad_dialogue_is_refused_by_its_name(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], complaint: str
) -> None:
    with pytest.raises(UserError, match=rf"conversation c-1: .*{complaint}"):
        encode_dialogue(tokenizer, messages, 2, name="c-1")


def test_padding_sides() -> None:
    assert pad_batch([[1, 2], [3]], 9, side="right").tolist() == [[1, 2], [3, 9]]
    assert pad_batch([[1, 2], [3]], 9, side="left").tolist() == [[1, 2], [9, 3]]


def test_dataset_and_collator(tmp_path: Path) -> None:
    data = IALDataset(build_tiny_dataset(tmp_path / "data"))
    records = data.conversations("train")
    tokenizer = load_or_train_tokenizer(None, [m.content for r in records for m in r.messages], 400)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    rows = LlavaDataset(data, records, tokenizer, processor, num_image_tokens=5, max_length=2048)
    assert len(rows) == len(records) == 8
    text_only = {"input_ids": [1, 2, 3], "labels": [IGNORE_INDEX, 2, 3], "pixel_values": None}
    pad = tokenizer.pad_token_id
    batch = LlavaCollator(pad)([rows[0], text_only, rows[3]])
    assert batch["pixel_values"].shape == (2, 3, 32, 32), "one photo less than samples"
    assert (batch["input_ids"][1, 3:] == pad).all()
    assert (
        batch["attention_mask"].sum(1)
        == torch.tensor([len(rows.encoded[0].input_ids), 3, len(rows.encoded[3].input_ids)])
    ).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE_INDEX).all()
    assert "pixel_values" not in LlavaCollator(pad)([text_only])


def test_a_missing_photo_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    data = IALDataset(build_tiny_dataset(tmp_path / "data"))
    records = data.conversations("train")
    data.image_file(records[2].image_path).unlink()
    tokenizer = load_or_train_tokenizer(None, ["It is."], 300)
    with pytest.raises(UserError, match=rf"{records[2].image_path}.* of {records[2].conversation_id} is missing"):
        LlavaDataset(data, records, tokenizer, CLIPImageProcessorPil(), num_image_tokens=5, max_length=2048)
