"""Batched augmentation. A view is a pure function of (seed, sample, epoch): any one can be made again, alone.

Everything is rounded to uint8 after each step and all sums are of integers, so a view has the same bytes whatever
batch, thread count or device made it. That lets teacher outputs be stored by view.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from pipeline.data import draws
from pipeline.data.mixing import mixes
from pipeline.errors import UserError
from pipeline.recipe import Augment

# Raised whenever the bytes of a view change: tables of teacher outputs by view are keyed on it.
AUGMENT_VERSION = 1
TURNS = 8  # flips and rotations of a square
GRAY_WEIGHTS = (19595, 38470, 7471)  # ITU-R 601-2 luma in 1/65536, as Pillow's convert("L")


def views(images: torch.Tensor, sample_ids: Any, epoch: int, spec: Augment) -> torch.Tensor:
    """The views of these samples in this epoch.

    images: uint8 (B, H, W, C), on any device. sample_ids: (B,) integers (numpy or torch, on the CPU), the samples'
    places in their source. Returns uint8 (B, C, H, W) in channels-last memory, on the device of `images`.

    Order: pad-crop, flip and turn, brightness, contrast, saturation, cutout (DeVries and Taylor, arXiv 1708.04552; the
    square is centred on any pixel, so it may be cut by the border, and takes the view's own mean). Raises UserError
    when the padding does not fit the image.
    """
    assert images.ndim == 4 and images.dtype == torch.uint8, f"{images.dtype} {tuple(images.shape)}"
    ids = np.asarray(sample_ids, dtype=np.int64)
    assert ids.shape == images.shape[:1], f"{len(ids)} sample ids for {len(images)} images"
    images = _placed(images, view_index(ids, epoch, spec), spec)
    if spec.brightness or spec.contrast or (spec.saturation and images.shape[3] == 3):
        images = _jitter(images, ids, epoch, spec)
    if spec.cutout:
        images = _cutout(images, ids, epoch, spec)
    return images.permute(0, 3, 1, 2)


def target_views(targets: torch.Tensor, sample_ids: Any, epoch: int, spec: Augment) -> torch.Tensor:
    """Target pictures mirrored and turned as `views` does it with the images that they belong to.

    targets: uint8 (B, H, W, C), H and W a multiple of the images'. Returns uint8 (B, C, H, W). Colours stay: a change
    of them is the image's alone. pad_crop must be off: it would need the target's own border.
    """
    assert not spec.pad_crop and not spec.cutout, f"{spec} has no target"
    return _placed(targets, view_index(sample_ids, epoch, spec), spec).permute(0, 3, 1, 2)


def view_count(spec: Augment) -> int | None:
    """How many views one image has: 162 for a crop padded by 4 with a mirror; None when they cannot be counted.

    Colour changes, cutout and mixing are drawn from a continuum, or from too many views to store.
    """
    if spec.brightness or spec.contrast or spec.saturation or spec.cutout or mixes(spec):
        return None
    return (2 * spec.pad_crop + 1) ** 2 * (1 + spec.flip) * (TURNS if spec.dihedral else 1)


def view_index(sample_ids: Any, epoch: int, spec: Augment) -> np.ndarray:
    """Which crop and mirror `views` gives these samples in this epoch: int64 (B,), below `view_count` if there is one.

    The number is (row * (2 * pad_crop + 1) + column) * 2 + mirrored, without the last factor when `flip` is off; row
    and column count from the top left of the padded image. With `dihedral` that is multiplied by 8, and the number of
    the turn added: 1 mirrors left-right, 2 upside down, 4 swaps rows and columns before.
    """
    ids = np.asarray(sample_ids, dtype=np.int64)
    index = np.zeros(len(ids), dtype=np.int64)
    if spec.pad_crop:
        steps = 2 * spec.pad_crop + 1
        index = draws.below(steps, spec.seed, epoch, ids, draws.CROP_ROW) * steps
        index += draws.below(steps, spec.seed, epoch, ids, draws.CROP_COLUMN)
    if spec.flip:
        index = index * 2 + (draws.uniform(spec.seed, epoch, ids, draws.FLIP) < 0.5)
    if spec.dihedral:
        index = index * TURNS + draws.below(TURNS, spec.seed, epoch, ids, draws.TURN)
    return index


def view_at(images: torch.Tensor, index: Any, spec: Augment) -> torch.Tensor:
    """The views with these numbers: the bytes that `views` gives when `view_index` is `index`.

    images: uint8 (B, H, W, C). index: (B,) integers (numpy or torch, on the CPU), each below `view_count(spec)`, which
    must not be None. Returns uint8 (B, C, H, W) in channels-last memory. Raises UserError as `views` does.
    """
    assert images.ndim == 4 and images.dtype == torch.uint8, f"{images.dtype} {tuple(images.shape)}"
    count = view_count(spec)
    assert count is not None, f"{spec} has views without number"
    numbers = np.asarray(index, dtype=np.int64)
    assert numbers.shape == images.shape[:1], f"{len(numbers)} view numbers for {len(images)} images"
    assert not len(numbers) or 0 <= numbers.min() <= numbers.max() < count, f"{numbers.min()} to {numbers.max()}"
    return _placed(images, numbers, spec).permute(0, 3, 1, 2)


def _placed(images: torch.Tensor, index: np.ndarray, spec: Augment) -> torch.Tensor:
    """uint8 (B, H, W, C) cropped, mirrored and turned; index: int64 (B,), as `view_index` numbers the views."""
    turns = None
    if spec.dihedral:
        index, turns = np.divmod(index, TURNS)
    if spec.pad_crop or spec.flip:
        images = _crop_and_flip(images, index, spec)
    return images if turns is None else _turned(images, turns)


def _turned(images: torch.Tensor, turns: np.ndarray) -> torch.Tensor:
    """One of the eight flips and rotations of each square image (B, S, S, C); turns: int64 (B,) in 0..7."""
    height, width = images.shape[1:3]
    if height != width:
        raise UserError(f"augment.dihedral turns square images only, and these are {height}x{width}; take flip")
    for bit, change in ((4, lambda x: x.transpose(1, 2)), (1, lambda x: x.flip(2)), (2, lambda x: x.flip(1))):
        chosen = torch.from_numpy(turns & bit > 0).to(images.device)[:, None, None, None]
        images = torch.where(chosen, change(images), images)
    return images


def _crop_and_flip(images: torch.Tensor, index: np.ndarray, spec: Augment) -> torch.Tensor:
    """One gather of pixels: padding by reflection, crop and flip are three ways to choose the source pixel.

    index: int64 (B,), as `view_index` numbers the views.
    """
    batch, height, width, channels = images.shape
    pad = spec.pad_crop
    if pad >= min(height, width):
        raise UserError(
            f"augment.pad_crop = {pad} does not fit images of {height}x{width}; it must be below their side"
        )
    rows = np.broadcast_to(np.arange(height), (batch, height))
    columns = np.broadcast_to(np.arange(width), (batch, width))
    if spec.flip:
        index, mirrored = np.divmod(index, 2)
        columns = np.where(mirrored[:, None] == 1, width - 1 - columns, columns)
    if pad:
        down, right = np.divmod(index, 2 * pad + 1)
        rows = _reflect(rows + (down - pad)[:, None], height)
        columns = _reflect(columns + (right - pad)[:, None], width)
    row_starts = (np.arange(batch)[:, None] * height + rows) * width
    pixels = torch.from_numpy(row_starts[:, :, None] + columns[:, None, :]).reshape(-1)
    flat = images.reshape(-1, channels)
    return flat.index_select(0, pixels.to(images.device)).view(batch, height, width, channels)


def _reflect(places: np.ndarray, side: int) -> np.ndarray:
    """Fold places in (-side, 2 * side - 1) back into [0, side) without repeating the border pixel."""
    places = np.abs(places)
    return np.minimum(places, 2 * (side - 1) - places)


def _jitter(images: torch.Tensor, ids: np.ndarray, epoch: int, spec: Augment) -> torch.Tensor:
    """Blends of the image with black, with its mean gray and with its gray self, as torchvision defines them.

    Unlike torchvision's ColorJitter the order is fixed. Products and sums are separate float32 operations, each exactly
    rounded by IEEE 754, so CPU and GPU agree.
    """
    factor = functools.partial(_factor, ids=ids, epoch=epoch, seed=spec.seed, device=images.device)
    if spec.brightness:
        images = _to_uint8(images.float().mul_(factor(spec.brightness, draws.BRIGHTNESS)))
    if spec.contrast:
        gray = _gray(images)
        count = gray[0].numel()
        mean = ((gray.sum(dim=(1, 2, 3), dtype=torch.int64) + count // 2) // count).float()[:, None, None, None]
        scale = factor(spec.contrast, draws.CONTRAST)
        images = _to_uint8(images.float().mul_(scale).add_(mean * (1 - scale)))
    if spec.saturation and images.shape[3] == 3:
        scale = factor(spec.saturation, draws.SATURATION)
        images = _to_uint8(images.float().mul_(scale).add_(_gray(images).float() * (1 - scale)))
    return images


def _factor(
    strength: float, stream: int, *, ids: np.ndarray, epoch: int, seed: int, device: torch.device
) -> torch.Tensor:
    """float32 (B, 1, 1, 1) drawn from [1 - strength, 1 + strength)."""
    values = 1 + strength * (2 * draws.uniform(seed, epoch, ids, stream) - 1)
    return torch.from_numpy(values.astype(np.float32)).to(device)[:, None, None, None]


def _gray(images: torch.Tensor) -> torch.Tensor:
    """int32 (B, H, W, 1) in 0..255."""
    if images.shape[3] == 1:
        return images.to(torch.int32)
    red, green, blue = GRAY_WEIGHTS
    parts = images.to(torch.int32)
    return (parts[..., :1] * red + parts[..., 1:2] * green + parts[..., 2:3] * blue + 32768) >> 16


def _to_uint8(values: torch.Tensor) -> torch.Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _cutout(images: torch.Tensor, ids: np.ndarray, epoch: int, spec: Augment) -> torch.Tensor:
    _, height, width, _ = images.shape
    count = height * width
    mean = ((images.sum(dim=(1, 2), dtype=torch.int64) + count // 2) // count).to(torch.uint8)
    inside_rows = _span(height, draws.below(height, spec.seed, epoch, ids, draws.CUTOUT_ROW), spec.cutout)
    inside_columns = _span(width, draws.below(width, spec.seed, epoch, ids, draws.CUTOUT_COLUMN), spec.cutout)
    hole = torch.from_numpy(inside_rows[:, :, None] & inside_columns[:, None, :]).to(images.device)
    return torch.where(hole[..., None], mean[:, None, None, :], images)


def _span(side: int, centre: np.ndarray, length: int) -> np.ndarray:
    """bool (B, side): the `length` places around each centre (B,)."""
    first = (centre - length // 2)[:, None]
    places = np.arange(side)[None, :]
    return (places >= first) & (places < first + length)
