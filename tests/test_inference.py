"""One predictor for chat and evaluation: one answer however it is asked for, and no folder of mixed parts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_ial.conversation import Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.data.images import load_photo
from llava_ial.data.llava import encode_dialogue
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.greedy import encode_prefixes, greedy_tokens, image_features, split_prompt
from llava_ial.models.llava_folder import load_llava_ial
from llava_ial.models.quantized import refuse_quantized_elsewhere
from llava_ial.prompts import PUBLISHED_QUESTION
from tests.stage2_runs import merge_here
from tests.tiny_models import TinyFolders

QUESTIONS = ("Where was this taken?", "Which street is this, and between which two others does the place lie?", "City?")


@pytest.fixture(scope="module")
def predictor(tiny_folders: TinyFolders) -> AddressPredictor:
    return AddressPredictor.from_pretrained(tiny_folders.llava)


@pytest.fixture(scope="module")
def dataset(tiny_folders: TinyFolders) -> IALDataset:
    return IALDataset(tiny_folders.data)


def _asked(dataset: IALDataset) -> tuple[list[list[Message]], list[Path], list[str]]:
    records = dataset.conversations("train")
    return (
        [record.messages[:1] for record in records],
        [dataset.image_file(record.image_path) for record in records],
        [record.messages[1].content for record in records],
    )


def test_the_tiny_model_says_what_it_learned(predictor, dataset) -> None:
    dialogues, photos, expected = _asked(dataset)
    answers = predictor.answer_batch(dialogues, photos)
    assert [answer.text for answer in answers] == expected
    assert {answer.finish_reason for answer in answers} == {"stop"}


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_answers_do_not_depend_on_the_batch(predictor, dataset, batch_size) -> None:
    """Untrained questions of different lengths, so that rows are padded and end at different times."""
    _, photos, _ = _asked(dataset)
    dialogues = [[user_question(QUESTIONS[i % 3])] for i in range(len(photos))]
    alone = [
        predictor.answer(messages, photo, max_new_tokens=40) for messages, photo in zip(dialogues, photos, strict=True)
    ]
    assert predictor.answer_batch(dialogues, photos, batch_size=batch_size, max_new_tokens=40) == alone
    assert len({answer.text for answer in alone}) > 1


def test_a_photo_and_the_beginning_of_the_prompt_are_read_once_for_all_its_questions(
    predictor, dataset, monkeypatch
) -> None:
    _, photos, _ = _asked(dataset)
    num_photos: list[int] = []

    def spy(model, prefix, features):
        num_photos.append(len(features))
        return encode_prefixes(model, prefix, features)

    monkeypatch.setattr("llava_ial.inference.encode_prefixes", spy)
    shown = [load_photo(photo) for photo in photos[:3]]
    asked = [shown[i % 3] for i in range(30)]
    dialogues = [[user_question(f"{QUESTIONS[i % 2]} {i}?")] for i in range(30)]
    together = predictor.answer_batch(dialogues, asked, batch_size=4, max_new_tokens=8)
    assert sum(num_photos) == 3
    assert together == [
        predictor.answer(messages, photo, max_new_tokens=8) for messages, photo in zip(dialogues, asked, strict=True)
    ]


def test_greedy_tokens_are_those_of_transformers(tiny_folders, dataset) -> None:
    llava = load_llava_ial(tiny_folders.llava)
    record = dataset.conversations("train")[0]
    pixels = llava.image_processor(load_photo(dataset.image_file(record.image_path)), return_tensors="pt")
    prompt = _prefix(llava.tokenizer, record.messages, llava.num_image_tokens)
    prefix, question = split_prompt(llava.model, prompt)
    prefixes = encode_prefixes(llava.model, prefix, image_features(llava.model, pixels["pixel_values"]))
    steps = greedy_tokens(llava.model, prefixes, [0], [question], max_new_tokens=60)
    ids = torch.tensor([prompt])
    theirs = llava.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels["pixel_values"], do_sample=False,
        max_new_tokens=60,
    )  # fmt: skip
    assert [int(step) for step in steps] == theirs[0, len(prompt) :].tolist()


def _prefix(tokenizer, messages, num_image_tokens) -> list[int]:
    """The ids that training saw before the last answer, found by its labels."""
    encoded = encode_dialogue(tokenizer, messages, num_image_tokens)
    last = len(encoded.labels) - next(i for i, label in enumerate(reversed(encoded.labels)) if label < 0)
    return encoded.input_ids[:last]


@pytest.mark.parametrize("num_messages", [2, 4])
def test_prompts_of_chat_and_evaluation_are_what_training_saw(
    predictor, tiny_folders, dataset, monkeypatch, num_messages
) -> None:
    llava = load_llava_ial(tiny_folders.llava)
    record = dataset.conversations("train")[0]
    messages, photo = record.messages[:num_messages], dataset.image_file(record.image_path)
    asked: list[list[int]] = []

    begun: list[list[int]] = []

    def spy_prefix(model, prefix, photos):
        begun.append(list(prefix))
        return encode_prefixes(model, prefix, photos)

    def spy(model, prefixes, rows, questions, **options):
        asked.extend([*begun[-1], *question] for question in questions)
        return greedy_tokens(model, prefixes, rows, questions, **options)

    monkeypatch.setattr("llava_ial.inference.encode_prefixes", spy_prefix)
    monkeypatch.setattr("llava_ial.inference.greedy_tokens", spy)
    predictor.answer_batch([messages[:-1]], [photo])
    list(predictor.stream(messages[:-1], load_photo(photo)))
    assert asked == [_prefix(llava.tokenizer, messages, llava.num_image_tokens)] * 2


def test_a_streamed_answer_is_the_answer(predictor, dataset) -> None:
    dialogues, photos, _ = _asked(dataset)
    pieces = list(predictor.stream(dialogues[0], photos[0]))
    assert len(pieces) > 5
    assert "".join(pieces) == predictor.answer(dialogues[0], photos[0]).text


def test_a_stream_stops_when_nobody_reads(predictor, dataset, monkeypatch) -> None:
    dialogues, photos, _ = _asked(dataset)
    steps = []
    forward = type(predictor._llava.model).forward
    monkeypatch.setattr(type(predictor._llava.model), "forward", lambda *a, **k: steps.append(1) or forward(*a, **k))
    stream = predictor.stream(dialogues[0], photos[0])
    next(stream)
    stream.close()
    assert len(steps) <= 2


def test_an_answer_may_be_cut(predictor, dataset) -> None:
    dialogues, photos, expected = _asked(dataset)
    answer = predictor.answer(dialogues[0], photos[0], max_new_tokens=4)
    assert answer.finish_reason == "length"
    assert expected[0].startswith(answer.text)
    assert "".join(predictor.stream(dialogues[0], photos[0], max_new_tokens=4)) == answer.text


def test_long_dialogues_lose_their_earliest_questions(predictor, dataset) -> None:
    _, photos, _ = _asked(dataset)
    turns = [
        user_question("Where?"), Message("assistant", "Here. " * 300),
        Message("user", "And now?"), Message("assistant", "There. " * 300),
        Message("user", "Where was this taken?"),
    ]  # fmt: skip
    assert predictor.answer(turns, photos[0], max_new_tokens=3).text
    with pytest.raises(UserError, match="too long"):
        predictor.answer([user_question("why " * 3000)], photos[0])


def test_a_dialogue_ends_with_a_question(predictor, dataset) -> None:
    dialogues, photos, _ = _asked(dataset)
    with pytest.raises(UserError, match="ends with a question"):
        predictor.answer([*dialogues[0], Message("assistant", "Here.")], photos[0])


def test_candidates_are_the_softmax_of_the_cosines(predictor, tiny_folders, dataset) -> None:
    _, photos, _ = _asked(dataset)
    probabilities = predictor.probabilities(photos)
    assert probabilities.shape == (len(photos), len(dataset.gallery))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(photos)))
    for row, candidates in zip(probabilities, predictor.locate_batch(photos, top_k=3), strict=True):
        best = sorted(range(len(row)), key=lambda c: -row[c].item())[:3]
        assert [c.sub_street_id for c in candidates] == [dataset.gallery[i].sub_street_id for i in best]
        assert [c.probability for c in candidates] == [row[i].item() for i in best]
    assert predictor.locate(load_photo(photos[0]), top_k=3) == predictor.locate(photos[0], top_k=3)
    assert len(predictor.locate(photos[0], top_k=99)) == len(dataset.gallery)


def test_a_stage_1_folder_locates_and_does_not_talk(predictor, tiny_folders, dataset) -> None:
    dialogues, photos, _ = _asked(dataset)
    encoder = AddressPredictor.from_pretrained(tiny_folders.clip)
    assert not encoder.can_answer
    assert encoder.locate(photos[0]) == predictor.locate(photos[0])
    with pytest.raises(UserError, match="stage 1"):
        encoder.answer(dialogues[0], photos[0])


def test_a_photo_upside_down_by_exif_is_turned(predictor, dataset, tmp_path) -> None:
    _, photos, _ = _asked(dataset)
    upright = load_photo(photos[0])
    exif = Image.Exif()
    exif[0x0112] = 3
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert predictor.locate(turned) == predictor.locate(upright)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("address_clip/gallery/part-00000.parquet", "swap", "gallery is not the one"),
        ("address_clip/model.safetensors", "swap", "base model .*address_clip: "),
        ("address_clip/gallery_embeddings.safetensors", "swap", "unreadable"),
        ("adapter_model.safetensors", "swap", "adapter is not the one"),
        ("address_clip/manifest.json", "tower_hash", "holds another encoder|vision tower is not the one"),
        ("manifest.json", "tower_hash", "tower"),
        ("manifest.json", "chat_template_hash", "prompt template is not the one"),
        ("manifest.json", "base_hash", "base model is not the one"),
        ("manifest.json", "kind", "expected 'llava_ial' or 'llava_ial_merged' or 'address_clip'"),
    ],
)
def test_a_folder_with_a_swapped_part_is_refused(tiny_folders, tmp_path, part, change, message) -> None:
    folder = tmp_path / "swapped"
    shutil.copytree(tiny_folders.llava, folder)
    path = folder / part
    if change == "swap":
        content = bytearray(path.read_bytes())
        content[8:40] = bytes(32)
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {change: "0" * 64}))
    with pytest.raises(UserError, match=message):
        AddressPredictor.from_pretrained(folder, base=str(tiny_folders.llava.parent / "base_llava"))


def test_a_folder_that_is_not_there(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        AddressPredictor.from_pretrained(tmp_path / "nowhere")


def test_several_photos_of_one_place_vote_on_every_word(predictor, dataset) -> None:
    """Copies say what one says; of two places the outvoted one loses, in whatever order they come."""
    a, b = (dataset.image_file(record.image_path) for record in dataset.conversations("train")[:3:2])
    question = [user_question(PUBLISHED_QUESTION)]
    alone = [predictor.answer(question, photo).text for photo in (a, b)]
    assert alone[0] != alone[1]
    assert "".join(predictor.stream(question, a, a)) == alone[0]
    assert {"".join(predictor.stream(question, *views)) for views in ((a, b, b), (b, a, b), (b, b, a))} == {alone[1]}


def test_texts_are_compared_with_the_addresses(predictor) -> None:
    cosines = predictor.text_cosines([record.verbose for record in predictor.gallery])
    assert torch.allclose(cosines.diagonal(), torch.ones(len(predictor.gallery)), atol=1e-5)


def test_any_texts_can_be_candidates_and_the_gallerys_own_give_the_same_shares(tiny_folders) -> None:
    predictor = AddressPredictor.from_pretrained(tiny_folders.clip)
    dataset = IALDataset(tiny_folders.data)
    photo = dataset.image_file(dataset.samples("train")[0].photo.image_path)
    among = predictor.locate_among(photo, [record.verbose for record in predictor.gallery])
    expected = predictor.probabilities([photo])[0].sort(descending=True)
    assert [text for text, _ in among] == [predictor.gallery[i].verbose for i in expected.indices.tolist()]
    assert [share for _, share in among] == pytest.approx(expected.values.tolist(), abs=1e-5)
    streets = predictor.locate_among(photo, ["Amber Street", "somewhere in Birch Avenue"])
    assert sum(share for _, share in streets) == pytest.approx(1)
    assert predictor.locate(photo, candidates=["Amber Street", "somewhere in Birch Avenue"]) == streets
    assert predictor.locate(photo, 1, candidates=[record.verbose for record in predictor.gallery]) == among[:1]
    with pytest.raises(UserError, match="none to choose from"):
        predictor.locate_among(photo, [])


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_model_at_few_bits_answers_with_its_adapter_beside_it(tiny_folders, tmp_path, dataset, how) -> None:
    """Only the language model is smaller: tower and projector stay as they were trained, and most words with them."""
    merged = merge_here(tiny_folders.llava, tmp_path / "merged", device="cpu")
    for folder in (tiny_folders.llava, merged):
        few = AddressPredictor.from_pretrained(folder, quantize=how)
        refuse_quantized_elsewhere(few._require_llava().model)
        record = dataset.conversations("train")[0]
        answer = few.answer(record.messages[:1], dataset.image_file(record.image_path))
        assert answer.text.startswith("The address of this photo might be ")
