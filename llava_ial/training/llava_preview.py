"""What ``--dry_run`` shows of stage 2: the prompt, what is learned of it, and how much work and memory it takes."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from llava_ial.conversation import IMAGE_TOKEN
from llava_ial.data.llava import IGNORE_INDEX, EncodedDialogue
from llava_ial.models.quantized import num_weights
from llava_ial.models.trainable import trainable_table
from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_run import LlavaRun, describe

_GREEN, _PLAIN = "\033[32m", "\033[0m"
_BRANCH = "  | "  # before each of the questions that do not see each other
_SUPERVISED_MARKS = ("⟦", "⟧")  # for output without colours
# Bytes of a weight, by Korthikanti et al. (arXiv 2205.05198): a layer of width h keeps about 34 h bytes of a token for
# the backward pass at 16 bits, and with checkpointing its input alone, 2 h.
_LAYER_BYTES, _CHECKPOINTED_BYTES = 34, 2
_ADAM_BYTES = 12  # two moments and the 32-bit copy of a weight


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that one process needs, without what the framework itself takes.

    Attributes:
        weights: Of the whole model or of this process's part of it.
        gradients: Of what trains.
        optimizer: AdamW's moments and the 32-bit copies of the trained weights.
        activations: Rough: what a micro-batch of the longest dialogue keeps for the backward pass.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def preview(run: LlavaRun, *, has_colours: bool = True) -> str:
    """Everything worth knowing before a run, in some lines."""
    encoded = run.train_set.encoded
    longest = max(encoded, key=lambda dialogue: len(dialogue.input_ids))
    num_learned, planned = sum(label != IGNORE_INDEX for label in longest.labels), run.settings.num_processes
    return "\n".join([
        f"first dialogue, {run.train_set.conversations[0].conversation_id}; what is learned is "
        + ("green:" if has_colours else f"in {''.join(_SUPERVISED_MARKS)}:"),
        rendered(run.tokenizer, encoded[0], has_colours=has_colours), "",
        describe(run), token_counts(encoded), step_line(len(encoded), run.arguments, planned), "",
        trainable_table(run.model), "",
        memory_table(run.model, run.arguments, len(longest.input_ids), num_learned, planned),
        "nothing was written: this was a dry run",
    ])  # fmt: skip


def rendered(tokenizer: PreTrainedTokenizerBase, dialogue: EncodedDialogue, *, has_colours: bool = True) -> str:
    """A dialogue as the model reads it, decoded from its ids, the supervised part marked.

    The photo's tokens are shown once with their number; questions that do not see each other have a line each.
    """
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    branches = dialogue.branches or [0] * len(dialogue.input_ids)
    text, last = "", 0
    for (branch, is_learned), tokens in groupby(
        zip(dialogue.input_ids, dialogue.labels, branches, strict=True),
        key=lambda token: (token[2], token[1] != IGNORE_INDEX),
    ):
        piece = _decode(tokenizer, [token for token, _, _ in tokens], image)
        text += f"\n{_BRANCH}" if branch != last else ""
        text += marked(piece, has_colours=has_colours) if is_learned else piece
        last = branch
    return text


def marked(piece: str, *, has_colours: bool) -> str:
    """A piece of text that is learned."""
    before, after = (_GREEN, _PLAIN) if has_colours else _SUPERVISED_MARKS
    return f"{before}{piece}{after}"


def token_counts(encoded: Sequence[EncodedDialogue]) -> str:
    """Tokens of all dialogues and how many of them are learned."""
    lengths = [len(dialogue.input_ids) for dialogue in encoded]
    learned = sum(label != IGNORE_INDEX for dialogue in encoded for label in dialogue.labels)
    total = sum(lengths)
    return (
        f"{total:,} tokens, {learned:,} of them learned ({learned / total:.1%}); a dialogue has "
        f"{statistics.median(lengths):.0f} in the middle"
    )


def num_steps(num_dialogues: int, arguments: LlavaArguments, processes: int) -> int:
    """Optimiser steps of a run, as ``Trainer`` counts them."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    batches = math.ceil(num_dialogues / (arguments.per_device_train_batch_size * processes))
    if arguments.dataloader_drop_last:
        batches = num_dialogues // (arguments.per_device_train_batch_size * processes)
    per_epoch = max(1, math.ceil(batches / arguments.gradient_accumulation_steps))
    steps: int = math.ceil(arguments.num_train_epochs * per_epoch)
    return steps


