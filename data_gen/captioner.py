"""Captions by a model: any image-text model of ``transformers``, or a server that speaks OpenAI's API.

The AddressCLIP paper takes BLIP (large) with the prompt "a street view of" and captions of 10 to 30 words.
"""

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_gen.caption import CaptionModelSettings
from data_gen.web import JsonClient, Manners
from llava_ial.data.images import load_photo
from llava_ial.errors import UserError

_SERVER_SIDE_PX = 512


class ModelCaptioner:
    """An image-text model on the GPU if there is one, in bfloat16 there."""

    def __init__(self, settings: CaptionModelSettings) -> None:
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._processor = AutoProcessor.from_pretrained(settings.caption_model)
            model = AutoModelForImageTextToText.from_pretrained(
                settings.caption_model, dtype=torch.bfloat16 if self._device.type == "cuda" else torch.float32
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"caption_model: {settings.caption_model} cannot be loaded: {reason}") from error
        self._model: Any = model.to(self._device).eval()

    @torch.inference_mode()
    def captions(self, files: Sequence[Path]) -> list[str]:
        """A caption of each photo, greedily decoded, so that it is the same each time; "" if the model says nothing."""
        photos = [load_photo(file) for file in files]
        prompts = [self._settings.caption_prompt] * len(photos)
        inputs = self._processor(images=photos, text=prompts, return_tensors="pt", padding=True).to(self._device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        fewest, most = self._settings.caption_words
        # A word is one token or two; what is too long is cut at its last whole word below.
        tokens = self._model.generate(**inputs, do_sample=False, min_new_tokens=fewest, max_new_tokens=2 * most)
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [trim_caption(text, self._settings.caption_prompt, most) for text in texts]


class ServerCaptioner:
    """A vision model behind ``POST /chat/completions``."""

    def __init__(self, settings: CaptionModelSettings, client: JsonClient | None = None) -> None:
        self._settings = settings
        self._url = settings.caption_server.rstrip("/") + "/chat/completions"
        key = os.environ.get(settings.caption_key_variable, "") if settings.caption_key_variable else ""
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = client or JsonClient(Manners(rate_per_s=1_000.0, timeout_s=120.0))

    def captions(self, files: Sequence[Path]) -> list[str]:
        """A caption of each photo; "" if the model says nothing.

        Raises:
            UserError: The server refuses or fails.
        """
        return [self._caption(file) for file in files]

    def _caption(self, file: Path) -> str:
        photo = load_photo(file, min_side=_SERVER_SIDE_PX)
        photo.thumbnail((2 * _SERVER_SIDE_PX, 2 * _SERVER_SIDE_PX))
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=90)
        url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        fewest, most = self._settings.caption_words
        text = (
            f"Describe this photo in one sentence of {fewest} to {most} words that begins with "
            f"'{self._settings.caption_prompt}'. Name no street, place or sign."
        )
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        body = {
            "model": self._settings.caption_model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 4 * most,
        }
        answer = self._client.post(self._url, body, self._headers)
        try:
            said = answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"caption_server: {self._url} answered in no known form") from error
        return trim_caption(str(said), self._settings.caption_prompt, most)


def trim_caption(text: str, prompt: str, most: int) -> str:
    """One line of at most ``most`` words; "" where nothing but the prompt was said.

    Example:
        >>> trim_caption("a street view of a\\n red  house", "a street view of", 6)
        'a street view of a red'
    """
    words = text.split()
    said = " ".join(words[:most])
    return "" if said.casefold() == " ".join(prompt.split()).casefold() else said
