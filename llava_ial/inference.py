"""The finished model, for chat, API and evaluation alike: where was this photo taken, and questions about it.

predictor = AddressPredictor.from_pretrained(Path("runs/demo/stage2"))
predictor.locate(Path("photo.jpg"))                                            candidates with probabilities
predictor.answer([user_question("Where was this taken?")], Path("photo.jpg"))  an answer in words
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_ial.conversation import IMAGE_TOKEN, Message, user_question, validate_messages
from llava_ial.data.llava import IGNORE_INDEX, disarm, encode_dialogue, encode_prompt
from llava_ial.errors import UserError
from llava_ial.hints import HintSettings, with_hint
from llava_ial.locating import Candidate, Encoder, Locator, Photo, load_encoder, photo_pixels
from llava_ial.manifest import read_manifest
from llava_ial.models.closed_list import ChoiceScores, TokenTree, score_choices
from llava_ial.models.greedy import encode_prefixes, end_token, greedy_tokens, image_features, split_prompt
from llava_ial.models.llava import ADDRESS_CLIP_KIND
from llava_ial.models.llava_folder import ADDRESS_CLIP, ENCODER_PARTS, LoadedLlava, load_llava_ial
from llava_ial.models.llava_folder import KIND as LLAVA_IAL_KIND
from llava_ial.models.llava_merged import KIND as MERGED_KIND
from llava_ial.models.llava_merged import load_merged
from llava_ial.models.running_batch import RunningBatch
from llava_ial.models.shared_prefix import Prefixes
from llava_ial.photo_groups import identity_of, whole_photos

__all__ = ["LENGTH", "MAX_NEW_TOKENS", "STOP", "AddressPredictor", "Answer", "Asked", "Candidate", "Photo"]

MAX_NEW_TOKENS = 128
STOP, LENGTH = "stop", "length"
# Batches of questions whose answers are written together: those need less memory than reading the questions.
_BATCHES_TOGETHER = 4
# What a byte-level tokenizer shows of a letter whose last bytes are still to come.
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Answer:
    """An answer in words; ``finish_reason`` is ``stop``, or ``length`` where the limit of tokens cut it.

    The counts of tokens are those that a server bills, None for a model of one's own. An answer chosen from a list
    comes with the best of the list and their probabilities, best first.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    candidates: tuple[str, ...] | None = None
    probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Asked:
    """A question about photos of one place as the model reads it: token ids, and pixels ``(K, 3, H, W)``."""

    prompt: list[int]
    pixel_values: torch.Tensor


