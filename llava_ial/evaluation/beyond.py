"""Is there anything for LLaVA to see that its encoder has not said? A bound that is found before a LLaVA is tuned.

    python -m llava_ial.evaluation.beyond --clip runs/demo/stage1 --data runs/demo/data

LLaVA reads the tower's tokens of one view of the photo. Here a small classifier reads the same tokens (attention over
the class token and a grid of patch means, then two layers) and learns the addresses of the training photos, directly
and for many epochs: easier than to learn them through sentences. Its log probabilities, weighted, are added to those
of AddressCLIP. If no weight makes more photos right, then answers that leave AddressCLIP's first candidate for what
these tokens show will be wrong more often than right, and one hint that is copied is the best there is; if one does,
there is something that more hints and a tuned language model may win.

"chosen" has the weight that is best for validation photos, "best" the one that is best for the very photos that are
counted: more than can be known. Prints Markdown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from llava_ial.config import parse_config
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError, run_command
from llava_ial.evaluation.statistics import Difference, paired_difference
from llava_ial.inference import choose_device
from llava_ial.locating import Encoder, Locator, load_encoder, photo_pixels
from llava_ial.manifest import write_json

WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# Names of what is read, as options of train/stage2_llava.py: layer and whether the class token is among it.
READINGS = {"-2, default": (-2, False), "-2, full": (-2, True), "-1, default": (-1, False), "-1, full": (-1, True)}
_GRID, _HEADS, _WIDTH, _DROPOUT, _SMOOTHING = 4, 4, 256, 0.3, 0.1
_PHOTOS_AT_A_TIME, _BATCH = 64, 128


@dataclass
class BeyondSettings:
    """Which encoder, which photos."""

    clip: Path = field(metadata={"help": "folder of stage 1"})
    data: Path = field(metadata={"help": "data set folder"})
    split: str = field(default="test", metadata={"help": "whose photos are counted: val or test"})
    epochs: int = field(default=40, metadata={"help": "passes over the training photos' tokens"})
    seed: int = field(default=0, metadata={"help": "of the classifiers"})
    output: Path | None = field(default=None, metadata={"help": "JSON to write"})
    image_root: Path | None = field(default=None, metadata={"help": "where the photos lie, if they were moved"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1 ..."})


@dataclass(frozen=True)
class Beyond:
    """What a reading adds to the encoder at one weight.

    Attributes:
        weight: Of the reader's log probabilities; 0 if none is better than the encoder alone.
        num_differ: Photos whose first candidate is another one then.
        num_right: Of these, how often it is right.
        num_encoder_right: Of these, how often the encoder's own is.
        difference: Of the shares that are right among all photos.
    """

    weight: float
    num_differ: int
    num_right: int
    num_encoder_right: int
    difference: Difference


def main() -> None:
    """Reads the settings, fits a reader for every reading, prints the table."""
    (settings,) = parse_config(BeyondSettings, description=__doc__ or "")
    if settings.split not in ("val", "test"):
        raise UserError(f"--split {settings.split}: allowed: val, test; the training photos are known by heart")
    if settings.epochs < 1:
        raise UserError(f"--epochs {settings.epochs}: allowed: at least 1")
    dataset = IALDataset(settings.data, settings.image_root)
    encoder = load_encoder(settings.clip, choose_device(settings.device))
    splits = {name: Split(encoder, dataset, name) for name in dict.fromkeys(["train", "val", settings.split])}
    found = measure(splits, settings.split, epochs=settings.epochs, seed=settings.seed)
    print(format_beyond(splits[settings.split], found))
    if settings.output:
        write_json(settings.output, as_json(splits[settings.split], found))


class Split:
    """What the tower and the encoder say of a split's photos.

    Args:
        encoder: Of stage 1.
        dataset: The city.
        name: train, val or test; of train no candidates are computed.

    Raises:
        UserError: The split has no photos, or one cannot be read, or has an address that the encoder does not know.
    """

    def __init__(self, encoder: Encoder, dataset: IALDataset, name: str) -> None:
        locator = Locator(encoder)
        samples = dataset.samples(name)
        files = [dataset.image_file(sample.photo.image_path) for sample in samples]
        row_of = {record.sub_street_id: row for row, record in enumerate(locator.gallery)}
        if unknown := {sample.address.sub_street_id for sample in samples} - set(row_of):
            raise UserError(f"--clip: its gallery lacks {sorted(unknown)[0]}; take stage 1 of this data set")
        self.truth = torch.tensor([row_of[sample.address.sub_street_id] for sample in samples])
        self.panoramas = [sample.photo.panorama for sample in samples]
        tokens, scores = [], []
        for start in tqdm(range(0, len(files), _PHOTOS_AT_A_TIME), desc=name, unit="batch"):
            part = files[start : start + _PHOTOS_AT_A_TIME]
            tokens.append(tower_tokens(encoder, part))
            if name != "train":
                scores.append(locator.logit_scale * locator.cosines(part))
        both = torch.cat(tokens, dim=1)
        self.tokens = {-1: both[0], -2: both[1]}
        self.num_addresses = len(locator.gallery)
        # Of the encoder's candidates, ``(N, C)``; of training photos nobody asks.
        self.log_probabilities = torch.cat(scores).log_softmax(dim=1) if scores else torch.empty(0)


@torch.no_grad()
def tower_tokens(encoder: Encoder, photos: Sequence[Path]) -> torch.Tensor:
    """``(2, N, 1 + 16, D)`` on the CPU: class token and a grid of patch means of the last layer and the one before.

    The photo is cut and scaled by the encoder's own processor, which stage 2 takes over.
    """
    pixels = photo_pixels(photos, encoder.image_processor).to(encoder.gallery_embeddings.device)
    states = encoder.model.clip.vision_model(pixels, output_hidden_states=True).hidden_states
    return torch.stack([_on_grid(states[layer]) for layer in (-1, -2)]).float().cpu()


def _on_grid(tokens: torch.Tensor) -> torch.Tensor:
    """Class token and means over patches, ``(N, 1 + P, D)`` to ``(N, 1 + 16, D)``."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    patches = tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side)
    pooled = functional.adaptive_avg_pool2d(patches, _GRID).flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :1], pooled], dim=1)


