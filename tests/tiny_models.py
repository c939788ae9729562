"""A finished model folder made at test time: tiny, real in every file, and it knows its photos by heart."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava_dataset import LlavaCollator, LlavaDataset
from llava_ial.manifest import claim_folder
from llava_ial.models.address_clip import AddressCLIP, load_clip
from llava_ial.models.feature_layers import set_features
from llava_ial.models.llava import LoraSettings, add_adapter
from llava_ial.models.llava_folder import save_llava_ial, save_processor
from llava_ial.training.clip_card import Measured
from llava_ial.training.clip_folder import ClipFolderWriter
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset
from train.toy_base.llava import build_llava, load_or_train_tokenizer

MAX_STEPS, ENOUGH = 300, 0.003


@dataclass(frozen=True)
class TinyFolders:
    """Where the parts of the tiny world lie."""

    data: Path
    clip: Path
    llava: Path


def build_tiny_models(folder: Path) -> TinyFolders:
    """Data set, stage 1 folder (random) and stage 2 folder (answers the training questions by heart).

    LLaVA is trained as a whole and saved as the base of an adapter that changes nothing, which takes seconds; how
    adapters learn is tested where they are trained.
    """
    folders = TinyFolders(folder / "data", folder / "stage1", folder / "stage2")
    dataset = IALDataset(build_tiny_dataset(folders.data))
    base_clip = build_tiny_base_clip(folder / "base_clip", folders.data)
    clip = load_clip(str(base_clip))
    image_processor = AutoImageProcessor.from_pretrained(base_clip, backend="pil")
    texts = [message.content for record in dataset.conversations("train") for message in record.messages]
    torch.manual_seed(0)
    tokenizer = load_or_train_tokenizer(None, texts, 400)
    llava = build_llava(clip, tokenizer, width=64, layers=2)
    num_image_tokens = set_features(llava, -2, "default")
    _memorise(llava, LlavaDataset(
        dataset, dataset.conversations("train"), tokenizer, image_processor,
        num_image_tokens=num_image_tokens, max_length=512,
    ), tokenizer.pad_token_id)  # fmt: skip
    clip.vision_model.load_state_dict(llava.model.vision_tower.state_dict())
    write_stage1(folders.clip, dataset, clip, base_clip, image_processor)
    base = folder / "base_llava"
    llava.save_pretrained(base)
    save_processor(base, tokenizer, image_processor, llava.config)
    claim_folder(folders.llava, "llava_ial", {})
    save_llava_ial(
        folders.llava, add_adapter(llava, LoraSettings(rank=2, alpha=4)), tokenizer, image_processor,
        base=str(base), clip_folder=folders.clip, config={},
    )  # fmt: skip
    return folders


def write_stage1(folder: Path, dataset: IALDataset, clip, base_clip: Path, image_processor) -> None:
    """A finished stage 1 folder of a CLIP as it is."""
    tokenizer = AutoTokenizer.from_pretrained(base_clip)
    model = AddressCLIP(copy.deepcopy(clip)).eval()
    embeddings = model.embed_texts([record.verbose for record in dataset.gallery], tokenizer)
    claim_folder(folder, "address_clip", {})
    writer = ClipFolderWriter(dataset, tokenizer, image_processor, {}, str(base_clip), {}, num_photos=8)
    writer.write(folder, clip, embeddings, Measured({}), step=0)


def _memorise(llava: LlavaForConditionalGeneration, photos: LlavaDataset, pad_token_id: int) -> None:
    batch = LlavaCollator(pad_token_id)([photos[i] for i in range(len(photos))])
    optimizer = torch.optim.AdamW(llava.parameters(), lr=5e-3, betas=(0.9, 0.95))
    llava.train()
    loss = torch.tensor(torch.inf)
    for _ in range(MAX_STEPS):
        loss = llava(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llava.parameters(), 1.0)
        optimizer.step()
        if loss < ENOUGH:
            break
    llava.eval()
    assert loss < ENOUGH, f"the tiny model did not learn its {len(photos)} photos: loss {loss:.3f}"
