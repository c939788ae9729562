"""Parts of a build by Ray Data: on the cluster that ``RAY_ADDRESS`` names, else on this machine.

Every node must see the output folder, the photos and the map under the same paths.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llava_ial.errors import UserError


def run_on_ray(
    run_part: Callable[..., None], name: str, task: Callable[..., Any], context: Any, parts: Sequence[int]
) -> None:
    """Runs ``run_part(name, task, context, part)`` for each part; a part is a block of its own, or none is parallel.

    Raises:
        UserError: Ray is not installed, or the part itself raised one.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("engine: ray is not installed; pip install 'llava-ial[ray]', or engine: local") from error
    if not ray.is_initialized():
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": context.workers, "include_dashboard": False}
        ray.init(log_to_driver=False, **here)
    alone = replace(context, workers=1)

    def run(batch: dict[str, Any]) -> dict[str, Any]:
        problems = []
        for part in batch["part"].tolist():
            try:
                run_part(name, task, alone, part)
                problems.append("")
            except UserError as error:  # Ray would wrap it in a traceback of its own
                problems.append(str(error))
        return {"part": batch["part"], "problem": problems}

    # A captioning model takes the GPU of its node, if the cluster has one.
    wants_gpu = name == "captions" and context.settings.captioner == "model" and ray.cluster_resources().get("GPU", 0)
    blocks = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    done = blocks.map_batches(run, batch_size=1, num_gpus=1 if wants_gpu else None).take_all()
    for row in done:
        if row["problem"]:
            raise UserError(row["problem"])
