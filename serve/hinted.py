"""Which hints a model is told in an evaluation: its own, none, or those of another photo.

A model that answers as well without hints does not need them, and one that follows another photo's does not look.
"""

from collections.abc import Callable, Sequence

from PIL import Image

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.evaluation.questions import Question, derange_by_street
from llava_ial.inference import AddressPredictor
from serve.evaluate_settings import NONE, OWN, EvaluateConfig

# One hint for each question about a photo; None for a model without hints.
HintsOf = Callable[[Sequence[Question], Sequence[Image.Image]], "list[str] | None"]


def open_hints(predictor: AddressPredictor, config: EvaluateConfig) -> HintsOf:
    """What stands before the questions of a split.

    Raises:
        UserError: The model was trained without hints, so there is nothing to leave out.
    """
    if not predictor.takes_hints:
        if config.hints == OWN:
            return lambda questions, photos: None
        raise UserError(f"--hints {config.hints}: this model was trained without hints; leave the option out")
    if config.hints == NONE:
        return lambda questions, photos: [""] * len(questions)
    hint_of: dict[str, str] = {}  # a photo is asked about again and again
    if config.hints == OWN:

        def own(questions: Sequence[Question], photos: Sequence[Image.Image]) -> list[str]:
            new = {
                q.shown_image_id: p for q, p in zip(questions, photos, strict=True) if q.shown_image_id not in hint_of
            }
            hint_of.update(zip(new, predictor.own_hints(list(new.values())), strict=True))
            return [hint_of[question.shown_image_id] for question in questions]

        return own
    dataset = IALDataset(config.data, config.image_root)
    samples = dataset.samples(config.split)
    file_of = {sample.photo.image_id: dataset.image_file(sample.photo.image_path) for sample in samples}
    street_of = {sample.photo.image_id: sample.address.address.street_key for sample in samples}
    other_of = derange_by_street(sorted(file_of), street_of, config.seed)

    def shuffled(questions: Sequence[Question], photos: Sequence[Image.Image]) -> list[str]:
        for name in {question.shown_image_id for question in questions} - hint_of.keys():
            (hint_of[name],) = predictor.own_hints([file_of[other_of[name]]])
        return [hint_of[question.shown_image_id] for question in questions]

    return shuffled
