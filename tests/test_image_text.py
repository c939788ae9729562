"""Other image-text models tune with the same command: LLaVA-NeXT and Idefics3, tiny, their own tower kept."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)

from llava_ial.conversation import IMAGE_TOKEN, Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.data.image_text import ImageTextCollator, ImageTextDataset, render_dialogue
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.image_text import load_image_text
from tests.stage2_runs import adapter, assert_same_weights, crash_at, merge_here, train_here
from tests.test_llava_launch import launch
from tests.tiny_models import TinyFolders
from train.toy_base.llava import load_or_train_tokenizer

# Two templates of unlike make, neither with generation marks.
_NEXT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
_IDEFICS = (
    "{% for m in messages %}{{ m.role | capitalize }}:"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def text_config(tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer) + 4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def build_next(folder: Path, tokenizer) -> None:
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    pins = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config=vision, text_config=text_config(tokenizer), image_grid_pinpoints=pins,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), image_seq_length=16,
    )  # fmt: skip
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pins
    )
    LlavaNextProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=_NEXT,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


def build_idefics(folder: Path, tokenizer) -> None:
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=_IDEFICS)
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    config = Idefics3Config(
        vision_config=vision, text_config=text_config(tokenizer), scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module", params=[build_next, build_idefics], ids=["llava_next", "idefics3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build: Callable[..., None] = request.param
    folder = tmp_path_factory.mktemp("base") / "base"
    torch.manual_seed(0)
    build(folder, load_or_train_tokenizer(None, ["USER: ASSISTANT: Where is this? This is Amber Street."], 400))
    return folder


def test_what_the_assistant_says_is_learned_and_nothing_else(base: Path, tiny_folders: TinyFolders) -> None:
    _, processor = load_image_text(str(base), dtype=torch.float32)
    dataset = IALDataset(tiny_folders.data)
    photos = ImageTextDataset(dataset, dataset.conversations("train")[:3], processor)
    batch = ImageTextCollator(processor)([photos[i] for i in range(3)])
    images = int((batch["input_ids"][0] == processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)).sum())
    assert images > 4, "the photo's marks are repeated by the processor"
    for ids, labels, record in zip(batch["input_ids"], batch["labels"], photos.conversations, strict=True):
        is_learned = labels != -100
        assert torch.equal(ids[is_learned], labels[is_learned])
        spoken = processor.tokenizer.decode(labels[is_learned], skip_special_tokens=True)
        said = "".join(message.content for message in record.messages if message.role == "assistant")
        assert "".join(spoken.split()) == "".join(said.split())


def test_it_trains_resumes_and_opens_with_peft_and_its_tower_stays(
    base: Path, tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"base": base, "clip": None, "max_steps": 4, "save_steps": 2}
    straight = train_here(tiny_folders, tmp_path / "straight", **options)
    state = adapter(straight)
    assert any("lora_" in name for name in state)
    assert any("multi_modal_projector" in name or "connector" in name for name in state)
    assert not any("vision" in name for name in state)
    plain = AutoModelForImageTextToText.from_pretrained(base)
    opened = PeftModel.from_pretrained(plain, straight / "checkpoints" / "step-000002").merge_and_unload()
    opened.save_pretrained(tmp_path / "merged")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").state_dict()
    ours = AutoModelForImageTextToText.from_pretrained(base).state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed
    assert not any("vision" in name for name in changed)

    crash_at(monkeypatch, 3, lambda: train_here(tiny_folders, tmp_path / "resumed", **options))
    assert_same_weights(straight, train_here(tiny_folders, tmp_path / "resumed", **options))


@pytest.mark.slow
def test_two_processes_of_zero_3_train_it_as_one(base: Path, tiny_folders: TinyFolders, tmp_path: Path) -> None:
    plain = {"base": base, "clip": None, "max_steps": 2, "lora_dropout": 0.0}
    one = train_here(tiny_folders, tmp_path / "one", per_device_train_batch_size=4, **plain)
    two = tmp_path / "two"
    launch(tiny_folders, two, port=29780, deepspeed="train/configs/zero3.json", **plain)
    ours, theirs = adapter(one), adapter(two)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_it_merges_into_a_plain_model_that_answers_as_the_adapted_one(
    base: Path, tiny_folders: TinyFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opened by transformers alone, the card says how; a moved base is found, another or a changed file refused."""
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    out = train_here(tiny_folders, tmp_path / "out", base=moved, clip=None, max_steps=3, learning_rate=5e-2)
    options = {"dtype": "float32", "device": "cpu", "max_new_tokens": 8}
    folder = merge_here(out, tmp_path / "merged", data=tiny_folders.data, **options)
    merge_here(out, folder, data=tiny_folders.data, **options)
    said = capsys.readouterr().out
    assert "2 of 2 answers are the same" in said
    assert "already complete" in said
    merged, adapted = (
        AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval() for path in (folder, moved)
    )
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    dataset = IALDataset(tiny_folders.data)
    photos = ImageTextDataset(dataset, dataset.conversations("train")[:2], processor)
    batch = ImageTextCollator(processor)([photos[i] for i in range(2)])
    with torch.no_grad():
        plain = adapted(**batch).logits
        tuned = PeftModel.from_pretrained(adapted, out).eval()(**batch).logits
        ours = merged(**batch).logits
    torch.testing.assert_close(ours, tuned, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, tuned, atol=1e-2), "the adapter changes what is said"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForImageTextToText.from_pretrained(FOLDER)" in card
    assert "peft" not in card.split("```")[1]

    with pytest.raises(UserError, match="kind 'image_text_merged'"):
        AddressPredictor.from_pretrained(folder)
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"its base model is not at .*; name its folder with --base"):
        merge_here(out, tmp_path / "again", **options)
    file = tmp_path / "elsewhere" / "config.json"
    content = file.read_text(encoding="utf-8")
    file.write_text(content + " ", encoding="utf-8")
    with pytest.raises(UserError, match="its base model is not the one it was trained with"):
        merge_here(out, tmp_path / "again", base=tmp_path / "elsewhere", **options)
    file.write_text(content, encoding="utf-8")
    merge_here(out, tmp_path / "again", base=tmp_path / "elsewhere", **options)
    adapter_file = out / "adapter_model.safetensors"
    adapter_file.write_bytes(adapter_file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="its adapter is not the one it was trained with"):
        merge_here(out, tmp_path / "broken", base=tmp_path / "elsewhere", **options)
    assert not (tmp_path / "broken" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"clip": "stage1"}, "--clip stage1: allowed: nothing: a base that is no LLaVA-1.5 keeps its own tower"),
        ({"max_length": 512}, "--max_length 512: allowed: 2048, which is not looked at"),
        ({"vision_feature_layer": -1}, "--vision_feature_layer -1: allowed: -2, which"),
        ({"vision_feature_select_strategy": "full"}, "--vision_feature_select_strategy full: allowed: default, which"),
        ({"photos_in_memory": 8}, "--photos_in_memory 8: allowed: 0, which"),
        ({"tune_vision_tower": "full"}, "--tune_vision_tower full: allowed: none"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "--eval_strategy .*: allowed: no"),
        ({"train_sampling_strategy": "group_by_length"}, "--train_sampling_strategy group_by_length: allowed: random"),
    ],
)
def test_what_only_llava_can_have_is_told(
    base: Path, tiny_folders: TinyFolders, tmp_path: Path, options: dict, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        train_here(tiny_folders, tmp_path / "out", **{"base": base, "clip": None} | options)
    assert not (tmp_path / "out").exists()


def test_another_model_and_a_missing_template_are_told(base: Path, tiny_folders: TinyFolders, tmp_path: Path) -> None:
    clip = tiny_folders.llava.parent / "base_clip"
    with pytest.raises(UserError, match="is a clip; expected a model that takes photos and text"):
        train_here(tiny_folders, tmp_path / "out", base=clip, clip=None)
    with pytest.raises(UserError, match="--clip: name the stage 1 folder whose tower"):
        train_here(tiny_folders, tmp_path / "out", clip=None)
    _, processor = load_image_text(str(base), dtype=torch.float32)
    processor.chat_template = "{{ messages | length }}"
    with pytest.raises(UserError, match="chat template does not go on where its prompt ends"):
        render_dialogue(processor, [user_question("Where?"), Message("assistant", "Here.")])


def test_the_dry_run_shows_the_bases_own_template(
    base: Path, tiny_folders: TinyFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(tiny_folders, tmp_path / "out", base=base, clip=None, dry_run=True)
    said = capsys.readouterr().out
    assert "4 steps of 2 dialogues" in said
    assert "<image>" in said
    assert not (tmp_path / "out").exists()
    dataset = IALDataset(tiny_folders.data)
    spoken = [part.split("⟧")[0] for part in said.split("⟦")[2:]]  # the first marks are those of the heading
    messages = [m.content for m in dataset.conversations("train")[0].messages if m.role == "assistant"]
    assert len(spoken) == len(messages)
    for piece, message in zip(spoken, messages, strict=True):
        assert "".join(piece.split()).startswith("".join(message.split()))
    _, processor = load_image_text(str(base), dtype=torch.float32)
    photos = ImageTextDataset(dataset, dataset.conversations("train")[:1], processor)
    batch = ImageTextCollator(processor)([photos[0]])
    learned = int((batch["labels"] != -100).sum())
    assert f"{batch['input_ids'].shape[1]:,} tokens with those of its photo, {learned:,} of them learned" in said
    assert "vision tower" in said
    for name in ("without ZeRO", "ZeRO-2", "ZeRO-3"):
        assert f"\n{name} " in said
