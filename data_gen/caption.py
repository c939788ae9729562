"""Scene descriptions of photos, and the filter that keeps addresses out of them.

The captions train the encoder beside the addresses; a caption that names the street would give the label away.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data_gen.tables import read_csv_rows
from llava_ial.errors import UserError
from llava_ial.records import CaptionRecord, arrow_schema, read_records, to_table, write_part

_BATCHES_A_PART = 16
STREET_MASK, AREA_MASK = "the street", "the area"
# Names that are ordinary words too: a lower-case "market" in a caption is a market.
_ORDINARY_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        alley avenue bank beach bluff boulevard bridge broadway canal castle center central centre church city college
        court cross downtown east field forest garden gardens gate green hall harbor harbour heights hill hills island
        lake lane library main mall market mill museum north oak old park plaza point port promenade quay railway river
        road school shore side south spring square station street summit terrace tower town uptown valley view village
        wall walk water way west wharf wood woods
        """,
    )
)
_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_ARTICLE = re.compile(r"(?:\b[Tt]he )?$")


@dataclass
class CaptionModelSettings:
    """The options of captions by a model."""

    caption_model: str = field(
        default="Salesforce/blip-image-captioning-large",
        metadata={"help": "captioner model: folder or name of an image-text model; captioner server: its model's name"},
    )
    caption_prompt: str = field(
        default="a street view of", metadata={"help": "what a caption begins with; to a server, a question"}
    )
    caption_words: list[int] = field(
        default_factory=lambda: [10, 30], metadata={"help": "fewest and most words of a caption"}
    )
    caption_batch_size: int = field(default=16, metadata={"help": "photos that are captioned together"})
    caption_server: str = field(
        default="", metadata={"help": "captioner server: address up to /v1 of an OpenAI-compatible server"}
    )
    caption_key_variable: str = field(
        default="", metadata={"help": "environment variable that holds the caption server's key"}
    )

    def check_captioner(self, captioner: str) -> None:
        """Refuses what cannot work.

        Raises:
            UserError: Names the field and the mend.
        """
        if len(self.caption_words) != 2 or not 1 <= self.caption_words[0] <= self.caption_words[1]:
            raise UserError(f"caption_words: {self.caption_words}; give the fewest and the most, as in 10 30")
        if self.caption_batch_size < 1:
            raise UserError(f"caption_batch_size: {self.caption_batch_size}; at least 1")
        if captioner == "server" and not self.caption_server:
            raise UserError("captioner: server needs caption_server, as in http://127.0.0.1:8000/v1")


@dataclass(frozen=True)
class _Name:
    words: tuple[str, ...]
    mask: str


class LeakMask:
    """Replaces names of the map in captions.

    A name is found as whole words, in any case. A name of one ordinary word ("Market", "Downtown", "A Street") is found
    only where that word is capitalised within a sentence, a name of one very short word never.
    """

    def __init__(self, streets: Iterable[str], areas: Iterable[str]) -> None:
        self._by_first: dict[str, list[_Name]] = {}
        masks = dict.fromkeys(streets, STREET_MASK) | dict.fromkeys(areas, AREA_MASK)
        for name, mask in masks.items():
            words = tuple(word.lower() for word in _WORD.findall(name))
            if words and (len(words) > 1 or len(words[0]) > 2):
                self._by_first.setdefault(words[0], []).append(_Name(words, mask))
        for names in self._by_first.values():
            names.sort(key=lambda name: (-len(name.words), name.words))

    def apply(self, caption: str) -> tuple[str, int]:
        """The caption with names masked, and how many there were."""
        found = list(_WORD.finditer(caption))
        parts: list[str] = []
        done, position, count = 0, 0, 0
        while position < len(found):
            name = self._match(caption, found, position)
            if name is None:
                position += 1
                continue
            before = caption[done : found[position].start()]
            # "on the Market Street" must not become "on the the street".
            parts += [_ARTICLE.sub("", before), name.mask]
            position += len(name.words)
            done = found[position - 1].end()
            count += 1
        return "".join([*parts, caption[done:]]), count

    def _match(self, caption: str, found: Sequence[re.Match[str]], position: int) -> _Name | None:
        for name in self._by_first.get(found[position].group().lower(), ()):
            words = tuple(match.group().lower() for match in found[position : position + len(name.words)])
            if words != name.words:
                continue
            telling = [word for word in words if word not in _ARTICLES]
            if len(telling) > 1 or not _ORDINARY_WORDS.issuperset(telling):
                return name
            last = found[position + len(words) - 1]
            starts_sentence = caption[: last.start()].rstrip()[-1:] in ("", ".", "!", "?")
            if last.group()[0].isupper() and not starts_sentence:
                return name
        return None