class Reader(nn.Module):
    """Classifies tokens ``(N, T, D)``: attention with a learned query per head, then two layers."""

    def __init__(self, num_tokens: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.places = nn.Parameter(torch.zeros(num_tokens, width))
        self.queries = nn.Linear(width, _HEADS, bias=False)
        self.head = nn.Sequential(
            nn.Dropout(_DROPOUT), nn.Linear(_HEADS * width, _WIDTH), nn.GELU(), nn.Dropout(_DROPOUT),
            nn.Linear(_WIDTH, num_classes),
        )  # fmt: skip

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log probabilities ``(N, C)``."""
        normed = self.norm(tokens)
        shares = self.queries(normed + self.places).softmax(dim=1)  # (N, T, heads)
        read = torch.einsum("nth,ntd->nhd", shares, normed).flatten(1)
        logits: torch.Tensor = self.head(read)
        return logits.log_softmax(dim=1)


def fit_reader(tokens: torch.Tensor, truth: torch.Tensor, num_classes: int, *, epochs: int, seed: int) -> Reader:
    """A reader that has learned which address training photos have.

    Args:
        tokens: ``(N, T, D)``.
        truth: ``(N,)`` rows of the gallery.
        num_classes: Rows of the gallery.
        epochs: Passes.
        seed: Of its weights and of the order.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = Reader(tokens.shape[1], tokens.shape[2], num_classes)
        optimizer = torch.optim.AdamW(reader.parameters(), 2e-3, weight_decay=0.1)
        steps = epochs * -(-len(tokens) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(tokens)), _BATCH):
                log_probabilities = reader(tokens[rows])
                loss = functional.cross_entropy(log_probabilities, truth[rows], label_smoothing=_SMOOTHING)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return reader.eval()


