"""Two and three processes against one: the same loss and the same gradients."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from llava_ial import distributed
from llava_ial.errors import UserError
from llava_ial.models.losses import POSITIVES, LossWeights, Truths, address_clip_losses
from llava_ial.models.photo_loss import KnownPhotos

ROOT = Path(__file__).resolve().parents[1]
BATCH, WIDTH = 9, 6


# Both readings of the geography loss are met, beside other positives.
READING = {"paper": "stated", "multi": "printed", "geo": "stated"}


class TinyEncoders(nn.Module):
    """Linear stand-ins for the two encoders, so that every parameter's gradient can be compared."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, WIDTH, dtype=dtype), nn.Linear(4, WIDTH, dtype=dtype)
        self.logit_scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))

    def forward(self, photo: torch.Tensor, address: torch.Tensor, caption: torch.Tensor) -> dict[str, torch.Tensor]:
        def unit(rows: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(rows, dim=-1)

        return {
            "image_features": unit(self.image(photo)),
            "address_features": unit(self.text(address)),
            "caption_features": unit(self.text(caption)),
            "street_features": unit(self.text(address + 1)),
            "neighbourhood_features": unit(self.text(address - 1)),
            "logit_scale": self.logit_scale.exp(),
        }


def run_losses(rows: list[int], dtype: torch.dtype, positives: str, part: str) -> dict[str, torch.Tensor]:
    """Loss ``part`` and gradients of the rows of this rank, gathered over all."""
    torch.manual_seed(0)
    model: nn.Module = TinyEncoders(dtype)
    photo, address, caption = (torch.randn(BATCH, 4, dtype=dtype)[rows] for _ in range(3))
    address_id, xy_m = torch.randint(0, 3, (BATCH,))[rows], (200 * torch.rand(BATCH, 2))[rows]
    panorama = torch.arange(BATCH)[rows] // 2
    earlier = KnownPhotos(
        nn.functional.normalize(torch.randn(5, WIDTH, dtype=dtype), dim=-1), torch.arange(5) % 3, -1 - torch.arange(5)
    )
    wrapped = nn.parallel.DistributedDataParallel(model) if distributed.world_size() > 1 else model
    features = wrapped(photo, address, caption)
    everyone = {name: distributed.gather_with_gradient(f) if f.ndim else f for name, f in features.items()}
    known = [distributed.gather_with_gradient(t) for t in (address_id, address_id // 2, address_id * 0, xy_m, panorama)]
    losses = address_clip_losses(
        everyone, Truths(*known), weights=LossWeights(street=0.3, neighbourhood=0.2, photo=0.5),
        positives=positives, geography_reading=READING[positives], earlier=earlier,
        rows=distributed.own_rows(address_id),
    )  # fmt: skip
    # A loss of photos alone leaves the text side without gradient, which the wrapper must be told: a zero of all.
    own = losses[part] + 0.0 * sum(f.sum() for f in features.values())
    (own * distributed.world_size()).backward()
    return {"loss": distributed.sum_ranks(losses[part]), **{name: p.grad for name, p in model.named_parameters()}}


def cases() -> list[tuple[torch.dtype, str, str]]:
    kinds = ("address", "caption", "geography", "street", "neighbourhood", "photo")
    parts = (*(f"image_{kind}_loss" for kind in kinds), "loss")
    dtypes = (torch.float64, torch.float32)
    return [(dtype, positives, part) for dtype in dtypes for positives in POSITIVES for part in parts]


def split_rows(case: str, rank: int, world: int) -> list[int]:
    """Rows of a rank: alternating, or two for each rank but the first, which has the rest."""
    if case == "equal":
        return list(range(rank, BATCH - BATCH % world, world))
    first = BATCH - 2 * (world - 1)
    return list(range(first)) if rank == 0 else [first + 2 * (rank - 1), first + 2 * (rank - 1) + 1]


def worker(folder: str) -> None:
    """What each of the processes runs."""
    torch.distributed.init_process_group("gloo")
    rank, world = distributed.rank(), distributed.world_size()
    results = {
        f"{division} {dtype} {positives} {part}": run_losses(split_rows(division, rank, world), dtype, positives, part)
        for division in ("equal", "unequal")
        for dtype, positives, part in cases()
    }
    torch.save(results, Path(folder) / f"{rank}.pt")
    assert distributed.own_rows(torch.zeros(rank + 1)) == slice(sum(range(rank + 1)), sum(range(rank + 2)))
    assert distributed.sum_ranks(torch.tensor(float(rank + 1))) == sum(range(world + 1))
    assert distributed.any_rank(rank == 1, False) == [True, False]
    assert distributed.gather_objects(rank) == list(range(world))
    assert distributed.run_on_main_process(lambda: f"made by {distributed.rank()}") == "made by 0"
    distributed.wait_for_everyone()
    gc.collect()  # a wrapper that outlives the group hangs the end of the process now and then
    assert not any(isinstance(found, nn.parallel.DistributedDataParallel) for found in gc.get_objects())
    with pytest.raises(UserError if rank == 0 else SystemExit) as caught:  # type: ignore[call-overload]
        distributed.run_on_main_process(refuse)
    assert rank == 0 or caught.value.code == 2
    assert not torch.distributed.is_initialized()


def refuse() -> None:
    raise UserError("no")


def launch(code: str, num_processes: int) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={num_processes}",
        "--rdzv-backend=c10d",
    ]
    command += ["--rdzv-endpoint=127.0.0.1:0", "--no-python", sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results_of(tmp_path_factory: pytest.TempPathFactory):
    """Results of all ranks, by number of processes; each number is launched once."""
    found: dict[int, list[dict[str, dict[str, torch.Tensor]]]] = {}

    def run(world: int) -> list[dict[str, dict[str, torch.Tensor]]]:
        if world not in found:
            folder = tmp_path_factory.mktemp("ranks")
            launch(f"from tests.test_distributed import worker; worker({str(folder)!r})", world)
            found[world] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
        return found[world]

    return run


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("division", ["equal", "unequal"])
@pytest.mark.parametrize(("dtype", "positives", "part"), cases())
def test_processes_equal_one_in_loss_and_gradients(results_of, world, division, dtype, positives, part):
    rows = [row for rank in range(world) for row in split_rows(division, rank, world)]
    whole = run_losses(rows, dtype, positives, part)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-5
    for result in results_of(world):
        found = result[f"{division} {dtype} {positives} {part}"]
        assert set(found) == set(whole)
        for name, expected in whole.items():
            torch.testing.assert_close(found[name], expected, rtol=tolerance, atol=tolerance, msg=name)
    assert any(gradient.abs().max() > 1e-4 for name, gradient in whole.items() if name != "loss")


def test_without_a_group_everything_is_the_identity():
    tensor = torch.ones(2, 3, requires_grad=True)
    assert distributed.gather_with_gradient(tensor) is tensor
    assert distributed.any_rank(True, False) == [True, False]
    assert distributed.gather_objects("x") == ["x"]
    assert distributed.own_rows(torch.zeros(3)) == slice(0, 3)
    assert distributed.sum_ranks(torch.tensor(2.0)) == 2
    assert distributed.run_on_main_process(lambda: 5) == 5
    assert distributed.is_main_process()
    assert distributed.world_size() == 1
    distributed.wait_for_everyone()


def test_a_wrong_world_size_is_refused_with_the_launch_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.refuse_wrong_world_size(1)
    distributed.refuse_wrong_world_size(1, 1)
    with pytest.raises(UserError, match=r"1 process.*--multi_gpu --num_processes 2"):
        distributed.refuse_wrong_world_size(2, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"train apart; .*--cpu true"):
        distributed.refuse_wrong_world_size(2, 1)
