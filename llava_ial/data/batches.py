"""Which photos stand in which batch of stage 1, on which process."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from llava_ial.errors import UserError


class GlobalBatches(Sampler[list[int]]):
    """This process's share of every batch from ``start_step`` to ``num_steps``, as positions for ``ClipPhotos``.

    Each epoch is a new shuffle of all rows, cut into batches that all processes share; rank ``r`` takes every
    ``world``-th row from ``r`` on, so together they hold the rows that one process would hold. What is left of an epoch
    behind its last whole batch is left out (another rest each epoch): a contrastive loss over fewer rows is another
    loss. A data set smaller than one batch is a batch as a whole, and then the shares may differ by one row.

    With ``max_per_class`` rows wait for a later batch while theirs has as many of their class, so that few of a photo's
    negatives show its own address; the last batches of an epoch take whatever still waits.

    Args:
        num_rows: Rows of the split.
        batch_size: Rows of a batch over all processes.
        num_steps: Batches of the whole training.
        start_step: Batches that were already trained on.
        rank: Of this process.
        world: Number of processes.
        seed: Of the shuffles.
        class_of_row: Class of each row, its address; needed for ``max_per_class``.
        max_per_class: Rows of one class in a batch; 0 sets no limit.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        num_steps: int,
        start_step: int = 0,
        rank: int,
        world: int,
        seed: int,
        class_of_row: Sequence[int] = (),
        max_per_class: int = 0,
    ) -> None:
        if num_rows < world:
            raise UserError(f"{num_rows} photos for {world} processes: each needs one; start fewer processes")
        self.batch_size = min(batch_size, num_rows)
        if max_per_class and max_per_class * (num_classes := len(set(class_of_row))) < self.batch_size:
            raise UserError(
                f"--max_per_address {max_per_class}: {num_classes} addresses fill no batch of {self.batch_size}; allow "
                f"at least {-(-self.batch_size // num_classes)}, or make the batch smaller"
            )
        self._class_of_row, self._max_per_class = class_of_row, max_per_class
        self.steps_per_epoch = num_rows // self.batch_size
        self._num_rows, self._num_steps, self._start_step = num_rows, num_steps, start_step
        self._rank, self._world, self._seed = rank, world, seed

    def __len__(self) -> int:
        return self._num_steps - self._start_step

    def __iter__(self) -> Iterator[list[int]]:
        shuffled_epoch, order = -1, list[int]()
        for step in range(self._start_step, self._num_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != shuffled_epoch:
                generator = torch.Generator().manual_seed(self._seed + epoch)
                shuffled_epoch, order = epoch, torch.randperm(self._num_rows, generator=generator).tolist()
                if self._max_per_class:
                    order = self._spread(order, torch.rand(self._num_rows, generator=generator).tolist())
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [epoch * self._num_rows + row for row in rows[self._rank :: self._world]]

    def _spread(self, order: list[int], draws: list[float]) -> list[int]:
        """The same rows, in an order whose batches keep to the limit as long as rows of other classes are left.

        Rows of a class are first laid out evenly over the epoch, each at a random place of its stretch.
        """
        size, seen, place = Counter(self._class_of_row), Counter[int](), dict[int, float]()
        for row, draw in zip(order, draws, strict=True):
            kind = self._class_of_row[row]
            place[row] = (seen[kind] + draw) / size[kind]
            seen[kind] += 1
        waiting: dict[int, deque[int]] = defaultdict(deque)
        coming, spread = deque(sorted(order, key=place.__getitem__)), list[int]()
        for _ in range(self.steps_per_epoch):
            batch, counts = list[int](), defaultdict[int, int](int)
            for kind in list(waiting):  # longest waiting classes first
                while waiting[kind] and counts[kind] < self._max_per_class and len(batch) < self.batch_size:
                    batch.append(waiting[kind].popleft())
                    counts[kind] += 1
                if not waiting[kind]:
                    del waiting[kind]
            while len(batch) < self.batch_size and coming:
                row = coming.popleft()
                kind = self._class_of_row[row]
                if counts[kind] < self._max_per_class:
                    batch.append(row)
                    counts[kind] += 1
                else:
                    waiting[kind].append(row)
            while len(batch) < self.batch_size:
                longest = max(waiting, key=lambda kind: len(waiting[kind]))
                batch.append(waiting[longest].popleft())
            spread += batch
        return spread
