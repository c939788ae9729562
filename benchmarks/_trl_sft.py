"""TRL's part of benchmarks/stage2.py, run by the python of an environment that has TRL; imports nothing of ours.

    python benchmarks/_trl_sft.py --folder=FOLDER --batch_size=8 --steps=6

The same LoRA, projector, template (its generation marks say what is supervised), photos and batch as the other parts.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from peft import LoraConfig
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration, TrainerCallback
from trl import SFTConfig, SFTTrainer

LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
WARM_STEPS, TURNS = 2, 2


class Clock(TrainerCallback):
    """When the third step began and the last ended."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts after two steps."""
        if state.global_step == WARM_STEPS:
            self.started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last call counts."""
        self.ended = time.process_time()


def as_parts(message: dict[str, str]) -> dict[str, Any]:
    """A message in the form that processors take: the photo apart from the text."""
    text = message["content"].removeprefix("<image>\n")
    image = [{"type": "image"}] if text != message["content"] else []
    return {"role": message["role"], "content": [*image, {"type": "text", "text": text}]}


def main() -> None:
    """Trains some steps and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="made by benchmarks/stage2.py")
    parser.add_argument("--batch_size", type=int, required=True, help="dialogues of a step")
    parser.add_argument("--steps", type=int, required=True, help="steps that are counted")
    given = parser.parse_args()
    dialogues = json.loads((given.folder / "dialogues.json").read_text(encoding="utf-8"))
    rows = {
        "messages": [[as_parts(message) for message in dialogue["messages"]] for dialogue in dialogues],
        "images": [[dialogue["image"]] for dialogue in dialogues],
    }
    dataset = Dataset.from_dict(rows).cast_column("images", [Image()])
    processor = AutoProcessor.from_pretrained(given.folder / "base", backend="pil")
    processor.tokenizer = AutoTokenizer.from_pretrained(given.folder / "base")  # a fast one, which masks need
    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=LlavaForConditionalGeneration.from_pretrained(given.folder / "base"),
            args=SFTConfig(
                output_dir=output, per_device_train_batch_size=given.batch_size, max_steps=given.steps + WARM_STEPS,
                use_cpu=True, bf16=False, save_strategy="no", report_to=[], logging_steps=1000, disable_tqdm=True,
                assistant_only_loss=True, max_length=None, activation_checkpointing=False, learning_rate=2e-4,
            ),
            train_dataset=dataset,
            processing_class=processor,
            peft_config=LoraConfig(
                r=16, lora_alpha=32, lora_dropout=0.05, target_modules=LORA_TARGETS,
                modules_to_save=["multi_modal_projector"],
            ),
            callbacks=[clock],
        )  # fmt: skip
        batch = next(iter(trainer.get_train_dataloader()))
        learned = int((batch["labels"] != -100).sum()) / len(batch["labels"])
        trainer.train()
    per_second = given.steps * given.batch_size / (clock.ended - clock.started)
    print(json.dumps({
        "questions_per_cpu_second": per_second * TURNS,
        "supervised_tokens_per_cpu_second": per_second * learned,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
