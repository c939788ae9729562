"""Options of stage 2 that cannot go together, as the base or the launcher has it."""

from dataclasses import fields

from llava_ial.training.llava_arguments import LlavaArguments, is_measured, require
from llava_ial.training.llava_settings import LlavaSettings


def refuse_zero3_quantized(settings: LlavaSettings, arguments: LlavaArguments) -> None:
    """ZeRO-3 cannot spread weights of four or eight bits.

    Raises:
        UserError: Says what can.
    """
    stage = (arguments.deepspeed_content() or {}).get("zero_optimization", {}).get("stage", 0)
    if stage == 3:
        require(settings.quantize == "none", "quantize", settings.quantize, "none with ZeRO-3, any with ZeRO-2")


def refuse_stale_workers(settings: LlavaSettings, arguments: LlavaArguments) -> None:
    """Workers that live longer than an epoch are not told of the next, and would change each photo as in the first.

    Raises:
        UserError: They were asked for.
    """
    keeps = bool(settings.augmentation and arguments.dataloader_num_workers and arguments.dataloader_persistent_workers)
    allowed = "false with --min_crop_area, --colour_jitter or --white_balance_jitter"
    require(not keeps, "dataloader_persistent_workers", True, allowed)


def refuse_beside_other_bases(settings: LlavaSettings, arguments: LlavaArguments) -> None:
    """What only LLaVA-1.5 can have here.

    Raises:
        UserError: Names the option.
    """
    ours = {
        "clip": settings.clip,
        "interpolate_positions": settings.interpolate_positions,
        "join_last_layer": settings.join_last_layer,
        "hints": settings.hints,
        "mix": settings.mix,
        "questions_apart": settings.questions_apart,
        "colour_jitter": settings.colour_jitter,
        "white_balance_jitter": settings.white_balance_jitter,
        "forgetting_probe": settings.forgetting_probe,
    }
    for name, value in ours.items():
        require(not value, name, value, "nothing: a base that is no LLaVA-1.5 keeps its own tower and template")
    for name in (
        "max_length",
        "min_crop_area",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "photos_in_memory",
    ):
        default = next(item.default for item in fields(settings) if item.name == name)
        allowed = f"{default}, which is not looked at: the base's own processor and tower decide"
        require(getattr(settings, name) == default, name, getattr(settings, name), allowed)
    for name in ("tune_vision_tower", "quantize"):
        require(getattr(settings, name) == "none", name, getattr(settings, name), "none, with a base but LLaVA-1.5")
    require(not is_measured(arguments), "eval_strategy", arguments.eval_strategy, "no, with a base but LLaVA-1.5")
    name = "train_sampling_strategy"
    require(getattr(arguments, name) != "group_by_length", name, "group_by_length", "random, sequential")
