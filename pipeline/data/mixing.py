"""Mixup (Zhang et al., arXiv 1710.09412) and cutmix (Yun et al., arXiv 1905.04899), the same in every replay.

The partner, the share and the box of a sample are pure functions of (seed, epoch, sample), as its view is: teacher
outputs for mixed images can be stored and read again. Shares are multiples of 1/128 and pixels are rounded to uint8,
so that the mix is integer arithmetic: teacher and student, CPU and GPU see the same bytes.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from pipeline.data import draws
from pipeline.recipe import Augment

STEPS = 128  # 255 * 128 + 64 still fits into int16, whose vectors hold twice as many pixels as int32's


def mixes(spec: Augment) -> bool:
    """Whether any image is mixed with another one."""
    return spec.mix_probability > 0 and (spec.mixup > 0 or spec.cutmix > 0)


def partners(sample_ids: Any, pool: np.ndarray, epoch: int, spec: Augment) -> np.ndarray:
    """The sample that each of these is mixed with in this epoch: int64 (B,).

    sample_ids: (B,) integers out of `pool`. pool: int64 (N,), the sorted training samples. The whole pool is permuted
    once an epoch, so each sample is one other's partner (its own, once in N times), whatever the batch or the order.
    """
    ids = np.asarray(sample_ids, dtype=np.int64)
    places = np.searchsorted(pool, ids)
    assert (pool[np.minimum(places, len(pool) - 1)] == ids).all(), "a sample that is not in the pool"
    return draws.shuffled(pool, spec.seed, epoch, draws.PARTNER)[places]


def mix(
    images: torch.Tensor, others: torch.Tensor, sample_ids: Any, epoch: int, spec: Augment
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each view with its partner's: (uint8 (B, C, H, W), the partner's share of the label, float32 (B,)).

    images, others: uint8 (B, C, H, W) on one device, augmented already; the result keeps their memory format.
    sample_ids: (B,) integers of `images`. Of the share `mix_probability` of all samples each takes, with mixup, the
    partner's pixels by a share drawn from Beta(mixup, mixup); with cutmix, a box of its partner whose area is such a
    share before the border cuts it: the label's share is the area really pasted. With both, each half of the time.
    """
    assert images.shape == others.shape, f"{tuple(images.shape)} and {tuple(others.shape)}"
    assert images.dtype == others.dtype == torch.uint8, f"{images.dtype} and {others.dtype}"
    ids = np.asarray(sample_ids, dtype=np.int64)
    assert ids.shape == images.shape[:1], f"{len(ids)} sample ids for {len(images)} images"
    device = images.device
    mixed = draws.uniform(spec.seed, epoch, ids, draws.MIXED) < spec.mix_probability
    pasted = draws.uniform(spec.seed, epoch, ids, draws.MIX_KIND) < cutmix_share(spec)
    weight = np.zeros(len(ids), dtype=np.float32)
    if spec.mixup:
        share = np.where(mixed & ~pasted, _share(spec.mixup, spec.seed, epoch, ids), 0)
        images = _blend(images, others, torch.from_numpy(share.astype(np.int16)).to(device))
        weight += (share / STEPS).astype(np.float32)
    if spec.cutmix:
        height, width = images.shape[2:]
        share = np.where(mixed & pasted, _share(spec.cutmix, spec.seed, epoch, ids), 0)
        side = np.sqrt(share / STEPS)
        rows = _span(height, side, draws.below(height, spec.seed, epoch, ids, draws.BOX_ROW))
        columns = _span(width, side, draws.below(width, spec.seed, epoch, ids, draws.BOX_COLUMN))
        # A mask of the images' own memory format: broadcasting over the channels takes three times as long.
        box = rows[:, :, None] & np.repeat(columns, images.shape[1], axis=1)[:, None, :]
        mask = torch.from_numpy(box.reshape(len(ids), height, width, -1)).to(device).permute(0, 3, 1, 2)
        images = torch.where(mask, others, images)
        weight += (rows.sum(1) * columns.sum(1) / (height * width)).astype(np.float32)
    return images, torch.from_numpy(weight).to(device)


def cutmix_share(spec: Augment) -> float:
    """The share of cutmix among the mixed samples."""
    return (spec.cutmix > 0) / ((spec.cutmix > 0) + (spec.mixup > 0)) if mixes(spec) else 0.0


def soft_labels(
    target: torch.Tensor, partner_target: torch.Tensor, partner_weight: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Both labels by their share: int64 (B,) twice and float32 (B,) to float32 (B, num_classes).

    A label of -1 (none) adds nothing, so a row's sum is the share of the image that has a label.
    """
    labels = torch.stack([target, partner_target], dim=1)
    shares = torch.stack([1 - partner_weight, partner_weight], dim=1) * (labels >= 0)
    rows = torch.zeros(len(target), num_classes, dtype=torch.float32, device=target.device)
    return rows.scatter_add_(1, labels.clamp(min=0), shares)


def _share(alpha: float, seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """int64 (B,) in 0..STEPS: draws from Beta(alpha, alpha) in units of 1/STEPS, rounded to the nearest."""
    return np.searchsorted(_beta_steps(alpha), draws.uniform(seed, epoch, ids, draws.MIX_SHARE), side="right")


@functools.lru_cache(maxsize=8)
def _beta_steps(alpha: float) -> np.ndarray:
    """float64 (STEPS,): the distribution function of Beta(alpha, alpha) where the rounded share goes up by one.

    The inverse of the function by search: a draw takes microseconds, and machines differ only where a uniform number
    of 53 bits falls into the rounding error of one of these values.
    """
    from scipy.special import betainc

    return betainc(alpha, alpha, (np.arange(STEPS) + 0.5) / STEPS)


def _blend(images: torch.Tensor, others: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """(images * (STEPS - share) + others * share) / STEPS, halves rounded up; share: int16 (B,) in 0..STEPS."""
    share = share[:, None, None, None]
    total = images.to(torch.int16).mul_(STEPS - share).add_(others.to(torch.int16).mul_(share)).add_(STEPS // 2)
    return total.bitwise_right_shift_(7).to(torch.uint8)


def _span(side: int, share: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """bool (B, side): the places of a box that takes `share` (B,) of the side, around `centre` (B,), cut by the border.

    The length is rounded down, as the paper's code does; numbers from 0 to 1 times a side are exact enough for that.
    """
    length = np.floor(share * side).astype(np.int64)
    first = centre - length // 2
    places = np.arange(side)[None, :]
    return (places >= first[:, None]) & (places < (first + length)[:, None])
