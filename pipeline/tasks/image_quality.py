"""PSNR and SSIM as the super-resolution field prints them, in numpy.

Y is ITU-R BT.601's luma of 8-bit RGB, 16 to 235, not rounded (MATLAB's `rgb2ycbcr`, BasicSR); pictures are uint8, and a
border as wide as the scale is left out by the caller. SSIM: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment:
From Error Visibility to Structural Similarity" (IEEE TIP 2004): Gaussian window of 11 pixels and sigma 1.5, population
moments, only places where the window fits. scikit-image gives the same numbers (`gaussian_weights=True, sigma=1.5,
use_sample_covariance=False, data_range=255`), see tests/test_pipeline_tasks_image_quality.py.
"""

from __future__ import annotations

import math

import numpy as np

LUMA = (65.481, 128.553, 24.966)  # of R, G, B from 0 to 1
BLACK = 16.0
WHITE = 255.0
MOST = 100.0  # dB, of equal pictures, whose PSNR is infinite
WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def luma(picture: np.ndarray) -> np.ndarray:
    """float64 (H, W): Y of uint8 RGB (H, W, 3); one channel is taken as it is."""
    values = picture.astype(np.float64)
    return values[..., 0] if picture.shape[2] == 1 else values @ (np.array(LUMA) / WHITE) + BLACK


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """10 log10(255^2 / mean squared difference) in dB, of two pictures of one shape; at most 100."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return min(MOST, 10 * math.log10(WHITE**2 / error)) if error > 0 else MOST


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of two (H, W) pictures on the scale 0 to 255; sides of 11 or more. In -1..1."""
    assert a.shape == b.shape and a.ndim == 2 and min(a.shape) >= WINDOW, f"{a.shape} {b.shape}"
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x**2
    var_y = _blurred(y * y) - mean_y**2
    both = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * WHITE) ** 2, (K2 * WHITE) ** 2
    found = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(found.mean())


def _blurred(values: np.ndarray) -> np.ndarray:
    """(H - 10, W - 10): the Gaussian window's mean wherever it fits."""
    steps = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-0.5 * (steps / SIGMA) ** 2)
    kernel /= kernel.sum()
    height, width = (side - WINDOW + 1 for side in values.shape)
    rows = np.zeros((height, values.shape[1]))
    for place, weight in enumerate(kernel):
        rows += weight * values[place : place + height]
    blurred = np.zeros((height, width))
    for place, weight in enumerate(kernel):
        blurred += weight * rows[:, place : place + width]
    return blurred
