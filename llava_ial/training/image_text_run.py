"""Stage 2 on image-text models beside LLaVA-1.5: the same trainer, the model's own tower, template and processor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import Trainer

from llava_ial import distributed
from llava_ial.config import save_config
from llava_ial.data.dataset import IALDataset
from llava_ial.data.image_text import ImageTextCollator, ImageTextDataset, RenderedDialogue
from llava_ial.data.training_dialogues import training_dialogues
from llava_ial.models.attention import AUTO, describe_attention
from llava_ial.models.image_text import adapt, load_image_text, model_type, save_image_text
from llava_ial.models.trainable import trainable_table
from llava_ial.training.checkpoints import refuse_full_disk
from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_card import format_image_text_card
from llava_ial.training.llava_identity import resolved
from llava_ial.training.llava_preview import marked, memory_table, step_line
from llava_ial.training.llava_run import Inputs, LlavaRun, build_run, whole_tensors
from llava_ial.training.llava_settings import LlavaSettings
from llava_ial.training.llava_trainer import LlavaTrainer, gathered


@dataclass
class ImageTextRun:
    """A training that can start; what ``LlavaTrainer`` asks of a ``LlavaRun`` has the same names."""

    settings: LlavaSettings
    arguments: LlavaArguments
    inputs: Inputs
    model: PeftModel
    processor: Any
    train_set: ImageTextDataset
    validation: None = None
    probe: None = None

    @property
    def output(self) -> Path:
        """The folder that is written."""
        return Path(self.arguments.output_dir)

    @property
    def log(self) -> Path:
        """Losses, a line each."""
        return self.output / "train_log.jsonl"


class ImageTextTrainer(LlavaTrainer):
    """``LlavaTrainer`` for a model that keeps its tower."""

    chooses_logits = False  # not every model's loss takes labels that are chosen and shifted already

    def __init__(self, run: ImageTextRun, stop_request: Any) -> None:
        super().__init__(cast(LlavaRun, run), stop_request)
        self._other = run

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes a whole folder on the main process."""
        folder, run = Path(output_dir or self.args.output_dir), self._other
        state = {}
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name or ".modules_to_save." in name:
                with gathered([parameter]):
                    state[name] = parameter.detach().cpu().clone()

        @refuse_full_disk(run.output)
        def save() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            save_config(folder / "config.yaml", resolved(run.settings, run.arguments))
            card = format_image_text_card(run.settings.base, len(run.train_set), run.inputs.identity)
            save_image_text(
                folder, run.model, run.processor, state, base=run.settings.base, config=run.inputs.identity,
                parents=run.inputs.parents, card=card,
            )  # fmt: skip

        distributed.run_on_main_process(save)

    def _build_collator(self, run: Any) -> Any:
        return ImageTextCollator(run.processor)

    def _save_more(self, folder: Path) -> None:
        """Nothing: the tower is the base's."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        Trainer._load_from_checkpoint(self, resume_from_checkpoint, model)


def build_any_run(settings: LlavaSettings, arguments: LlavaArguments, inputs: Inputs) -> LlavaRun | ImageTextRun:
    """The run of whatever model the base is; raises as ``build_run``."""
    if model_type(settings.base) == "llava":
        return build_run(settings, arguments, inputs)
    with whole_tensors(arguments):
        # Not every model has every kernel, so nothing is chosen for one unless somebody asks.
        attention = None if settings.attn_implementation == AUTO else settings.attention(arguments)
        base, processor = load_image_text(settings.base, dtype=settings.dtype(arguments), attention=attention)
        model = adapt(base, settings.lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    dataset = IALDataset(settings.data, settings.image_root)
    train_set = ImageTextDataset(dataset, training_dialogues(dataset, settings.dialogues), processor)
    if arguments.activation_checkpointing:
        model.enable_input_require_grads()
    return ImageTextRun(settings, arguments, inputs, model, processor, train_set)


def describe_image_text(run: ImageTextRun) -> str:
    """What is about to happen, in a line."""
    steps = step_line(len(run.train_set), run.arguments, run.settings.num_processes)
    return f"{len(run.train_set)} dialogues; {steps}; {describe_attention(run.model)}"


def preview_image_text(run: ImageTextRun, *, has_colours: bool = True) -> str:
    """What ``--dry_run`` shows; only the processor knows the tokens of a photo, so it is asked about the first."""
    rendered = run.train_set.rendered
    first = ImageTextCollator(run.processor)([run.train_set[0]])
    num_tokens = first["input_ids"].shape[1]
    return "\n".join([
        f"first dialogue, {run.train_set.conversations[0].conversation_id}, by the base's own template; "
        + ("what is learned is green:" if has_colours else "what is learned stands in ⟦⟧:"),
        _marked_text(run.processor.tokenizer, rendered[0], has_colours=has_colours), "",
        f"{num_tokens:,} tokens with those of its photo, {len(rendered[0].learned):,} of them learned; "
        f"{sum(len(dialogue.learned) for dialogue in rendered):,} learned in all dialogues",
        describe_image_text(run), "", trainable_table(run.model), "",
        memory_table(run.model, run.arguments, num_tokens, num_tokens, run.settings.num_processes),
        "nothing was written: this was a dry run",
    ])  # fmt: skip


def _marked_text(tokenizer: Any, dialogue: RenderedDialogue, *, has_colours: bool) -> str:
    offsets = tokenizer(dialogue.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    is_learned = [len(offsets) - place in dialogue.learned for place in range(len(offsets))]
    turns = [place for place in range(len(offsets)) if place == 0 or is_learned[place] != is_learned[place - 1]]
    starts = [offsets[place][0] for place in turns]
    pieces = [dialogue.text[start:end] for start, end in zip(starts, [*starts[1:], len(dialogue.text)], strict=True)]
    return "".join(
        marked(piece, has_colours=has_colours) if is_learned[place] else piece
        for place, piece in zip(turns, pieces, strict=True)
    )
