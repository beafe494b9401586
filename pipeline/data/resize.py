"""Images of any size to squares of one side, by Pillow: a device without torch prepares images just as training did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


def resize_images(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 (N, H, W, C) to uint8 (N, side, side, C), C 1 or 3; images of that size are returned as they are."""
    if images.shape[1:3] == (side, side):
        return images
    from PIL import Image

    channels = images.shape[3]
    result = np.empty((len(images), side, side, channels), dtype=np.uint8)
    for place, image in enumerate(images):
        fitted = fit(Image.fromarray(image[..., 0] if channels == 1 else image), side)
        result[place] = np.asarray(fitted).reshape(side, side, channels)
    return result


def fit(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` (bilinear, antialiased), then cut out the centre: (side, side).

    The same pixels as torchvision's `Resize(side)` and `CenterCrop(side)` on a Pillow image, in its rounding too.
    """
    from PIL import Image

    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return image.crop((left, top, left + side, top + side))
