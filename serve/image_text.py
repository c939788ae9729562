"""Any image-text model that ``transformers`` can open by name, asked like one of this project's."""

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_ial.conversation import IMAGE_TOKEN, Message
from llava_ial.errors import UserError
from llava_ial.inference import LENGTH, STOP, Answer


class ImageTextModel:
    """A model with the chat template of its own processor.

    Args:
        name: Folder or hub name.
        device: ``cpu``, ``cuda`` ...
        dtype: Of the weights.

    Raises:
        UserError: It cannot be loaded, or has no chat template.
    """

    def __init__(self, name: str, *, device: str, dtype: torch.dtype) -> None:
        try:
            self._processor = AutoProcessor.from_pretrained(name)
            self._model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype).to(device).eval()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--model '{name}' is no image-text model: {str(error).splitlines()[0]}") from error
        if not getattr(self._processor, "chat_template", None):
            raise UserError(f"--model '{name}' has no chat template, so nobody knows how to ask it")
        self._processor.tokenizer.padding_side = "left"
        if self._processor.tokenizer.pad_token is None:
            self._processor.tokenizer.pad_token = self._processor.tokenizer.eos_token

    def answer_batch(
        self,
        dialogues: Sequence[Sequence[Message]],
        photos: Sequence[Image.Image],
        *,
        batch_size: int,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer for each dialogue, the longest questions first."""
        prompts = [self._prompt(messages) for messages in dialogues]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found = self._generate([prompts[i] for i in rows], [photos[i] for i in rows], max_new_tokens)
            answers.update(zip(rows, found, strict=True))
        return [answers[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _generate(self, prompts: list[str], photos: list[Image.Image], max_new_tokens: int) -> list[Answer]:
        # One list of photos per prompt is understood by every processor; the template has set all special tokens.
        inputs = self._processor(
            text=prompts,
            images=[[photo] for photo in photos],
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        ).to(self._model.device, self._model.dtype)
        ids = self._model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = ids[:, inputs["input_ids"].shape[1] :]
        ends = self._model.generation_config.eos_token_id
        has_ended = torch.isin(new, torch.tensor(ends, device=new.device)).any(dim=1).tolist()
        texts = self._processor.batch_decode(new, skip_special_tokens=True)
        return [Answer(t.strip(), STOP if ended else LENGTH) for t, ended in zip(texts, has_ended, strict=True)]

    def _prompt(self, messages: Sequence[Message]) -> str:
        turns = []
        for message in messages:
            parts = [{"type": "image"}] if IMAGE_TOKEN in message.content else []
            text = message.content.replace(IMAGE_TOKEN, "").strip()
            turns.append({"role": message.role, "content": [*parts, {"type": "text", "text": text}]})
        prompt: str = self._processor.apply_chat_template(turns, add_generation_prompt=True)
        return prompt
