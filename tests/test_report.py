"""The report in a real browser: from the disk, without a network, at a desk and on a phone, light and dark."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_ial.evaluation.gallery import BLOCK, NOWHERE, REFUSED, RIGHT, WRONG, choose_cases, collect_cases
from llava_ial.evaluation.html_report import format_html
from llava_ial.evaluation.metrics import score_answers
from llava_ial.inference import AddressPredictor, Answer
from serve.backends import as_backend
from serve.evaluate import EvaluateConfig, evaluate
from tests.forty_answers import ANSWERS, GALLERY, GAZETTEER, PLACES, TRUTHS, prediction
from tests.test_chat_browser import CHROMIUM, DESK, FLAGS, PHONE
from tests.tiny_models import TinyFolders

SCREENSHOTS = os.environ.get("SCREENSHOTS")


class Wrong:
    """A model that says of half of the photos what it must not."""

    can_answer, takes_hints = True, False

    def __init__(self, predictor: AddressPredictor) -> None:
        self._predictor = predictor

    def probabilities(self, photos):
        return self._predictor.probabilities(photos)

    def answer_batch(self, dialogues, photos, **settings) -> list[Answer]:
        answers = self._predictor.answer_batch(dialogues, photos, **settings)
        wrong = ["Sorry, I cannot tell.", "This is <b>Amber Street</b> & more.", "It is Nowhere Lane."]
        return [Answer(wrong[i % 3], "stop") if i % 2 else answer for i, answer in enumerate(answers)]


@pytest.fixture(scope="module")
def config(tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    output = tmp_path_factory.mktemp("report") / "out"
    config = EvaluateConfig(tiny_folders.data, output, str(tiny_folders.llava), split="train", max_new_tokens=90)
    evaluate(config, as_backend(Wrong(AddressPredictor.from_pretrained(tiny_folders.llava)), config))
    return config


def test_verdicts_of_the_forty_answers() -> None:
    rows = [prediction(i, *row) for i, row in enumerate(ANSWERS) if row[1] == "where"]
    verdicts = [
        collect_cases(TRUTHS, score_answers([row], TRUTHS, GAZETTEER, PLACES), [])[0].verdict
        for row in rows
        if row.finish_reason != "error"
    ]
    assert verdicts == [
        RIGHT, BLOCK, BLOCK, NOWHERE, WRONG, REFUSED, NOWHERE, RIGHT, RIGHT, RIGHT, RIGHT, NOWHERE, RIGHT, REFUSED,
        WRONG,
    ]  # fmt: skip


def test_photos_of_one_place_do_not_hide_each_other() -> None:
    """Photo a is said right once and wrong once on the same spot, f right alone."""
    rows = [("a", "street in Grant Street, Downtown"), ("f", "Forbes Avenue")]
    scored = score_answers([prediction(i, p, "where", text) for i, (p, text) in enumerate(rows)], TRUTHS, GAZETTEER)
    truths = {**TRUTHS, "a2": replace(TRUTHS["a"])}
    wrong = prediction(9, "a2", "where", "Forbes Avenue")
    cases = collect_cases(truths, [*scored, *score_answers([wrong], truths, GAZETTEER)], [])
    html = format_html({"split": "test", "num_photos": 3}, cases, GALLERY, {}, title="x", seed=0)
    overview = html[: html.index("<h2>Photos")]
    assert overview.count('class="point wrong"') == 1
    assert overview.count('class="point right"') == 2
    assert overview.index('class="point wrong"') < overview.index('class="point right"')
    assert overview.count("street right in 1 of 2 photos") == 2
    marks = re.findall(r'class="point (\w+)"[^>]*?(?: style="--size:([0-9.]+)")?>', overview)
    assert marks == [("wrong", "1.50"), ("right", "0.75"), ("right", "")], "half of the photos: half the width"


def test_failures_come_first_and_the_draw_is_repeatable() -> None:
    scored = score_answers([prediction(i, *ANSWERS[i]) for i in (0, 1, 5, 10)], TRUTHS, GAZETTEER, PLACES)
    cases = collect_cases(TRUTHS, scored, [])
    assert [case.verdict for case in choose_cases(cases, 9, 9, 0)] == [REFUSED, BLOCK, RIGHT, RIGHT]
    assert len(choose_cases(cases, 1, 1, 0)) == 2
    assert choose_cases(cases, 1, 1, 3) == choose_cases(cases, 1, 1, 3)


def test_one_file_that_needs_no_other(config) -> None:
    text = (config.output / "report.html").read_text(encoding="utf-8")
    assert "http://" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "https://" not in text
    assert "<b>Amber Street</b>" not in text, "an answer is text, not HTML"
    assert text.count("data:image/jpeg;base64,") == text.count("<article")
    assert "published, Pitts-IAL" in text


def test_without_photos_no_pixel_is_in_it(config, tiny_folders, tmp_path) -> None:
    private = replace(config, output=tmp_path / "private", photos_in_report=False)
    evaluate(private, as_backend(Wrong(AddressPredictor.from_pretrained(tiny_folders.llava)), config))
    text = (private.output / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in text
    assert text.count("<article") == 8


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_the_report_in_a_browser(config, browser, viewport, scheme, request) -> None:
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page = context.new_page()
    foreign: list[str] = []
    errors: list[str] = []
    page.on("request", lambda call: None if call.url.startswith(("file:", "data:")) else foreign.append(call.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((config.output / "report.html").resolve().as_uri())
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{request.node.name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".case:visible").count() == 8
    page.select_option("select[name=verdict]", "refused")
    num_refused = page.locator(".case:visible").count()
    assert 0 < num_refused < 8
    assert page.inner_text("output") == f"{num_refused} shown"
    page.select_option("select[name=verdict]", "")
    page.fill("input[name=words]", "amber street")
    assert 0 < page.locator(".case:visible").count() < 8
    for image in page.locator(".case:visible img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    context.close()
    assert (foreign, errors) == ([], [])


@pytest.mark.slow
def test_a_ranking_alone_has_a_report_too(tiny_folders, tmp_path) -> None:
    config = EvaluateConfig(tiny_folders.data, tmp_path / "out", str(tiny_folders.clip))
    evaluate(config)
    assert "SSA@1 of the ranking" in (config.output / "report.html").read_text(encoding="utf-8")
