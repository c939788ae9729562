"""Captions by models: a tiny BLIP from disk through the real classes, and a server that speaks OpenAI's API."""

from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration

from data_gen import caption
from data_gen.caption import CaptionModelSettings, model_captions
from data_gen.captioner import ModelCaptioner, ServerCaptioner, trim_caption
from llava_ial.errors import UserError
from llava_ial.records import CaptionRecord, read_records
from tests.grid_town import draw_photo
from tests.web_stub import serve

WORDS = ["a", "street", "view", "of", "red", "house", "car", "tree", "wall", "sky", "on", "grant", "with", "the"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("blip")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    (folder / "vocab.txt").write_text("\n".join([*marks, *WORDS]))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64, bos_token="[DEC]")
    text = {"vocab_size": len(marks) + len(WORDS), "hidden_size": 32, "encoder_hidden_size": 32}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "projection_dim": 16}
    text |= {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def _photos(folder: Path, count: int) -> tuple[list[str], list[Path]]:
    for number in range(count):
        draw_photo(folder / f"{number}.jpg", number)
    return [f"i{n}" for n in range(count)], [folder / f"{n}.jpg" for n in range(count)]


def _settings(blip: Path, **more: object) -> CaptionModelSettings:
    return CaptionModelSettings(caption_model=str(blip), caption_words=[5, 9], caption_batch_size=2, **more)  # type: ignore[arg-type]


def test_a_tiny_blip_says_something_of_every_photo(blip: Path, tmp_path: Path) -> None:
    _, files = _photos(tmp_path, 3)
    captioner = ModelCaptioner(_settings(blip))
    texts = captioner.captions(files)
    assert texts == captioner.captions(files)
    assert [text for text in texts if not (text.startswith("a street view of") and 5 <= len(text.split()) <= 9)] == []


@pytest.mark.parametrize(("has_gpu", "kind", "dtype"), [(True, "cuda", torch.bfloat16), (False, "cpu", torch.float32)])
def test_a_model_goes_to_the_gpu_when_there_is_one(
    blip: Path, monkeypatch: pytest.MonkeyPatch, has_gpu: bool, kind: str, dtype: torch.dtype
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(
        BlipForConditionalGeneration, "to", lambda self, device: seen.extend([device.type, self.dtype]) or self
    )
    ModelCaptioner(_settings(blip))
    assert seen == [kind, dtype]


def test_an_interrupted_captioner_goes_on_and_says_the_same(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, files = _photos(tmp_path / "photos", 7)
    monkeypatch.setattr(caption, "_BATCHES_A_PART", 1)
    whole = model_captions(_settings(blip), names, files, tmp_path / "whole")
    assert set(whole) == set(names)
    draw = ModelCaptioner.captions
    calls = []

    def failing(self: ModelCaptioner, paths: list[Path]) -> list[str]:
        calls.append(len(paths))
        if len(calls) == 3:
            raise UserError("stopped")
        return draw(self, paths)

    monkeypatch.setattr(ModelCaptioner, "captions", failing)
    with pytest.raises(UserError, match="stopped"):
        model_captions(_settings(blip), names, files, tmp_path / "kept")
    assert len(read_records(tmp_path / "kept", CaptionRecord)) == 4
    assert model_captions(_settings(blip), names, files, tmp_path / "kept") == whole
    assert calls == [2, 2, 2, 2, 1]


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"caption_model: .*empty cannot be loaded"):
        ModelCaptioner(_settings(tmp_path / "empty"))


def test_a_server_is_asked_as_openai_documents_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_KEY", "k1")
    _, files = _photos(tmp_path, 2)
    said = {"choices": [{"message": {"role": "assistant", "content": "a street view of a red house\nand a car " * 9}}]}
    with serve(lambda path, body: (200, said, {})) as stub:
        settings = _settings(Path("any"), caption_server=f"{stub.url}/v1", caption_key_variable="CAPTION_KEY")
        texts = ServerCaptioner(settings).captions(files)
        assert texts == ["a street view of a red house and a"] * 2
        assert stub.asked == ["/v1/chat/completions"] * 2
        assert stub.headers[0]["Authorization"] == "Bearer k1"
        image, text = stub.bodies[0]["messages"][0]["content"]
        assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
        assert "5 to 9 words" in text["text"]
        stub.answer = lambda path, body: (200, {"error": "?"}, {})
        with pytest.raises(UserError, match="in no known form"):
            ServerCaptioner(settings).captions(files[:1])


def test_a_caption_of_the_prompt_alone_is_none() -> None:
    assert trim_caption("A street  view of", "a street view of", 30) == ""
    assert len(trim_caption("word " * 99, "", 30).split()) == 30


def test_settings_are_checked() -> None:
    for settings, message in (
        (CaptionModelSettings(caption_words=[9, 3]), "caption_words"),
        (CaptionModelSettings(caption_batch_size=0), "caption_batch_size"),
    ):
        with pytest.raises(UserError, match=message):
            settings.check_captioner("model")
    with pytest.raises(UserError, match="needs caption_server"):
        CaptionModelSettings().check_captioner("server")
