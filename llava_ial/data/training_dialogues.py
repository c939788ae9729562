"""The dialogues that stage 2 trains on: a data set's questions, its captions, or a file of LLaVA's form."""

from pathlib import Path

from llava_ial.conversation import Message, user_question
from llava_ial.data.dataset import IALDataset, Sample
from llava_ial.data.llava_json import GENERAL, read_llava_json
from llava_ial.errors import UserError
from llava_ial.prompts import choose
from llava_ial.records import ConversationRecord

OWN, CAPTIONS = "own", "captions"
_REQUESTS = (
    "Describe this photo.",
    "What can be seen in this photo?",
    "Give a short description of the picture.",
    "Say briefly what this picture shows.",
)


def training_dialogues(dataset: IALDataset, what: str) -> list[ConversationRecord]:
    """Dialogues of the training split, one a photo for captions.

    Args:
        dataset: Whose questions or captions.
        what: ``own``, ``captions`` or the path of a file.

    Raises:
        UserError: No caption at all, or as of ``read_llava_json``.
    """
    if what == OWN:
        return dataset.conversations("train")
    if what != CAPTIONS:
        return read_llava_json(Path(what))
    records = [_described(sample) for sample in dataset.samples("train") if sample.caption.strip()]
    if not records:
        raise UserError(f"--dialogues {CAPTIONS}: {dataset.folder} has no caption of a training photo")
    return records


def _described(sample: Sample) -> ConversationRecord:
    photo, name = sample.photo, f"{sample.photo.image_id}-caption"
    return ConversationRecord(
        conversation_id=name,
        image_id=photo.image_id,
        image_path=photo.image_path,
        sub_street_id=sample.address.sub_street_id,
        split="train",
        messages=[user_question(choose(_REQUESTS, name)), Message("assistant", sample.caption.strip())],
        question_ids=[name],
        tasks=[GENERAL],
        is_given_away=[False],
    )