class AddressPredictor(Locator):
    """Locates photos (folders of stage 1 and 2) and answers questions about them (folders of stage 2).

    Build it with ``from_pretrained``, which verifies every part of the folder.
    """

    def __init__(self, encoder: Encoder, llava: LoadedLlava | None) -> None:
        super().__init__(encoder)
        self._llava = llava
        self._token_trees: dict[tuple[str, ...], TokenTree] = {}
        hints = llava.manifest.get("hints") if llava else None
        self._hint_settings = HintSettings(**hints) if hints else None

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        base: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        quantize: str = "none",
    ) -> "AddressPredictor":
        """Opens the output of stage 1 (``locate`` alone), of stage 2, or of ``train.merge``.

        Args:
            folder: Finished folder.
            base: Where the base model of stage 2 is now, if it was moved since.
            device: ``cpu``, ``cuda``, ``cuda:1`` ...
            dtype: Of LLaVA's weights; float32 on the CPU and bfloat16 elsewhere by default. The encoder is always
                float32: its cosines are close to each other.
            quantize: ``nf4`` or ``int8`` hold the language model at four or eight bits; answers may change with it.

        Raises:
            UserError: No finished folder, or one whose parts do not belong together.
        """
        manifest = read_manifest(folder, LLAVA_IAL_KIND, MERGED_KIND, ADDRESS_CLIP_KIND)
        if manifest["kind"] == ADDRESS_CLIP_KIND:
            return cls(load_encoder(folder, device), None)
        encoder = load_encoder(folder / ADDRESS_CLIP, device)
        inner = read_manifest(folder / ADDRESS_CLIP, ADDRESS_CLIP_KIND)
        for name in ENCODER_PARTS:
            if inner.get(name) != manifest.get(name):
                raise UserError(
                    f"{folder}: {name} of its {ADDRESS_CLIP}/ differs from its own; it holds another encoder than the "
                    "one it was trained with: restore it or train again"
                )
        dtype = dtype or choose_dtype(device)
        if manifest["kind"] == MERGED_KIND:
            return cls(encoder, load_merged(folder, device=device, dtype=dtype, quantize=quantize))
        return cls(encoder, load_llava_ial(folder, base=base, device=device, dtype=dtype, quantize=quantize))

    @property
    def can_answer(self) -> bool:
        """True for a folder of stage 2."""
        return self._llava is not None

    @property
    def takes_hints(self) -> bool:
        """True if the language model was trained to be told AddressCLIP's candidates."""
        return self._hint_settings is not None

    def own_hints(self, photos: Sequence[Photo]) -> list[str]:
        """What the language model is told of each photo before the first question; "" for a model without hints.

        Raises:
            UserError: A photo cannot be read.
        """
        if self._hint_settings is None:
            return [""] * len(photos)
        # One by one: in batches of other sizes the last digits differ, and with them, rarely, a rounded probability.
        return [self.hints_of(self.cosines([photo]), self._hint_settings)[0] for photo in photos]

    def _hints(self, photos: Sequence[Photo]) -> list[str]:
        """One for each, every photo looked at once."""
        shown = {identity_of(photo): photo for photo in photos}
        hint_of = dict(zip(shown, self.own_hints(list(shown.values())), strict=True))
        return [hint_of[identity_of(photo)] for photo in photos]

    def answer(self, messages: Sequence[Message], photo: Photo, *, max_new_tokens: int = MAX_NEW_TOKENS) -> Answer:
        """The answer to the last message of a dialogue about a photo."""
        return self.answer_batch([messages], [photo], max_new_tokens=max_new_tokens)[0]

    def answer_batch(
        self,
        dialogues: Sequence[Sequence[Message]],
        photos: Sequence[Photo],
        *,
        batch_size: int = 8,
        max_new_tokens: int = MAX_NEW_TOKENS,
        hints: Sequence[str] | None = None,
    ) -> list[Answer]:
        """Answers in the order of the dialogues; in float32 they do not depend on ``batch_size``.

        A photo that several dialogues are about is encoded once, and so is the beginning of the prompt with it: only
        the questions are read one by one, those of similar length together.

        Args:
            dialogues: Each ends with a question; the first message begins with ``<image>``.
            photos: One per dialogue.
            batch_size: Photos, and questions, that are read at a time; four times as many answers are written together.
            max_new_tokens: Most tokens of an answer.
            hints: One per dialogue, "" for none, instead of the photos' own.

        Raises:
            UserError: A photo cannot be read, or a dialogue is no dialogue.
        """
        llava = self._require_llava()
        told = self._hints(photos) if hints is None else hints
        pairs = zip(dialogues, told, strict=True)
        prompts = [self._prompt_ids(messages, max_new_tokens, hint) for messages, hint in pairs]
        answers: dict[int, Answer] = {}
        for group in whole_photos(photos, batch_size, _BATCHES_TOGETHER * batch_size):
            shown = {identity_of(photos[i]): photos[i] for i in group}
            place = {photo: k for k, photo in enumerate(shown)}
            prefixes = self._prefixes(shown, prompts[group[0]])
            for start in range(0, len(group), _BATCHES_TOGETHER * batch_size):
                rows = group[start : start + _BATCHES_TOGETHER * batch_size]
                steps = greedy_tokens(
                    llava.model,
                    prefixes,
                    [place[identity_of(photos[i])] for i in rows],
                    [split_prompt(llava.model, prompts[i])[1] for i in rows],
                    max_new_tokens=max_new_tokens,
                    at_a_time=batch_size,
                )
                tokens = torch.stack(list(steps), dim=1).tolist()
                answers.update({i: self._as_answer(ids) for i, ids in zip(rows, tokens, strict=True)})
        return [answers[i] for i in range(len(prompts))]

    def choose_batch(
        self,
        dialogues: Sequence[Sequence[Message]],
        photos: Sequence[Photo],
        choices: Sequence[Sequence[str]],
        hints: Sequence[str] | None = None,
    ) -> list[ChoiceScores]:
        """How probable the model finds each of a list of answers, per dialogue.

        Args:
            dialogues: As for ``answer_batch``.
            photos: One per dialogue.
            choices: Per dialogue the answers that are possible; equal lists are read once.
            hints: As for ``answer_batch``.
        """
        llava = self._require_llava()
        told = self._hints(photos) if hints is None else hints
        prompts = [self._prompt_ids(messages, 0, hint) for messages, hint in zip(dialogues, told, strict=True)]
        scores: dict[int, ChoiceScores] = {}
        for group in whole_photos(photos, 1, 1):
            prefixes = self._prefixes({0: photos[group[0]]}, prompts[group[0]])
            for i in group:
                question = split_prompt(llava.model, prompts[i])[1]
                scores[i] = score_choices(llava.model, prefixes, 0, question, self._token_tree(tuple(choices[i])))
        return [scores[i] for i in range(len(prompts))]

    def _token_tree(self, texts: tuple[str, ...]) -> TokenTree:
        """The answers as training saw them, end mark included."""
        if texts not in self._token_trees:
            llava = self._require_llava()
            dialogues = [[user_question("Where?"), Message("assistant", text)] for text in texts]
            encoded = [encode_dialogue(llava.tokenizer, dialogue, llava.num_image_tokens) for dialogue in dialogues]
            self._token_trees[texts] = TokenTree(
                [[label for label in dialogue.labels if label != IGNORE_INDEX] for dialogue in encoded]
            )
        return self._token_trees[texts]

    def stream(
        self, messages: Sequence[Message], *photos: Photo, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Iterator[str]:
        """The same answer as ``answer`` in pieces; closing the iterator, or not reading on, stops the generation.

        Several photos are held to show one place: each has a vote on every word.
        """
        llava = self._require_llava()
        asked = self.prepare(messages, *photos, max_new_tokens=max_new_tokens)
        prefixes, question = self._read_photos(asked.pixel_values, asked.prompt)
        rows = range(len(photos))
        tokens = greedy_tokens(
            llava.model, prefixes, rows, [question for _ in rows], max_new_tokens=max_new_tokens, together=len(rows) > 1
        )
        yield from self.in_words(step[:1].tolist() for step in tokens)

    def prepare(self, messages: Sequence[Message], *photos: Photo, max_new_tokens: int = MAX_NEW_TOKENS) -> Asked:
        """A question as the model reads it, for ``join``; several photos are held to show one place.

        Raises:
            UserError: A photo cannot be read, or the messages are no dialogue.
        """
        hint = ""
        if self._hint_settings:
            (hint,) = self.hints_of(self.cosines(photos).mean(dim=0, keepdim=True), self._hint_settings)
        prompt = self._prompt_ids(messages, max_new_tokens, hint)
        return Asked(prompt, photo_pixels(photos, self._require_llava().image_processor))

    def open_batch(self, *, max_new_tokens: int = MAX_NEW_TOKENS) -> RunningBatch:
        """An empty batch, in which questions that come at different times are answered together."""
        return RunningBatch(self._require_llava().model, max_new_tokens=max_new_tokens)

    def join(self, batch: RunningBatch, newcomers: Sequence[Asked]) -> torch.Tensor:
        """Adds questions to a batch of ``open_batch`` and returns the first token of each answer, ``(N,)``."""
        views = [len(asked.pixel_values) for asked in newcomers]
        pixel_values = torch.cat([asked.pixel_values for asked in newcomers])
        prefixes, _ = self._read_photos(pixel_values, newcomers[0].prompt)
        model = self._require_llava().model
        questions = [split_prompt(model, asked.prompt)[1] for asked in newcomers for _ in asked.pixel_values]
        return batch.join(prefixes, range(len(pixel_values)), questions, views)

    def in_words(self, tokens: Iterable[Sequence[int]]) -> Iterator[str]:
        """The pieces of an answer that grows by some tokens at a time; none may come of some, and "" of no tokens."""
        ids: list[int] = []
        shown = ""
        for new in tokens:
            ids += new
            text = self._as_answer(ids).text
            if not new:
                yield ""
            elif text.startswith(shown) and not text.endswith(_INCOMPLETE) and text != shown:
                yield text[len(shown) :]
                shown = text
        final = self._as_answer(ids).text
        if final != shown and final.startswith(shown):
            yield final[len(shown) :]

    def _prompt_ids(self, messages: Sequence[Message], max_new_tokens: int, hint: str) -> list[int]:
        """Ids of a dialogue as training saw them; its earliest pairs are left out where they would not fit."""
        llava = self._require_llava()
        validate_messages(messages, "to answer")
        if messages[-1].role != "user" or not messages[0].content.startswith(IMAGE_TOKEN):
            raise UserError(f"a dialogue to answer begins with {IMAGE_TOKEN} and ends with a question")
        room = llava.model.config.text_config.max_position_embeddings - max_new_tokens
        kept = list(messages)
        while len(ids := encode_prompt(llava.tokenizer, with_hint(kept, hint), llava.num_image_tokens)) > room:
            if len(kept) == 1:
                raise UserError(f"the question is too long: {len(ids)} tokens with the photo, {room} fit; shorten it")
            kept = [Message("user", f"{IMAGE_TOKEN}\n{kept[2].content}"), *kept[3:]]
        return ids

    def _prefixes(self, photos: Mapping[object, Photo], prompt: Sequence[int]) -> Prefixes:
        """The beginning of the prompt, which is that of every dialogue, read with each photo."""
        pixel_values = photo_pixels(list(photos.values()), self._require_llava().image_processor)
        return self._read_photos(pixel_values, prompt)[0]

    def _read_photos(self, pixel_values: torch.Tensor, prompt: Sequence[int]) -> tuple[Prefixes, list[int]]:
        """The beginning of a prompt, read with each photo, and what is left of it to read."""
        model = self._require_llava().model
        prefix, question = split_prompt(model, prompt)
        return encode_prefixes(model, prefix, image_features(model, pixel_values)), question

    def _as_answer(self, ids: Sequence[int]) -> Answer:
        llava = self._require_llava()
        end = end_token(llava.model)
        has_ended = end in ids
        spoken = list(ids)[: list(ids).index(end)] if has_ended else list(ids)
        text = llava.tokenizer.decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Answer(text.strip(), STOP if has_ended else LENGTH)

    def disarm(self, text: str) -> str:
        """Text that a stranger typed, with marks such as ``</s>`` broken so that they stay words."""
        return disarm(text, self._require_llava().tokenizer)

    def _require_llava(self) -> LoadedLlava:
        if self._llava is None:
            raise UserError("this is a folder of stage 1: it locates photos; to answer questions name one of stage 2")
        return self._llava


def choose_device(name: str) -> str:
    """``auto`` is a GPU where there is one; anything else is taken as it is."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(device: str) -> torch.dtype:
    """Of LLaVA's weights if nobody says otherwise."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