def read_captions(path: Path, image_ids: Collection[str], id_column: str, caption_column: str) -> dict[str, str]:
    """Captions of photos from a CSV table, joined by image id; rows of other photos are passed over.

    Raises:
        UserError: A column is missing, or the table holds none of these photos.
    """
    wanted = set(image_ids)
    captions = {
        row[id_column]: row[caption_column]
        for row in read_csv_rows(path, (id_column, caption_column))
        if row[id_column] in wanted and row[caption_column]
    }
    if wanted and not captions:
        raise UserError(f"captions_csv: {path} has no caption for any photo; is '{id_column}' its image id column?")
    return captions


def model_captions(
    settings: CaptionModelSettings, image_ids: Sequence[str], files: Sequence[Path], kept: Path
) -> dict[str, str]:
    """What a model or a server says of each photo; photos that it said something of before are not asked again.

    Args:
        settings: ``caption_server`` names a server, else ``caption_model`` is run here.
        image_ids, files: The photos.
        kept: Folder of what was said so far, a table part for each few batches.
    """
    said: dict[str, str] = {}
    num_parts = len(list(kept.glob("part-*.parquet"))) if kept.is_dir() else 0
    if num_parts:
        said = {record.image_id: record.caption for record in read_records(kept, CaptionRecord)}
    todo = [(i, file) for i, file in zip(image_ids, files, strict=True) if i not in said]
    if not todo:
        return said
    from data_gen.captioner import (
        ModelCaptioner,
        ServerCaptioner,
    )  # loads torch, which the other captioners do not need

    captioner = ServerCaptioner(settings) if settings.caption_server else ModelCaptioner(settings)
    size = settings.caption_batch_size
    fresh: list[CaptionRecord] = []
    try:
        with tqdm(total=len(todo), desc="captioning", unit="photo", disable=None) as bar:
            for start in range(0, len(todo), size):
                names, paths = zip(*todo[start : start + size], strict=True)
                texts = captioner.captions(paths)
                # Parts end where batches end, so that a resumed run makes up the same batches.
                fresh += [
                    CaptionRecord(i, text, settings.caption_model, 0) for i, text in zip(names, texts, strict=True)
                ]
                bar.update(len(names))
                if len(fresh) >= _BATCHES_A_PART * size:
                    num_parts, fresh = _keep(kept, fresh, num_parts, said)
    finally:
        if fresh:  # also what was said before a server failed
            _keep(kept, fresh, num_parts, said)
    return said


def _keep(
    folder: Path, records: list[CaptionRecord], num_parts: int, said: dict[str, str]
) -> tuple[int, list[CaptionRecord]]:
    write_part(folder, to_table(records, CaptionRecord), num_parts)
    said |= {record.image_id: record.caption for record in records}
    return num_parts + 1, []


def constant_captions(image_ids: pa.Array, caption: str, mask: LeakMask) -> pa.Table:
    """The same caption for every photo, without the names in it; rows are ``CaptionRecord``s."""
    text, num_masked = mask.apply(caption)
    same = pa.array(np.zeros(len(image_ids), dtype=np.int64))
    captions, captioner, numbers = (pa.array([value]).take(same) for value in (text, "constant", num_masked))
    return pa.Table.from_arrays([image_ids, captions, captioner, numbers], schema=arrow_schema(CaptionRecord))


def caption_photos(
    image_ids: Sequence[str], captions: dict[str, str], constant: str, mask: LeakMask, captioner: str
) -> list[CaptionRecord]:
    """A caption for every photo: its own, else the constant one; never empty.

    Args:
        image_ids: Photos, in table order.
        captions: By image id.
        constant: Sentence for photos without a caption of their own.
        mask: What to take out.
        captioner: Where a photo's own caption is from.
    """
    records = []
    masked = lru_cache(maxsize=64)(mask.apply)  # the constant caption, and what a captioner says of every second street
    for image_id in image_ids:
        own = captions.get(image_id)
        text, num_masked = masked(own or constant)
        records.append(CaptionRecord(image_id, text, captioner if own else "constant", num_masked))
    return records
