"""Visitors at the same time: one batch, each his own answer, and what goes wrong for one goes wrong for him alone."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from llava_ial.conversation import Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.inference import AddressPredictor, Asked
from llava_ial.models.running_batch import RunningBatch
from llava_ial.prompts import PUBLISHED_QUESTION
from serve import texts, together
from serve.page import ChatPage, PageOptions
from serve.talk import Talk, Talker
from serve.together import Together
from serve.turns import Visitors, in_turn
from tests.test_chat import photos, predictor
from tests.test_chat_page import NO_UPLOADS

__all__ = ["photos", "predictor"]

QUESTION = [user_question(PUBLISHED_QUESTION)]
Dialogue = tuple[list[Message], list[Path]]


@pytest.fixture
def dialogues(tiny_folders) -> list[Dialogue]:
    """Of different lengths, about different photos, and one about three photos of a place."""
    dataset = IALDataset(tiny_folders.data)
    asked: list[Dialogue] = []
    for record in dataset.conversations("train"):
        photo = dataset.image_file(record.image_path)
        asked += [(record.messages[:1], [photo]), (record.messages[:3], [photo])]
    a, b = asked[0][1][0], asked[2][1][0]
    return [*asked[:8], (QUESTION, [a, b, b])]


def _alone(predictor: AddressPredictor, dialogues: Sequence[Dialogue]) -> list[str]:
    return ["".join(predictor.stream(messages, *shown)) for messages, shown in dialogues]


def _at_once(answers: Together, dialogues: Sequence[Dialogue]) -> list[str | Exception]:
    """What each of several visitors is told, all in threads of their own."""
    told: dict[int, str | Exception] = {}
    gate = threading.Barrier(len(dialogues))

    def visit(number: int) -> None:
        messages, shown = dialogues[number]
        gate.wait()
        try:
            told[number] = "".join(answers.stream(messages, *shown))
        except Exception as error:
            told[number] = error

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(len(dialogues))]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(timeout=60)
    return [told[number] for number in range(len(dialogues))]


@pytest.fixture
def at_leisure(monkeypatch) -> Iterator[list[int]]:
    """Steps slow enough to be watched; the rows of each."""
    rows: list[int] = []
    step = RunningBatch.step

    def slow(self: RunningBatch) -> torch.Tensor:
        rows.append(len(self))
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(RunningBatch, "step", slow)
    monkeypatch.setattr(together, "PACE_S", 0.005)
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_whoever_comes_and_goes_every_answer_is_what_it_is_alone(predictor, dialogues, seed) -> None:
    """Joined at any step, in any company, left at any step: the tokens are those of the answer alone."""
    draw = random.Random(seed)
    asked = [predictor.prepare(messages, *shown) for messages, shown in dialogues]
    waiting = draw.sample(range(len(asked)), len(asked))
    batch, inside = predictor.open_batch(), list[int]()
    said: dict[int, list[int]] = {number: [] for number in waiting}
    cut = {number: draw.randrange(1, 12) for number in draw.sample(waiting, 3)}  # these go away early
    while waiting or inside:
        newcomers = [waiting.pop() for _ in range(min(len(waiting), draw.choice([0, 0, 1, 2])))]
        tokens = predictor.join(batch, [asked[n] for n in newcomers]).tolist() if newcomers else []
        inside += newcomers
        if not newcomers and inside:
            newcomers, tokens = inside, batch.step().tolist()
        for number, token in zip(newcomers, tokens, strict=True):
            said[number].append(token)
        staying = [i for i, n in enumerate(inside) if said[n][-1] != batch.end and len(said[n]) < cut.get(n, 99)]
        if len(staying) < len(inside):
            batch.keep(staying)
            inside = [inside[i] for i in staying]
        assert len(batch) == sum(len(dialogues[n][1]) for n in inside)
    for number, expected in enumerate(_alone(predictor, dialogues)):
        words = "".join(predictor.in_words([said[number]]))
        assert expected.startswith(words) if number in cut else words == expected


def test_visitors_at_once_share_the_steps_and_get_their_own_answers(predictor, dialogues, at_leisure) -> None:
    expected = _alone(predictor, dialogues)
    at_leisure.clear()
    assert _at_once(Together(predictor, batch_size=8), dialogues) == expected
    assert max(at_leisure) == 8
    assert len(at_leisure) < sum(at_leisure) / 2.5, "rows, a token each"


def test_one_at_a_time_is_a_batch_of_one(predictor, dialogues, at_leisure) -> None:
    expected = _alone(predictor, dialogues[:3])
    assert _at_once(Together(predictor, batch_size=1), dialogues[:3]) == expected
    assert set(at_leisure) == {1}


def test_whoever_goes_away_leaves_the_batch_and_the_others_go_on(predictor, dialogues, at_leisure) -> None:
    answers = Together(predictor, batch_size=8)
    (messages, shown), other = dialogues[0], dialogues[2]
    leaving = answers.stream(messages, *shown)
    assert next(leaving)
    staying = answers.stream(other[0], *other[1])
    first = next(staying)
    assert at_leisure[-1] == 2
    leaving.close()
    time.sleep(0.1)
    assert at_leisure[-1] == 1
    assert [first + "".join(staying)] == _alone(predictor, [other])
    num_steps = len(at_leisure)
    time.sleep(0.1)
    assert len(at_leisure) == num_steps, "nobody waits: nothing is generated"


def test_memory_for_some_but_not_for_all(predictor, dialogues, monkeypatch) -> None:
    """A step of more than two rows fails: everybody is answered all the same, from where he was."""
    step = RunningBatch.step
    failures = []

    def small(self: RunningBatch) -> torch.Tensor:
        if len(self) > 2:
            failures.append(len(self))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self)

    expected = _alone(predictor, dialogues[:8])
    monkeypatch.setattr(RunningBatch, "step", small)
    assert _at_once(Together(predictor, batch_size=8), dialogues[:8]) == expected
    assert failures


def test_what_goes_wrong_with_one_question_goes_wrong_for_its_visitor_alone(predictor, dialogues, monkeypatch) -> None:
    poison = predictor.prepare(*_flat(dialogues[3])).prompt
    join = AddressPredictor.join

    def failing(self: AddressPredictor, batch: RunningBatch, newcomers: Sequence[Asked]) -> torch.Tensor:
        if any(asked.prompt[: len(poison)] == poison for asked in newcomers):
            raise RuntimeError("a kernel failed")
        return join(self, batch, newcomers)

    expected: list[str | Exception] = list(_alone(predictor, dialogues[:6]))
    monkeypatch.setattr(AddressPredictor, "join", failing)
    answers = Together(predictor, batch_size=8)
    told = _at_once(answers, dialogues[:6])
    error, told[3] = told[3], expected[3]
    assert told == expected
    assert isinstance(error, RuntimeError)
    assert str(error) == "a kernel failed"
    assert _at_once(answers, dialogues[:2]) == expected[:2], "and it goes on"


def _flat(dialogue: Dialogue) -> tuple[list[Message], Path]:
    return dialogue[0], dialogue[1][0]


def test_a_photo_that_cannot_be_read_troubles_nobody_else(predictor, dialogues, tmp_path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    broken = (QUESTION, [tmp_path / "broken.jpg"])
    *told, error = _at_once(Together(predictor, batch_size=8), [*dialogues[:2], broken])
    assert told == _alone(predictor, dialogues[:2])
    assert "broken.jpg" in str(error)


def test_other_work_is_done_between_two_steps_and_its_faults_are_its_own(predictor, dialogues, at_leisure) -> None:
    answers = Together(predictor, batch_size=8)
    stream = answers.stream(*dialogues[0][:1], *dialogues[0][1])
    first = next(stream)
    names = {answers.run(lambda: threading.current_thread().name) for _ in range(2)}
    assert names == {"answers"}
    with pytest.raises(ZeroDivisionError):
        answers.run(lambda: 1 / 0)
    assert [first + "".join(stream)] == _alone(predictor, dialogues[:1])


def test_the_thread_ends_when_nobody_comes_and_begins_again(predictor, dialogues, monkeypatch) -> None:
    monkeypatch.setattr(together, "LINGER_S", 0.01)
    answers = Together(predictor, batch_size=2)
    for _ in range(2):
        assert _at_once(answers, dialogues[:1]) == _alone(predictor, dialogues[:1])
        _wait_until(lambda: answers._thread is None)


def _wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(200):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never was")


def test_who_waits_long_hears_a_beat_and_is_told_when_his_time_is_up(predictor, photos, monkeypatch) -> None:
    monkeypatch.setattr(together, "BEAT_S", 0.01)
    monkeypatch.setattr(together, "PACE_S", 0.005)
    talker = Talker(predictor, time_limit_s=0.2)
    is_free = threading.Event()
    busy = threading.Thread(target=lambda: talker.answers.run(lambda: is_free.wait(30)))
    busy.start()
    talk = Talk([photos[0][0]])
    list(talker.ask(talk, PUBLISHED_QUESTION))
    is_free.set()
    busy.join()
    assert (talk.turns[0].answer, talk.turns[0].caution) == ("", texts.TOO_SLOW.format(seconds=0))


def test_a_second_question_waits_for_the_first(predictor, photos, at_leisure) -> None:
    page = ChatPage(predictor, NO_UPLOADS, PageOptions())
    talk = Talk([photos[0][0]], finding=page.talker.look([photos[0][0]]))
    follow_up = in_turn(page.follow_up)
    threads = [threading.Thread(target=lambda: list(follow_up(talk, PUBLISHED_QUESTION))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [turn.question for turn in talk.turns] == [PUBLISHED_QUESTION] * 2
    assert talk.turns[0].answer == photos[0][1]
    assert set(at_leisure) == {1}


def test_a_new_photo_ends_the_answer_about_the_one_before(at_leisure) -> None:
    visitors, before, after = Visitors(), Talk(), Talk()
    seen = []

    def count(talk: Talk) -> Iterator[int]:
        yield from range(1000)

    visitors.begin("anna", before)
    for number in in_turn(count)(before):
        seen.append(number)
        if number == 3:
            visitors.begin("ben", Talk())
        if number == 5:
            visitors.begin("anna", after)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert not before.is_busy
    visitors.leave("anna")
    assert list(in_turn(count)(after)) == []
