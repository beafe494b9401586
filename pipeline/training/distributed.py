"""Several processes that train one network together, as torchrun starts them: who they are and what they exchange.

A batch is cut into equal, consecutive shares, so the mean of the processes' gradients is the gradient of the whole
batch. Losses that look at the batch as a whole are computed by everyone on all of it (`Ranks.whole`). BatchNorm
normalises each process's share by its own statistics; the running ones, which validation and the artifact use, are
averaged. Who does what, and what happens when one of them is lost, stands in `pipeline.training.teamwork`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import UserError

WAITING = timedelta(days=30)  # for rank 0, which profiles, gates and so on alone
WORKING = timedelta(minutes=30)  # for one another, between two steps


class Ranks:
    """All processes, seen from one of them: `rank` 0 to `world` - 1. Without arguments it is a process alone, which
    exchanges nothing. `leads`: it writes the files and does the talking.

    Values that are averaged or gathered must have the same shape and type on all ranks, and every rank must ask.
    """

    def __init__(self, rank: int = 0, world: int = 1, *, store: Any = None, control: Any = None) -> None:
        """store: of torchrun, for notes; it outlives a rank. control: a gloo group that waits for long."""
        self.rank, self.world, self.leads = rank, world, rank == 0
        self.store, self.control = store, control
        self.tasks = 0  # so far: notes belong to one
        self.apart = False  # whether one of them is lost

    def share(self, value: Any = None) -> Any:
        """Rank 0's `value`, on every rank; waits for as long as rank 0 takes. Raises `UserError` when one is lost."""
        if self.world == 1:
            return value
        if self.apart:
            raise UserError(f"the {self.world} processes have lost each other; run the same command again to resume")
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here, however long it takes."""
        if self.world > 1:
            dist.barrier(group=self.control)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks, with the same bits on all of them."""
        if self.world == 1:
            return values
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values / self.world

    def means(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The mean of each scalar, float64."""
        return dict(zip(values, self.mean(torch.stack([value.double() for value in values.values()])), strict=True))

    def any(self, value: bool) -> bool:
        """Whether it is so on any rank."""
        return value if self.world == 1 else float(self.mean(torch.tensor(float(value)))) > 0

    def whole(self, rows: Any) -> Any:
        """The rows of all ranks in their order: of a tensor with this rank's rows, or of each in a list.

        Differentiable, for a loss that every rank computes from it and parameters whose gradients are then averaged
        over the ranks (`together`): these get the gradient of the loss of the whole batch.
        """
        if self.world == 1:
            return rows
        if isinstance(rows, (list, tuple)):
            return [self.whole(each) for each in rows]
        wide = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
        return _Gather.apply(wide.contiguous(), self)

    def together(self, learner: torch.nn.Module) -> torch.nn.Module:
        """`learner`, such that a backward pass through its outputs averages the gradients over the ranks."""
        if self.world == 1:
            return learner
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"find_unused_parameters": True, name: False}
        # Unused: once its term or all teaching has ended, an adapter gets no gradient any more.
        return DistributedDataParallel(learner, **options)

    @torch.no_grad()
    def settle(self, modules: Iterable[torch.nn.Module | None]) -> None:
        """Average BatchNorm's running statistics over the ranks, each of which saw its own share of the images."""
        layers = [layer for module in modules if module is not None for layer in module.modules()]
        norms = [layer for layer in layers if isinstance(layer, _NormBase) and layer.running_mean is not None]
        buffers: list[Any] = [buffer for layer in norms for buffer in (layer.running_mean, layer.running_var)]
        if self.world == 1 or not buffers:
            return
        means = self.mean(torch.cat([buffer.double() for buffer in buffers]))
        for buffer, mean in zip(buffers, means.split([len(buffer) for buffer in buffers]), strict=True):
            buffer.copy_(mean)

    def note(self, what: str, text: str = "") -> None:
        """Leave a word about this task for the others, whatever state they are in."""
        with contextlib.suppress(Exception):  # the store may have ended with torchrun
            self.store.set(f"{what}, task {self.tasks}", text)

    def noted(self, what: str, *, within_s: float) -> str | None:
        """The word that was left about this task; None when there is none within that time."""
        key, until = f"{what}, task {self.tasks}", time.monotonic() + within_s
        with contextlib.suppress(Exception):
            while not (found := self.store.check([key])) and time.monotonic() < until:
                time.sleep(0.02)
            return self.store.get(key).decode() if found else None
        return None

    def last_word(self) -> bool:
        """Whether this process is the first to say why all of them end: a person reads one line, not one of each."""
        try:
            return self.store.add("last word", 1) == 1
        except Exception:
            return True


class _Gather(torch.autograd.Function):
    """Each rank computes the same loss of the rows of all, so what all ranks together ask of this rank's rows is what
    this rank asks of them, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        ctx.set_materialize_grads(False)
        parts = [torch.empty_like(rows) for _ in range(ranks.world)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        ranks, gradient = ctx.ranks, gradients[0]
        return None if gradient is None else gradient.chunk(ranks.world)[ranks.rank] * ranks.world, None


_current = Ranks()


def current() -> Ranks:
    """Of this process: the others that `join` met, or itself alone."""
    return _current


def join(init_method: str = "env://") -> Ranks:
    """Meet the other processes that torchrun started. Raises `UserError` for more of them here than GPUs.

    gloo connects CPUs, nccl GPUs; each process takes the GPU of its local rank.
    """
    global _current  # noqa: PLW0603 - a process is the same rank for all of its life
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "gloo"
    if torch.cuda.is_available():
        here, count = int(os.environ.get("LOCAL_WORLD_SIZE", world)), torch.cuda.device_count()
        if here > count:
            gpus = "1 GPU" if count == 1 else f"{count} GPUs"
            raise UserError(f"{here} processes on a machine with {gpus}; start torchrun with --nproc-per-node {count}")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
        backend = "cpu:gloo,cuda:nccl"
    store = next(rendezvous(init_method, rank, world))[0]  # pyright: ignore[reportArgumentType]
    store.set_timeout(WORKING)
    group = PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=rank, world_size=world, timeout=WORKING)
    control = dist.new_group(backend="gloo", timeout=WAITING)
    _current = Ranks(rank, world, store=PrefixStore("notes", store), control=control)
    return _current


def leave() -> None:
    """End the connections in good order."""
    global _current  # noqa: PLW0603
    dist.destroy_process_group()
    _current = Ranks()


def is_loss(error: BaseException) -> bool:
    """Whether it says that another process is gone, not that something is wrong with this one."""
    if isinstance(error, UserError) or not isinstance(error, RuntimeError):
        return False
    words = ("gloo", "nccl", "connection closed", "connection reset", "connection refused", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
