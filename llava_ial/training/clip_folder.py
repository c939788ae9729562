"""The folder that stage 1 writes, and its checkpoints: a plain CLIP of ``transformers`` with its gallery.

    config.json  model.safetensors  tokenizer*  preprocessor_config.json      CLIPModel, CLIPVisionModel, CLIPProcessor
    gallery/part-00000.parquet  gallery_embeddings.safetensors                the candidate addresses and their features
    photo_memory.safetensors                                                  of the training photos, if they count too
    calibration.json                                                          what its probabilities are worth
    metrics.json  README.md  manifest.json                                    what it measured, model card, what it is

A checkpoint is such a folder too, with ``training_state.pt`` to go on from.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from llava_ial.calibration import save_calibration
from llava_ial.data.dataset import IALDataset
from llava_ial.data.views import ONE
from llava_ial.errors import UserError
from llava_ial.manifest import file_hash, publish_manifest, relative_path, write_json, write_text
from llava_ial.models.address_clip import DualEncoder, save_tokenizer
from llava_ial.models.identity import tower_hash
from llava_ial.models.photo_memory import PhotoMemory, save_memory
from llava_ial.training.clip_card import Measured, format_card

KIND = "address_clip"
GALLERY_PART = Path("gallery") / "part-00000.parquet"
GALLERY_EMBEDDINGS = "gallery_embeddings.safetensors"
TRAINING_STATE = "training_state.pt"


@dataclass(frozen=True)
class ClipFolderWriter:
    """Everything that does not change while a run trains.

    Attributes:
        identity: Configuration that the output folder was claimed with.
        base: Name or folder of the model that training started from.
        parents: Names and hashes of what the run was made from.
        num_photos: Trained on.
    """

    dataset: IALDataset
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    identity: Mapping[str, Any]
    base: str
    parents: Mapping[str, str]
    num_photos: int

    def write(
        self,
        folder: Path,
        clip: DualEncoder,
        gallery_embeddings: torch.Tensor,
        measured: Measured,
        *,
        step: int,
        skipped: Sequence[str] = (),
        lies_in: Path | None = None,
        memory: PhotoMemory | None = None,
    ) -> None:
        """Writes model, processor, gallery and metrics, and the manifest last.

        Args:
            folder: Exists.
            clip: The encoder.
            gallery_embeddings: ``(C, D)``, in the order of the gallery, length one.
            measured: What is known of it.
            step: Finished steps that the weights are of.
            skipped: Photos that could not be read.
            lies_in: Where the folder will lie, if it is renamed afterwards; the base is named relative to it.
            memory: Of the training photos, None for none.
        """
        base = base_reference(self.base, lies_in or folder)
        self._write_model(folder, clip, gallery_embeddings)
        hashes = {"tower_hash": tower_hash(clip.vision_model), "gallery_hash": self.dataset.gallery_hash}
        if measured.calibration:
            save_calibration(folder, measured.calibration, hashes)
        facts: dict[str, Any] = {**hashes, "metrics": measured.metrics, "measured_step": measured.step}
        if memory:
            facts["memory"] = {"weight": memory.weight, "sharpness": memory.sharpness}
            facts["memory_hash"] = file_hash(save_memory(folder, memory))
        write_json(folder / "metrics.json", measured.metrics)
        card = format_card(
            base=base, measured=measured, num_photos=self.num_photos, num_addresses=len(self.dataset.gallery),
            num_skipped=len(skipped), settings=self.identity, has_memory=memory is not None,
        )  # fmt: skip
        write_text(folder / "README.md", card)
        publish_manifest(
            folder, KIND, self.identity, parents=self.parents, base=base, views=self.identity.get("views", ONE),
            step=step, photos_skipped=list(skipped), **facts,
        )  # fmt: skip

    def _write_model(self, folder: Path, clip: DualEncoder, gallery_embeddings: torch.Tensor) -> None:
        clip.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)
        self.image_processor.save_pretrained(folder)
        (folder / GALLERY_PART.parent).mkdir(exist_ok=True)
        shutil.copyfile(self.dataset.folder / GALLERY_PART, folder / GALLERY_PART)
        save_file({"verbose": gallery_embeddings.float().cpu().contiguous()}, folder / GALLERY_EMBEDDINGS)


def base_reference(base: str, folder: Path) -> str:
    """The base as a manifest states it: a hub name, or a path relative to the folder of the manifest."""
    return relative_path(Path(base), folder) if Path(base).is_dir() else base


def save_training_state(folder: Path, optimizer: Mapping[str, Any], step: int, **more: Any) -> None:
    """State of the optimiser, number of finished steps, and what else step and encoder do not tell."""
    torch.save({"optimizer": dict(optimizer), "step": step, **more}, folder / TRAINING_STATE)


def load_training_state(folder: Path) -> dict[str, Any]:
    """What ``save_training_state`` wrote.

    Raises:
        UserError: It cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(folder / TRAINING_STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{folder / TRAINING_STATE}: unreadable, delete this checkpoint: {error}") from error
    return state
