"""The chat in a real browser: what a visitor sees and does, on a desk and on a phone, without the network."""

import base64
import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from llava_ial.data.dataset import IALDataset
from llava_ial.prompts import NEIGHBOURHOOD, PUBLISHED_QUESTION
from serve import texts
from tests.test_chat import chat_process, free_port
from tests.test_chat_places import with_position
from tests.tiny_models import TinyFolders
from tests.tiny_world import ORIGIN

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",  # a camera that shows a test picture
]  # fmt: skip
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# Pictures of what the tests saw are kept here if it is set.
SCREENSHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture(scope="module")
def url(tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    with chat_process(
        tiny_folders, port, tmp_path_factory.mktemp("temporary"), "--examples", str(tiny_folders.data), pause_s=0.02
    ):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=["desk", "phone", "dark"])
def visit(request: pytest.FixtureRequest, browser: Any, url: str) -> Iterator[Any]:
    """The open page; fails the test if it asked for anything beyond this computer or wrote an error."""
    context = browser.new_context(
        viewport=PHONE if request.param == "phone" else DESK,
        color_scheme="dark" if request.param == "dark" else "light",
    )
    page = context.new_page()
    foreign: list[str] = []
    page.on("request", lambda call: foreign.append(call.url) if not _is_local(call.url, url) else None)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#photo input[type=file]", state="attached")
    yield page
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{request.node.name}.png", full_page=True)
    context.close()
    assert foreign == []
    assert errors == []


def _is_local(address: str, url: str) -> bool:
    return address.startswith((url, "data:", "blob:"))


@pytest.fixture(scope="module")
def photos(tiny_folders: TinyFolders) -> list[tuple[Path, str]]:
    dataset = IALDataset(tiny_folders.data)
    return [(dataset.image_file(r.image_path), r.messages[1].content) for r in dataset.conversations("train")]


def _upload(page: Any, path: Path, question: str = PUBLISHED_QUESTION) -> None:
    page.fill("#question textarea", question)
    page.set_input_files("#photo input[type=file]", path)


def _upload_again(page: Any, path: Path) -> None:
    page.locator("#photo .icon-button-wrapper button, #photo [aria-label='Remove Image']").last.click()
    page.wait_for_function("() => !document.querySelector('.places li')")
    _upload(page, path)


