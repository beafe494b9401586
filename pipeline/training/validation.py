"""Scores on validation images during training: eval mode, training precision, the same on all ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.data.loader import batches, normalize
from pipeline.distillers.learner import autocast
from pipeline.tiles import tiled
from pipeline.training.distributed import current

if TYPE_CHECKING:
    from pipeline.distillers.teacher import Network
    from pipeline.training.train import TrainData

EVAL_BATCH = 256


@torch.inference_mode()
def top1(network: Network, data: TrainData, *, device: torch.device, dtype: torch.dtype) -> float:
    """Top-1 share on the validation samples."""
    right = 0
    images = data.validation_images or data.images
    ranks = current()
    mine = data.validation[ranks.rank :: ranks.world]
    with judging(network.module):
        for _, raw, target in batches(images, mine, EVAL_BATCH, workers=data.workers, device=device):
            logits = forward(network, raw, device, dtype)
            right += int((logits.argmax(1) == target).sum())
    share = ranks.mean(torch.tensor(float(right), dtype=torch.float64, device=device))
    return round(float(share) * ranks.world) / len(data.validation)


@torch.inference_mode()
def picture_score(task: Any, network: Network, data: TrainData, *, device: torch.device, dtype: torch.dtype) -> float:
    """The mean of a dense task's metric (`task.scores`) over the validation images, whole or the centre of each.

    task: a class derived from `Dense`. Each rank judges every n-th image.
    """
    images: Any = data.validation_images
    ranks = current()
    mine = data.validation[ranks.rank :: ranks.world]
    total = np.float64(0)
    height, width, _ = images.shape

    def run(tiles: np.ndarray) -> np.ndarray:
        return forward(network, torch.from_numpy(tiles).to(device), device, dtype).cpu().numpy()

    pairs = images.pairs(mine) if task.score_on == "whole" else images.pieces(mine)
    with judging(network.module):
        for image, target in pairs:
            output = tiled(run, image, tile=(height, width), overlap=task.overlap)
            total += task.scores([output], [target])[0]
    share = ranks.mean(torch.tensor(float(total), dtype=torch.float64, device=device))
    return float(share) * ranks.world / len(data.validation)


def forward(network: Network, raw: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The network's output, float32, for uint8 (B, H, W, C)."""
    inputs = normalize(raw.permute(0, 3, 1, 2), network.mean, network.std, torch.float32, True)
    with autocast(device, dtype):
        return network.module(inputs).float()


@contextlib.contextmanager
def judging(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode, and what it was before afterwards."""
    was_training = module.training
    module.eval()
    yield
    module.train(was_training)
