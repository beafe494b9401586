"""Bicubic resampling of images as the super-resolution field does it: MATLAB's `imresize`, in numpy.

Keys, "Cubic convolution interpolation for digital image processing" (1981), with a = -1/2. When an image is made
smaller the kernel is stretched by the same factor (antialiasing), which torch, OpenCV and TensorFlow leave out unless
asked; borders are mirrored; rows are resampled before columns and the values are rounded to whole levels after each,
as MATLAB does with uint8. Set5's published x4 inputs come out byte for byte (tests/test_pipeline_data_bicubic.py).
"""

from __future__ import annotations

import math

import numpy as np


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """uint8 (H, W, C) -> uint8 (ceil(H * scale), ceil(W * scale), C)."""
    assert image.dtype == np.uint8 and image.ndim == 3 and scale > 0, f"{image.dtype} {image.shape} {scale}"
    if scale == 1:
        return image
    for axis in (0, 1):
        image = to_uint8(_along(image, scale, axis))
    return image


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """uint8 (H, W, C) convolved with a Gaussian of `sigma` pixels, cut at 3 sigma, borders mirrored; 0 changes nothing.

    Rounded once at the end.
    """
    assert image.dtype == np.uint8 and image.ndim == 3, f"{image.dtype} {image.shape}"
    if sigma == 0:
        return image
    reach = math.ceil(3 * sigma)
    steps = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (steps / sigma) ** 2)
    kernel /= kernel.sum()
    values = image.astype(np.float64)
    for axis in (0, 1):
        places = np.arange(values.shape[axis])[:, None] + steps
        weights = np.broadcast_to(kernel, places.shape)
        values = _weighted(values, weights, _mirrored(places, values.shape[axis]), axis)
    return to_uint8(values)


def shrink(image: np.ndarray, factor: int, *, sigma: float = 0.0) -> np.ndarray:
    """The low-resolution input of `image`, whose sides are multiples of `factor`: blurred by `sigma`, then resized."""
    assert image.shape[0] % factor == image.shape[1] % factor == 0, f"{image.shape} / {factor}"
    return resize(blur(image, sigma), 1 / factor)


def modcrop(image: np.ndarray, factor: int) -> np.ndarray:
    """The top left part of (H, W, C) whose sides are multiples of `factor`: what the field evaluates on."""
    height, width = (side - side % factor for side in image.shape[:2])
    return image[:height, :width]


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Clipped to 0..255 and rounded half up, as MATLAB rounds."""
    return np.floor(np.clip(values, 0, 255) + 0.5).astype(np.uint8)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _along(image: np.ndarray, scale: float, axis: int) -> np.ndarray:
    """float64: `image` resampled along one axis."""
    length = image.shape[axis]
    stretch = min(scale, 1.0)
    centres = (np.arange(math.ceil(length * scale)) + 0.5) / scale - 0.5
    width = 4 / stretch
    places = np.floor(centres - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic(stretch * (centres[:, None] - places))
    weights /= weights.sum(axis=1, keepdims=True)
    used = weights.any(axis=0)
    return _weighted(image, weights[:, used], _mirrored(places[:, used].astype(np.int64), length), axis)


def _mirrored(places: np.ndarray, length: int) -> np.ndarray:
    """Reflected at the borders with the border pixel repeated: -1 is 0, `length` is `length - 1`."""
    places = np.mod(places, 2 * length)
    return np.where(places < length, places, 2 * length - 1 - places)


def _weighted(values: np.ndarray, weights: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Sum over taps of weights (out, taps) times the slices of `values` at places (out, taps) along `axis`; float64.

    One tap at a time, so that a photograph needs no more than two copies of its result.
    """
    shape = (-1,) + (1,) * (values.ndim - 1 - axis)
    total: np.ndarray | None = None
    for weight, place in zip(weights.T, places.T, strict=True):
        part = values.take(place, axis=axis) * weight.reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total
