"""The page of the chat: a photo, a conversation about it, and the encoder's candidates beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from llava_ial.conversation import Message, user_question
from llava_ial.errors import UserError
from llava_ial.gazetteer import Gazetteer
from llava_ial.inference import AddressPredictor, Candidate
from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET, format_piece
from llava_ial.records import GalleryRecord
from serve import texts

NUM_CANDIDATES = 5
# Uploads: looked at every minute, deleted when an hour old.
DELETE_CACHE_S = (60, 3600)
# One answer at a time; more visitors than this wait in the queue, still more are told that the page is busy.
MAX_WAITING = 32
MAX_QUESTION_CHARACTERS = 1000


@dataclass
class Talk:
    """A conversation about one photo, kept for one visitor."""

    messages: list[Message] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)


class ChatPage:
    """The page and what its buttons do.

    Args:
        predictor: A model that can answer.
    """

    def __init__(self, predictor: AddressPredictor) -> None:
        self._predictor = predictor
        self._gazetteer = Gazetteer([record.address for record in predictor.gallery])
        cities = {record.address.city for record in predictor.gallery} - {""}
        self.city = cities.pop() if len(cities) == 1 else texts.ANY_CITY
        self.follow_ups = [texts.FOLLOW_UPS[task] for task in _known_facts(predictor.gallery)]

    def build(self) -> gr.Blocks:
        """The page, ready to be launched."""
        with gr.Blocks(title=texts.TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE_S) as page:
            gr.Markdown(f"# {texts.TITLE}\n{texts.SUBTITLE.format(city=self.city)}", elem_id="header")
            talk = gr.State(Talk())
            with gr.Row(elem_id="layout"):
                with gr.Column(elem_id="photo-area"):
                    photo = gr.Image(
                        label=texts.PHOTO, alt_text=texts.PHOTO_ALT, type="filepath", height=300,
                        sources=["upload", "webcam", "clipboard"], buttons=["fullscreen"], elem_id="photo",
                    )  # fmt: skip
                    # Gradio would open the file itself and fail in its own words; the project's reader judges it.
                    photo.preprocess = lambda payload: payload.path if payload else None
                with gr.Column(elem_id="talk-area"):
                    chat = gr.Chatbot(
                        label=texts.CHAT, placeholder=texts.CHAT_EMPTY, height=400, render_markdown=False,
                        layout="bubble", buttons=[], elem_id="chat",
                    )  # fmt: skip
                    with gr.Row(elem_id="follow-ups"):
                        follow_ups = [gr.Button(text, size="sm") for text in self.follow_ups]
                    question = gr.Textbox(
                        texts.DEFAULT_QUESTION, label=texts.QUESTION, placeholder=texts.QUESTION_HINT, lines=1,
                        max_lines=4, max_length=MAX_QUESTION_CHARACTERS, submit_btn=texts.ASK, elem_id="question",
                    )  # fmt: skip
                    with gr.Row(elem_id="controls"):
                        stop = gr.Button(texts.STOP, interactive=False, size="sm", elem_id="stop")
                        clear = gr.Button(texts.CLEAR, size="sm", elem_id="clear")
                with gr.Column(elem_id="places-area"):
                    places = gr.HTML(self.format_candidates(Talk()), elem_id="places")
                    with gr.Accordion(texts.ABOUT, open=False):
                        gr.Markdown(texts.ABOUT_TEXT.format(count=len(self._predictor.gallery), city=self.city))
            shown = [talk, chat, places, question, stop]
            on_model = {"concurrency_id": "model", "concurrency_limit": 1}
            hidden = {"api_visibility": "private", "show_progress": "hidden"}
            running = [photo.upload(self.start, [photo, question], shown, **hidden, **on_model)]
            running.append(question.submit(self.ask, [photo, question, talk], shown, **hidden, **on_model))
            running += [
                button.click(self.ask, [photo, button, talk], shown, **hidden, **on_model) for button in follow_ups
            ]
            stop.click(lambda: gr.Button(interactive=False), None, stop, cancels=running, queue=False, **hidden)
            for trigger in (clear.click, photo.clear):
                trigger(self.reset, None, [photo, *shown], cancels=running, queue=False, **hidden)
            chat.clear(self.forget, talk, shown, cancels=running, queue=False, **hidden)
            self._add_api(photo, question, on_model)
        page.queue(max_size=MAX_WAITING)
        return page

    def _add_api(self, photo: gr.Image, question: gr.Textbox, on_model: dict[str, Any]) -> None:
        """Two end points for programs: the same inputs as on the page, plain values as output."""
        answer, candidates = gr.Textbox(visible=False), gr.JSON(visible=False)
        for function, inputs, output in (
            (self.answer_api, [photo, question], answer),
            (self.locate_api, [photo], candidates),
        ):
            name = function.__name__.removesuffix("_api")
            gr.Button(visible=False).click(function, inputs, output, api_name=name, **on_model)

    def start(self, photo: str | None, question: str) -> Iterator[tuple[Any, ...]]:
        """A new photo: its candidates at once, then the answer to the question, word by word."""
        talk = Talk()
        try:
            talk.candidates = self._predictor.locate(_photo_path(photo), NUM_CANDIDATES)
        except (UserError, RuntimeError) as error:
            yield self._show(talk, error=_sentence(error, photo))
            return
        yield from self.ask(photo, question or texts.DEFAULT_QUESTION, talk)

    def ask(self, photo: str | None, question: str, talk: Talk) -> Iterator[tuple[Any, ...]]:
        """The answer to a question, word by word; what went wrong is said in the conversation and not kept."""
        before = _finished(talk.messages)
        try:
            asked = self._as_message(question, is_first=not before)
            talk.messages = [*before, asked, Message("assistant", "")]
            yield self._show(talk, is_running=True)
            for piece in self._predictor.stream([*before, asked], _photo_path(photo)):
                talk.messages[-1] = Message("assistant", talk.messages[-1].content + piece)
                yield self._show(talk, is_running=True)
            yield self._show(talk)
        except (UserError, RuntimeError) as error:
            talk.messages = before
            yield self._show(talk, error=_sentence(error, photo))

    def reset(self) -> tuple[Any, ...]:
        """The page as it was at the beginning."""
        talk = Talk()
        stop = gr.Button(interactive=False)
        return None, talk, [], self.format_candidates(talk), texts.DEFAULT_QUESTION, stop

    def forget(self, talk: Talk) -> tuple[Any, ...]:
        """The same photo, nothing asked yet."""
        return self._show(Talk(candidates=talk.candidates))

    def locate_api(self, photo: str | None) -> list[dict[str, Any]]:
        """The most likely addresses of a photo, best first."""
        try:
            candidates = self._predictor.locate(_photo_path(photo), NUM_CANDIDATES)
        except (UserError, RuntimeError) as error:
            raise gr.Error(_sentence(error, photo), print_exception=False) from None
        return [{"address": c.address_text, "probability": c.probability} for c in candidates]

    def answer_api(self, photo: str | None, question: str) -> Iterator[str]:
        """The answer to one question about a photo, as far as it has been generated."""
        text = ""
        try:
            asked = self._as_message(question, is_first=True)
            for piece in self._predictor.stream([asked], _photo_path(photo)):
                text += piece
                yield text
        except (UserError, RuntimeError) as error:
            raise gr.Error(_sentence(error, photo), print_exception=False) from None

    def format_candidates(self, talk: Talk) -> str:
        """The candidates as HTML, with marks where the conversation's answer is among them."""
        if not talk.candidates:
            return f'<div class="places"><h2>{texts.CANDIDATES}</h2><p class="note">{texts.CANDIDATES_EMPTY}</p></div>'
        exact, street = self._agreement(talk)
        verdict = ""
        if exact is not None:
            if exact:
                kind, text, rank = "agrees", texts.AGREES, exact[0]
            elif street:
                kind, text, rank = "street", texts.SAME_STREET, street[0]
            else:
                kind, text, rank = "disagrees", texts.DISAGREES, 0
            verdict = f'<p class="verdict {kind}">{text.format(rank=rank + 1)}</p>'
        rows = "".join(_candidate_row(c, i in (exact or ())) for i, c in enumerate(talk.candidates))
        note = texts.CANDIDATES_NOTE.format(count=len(self._predictor.gallery))
        head = f'<h2>{texts.CANDIDATES}</h2><p class="note">{escape(note)}</p>'
        return f'<div class="places">{head}{verdict}<ol>{rows}</ol></div>'

    def _agreement(self, talk: Talk) -> tuple[list[int] | None, list[int]]:
        """Candidates that the newest answer with a street names, and those of its street; None without an answer."""
        for message in reversed(_finished(talk.messages)):
            match = self._gazetteer.match(message.content) if message.role == "assistant" else None
            if match and match.street:
                named = self._gazetteer.candidates(match)
                streets = {a.street_key for a in self._gazetteer.candidates(replace(match, cross_streets=()))}
                exact = [i for i, c in enumerate(talk.candidates) if c.address in named]
                return exact, [i for i, c in enumerate(talk.candidates) if c.address.street_key in streets]
        return None, []

    def _as_message(self, question: str, *, is_first: bool) -> Message:
        text = self._predictor.disarm(question.strip()[:MAX_QUESTION_CHARACTERS])
        if not text:
            raise UserError(texts.NO_QUESTION)
        return user_question(text) if is_first else Message("user", text)

    def _show(self, talk: Talk, *, is_running: bool = False, error: str = "") -> tuple[Any, ...]:
        """Values for the state, the conversation, the candidates, the question box and the stop button."""
        shown = [{"role": m.role, "content": m.content.removeprefix("<image>\n")} for m in talk.messages]
        if error:
            shown.append({"role": "assistant", "content": error})
        return talk, shown, self.format_candidates(talk), "", gr.Button(interactive=is_running)