def measure(splits: dict[str, Split], counted: str, *, epochs: int, seed: int) -> dict[str, dict[str, Any]]:
    """By reading: ``alone``, the reader's own share of right photos, and ``chosen`` and ``best`` as ``Beyond``."""
    found: dict[str, dict[str, Any]] = {}
    for name, (layer, has_class) in tqdm(READINGS.items(), desc="readers", unit="reader"):
        tokens = {split: part.tokens[layer][:, 0 if has_class else 1 :] for split, part in splits.items()}
        reader = fit_reader(
            tokens["train"], splits["train"].truth, splits["train"].num_addresses, epochs=epochs, seed=seed
        )
        with torch.no_grad():
            read = {split: reader(tokens[split]) for split in splits if split != "train"}
        val, test = splits["val"], splits[counted]
        found[name] = {
            "alone": float((read[counted].argmax(dim=1) == test.truth).float().mean()),
            "chosen": beyond(test, read[counted], best_weight(val, read["val"])),
            "best": beyond(test, read[counted], best_weight(test, read[counted])),
        }
    return found


def best_weight(split: Split, read: torch.Tensor) -> float:
    """The smallest weight with the most photos right; 0 if the encoder alone has as many."""
    counts = {weight: int(_is_right(split, _together(split, read, weight)).sum()) for weight in (0.0, *WEIGHTS)}
    return max(counts, key=counts.__getitem__)


def beyond(split: Split, read: torch.Tensor, weight: float) -> Beyond:
    """The encoder with a reader against the encoder alone, paired by photo; clusters are panoramas."""
    own, together = (_together(split, read, used) for used in (0.0, weight))
    own_right, right, differs = _is_right(split, own), _is_right(split, together), own != together
    return Beyond(
        weight, int(differs.sum()), int((right & differs).sum()), int((own_right & differs).sum()),
        paired_difference(right.double().tolist(), own_right.double().tolist(), split.panoramas),
    )  # fmt: skip


def _together(split: Split, read: torch.Tensor, weight: float) -> torch.Tensor:
    return (split.log_probabilities + weight * read).argmax(dim=1)


def _is_right(split: Split, candidates: torch.Tensor) -> torch.Tensor:
    return candidates == split.truth


def _encoder_share(split: Split) -> float:
    return float(_is_right(split, split.log_probabilities.argmax(dim=1)).float().mean())


def format_beyond(split: Split, found: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, a row for each reading."""
    lines = [
        "| read by LLaVA | alone | weight chosen | differ: right, AddressCLIP right | points | p "
        "| best weight | differ: right, AddressCLIP right | points |",
        f"|{' --- |' * 9}",
    ]
    for name, row in found.items():
        cells = [f"`{name}`", f"{100 * row['alone']:.1f} %"]
        for kind in ("chosen", "best"):
            own: Beyond = row[kind]
            cells += [f"{own.weight:g}", f"{own.num_differ}: {own.num_right}, {own.num_encoder_right}"]
            cells.append(f"{100 * own.difference.value:+.1f}")
            cells += [f"{own.difference.p_value:.3f}"] if kind == "chosen" else []
        lines.append(f"| {' | '.join(cells)} |")
    share = 100 * _encoder_share(split)
    return "\n".join([f"AddressCLIP alone: SSA@1 {share:.1f} % of {len(split.truth)} photos.", "", *lines])


def as_json(split: Split, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The table in numbers."""

    def plain(own: Beyond) -> dict[str, Any]:
        return {**vars(own), "difference": vars(own.difference)}

    rows = {name: {**row, **{kind: plain(row[kind]) for kind in ("chosen", "best")}} for name, row in found.items()}
    return {"SSA@1": _encoder_share(split), "num_photos": len(split.truth), "readings": rows}


if __name__ == "__main__":
    run_command(main)
