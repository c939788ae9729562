"""The page of the chat: photos, a conversation about them, and candidates and map beside it."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from serve import texts
from serve.about import about_text, answerable_tasks
from serve.api import Api
from serve.metrics import WHY
from serve.places import Places, answer_address
from serve.talk import BATCH_SIZE, FAILURES, MAX_QUESTION_CHARACTERS, Talk, Talker, Turn, sentence
from serve.turns import Visitors, in_turn
from serve.uploads import MAX_AGE_S, Uploads, refuse_addresses
from serve.why import attribute

# Uploads: looked at every minute, deleted when an hour old.
DELETE_CACHE_S = (60, MAX_AGE_S)
Shown = tuple[Any, ...]
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class PageOptions:
    """What the page offers.

    Attributes:
        examples: Photos to try.
        tiles: Address of an online background of the map; "" for none.
        max_waiting: More visitors than this are told that the page is busy.
        time_limit_s: Longest time for an answer.
        batch_size: Most photos whose questions are answered at the same time.
    """

    examples: Sequence[Path] = field(default_factory=tuple)
    tiles: str = ""
    max_waiting: int = 64
    time_limit_s: float = 120.0
    batch_size: int = BATCH_SIZE


class ChatPage:
    """The page and what its buttons do.

    Args:
        predictor: A model that can answer.
        uploads: Where the photos of visitors lie.
        options: What is offered.
    """

    def __init__(self, predictor: AddressPredictor, uploads: Uploads, options: PageOptions | None = None) -> None:
        self._predictor = predictor
        self._uploads = uploads
        self.options = options or PageOptions()
        self.talker = Talker(predictor, time_limit_s=self.options.time_limit_s, batch_size=self.options.batch_size)
        self.visitors = Visitors()
        self.places = Places(predictor.gallery, tiles=self.options.tiles)
        self.follow_ups = [texts.FOLLOW_UPS[task] for task in answerable_tasks(predictor.gallery)]

    def build(self) -> gr.Blocks:
        """The page, ready to be launched."""
        on_model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": self.options.batch_size}
        with gr.Blocks(title=texts.TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE_S) as page:
            gr.Markdown(f"# {texts.TITLE}\n{texts.SUBTITLE.format(city=self.talker.city)}", elem_id="header")
            talk = gr.State(Talk(), time_to_live=DELETE_CACHE_S[1])
            with gr.Row(elem_id="layout"):
                with gr.Column(elem_id="photo-area"):
                    photo, more, examples = self._photo_area()
                    check = gr.Checkbox(label=texts.CHECK, info=texts.CHECK_HINT, elem_id="check")
                    position = gr.HTML("", elem_id="position")
                with gr.Column(elem_id="talk-area"):
                    status = gr.HTML(_status(""), elem_id="status")
                    chat, question, stop, clear, follow_ups, measured = self._talk_area()
                    why = gr.HTML("", elem_id="why")
                with gr.Column(elem_id="places-area"):
                    places = gr.HTML(self.places.candidates(None, None), elem_id="places")
                    street_map = gr.HTML(self.places.map(None, None), elem_id="map")
                    find = gr.Textbox(
                        label=texts.FIND, placeholder=texts.FIND_HINT, max_lines=1, max_length=MAX_QUESTION_CHARACTERS,
                        submit_btn=texts.FIND_BUTTON, elem_id="find",
                    )  # fmt: skip
                    with gr.Accordion(texts.ABOUT, open=False):
                        gr.Markdown(about_text(self._predictor, self.talker.city, self.options.tiles))
            shown = [talk, chat, places, street_map, question, stop, status, position, why]
            asked = [photo, more, question, check]
            running = [
                trigger(self.start, asked, shown, **HIDDEN, **on_model)
                for trigger in (photo.upload, more.upload, more.delete, more.clear)
            ]
            running[0].then(self.keep_preview, [photo, talk], photo, queue=False, **HIDDEN)
            if examples is not None:
                chosen = examples.select(self.choose_example, None, [photo, more], **HIDDEN)
                running += [chosen, chosen.then(self.start, asked, shown, **HIDDEN, **on_model)]
            follow_up = in_turn(self.follow_up)
            running.append(question.submit(follow_up, [talk, question, check], shown, **HIDDEN, **on_model))
            running += [b.click(follow_up, [talk, b, check], shown, **HIDDEN, **on_model) for b in follow_ups]
            running += [
                button.click(in_turn(act), [talk, check], shown, **HIDDEN, **on_model)
                for button, act in zip(measured, (self.how_sure, self.what_else, self.why), strict=True)
            ]
            running.append(chat.retry(in_turn(self.again), [talk, check], shown, **HIDDEN, **on_model))
            running.append(chat.edit(in_turn(self.edit), [talk, check], shown, **HIDDEN, **on_model))
            running.append(find.submit(self.find, [talk, find], [street_map, status], **HIDDEN, **on_model))
            stop.click(lambda: gr.Button(interactive=False), None, stop, cancels=running, queue=False, **HIDDEN)
            for trigger in (clear.click, photo.clear):
                trigger(self.reset, None, [photo, more, *shown], cancels=running, queue=False, **HIDDEN)
            chat.clear(self.forget, talk, shown, cancels=running, queue=False, **HIDDEN)
            check.change(self.check_position, [talk, check], position, queue=False, **HIDDEN)
            page.unload(self.leave)
            Api(self.talker, self._uploads).add(photo, question, on_model)
        refuse_addresses(page)
        page.queue(max_size=self.options.max_waiting)
        return page

    def _photo_area(self) -> tuple[gr.Image, gr.File, gr.Gallery | None]:
        photo = gr.Image(
            label=texts.PHOTO, alt_text=texts.PHOTO_ALT, type="filepath", height=280,
            sources=["upload", "webcam", "clipboard"], buttons=["fullscreen"], elem_id="photo",
        )  # fmt: skip
        # Gradio would open the file itself and fail in its own words; the project's reader judges it.
        photo.preprocess = lambda payload: payload.path if payload else None
        examples = None
        if self.options.examples:
            examples = gr.Gallery(
                [(str(p), texts.EXAMPLE_LABEL.format(number=i + 1)) for i, p in enumerate(self.options.examples)],
                label=texts.EXAMPLES, columns=3, rows=2, height="auto", object_fit="cover", allow_preview=False,
                interactive=False, buttons=[], elem_id="examples",
            )  # fmt: skip
        with gr.Accordion(texts.MORE_PHOTOS, open=False):
            gr.Markdown(texts.MORE_PHOTOS_HINT)
            more = gr.File(
                label=texts.MORE_PHOTOS, file_count="multiple", file_types=["image"], height=120, elem_id="more"
            )
        return photo, more, examples

    def _talk_area(self) -> tuple[gr.Chatbot, gr.Textbox, gr.Button, gr.Button, list[gr.Button], list[gr.Button]]:
        chat = gr.Chatbot(
            label=texts.CHAT, placeholder=texts.CHAT_EMPTY, height=380, render_markdown=False, layout="bubble",
            buttons=["copy"], editable="user", elem_id="chat",
        )  # fmt: skip
        with gr.Row(elem_id="follow-ups"):
            follow_ups = [gr.Button(text, size="sm") for text in self.follow_ups]
            measured = [gr.Button(text, size="sm") for text in (texts.ASK_HOW_SURE, texts.ASK_WHAT_ELSE, texts.ASK_WHY)]
        question = gr.Textbox(
            texts.DEFAULT_QUESTION, label=texts.QUESTION, placeholder=texts.QUESTION_HINT, lines=1, max_lines=4,
            max_length=MAX_QUESTION_CHARACTERS, submit_btn=texts.ASK, elem_id="question",
        )  # fmt: skip
        with gr.Row(elem_id="controls"):
            stop = gr.Button(texts.STOP, interactive=False, size="sm", elem_id="stop")
            clear = gr.Button(texts.CLEAR, size="sm", elem_id="clear")
        return chat, question, stop, clear, follow_ups, measured

    def start(
        self,
        photo: str | None,
        more: list[str] | None,
        question: str,
        check: bool = False,
        request: gr.Request | None = None,
    ) -> Generator[Shown, None, None]:
        """New photos: their candidates at once, then the answer to the question, word by word."""
        photos = [Path(p) for p in [photo, *(more or [])] if p]
        talk = Talk(photos)
        if request is not None:
            self._uploads.remember(request.session_hash or "", photos)
            self.visitors.begin(request.session_hash or "", talk)
        begin = in_turn(self.first_answer)
        yield from begin(talk, question or texts.DEFAULT_QUESTION, check)

    @staticmethod
    def keep_preview(photo: str | None, talk: Talk) -> Any:
        """The photo again where Gradio has emptied the preview, as it may after a paste by its icon."""
        return gr.skip() if photo or not talk.photos else str(talk.photos[0])

    def first_answer(self, talk: Talk, question: str, check: bool) -> Generator[Shown, None, None]:
        """What is seen in new photos, and the answer to the first question about them."""
        photos = talk.photos
        status = texts.STATUS_TOGETHER.format(count=len(photos)) if len(photos) > 1 else texts.STATUS_NEW
        try:
            talk.finding = self.talker.look(photos)
        except FAILURES as error:
            yield self._show(Talk(), error=sentence(error, photos), status="", position="", why="")
            return
        yield self._show(talk, is_running=True, status=status, position="", why="")
        yield from self.follow_up(talk, question, check)

    def leave(self, request: gr.Request) -> None:
        """The page was closed: what is being answered ends, and the photos are nobody's."""
        self.visitors.leave(request.session_hash or "")
        self._uploads.forget_visitor(request)

    def follow_up(self, talk: Talk, question: str, check: bool = False) -> Generator[Shown, None, None]:
        """The answer to a question, word by word; what went wrong is said in the conversation and not kept."""
        before = talk.finished()
        try:
            for _ in self.talker.ask(talk, question):
                yield self._show(talk, is_running=True, only_talk=True)
            status = None if len(talk.turns) == 1 else ""  # what was said of the new photo stays for its first answer
            yield self._show(talk, status=status, position=self.check_position(talk, check))
        except FAILURES as error:
            talk.turns = before
            yield self._show(talk, error=sentence(error, talk.photos))

    def again(self, talk: Talk, check: bool, event: gr.RetryData) -> Generator[Shown, None, None]:
        """The question of an answer once more; what was said after it is forgotten."""
        yield from self._ask_from(talk, event.index, None, check)

    def edit(self, talk: Talk, check: bool, event: gr.EditData) -> Generator[Shown, None, None]:
        """Another question in the place of an earlier one; what was said after it is forgotten."""
        yield from self._ask_from(talk, event.index, str(event.value), check)

    def how_sure(self, talk: Talk, check: bool = False) -> Generator[Shown, None, None]:
        """The probabilities of what was answered, in words."""
        yield from self._measure(talk, self.talker.how_sure)

    def what_else(self, talk: Talk, check: bool = False) -> Generator[Shown, None, None]:
        """The candidates that were not answered, in words."""
        yield from self._measure(talk, self.talker.what_else)

    def why(self, talk: Talk, check: bool = False) -> Generator[Shown, None, None]:
        """The first photo with the regions that carried the answer marked."""
        talk.turns = talk.finished()
        try:
            if talk.finding is None:
                raise UserError(texts.NO_PHOTO)
            turn = Turn(texts.ASK_WHY, is_measured=True)
            talk.turns.append(turn)
            yield self._show(talk, is_running=True, only_talk=True)
            row, address = answer_address(talk.finding, self.talker.agreement(talk), self._predictor.gallery)
            with self.talker.metrics.measure(WHY):
                found = attribute(self._predictor, talk.photos[0], row, self.talker.answers.run)
            turn.answer = texts.WHY if found.marked() else texts.WHY_NOTHING
            yield self._show(talk, why=self.places.why(found, address))
        except FAILURES as error:
            talk.turns = talk.finished()
            yield self._show(talk, error=sentence(error, talk.photos))

    def find(self, talk: Talk, text: str) -> tuple[Any, Any]:
        """The map with how well photo and text fit each street."""
        if talk.finding is None or not text.strip():
            return gr.skip(), _status(texts.NO_QUESTION if talk.finding else texts.NO_PHOTO)
        fit, label = self.talker.fit_text(talk.finding, text.strip()[:MAX_QUESTION_CHARACTERS])
        return self.places.heat(fit, label), _status(label)

    def choose_example(self, event: gr.SelectData) -> tuple[str, None]:
        """An example becomes the photo."""
        return str(self.options.examples[int(event.index)]), None

    def reset(self) -> Shown:
        """The page as it was at the beginning."""
        talk, *rest = self._show(Talk(), status="", position="", why="")
        rest[3] = texts.DEFAULT_QUESTION
        return None, None, talk, *rest

    def forget(self, talk: Talk) -> Shown:
        """The same photos, nothing asked yet."""
        return self._show(Talk(talk.photos, finding=talk.finding), status="", why="")

    def check_position(self, talk: Talk, is_wanted: bool) -> str:
        """Where the photo itself says that it was taken; "" unless the visitor asked for it."""
        if not is_wanted or not talk.photos or not talk.finished():
            return ""
        agreement = self.talker.agreement(talk)
        try:
            said = self.places.check_position(talk.photos[0], agreement.pieces if agreement else [])
        except FileNotFoundError:
            said = texts.PHOTO_GONE
        return _status(said)

    def _ask_from(
        self, talk: Talk, index: int | Any, question: str | None, check: bool
    ) -> Generator[Shown, None, None]:
        """Asks again from a message of the conversation on, given by its place in what is shown."""
        number = [turn for _, turn in _bubbles(talk.turns)][int(index)]
        turn = talk.turns[number]
        talk.turns = talk.turns[:number]
        if question is None and turn.is_measured:
            act = {texts.ASK_HOW_SURE: self.how_sure, texts.ASK_WHAT_ELSE: self.what_else}.get(turn.question, self.why)
            yield from act(talk, check)
            return
        yield from self.follow_up(talk, turn.question if question is None else question, check)

    def _measure(self, talk: Talk, act: Callable[[Talk], None]) -> Generator[Shown, None, None]:
        try:
            act(talk)
            yield self._show(talk)
        except FAILURES as error:
            yield self._show(talk, error=sentence(error, talk.photos))

    def _show(
        self,
        talk: Talk,
        *,
        is_running: bool = False,
        only_talk: bool = False,
        error: str = "",
        status: str | None = None,
        position: str | None = None,
        why: str | None = None,
    ) -> Shown:
        """Values for everything on the page that changes; what is None, or beside the talk alone, stays as it is."""
        shown = [bubble for bubble, _ in _bubbles(talk.turns)]
        if error:
            shown.append({"role": "assistant", "content": error})
        agreement = None if only_talk else self.talker.agreement(talk)
        places = gr.skip() if only_talk else self.places.candidates(talk.finding, agreement)
        street_map = gr.skip() if only_talk else self.places.map(talk.finding, agreement)
        changing = [gr.skip() if text is None else text for text in (position, why)]
        said = gr.skip() if status is None else _status(status)
        return talk, shown, places, street_map, "", gr.Button(interactive=is_running), said, *changing


def _bubbles(turns: Sequence[Turn]) -> list[tuple[dict[str, str], int]]:
    """What the conversation shows, each with the number of its turn."""
    found = []
    for number, turn in enumerate(turns):
        said = [("user", turn.question), ("assistant", turn.answer)]
        said += [("assistant", turn.caution)] if turn.caution else []
        found += [({"role": role, "content": text}, number) for role, text in said]
    return found


def _status(text: str) -> str:
    """A line that screen readers say when it changes."""
    return f'<p role="status" aria-live="polite">{escape(text)}</p>'
