"""Batches in a given order: a gather for images in memory, worker processes for images on disk."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.data import draws
from pipeline.data.source import Images, InMemory, load_both
from pipeline.errors import UserError

PREFETCH = 4


def epoch_order(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """`indices` (N,) int64 shuffled: a pure function of their values, seed and epoch."""
    return draws.shuffled(indices, seed, epoch, draws.ORDER)


def shard(order: np.ndarray, batch_size: int, rank: int, world: int) -> np.ndarray:
    """The samples of process `rank` of `world`: of each batch of `batch_size` its equal, consecutive share.

    order: int64 (N,), the same on all processes. Returns int64, in batches of batch_size / world: their k-th batches
    together are the k-th batch of one process, in its order. A smaller last batch is cut as evenly as it can be.
    Raises UserError, the same on every rank, when a batch does not divide or leaves a process without a sample.
    """
    assert 0 <= rank < world, f"rank {rank} of {world}"
    if batch_size % world:
        lower, upper = batch_size // world * world, -(-batch_size // world) * world
        raise UserError(
            f"batch_size = {batch_size} does not divide by {world} processes; "
            f"set it to {f'{lower} or ' if lower else ''}{upper}, or start another number of processes"
        )
    order = np.asarray(order, dtype=np.int64)
    if 0 < len(order) % batch_size < world:
        raise UserError(
            f"the last batch of {len(order)} samples has {len(order) % batch_size}, too few for {world} processes; "
            "start fewer processes or set another batch_size"
        )
    parts = [np.array_split(order[start : start + batch_size], world) for start in range(0, len(order), batch_size)]
    return np.concatenate([part[rank] for part in parts]) if parts else order


def batches(
    images: Images, order: np.ndarray, batch_size: int, *, workers: int = 0, device: torch.device | None = None
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Batches of `order` (N,) int64, in that order; the last one may be smaller.

    Yields (indices int64 (B,) numpy, images uint8 (B, H, W, C), labels int64 (B,), or target pictures uint8
    (B, H', W', C') where the images have some), tensors on `device` (the CPU).
    Images in memory are copied to a GPU once and gathered there. Streamed ones are decoded `PREFETCH` batches ahead by
    `workers` processes. What is yielded depends neither on `workers` nor on `device`.
    Raises UserError naming the file when an image can no longer be read, and when a worker is killed.
    """
    order = np.asarray(order, dtype=np.int64)
    device = device or torch.device("cpu")
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if device.type != "cpu" and isinstance(images, InMemory):
        pixels, targets = resident(images, device)
        for indices in parts:
            places = torch.from_numpy(indices).to(device, non_blocking=True)
            yield indices, pixels.index_select(0, places), targets.index_select(0, places)
        return
    processes = min(workers, usable_cores(), len(parts)) if images.streamed else 0
    both = functools.partial(load_both, images)
    loaded = _from_workers(images, parts, processes) if processes else map(both, parts)
    for indices, (array, target) in zip(parts, loaded, strict=True):
        pixels, targets = torch.from_numpy(array), torch.from_numpy(target)
        yield indices, pixels.to(device, non_blocking=True), targets.to(device, non_blocking=True)


@functools.lru_cache(maxsize=2)  # two: with unlabelled images training and validation read different sets in turn
def resident(images: InMemory, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """All images uint8 (N, H, W, C) and labels int64 (N,) on `device`, copied once."""
    return torch.from_numpy(images.images).to(device), torch.from_numpy(images.labels).to(device)


def normalize(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, channels_last: bool = True
) -> torch.Tensor:
    """(x / 255 - mean) / std: uint8 (B, C, H, W) to `dtype` of the same shape, in the asked memory format.

    mean, std: one value a channel, on the scale 0 to 1. Computed in float32, then cast.
    """
    assert len(mean) == len(std) == images.shape[1], f"{len(mean)} means, {len(std)} stds, {tuple(images.shape)}"
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(torch.float32, memory_format=layout).mul_(scale).add_(shift).to(dtype)


@functools.lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # Outside of inference mode, whatever the caller's: tensors born in it may not take part in training later.
    with torch.inference_mode(False):
        scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Decoding(torch.utils.data.Dataset[Any]):
    """Item `k` is the k-th batch. A user's error is returned, not raised: torch would wrap it in a traceback."""

    def __init__(self, images: Images, parts: list[np.ndarray]) -> None:
        self.images, self.parts = images, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray] | UserError:
        try:
            return load_both(self.images, self.parts[index])
        except UserError as error:
            return error


def _as_is(item: Any) -> Any:
    return item


def _from_workers(images: Images, parts: list[np.ndarray], processes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    loader = torch.utils.data.DataLoader(
        _Decoding(images, parts),
        batch_size=None,
        num_workers=processes,
        prefetch_factor=max(2, PREFETCH // processes),
        # Arrays stay arrays and travel through a pipe: tensors would need /dev/shm, which is 64 MB in a container.
        collate_fn=_as_is,
        # A generator of its own: the default one would take a number from the training run's global state.
        generator=torch.Generator(),
        # fork where it exists: spawned workers would run an unguarded user script again.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    with warnings.catch_warnings():
        # Python 3.12 warns of fork in a process with threads; the workers use none of the parent's.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
        items = iter(loader)
    try:
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:  # torch's, when a worker is gone: killed for memory, most often
        raise UserError(
            f"data.workers = {processes}: a decoding process ended early ({str(error).partition(chr(10))[0]}); "
            "give it more memory or set data.workers lower"
        ) from error
    finally:
        del items  # ends the workers now, also when a traceback keeps this frame alive
