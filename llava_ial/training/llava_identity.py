"""Which settings of stage 2 decide what comes out: by them a folder is resumed, found complete, or refused."""

from dataclasses import MISSING, Field, asdict, fields
from enum import Enum
from typing import Any

from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_settings import LlavaSettings

# These say where things lie, what is shown and how fast it goes, not what comes out: a run may be resumed with others.
# The inputs stand in a run's identity by their hashes, the DeepSpeed file by its content.
_NOT_IDENTITY = {
    "data", "image_root", "mix", "base", "clip", "photos_in_memory", "num_processes", "output_dir", "deepspeed",
    "use_cpu", "run_name", "disable_tqdm", "save_strategy", "save_steps", "save_total_limit", "dry_run",
    "forgetting_probe", "dialogues", "attn_implementation",
}  # fmt: skip
# Options that came later: at these values a run is the one that was begun without them.
_AS_BEFORE = {
    "interpolate_positions": False, "join_last_layer": False, "questions_apart": 0.0, "min_crop_area": 1.0,
    "colour_jitter": 0.0, "white_balance_jitter": 0.0,
}  # fmt: skip
_NOT_IDENTITY_PREFIXES = ("log", "dataloader_", "hub_", "push_to_hub", "ddp_timeout")
# By transformers, by the launcher, and what nobody should find in a file.
_FILLED = {"accelerator_config", "local_rank", "report_to", "hub_token"}


def resolved(settings: LlavaSettings, arguments: LlavaArguments) -> dict[str, Any]:
    """Every setting, and every training argument that is not its default: a file of it repeats the run."""
    values = arguments.to_dict()
    changed = {
        item.name: values[item.name]
        for item in fields(arguments)
        if item.init and item.name not in _FILLED and (values[item.name] or None) != _default(item)
    }
    return asdict(settings) | changed


def identity(settings: LlavaSettings, arguments: LlavaArguments) -> dict[str, Any]:
    """The settings that decide the result."""
    kept = {
        name: value
        for name, value in resolved(settings, arguments).items()
        if name not in _NOT_IDENTITY
        and not name.startswith(_NOT_IDENTITY_PREFIXES)
        and (name not in _AS_BEFORE or value != _AS_BEFORE[name])
    }
    return kept | {"deepspeed": arguments.deepspeed_content(), "world_size": arguments.world_size}


def _default(item: Field[Any]) -> Any:
    """The default as ``to_dict`` shows it; what is empty or off is None, as ``transformers`` mixes the three."""
    value = item.default if item.default_factory is MISSING else item.default_factory()
    return (value.value if isinstance(value, Enum) else value) or None