def step_line(num_dialogues: int, arguments: LlavaArguments, processes: int) -> str:
    """Steps and the size of a batch, of as many processes as are planned."""
    size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * processes
    steps = num_steps(num_dialogues, arguments, processes)
    return (
        f"{steps:,} steps of {size} dialogues: {arguments.per_device_train_batch_size} a process x "
        f"{arguments.gradient_accumulation_steps} micro-batches x {processes} process(es)"
    )


def memory_table(model: nn.Module, arguments: LlavaArguments, num_tokens: int, num_learned: int, processes: int) -> str:
    """What a process needs with each way of spreading the model over processes; arguments as of ``memory_need``."""
    needs = {
        name: memory_need(model, arguments, num_tokens, num_learned, stage=stage, processes=processes)
        for name, stage in (("without ZeRO", 0), ("ZeRO-2", 2), ("ZeRO-3", 3))
    }
    head = f"{f'GiB a process, of {processes}':<24}{'weights':>12}{'gradients':>12}{'optimizer':>12}{'activations':>13}"
    rows = [
        f"{name:<24}{need.weights / 2**30:>12.2f}{need.gradients / 2**30:>12.2f}{need.optimizer / 2**30:>12.2f}"
        f"{need.activations / 2**30:>13.2f}{need.total / 2**30:>9.2f} in all"
        for name, need in needs.items()
    ]
    return "\n".join([head, *rows, "(AdamW; the activations are a rough estimate; CUDA itself takes about 1 GiB more)"])


def memory_need(
    model: nn.Module, arguments: LlavaArguments, num_tokens: int, num_learned: int, *, stage: int, processes: int = 1
) -> MemoryNeed:
    """Estimates the memory of one process.

    Args:
        model: With its trained part marked.
        arguments: Precision, checkpointing and size of a micro-batch.
        num_tokens: Of the longest dialogue.
        num_learned: Of them, whose logits are computed.
        stage: 0 without DeepSpeed; ZeRO-2 spreads gradients and optimizer, ZeRO-3 the weights too.
        processes: That the model is spread over.
    """
    half = arguments.bf16 or arguments.fp16
    width = 2 if half and stage else 4  # DeepSpeed holds the model at 16 bits, autocast at 32
    parameters = [p for name, p in model.named_parameters() if "original_module" not in name]
    frozen = sum(_bytes(p, width if stage else None) for p in parameters if not p.requires_grad)
    trained = sum(num_weights(p) for p in parameters if p.requires_grad)
    spread = processes if stage >= 2 else 1
    return MemoryNeed(
        weights=(frozen + trained * width) / (processes if stage == 3 else 1),
        gradients=trained * width / spread,
        optimizer=trained * (_ADAM_BYTES if stage else _ADAM_BYTES - 4) / spread,
        activations=_activations(model, arguments, num_tokens, num_learned, half_width=2 if half else 4),
    )


def _activations(model: Any, arguments: LlavaArguments, num_tokens: int, num_learned: int, *, half_width: int) -> float:
    text = model.config.get_text_config()
    layer = _CHECKPOINTED_BYTES if arguments.activation_checkpointing else _LAYER_BYTES
    layers = text.num_hidden_layers * text.hidden_size * layer * half_width / 2
    one_layer = text.hidden_size * _LAYER_BYTES * half_width / 2  # checkpointing computes one at a time again
    logits = text.vocab_size * (half_width + 2 * 4)  # and their 32-bit copy with its gradient
    return float(arguments.per_device_train_batch_size * (num_tokens * (layers + one_layer) + num_learned * logits))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], image: int) -> str:
    pieces = []
    for is_image, group in groupby(ids, key=lambda token: token == image):
        tokens = list(group)
        text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        pieces.append(f"{IMAGE_TOKEN}x{len(tokens)}" if is_image else text)
    return "".join(pieces)


def _bytes(parameter: nn.Parameter, width: int | None) -> int:
    """Of a frozen weight: as it lies in memory, or at ``width`` bytes; quantised ones stay what they are."""
    if not parameter.is_floating_point():
        return int(parameter.numel() * parameter.element_size())
    return num_weights(parameter) * (width if width is not None else parameter.element_size())
