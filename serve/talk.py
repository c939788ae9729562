"""A conversation about a photo, or about several of one place, without any page around it.

Most answers are the model's words. Some questions are about the model itself (how sure, what else, why): those are
answered from measured probabilities, and the model never sees such pairs in a later question.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from llava_ial.conversation import Message, user_question
from llava_ial.errors import UserError
from llava_ial.evaluation.retrieval import street_classes
from llava_ial.gazetteer import Gazetteer
from llava_ial.inference import AddressPredictor, Candidate
from serve import texts
from serve.metrics import ASK, LOCATE, Metrics
from serve.together import Together

# What a broken photo, the model or the machine may raise; everything else is a fault of this program.
FAILURES = (UserError, RuntimeError, MemoryError)
NUM_CANDIDATES = 5
MAX_PHOTOS = 8
BATCH_SIZE = 8
MAX_QUESTION_CHARACTERS = 1000


@dataclass
class Turn:
    """A question and its answer.

    Attributes:
        caution: A sentence of the page's own that stands below the answer.
        is_measured: Answered from probabilities and not by the model.
    """

    question: str
    answer: str = ""
    caution: str = ""
    is_measured: bool = False


@dataclass(frozen=True)
class Finding:
    """What the encoder says of the photos.

    Attributes:
        probabilities: ``(C,)`` of every address of the gallery.
        candidates: The best of them.
        street_share: Probability of the best street, all its pieces together.
        looks_here: False where the photos look like none of this city; True if nobody has measured that.
        is_sure: Whether the best street may be stated without a caution; True if nobody has measured that.
    """

    probabilities: torch.Tensor
    candidates: list[Candidate]
    street_share: float
    looks_here: bool
    is_sure: bool


@dataclass
class Talk:
    """A conversation, kept for one visitor.

    Attributes:
        photos: All of one place.
        turns: In the order in which they were asked.
        finding: None until the photos were looked at.
        is_busy: An answer is being made.
        is_left: Its visitor has gone, or went on to another photo.
    """

    photos: list[Path] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    finding: Finding | None = None
    is_busy: bool = False
    is_left: bool = False

    def finished(self) -> list[Turn]:
        """The turns that have an answer; a stop before the first word leaves none."""
        return [turn for turn in self.turns if turn.answer.strip()]


@dataclass(frozen=True)
class Agreement:
    """Where the conversation's newest answer with a street stands.

    Attributes:
        pieces: Ids of the pieces of the gallery that it names.
        exact: Candidates, by number from 0, that it names.
        same_street: Candidates that lie in its street.
    """

    pieces: list[str]
    exact: list[int]
    same_street: list[int]


class Talker:
    """Looks at photos and answers questions about them.

    Args:
        predictor: A model that can answer.
        time_limit_s: An answer that takes longer ends there, and says so.
        batch_size: Most photos whose questions are answered at the same time.
    """

    def __init__(
        self, predictor: AddressPredictor, *, time_limit_s: float = 120.0, batch_size: int = BATCH_SIZE
    ) -> None:
        self.predictor = predictor
        self.answers = Together(predictor, batch_size)
        self.metrics = Metrics()
        self._time_limit_s = time_limit_s
        self._gazetteer = Gazetteer([record.address for record in predictor.gallery])
        self._pieces_of = {record.address: record.sub_street_id for record in predictor.gallery}
        self._street_of_class = street_classes([record.address.street_key for record in predictor.gallery])
        cities = {record.address.city for record in predictor.gallery} - {""}
        self.city = cities.pop() if len(cities) == 1 else texts.ANY_CITY

    def look(self, photos: Sequence[Path]) -> Finding:
        """The encoder's candidates; the logits of several photos are averaged, as of witnesses of one place.

        Raises:
            UserError: A photo cannot be read, is gone, or there are too many.
        """
        with self.metrics.measure(LOCATE):
            return self._look(photos)

    def _look(self, photos: Sequence[Path]) -> Finding:
        _check_photos(photos)
        cosines = self.answers.run(lambda: self.predictor.cosines(photos))  # (P, C)
        probabilities = self.predictor.to_probabilities(cosines.mean(dim=0))
        streets = torch.zeros(int(self._street_of_class.max()) + 1)
        share = float(streets.index_add(0, self._street_of_class, probabilities).max())
        calibration = self.predictor.calibration
        return Finding(
            probabilities,
            self.predictor.rank(probabilities, NUM_CANDIDATES),
            share,
            looks_here=calibration is None or float(cosines.amax(dim=1).mean()) >= calibration.here_from,
            is_sure=calibration is None or share >= calibration.sure_from,
        )

    def ask(self, talk: Talk, question: str) -> Iterator[None]:
        """Adds a question and its growing answer to a conversation; closing the iterator stops the generation.

        Raises:
            UserError: No question or no photo; the conversation is left as it was.
        """
        with self.metrics.measure(ASK):
            yield from self._ask(talk, question)

    def _ask(self, talk: Talk, question: str) -> Iterator[None]:
        talk.turns = talk.finished()
        text = self.predictor.disarm(question.strip()[:MAX_QUESTION_CHARACTERS])
        if not text:
            raise UserError(texts.NO_QUESTION)
        _check_photos(talk.photos)
        spoken = [turn for turn in talk.turns if not turn.is_measured]
        messages = [message for turn in spoken for message in _as_messages(turn)]
        messages.append(Message("user", text))
        messages[0] = user_question(messages[0].content)
        turn = Turn(question=text)
        talk.turns.append(turn)
        yield
        deadline = time.monotonic() + self._time_limit_s
        with contextlib.closing(self.answers.stream(messages, *talk.photos)) as pieces:
            for piece in pieces:
                turn.answer += piece
                if time.monotonic() > deadline:
                    turn.caution = texts.TOO_SLOW.format(seconds=round(self._time_limit_s))
                    return
                yield
        if len(talk.turns) == 1:
            turn.caution = self._caution(talk)

    def how_sure(self, talk: Talk) -> None:
        """Adds the question how sure this is, answered from the probabilities.

        Raises:
            UserError: No photo was looked at.
        """
        finding = _require_finding(talk)
        best = finding.candidates[0]
        answer = texts.HOW_SURE.format(
            street=best.address.street, street_share=_percent(finding.street_share), share=_percent(best.probability)
        )
        agreement = self.agreement(talk)
        if agreement is not None and best.sub_street_id not in agreement.pieces:
            rows = [i for i, record in enumerate(self.predictor.gallery) if record.sub_street_id in agreement.pieces]
            answer += " " + texts.ANSWER_SHARE.format(share=_percent(float(finding.probabilities[rows].sum())))
        calibration = self.predictor.calibration
        answer += " " + (
            texts.MEASURED_ON.format(count=calibration.num_photos, accuracy=_percent(calibration.accuracy))
            if calibration
            else texts.NOT_MEASURED
        )
        self._add_measured(talk, texts.ASK_HOW_SURE, answer)

    def what_else(self, talk: Talk) -> None:
        """Adds the question what else it could be, answered with the candidates that the answer does not name.

        Raises:
            UserError: No photo was looked at.
        """
        finding = _require_finding(talk)
        agreement = self.agreement(talk)
        named = agreement.pieces if agreement else [finding.candidates[0].sub_street_id]
        others = [candidate for candidate in finding.candidates if candidate.sub_street_id not in named]
        rows = "\n".join(f"• {c.address_text} ({_percent(c.probability)})" for c in others)
        self._add_measured(talk, texts.ASK_WHAT_ELSE, f"{texts.WHAT_ELSE}\n{rows}" if others else texts.NOTHING_ELSE)

    def agreement(self, talk: Talk) -> Agreement | None:
        """Where the newest answer with a street stands; None without such an answer."""
        candidates = talk.finding.candidates if talk.finding else []
        for turn in reversed(talk.finished()):
            match = None if turn.is_measured else self._gazetteer.match(turn.answer)
            if match and match.street:
                named = self._gazetteer.candidates(match)
                streets = {a.street_key for a in self._gazetteer.candidates(replace(match, cross_streets=()))}
                return Agreement(
                    [self._pieces_of[address] for address in named],
                    [i for i, c in enumerate(candidates) if c.address in named],
                    [i for i, c in enumerate(candidates) if c.address.street_key in streets],
                )
        return None

    def matching_pieces(self, text: str) -> list[str] | None:
        """Pieces that a text names by street or neighbourhood; None where it names none of this city."""
        match = self._gazetteer.match(text)
        if match.street:
            return [self._pieces_of[address] for address in self._gazetteer.candidates(match)]
        wanted = match.neighbourhood
        pieces = [r.sub_street_id for r in self.predictor.gallery if wanted and r.address.neighbourhood == wanted]
        return pieces or None

    def fit_text(self, finding: Finding, text: str) -> tuple[list[float], str]:
        """How well each address of the gallery fits both the photos and a text, and a sentence that says so.

        A text that names a street or a neighbourhood keeps the photo's probabilities there; any other one weighs them
        by the text's own, from the encoder's cosines.
        """
        pieces = self.matching_pieces(text)
        if pieces is not None:
            named = torch.tensor([record.sub_street_id in pieces for record in self.predictor.gallery])
            fit = finding.probabilities * named
            return fit.tolist(), texts.FIND_NAMED.format(text=text, share=_percent(float(fit.sum())))
        fit = finding.probabilities * self.predictor.to_probabilities(self.predictor.text_cosines([text]))[0]
        return fit.tolist(), texts.FIND_WORDS.format(text=text)

    def _caution(self, talk: Talk) -> str:
        finding = talk.finding
        if finding is None or (finding.looks_here and finding.is_sure):
            return ""
        if not finding.looks_here:
            return texts.NOT_HERE.format(city=self.city)
        streets = list(dict.fromkeys(candidate.address.street for candidate in finding.candidates))
        return texts.NOT_SURE.format(streets=", ".join(streets[:3]))

    @staticmethod
    def _add_measured(talk: Talk, question: str, answer: str) -> None:
        talk.turns = [*talk.finished(), Turn(question, answer, is_measured=True)]


def sentence(error: Exception, photos: Sequence[Path] = ()) -> str:
    """What went wrong, for a visitor: without the paths of this computer."""
    text = str(error)
    if not isinstance(error, UserError):
        if isinstance(error, MemoryError) or "out of memory" in text.lower():
            return texts.OUT_OF_MEMORY
        return texts.MODEL_FAILED.format(reason=text.splitlines()[0] if text else type(error).__name__)
    for photo in photos:
        if str(photo) in text:
            reason = text.replace(f"photo {photo}", "This photo").split(": ")[0]
            return texts.BAD_PHOTO.format(reason=reason)
    return text


def _check_photos(photos: Sequence[Path]) -> None:
    if not photos:
        raise UserError(texts.NO_PHOTO)
    if len(photos) > MAX_PHOTOS:
        raise UserError(texts.TOO_MANY_PHOTOS.format(most=MAX_PHOTOS))
    if not all(photo.is_file() for photo in photos):
        raise UserError(texts.PHOTO_GONE)


def _as_messages(turn: Turn) -> tuple[Message, Message]:
    return Message("user", turn.question), Message("assistant", turn.answer)


def _require_finding(talk: Talk) -> Finding:
    if talk.finding is None:
        raise UserError(texts.NO_PHOTO)
    return talk.finding


def _percent(share: float) -> str:
    return texts.PERCENT.format(100 * share) if share >= 0.005 else texts.UNDER_ONE_PERCENT