def _known_facts(gallery: Sequence[GalleryRecord]) -> list[str]:
    """The questions that the addresses of this city can answer."""
    is_known = {
        STREET: True,
        BETWEEN: any(record.address.cross_streets for record in gallery),
        NEIGHBOURHOOD: any(record.address.neighbourhood for record in gallery),
        CITY: any(record.address.city for record in gallery),
    }
    return [task for task, known in is_known.items() if known]


def _candidate_row(candidate: Candidate, is_answer: bool) -> str:
    address = candidate.address
    rest = ", ".join(part for part in (format_piece(address), address.neighbourhood) if part)
    share = f"{100 * candidate.probability:.0f}&nbsp;%" if candidate.probability >= 0.005 else "&lt;&nbsp;1&nbsp;%"
    mark = f'<span class="mark">{texts.AGREES_MARK}</span>' if is_answer else ""
    return (
        f'<li class="{"agrees" if is_answer else ""}"><div class="line">'
        f'<span class="name"><b>{escape(address.street)}</b>{mark}<small>{escape(rest)}</small></span>'
        f'<span class="share">{share}</span></div>'
        f'<div class="bar" aria-hidden="true"><div style="width: {100 * candidate.probability:.1f}%"></div></div></li>'
    )


def _finished(messages: Sequence[Message]) -> list[Message]:
    """A dialogue without a last question that got no answer, as after a stop before the first word."""
    done = list(messages)
    return done[:-2] if done and not done[-1].content.strip() else done


def _photo_path(photo: str | None) -> Path:
    if not photo:
        raise UserError(texts.NO_PHOTO)
    path = Path(photo)
    if not path.is_file():
        raise UserError(texts.PHOTO_GONE)
    return path


def _sentence(error: Exception, photo: str | None) -> str:
    """What went wrong, for a visitor: without the paths of this computer."""
    text = str(error)
    if not isinstance(error, UserError):
        return texts.MODEL_FAILED.format(reason=text.splitlines()[0] if text else type(error).__name__)
    if photo and photo in text:
        reason = text.replace(f"photo {photo}", "This photo").split(": ")[0]
        return texts.BAD_PHOTO.format(reason=reason)
    return text