def _expect(page: Any, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#chat').innerText.includes(text)", arg=text)
    page.wait_for_function("() => document.querySelector('#stop')?.disabled")


def _expect_an_answer(page: Any) -> None:
    """Of whatever words."""
    page.wait_for_selector(".places li")
    page.wait_for_function("() => document.querySelectorAll('#chat .message.bot').length == 1")
    page.wait_for_function("() => document.querySelector('#stop')?.disabled")


def test_a_visit(visit, photos) -> None:
    """Upload, answer, candidates, a follow-up, nothing wider than the window."""
    path, answer = photos[0]
    _upload(visit, path)
    _expect(visit, answer)
    assert visit.locator(".places li").count() == 5
    assert visit.locator(".places .verdict").count() == 1
    assert visit.input_value("#question textarea") == ""
    assert visit.locator("#map path.answer").count() == 1
    assert visit.locator("#map .tag").count() == 5
    assert visit.inner_text("#status") == texts.STATUS_NEW
    visit.click(f"text={texts.FOLLOW_UPS[NEIGHBOURHOOD]}")
    visit.wait_for_function("() => document.querySelectorAll('#chat .message.bot').length >= 2")
    _expect(visit, texts.FOLLOW_UPS[NEIGHBOURHOOD])
    measured = {texts.ASK_HOW_SURE: "%", texts.ASK_WHAT_ELSE: texts.WHAT_ELSE, texts.ASK_WHY: "region"}
    for question, words in measured.items():
        visit.click(f"#follow-ups >> text={question}")
        _expect(visit, question)
        _expect(visit, words)
    visit.wait_for_selector("#why svg")
    assert visit.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_a_second_photo_begins_anew_and_the_page_can_be_cleared(visit, photos) -> None:
    _upload(visit, photos[0][0])
    _expect(visit, photos[0][1])
    _upload_again(visit, photos[2][0])
    _expect(visit, photos[2][1])
    assert photos[0][1] not in visit.inner_text("#chat")
    visit.click("#clear")
    visit.wait_for_function("() => !document.querySelector('.places li')")
    assert visit.input_value("#question textarea") == texts.DEFAULT_QUESTION
    assert texts.CHAT_EMPTY in visit.inner_text("#chat")


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_an_example_is_a_photo_like_any_other(visit) -> None:
    visit.locator("#examples button img").first.click()
    _expect_an_answer(visit)
    visit.wait_for_selector("#photo img")


# What a browser hands to a page when a file is dropped on it or pasted into it.
TRANSFER = """([name, data]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type: "image/jpeg"}));
    return transfer;
}"""


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_a_photo_is_dropped_on_the_page(visit, photos) -> None:
    path, answer = photos[0]
    visit.fill("#question textarea", PUBLISHED_QUESTION)
    transfer = visit.evaluate_handle(TRANSFER, ["street.jpg", base64.b64encode(path.read_bytes()).decode()])
    target = visit.locator("#photo input[type=file]").locator("xpath=ancestor::button")
    for event in ("dragenter", "dragover", "drop"):
        target.dispatch_event(event, {"dataTransfer": transfer})
    _expect(visit, answer)


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_a_photo_is_pasted_from_the_clipboard(visit, url, photos) -> None:
    """From the system's clipboard, into which browsers write pictures as PNG; the preview shows it in the end."""
    path, _ = photos[0]
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    with Image.open(path) as image:
        stream = io.BytesIO()
        image.save(stream, "PNG")
    visit.evaluate(
        """async data => {
            const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
            await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})]);
        }""",
        base64.b64encode(stream.getvalue()).decode(),
    )
    from playwright.sync_api import TimeoutError as NotYet  # not installed everywhere

    for _ in range(3):  # the browser reads the clipboard of a page in focus alone; one under load may lack it
        visit.bring_to_front()
        visit.click("#photo [aria-label*='clipboard' i]")
        with contextlib.suppress(NotYet):
            visit.wait_for_selector("#photo img", timeout=10_000)
            break
    _expect_an_answer(visit)
    visit.wait_for_selector("#photo img")
    visit.wait_for_timeout(1000)
    assert visit.locator("#photo img").count(), "the preview stays"


@pytest.mark.parametrize("visit", ["desk", "phone"], indirect=True)
def test_a_photo_is_taken_with_the_camera(visit) -> None:
    visit.click("#photo [data-testid=source-select] button:nth-child(2)")
    visit.click("#photo button:has-text('Click to Access')")
    visit.wait_for_function("() => document.querySelector('#photo video')?.videoWidth > 0")
    visit.locator("#photo [aria-label*='capture photo' i]").first.click()
    _expect_an_answer(visit)


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_the_map_is_zoomed_and_dragged_by_buttons_keys_and_pointer(visit, photos) -> None:
    _upload(visit, photos[0][0])
    _expect(visit, photos[0][1])
    box = "() => document.querySelector('#map svg').getAttribute('viewBox').split(' ').map(Number)"
    left, top, width, _ = home = visit.evaluate(box)
    visit.click('[data-map-key="+"]')
    assert visit.evaluate(box)[2] == pytest.approx(width / 1.4)
    visit.focus("#map svg")
    visit.keyboard.press("ArrowRight")
    assert visit.evaluate(box)[0] > left + 0.1 * width
    visit.keyboard.press("0")
    assert visit.evaluate(box) == pytest.approx(home)
    x, y = visit.evaluate("() => (({x, y, width, height}) => [x + width / 2, y + height / 2])"
                          "(document.querySelector('#map svg').getBoundingClientRect())")  # fmt: skip
    visit.mouse.move(x, y)
    visit.mouse.down()
    visit.mouse.move(x - 50, y - 20)
    visit.mouse.up()
    assert visit.evaluate(box)[0] > left
    assert visit.evaluate(box)[1] > top
    for _ in range(30):
        visit.keyboard.press("+")
    assert visit.evaluate(box)[2] == pytest.approx(width / 16)
    assert visit.evaluate("document.querySelector('#map svg').dataset.level") == "4"
    visit.fill("#find textarea, #find input", "Amber Street")
    visit.press("#find textarea, #find input", "Enter")
    visit.wait_for_function("() => document.querySelector('#map .note').innerText.includes('Amber Street')")


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_stop_ends_the_generation_and_keeps_what_was_said(visit, url, photos) -> None:
    """Clicked as soon as it can be: the server counts a stopped answer, and the page goes on."""
    visit.evaluate(
        "new MutationObserver((_, observer) => { const stop = document.querySelector('#stop');"
        "if (stop && !stop.disabled && document.querySelector('#chat .message.bot')?.innerText.trim())"
        "{ observer.disconnect(); stop.click(); } })"
        ".observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true})"
    )
    _upload(visit, photos[0][0])
    visit.wait_for_selector("#chat .message.bot")
    for _ in range(50):
        if 'kind="ask",outcome="stopped"' in httpx.get(f"{url}/metrics").text:
            break
        visit.wait_for_timeout(100)
    assert 'kind="ask",outcome="stopped"} 1.0' in httpx.get(f"{url}/metrics").text
    assert photos[0][1] not in visit.inner_text("#chat")
    _upload_again(visit, photos[2][0])
    _expect(visit, photos[2][1])


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_a_question_is_edited_and_an_answer_asked_again(visit, photos) -> None:
    _upload(visit, photos[0][0], "Something else?")
    visit.wait_for_selector("#chat .message.bot")
    visit.wait_for_function("() => document.querySelector('#stop')?.disabled")
    visit.hover("#chat .message.user")
    visit.locator("#chat [aria-label='Edit'], #chat [title='Edit']").first.click()
    visit.locator("#chat .message textarea, #chat textarea").first.fill(PUBLISHED_QUESTION)
    visit.locator("#chat [aria-label='Submit'], #chat [title='Submit']").first.click()
    _expect(visit, photos[0][1])
    visit.locator("#chat [aria-label='Retry'], #chat [title='Retry']").first.click()
    visit.wait_for_timeout(300)
    _expect(visit, photos[0][1])
    assert visit.locator("#chat .message.bot").count() == 1


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_a_stored_position_is_shown_only_when_switched_on(visit, photos, tmp_path) -> None:
    tagged = with_position(photos[0][0], tmp_path / "tagged.jpg", ORIGIN)
    _upload(visit, tagged)
    _expect(visit, photos[0][1])
    assert visit.inner_text("#position").strip() == ""
    visit.check("#check input")
    visit.wait_for_function("() => document.querySelector('#position').innerText.includes('Amber Street')")


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_without_a_photo_the_page_asks_for_one(visit) -> None:
    visit.click("#question .submit-button")
    _expect(visit, texts.NO_PHOTO)


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_a_damaged_photo_is_said_to_be_damaged(visit, photos, tmp_path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0][0].read_bytes()[:300])
    _upload(visit, broken)
    _expect(visit, "This photo is ")


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_every_control_has_a_name_and_can_be_reached_by_keyboard(visit) -> None:
    is_unnamed = "!(e.innerText.trim() || e.ariaLabel || e.title || e.closest('label') || e.labels?.length)"
    unnamed = visit.evaluate(
        "[...document.querySelectorAll('#layout button, #layout textarea')]"
        f".filter(e => e.offsetParent && {is_unnamed}).map(e => e.outerHTML)"
    )
    assert unnamed == []
