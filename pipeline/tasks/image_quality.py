"""PSNR and SSIM as the super-resolution field prints them, in numpy.

Y is ITU-R BT.601's luma of 8-bit RGB, 16 to 235, not rounded (MATLAB's `rgb2ycbcr`, BasicSR); pictures are uint8, and a
border as wide as the scale is left out by the caller. SSIM: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment:
From Error Visibility to Structural Similarity" (IEEE TIP 2004): Gaussian window of 11 pixels and sigma 1.5, population
moments, only places where the window fits. scikit-image gives the same numbers (`gaussian_weights=True, sigma=1.5,
use_sample_covariance=False, data_range=255`), see tests/test_pipeline_tasks_image_quality.py.
"""

from __future__ import annotations

import functools
import math

import numpy as np

LUMA = (65.481, 128.553, 24.966)  # of R, G, B from 0 to 1
BLACK = 16.0
WHITE = 255.0
MOST = 100.0  # dB, of equal pictures, whose PSNR is infinite
WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03
STRIP = 32  # rows, and columns, that are blurred at once


def luma(picture: np.ndarray) -> np.ndarray:
    """float64 (H, W): Y of uint8 RGB (H, W, 3); one channel is taken as it is."""
    values = picture.astype(np.float64)
    return values[..., 0] if picture.shape[2] == 1 else values @ (np.array(LUMA) / WHITE) + BLACK


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """10 log10(255^2 / mean squared difference) in dB, of two pictures of one shape; at most 100."""
    gap = np.subtract(a, b, dtype=np.float64).reshape(-1)
    error = float(gap @ gap) / gap.size
    return min(MOST, 10 * math.log10(WHITE**2 / error)) if error > 0 else MOST


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of two (H, W) pictures on the scale 0 to 255; sides of 11 or more. In -1..1."""
    assert a.shape == b.shape and a.ndim == 2 and min(a.shape) >= WINDOW, f"{a.shape} {b.shape}"
    height, width = (side - WINDOW + 1 for side in a.shape)
    c1, c2 = (K1 * WHITE) ** 2, (K2 * WHITE) ** 2
    total = 0.0
    for top in range(0, height, STRIP):  # what a strip needs stays in the processor's cache
        rows = slice(top, top + STRIP + WINDOW - 1)
        x, y = a[rows].astype(np.float64), b[rows].astype(np.float64)
        mean_x, mean_y, square_x, square_y, product = _blurred(np.stack([x, y, x * x, y * y, x * y]))
        means, squares = mean_x * mean_y, mean_x**2 + mean_y**2
        both, variances = product - means, square_x + square_y - squares
        total += float(((2 * means + c1) * (2 * both + c2) / ((squares + c1) * (variances + c2))).sum())
    return total / (height * width)


def _blurred(maps: np.ndarray) -> np.ndarray:
    """(K, H, W) to (K, H - 10, W - 10): the Gaussian window's mean wherever it fits, by products with banded matrices,
    which a BLAS does in a quarter of the time that sums of shifted maps take."""
    count, height, width = maps.shape
    height, width = height - WINDOW + 1, width - WINDOW + 1
    rows = _window(height) @ maps
    blurred = np.empty((count, height, width))
    for left in range(0, width, STRIP):
        across = _window(min(STRIP, width - left))
        blurred[..., left : left + STRIP] = rows[..., left : left + STRIP + WINDOW - 1] @ across.T
    return blurred


@functools.lru_cache(maxsize=8)
def _window(length: int) -> np.ndarray:
    """float64 (length, length + 10): each row the Gaussian window, one place further than the row above."""
    steps = np.arange(length + WINDOW - 1) - np.arange(length)[:, None] - WINDOW // 2
    kernel = np.where(np.abs(steps) <= WINDOW // 2, np.exp(-0.5 * (steps / SIGMA) ** 2), 0)
    return kernel / kernel.sum(1, keepdims=True)
