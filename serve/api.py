"""The chat for programs: two documented end points, health and counters.

    /locate  photo             ->  candidates with probabilities
    /ask     photo, question   ->  the answer, as it grows
    GET /health                ->  {"status": "ok"}
    GET /metrics               ->  counters for Prometheus

The first two are Gradio's (``Client(url).predict(handle_file("photo.jpg"), api_name="/locate")`` of ``gradio_client``),
and the tools of the MCP server where that is switched on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serve.talk import FAILURES, Talk, Talker, sentence
from serve.uploads import Uploads


class Api:
    """End points that answer as the page does.

    Args:
        talker: Answers.
        uploads: Where the photos lie; each is deleted when it has been answered.
    """

    def __init__(self, talker: Talker, uploads: Uploads) -> None:
        self._talker = talker
        self._uploads = uploads

    def add(self, photo: gr.Image, question: gr.Textbox, on_model: dict[str, Any]) -> None:
        """Adds both end points to the page that is being built: its inputs, plain values as output."""
        candidates, answer = gr.JSON(visible=False), gr.Textbox(visible=False)
        gr.Button(visible=False).click(self.locate, [photo], candidates, api_name="locate", **on_model)
        gr.Button(visible=False).click(self.ask, [photo, question], answer, api_name="ask", **on_model)

    def locate(self, photo: str | None) -> list[dict[str, Any]]:
        """The most likely addresses of a street photo, best first, with their probabilities.

        Args:
            photo: A street photo of the city that the model knows.

        Returns:
            Up to five addresses, each with its probability among all addresses of the city.
        """
        photos = _as_photos(photo)
        try:
            with self._uploads.borrow(photos):
                finding = self._talker.look(photos)
        except FAILURES as error:
            raise gr.Error(sentence(error, photos), print_exception=False) from None
        return [{"address": c.address_text, "probability": c.probability} for c in finding.candidates]

    def ask(self, photo: str | None, question: str) -> Iterator[str]:
        """The answer to a question about a street photo: where it was taken, in words.

        Args:
            photo: A street photo of the city that the model knows.
            question: For example "Where was this taken?".

        Returns:
            The answer, as far as it has been generated.
        """
        talk = Talk(_as_photos(photo))
        try:
            with self._uploads.borrow(talk.photos):
                for _ in self._talker.ask(talk, question):
                    yield talk.turns[-1].answer
        except FAILURES as error:
            raise gr.Error(sentence(error, talk.photos), print_exception=False) from None


def add_probes(app: FastAPI, talker: Talker) -> None:
    """Adds ``/health`` and ``/metrics`` to a launched page.

    They go before Gradio's own routes, the last of which takes every path, and stand outside of its login: a probe has
    no password, and neither tells anything about anybody.
    """

    def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    def metrics() -> Response:
        return Response(generate_latest(talker.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for path, probe in (("/health", health), ("/metrics", metrics)):
        app.router.routes.insert(0, APIRoute(path, probe, methods=["GET"]))


def _as_photos(photo: str | None) -> list[Path]:
    return [Path(photo)] if photo else []
