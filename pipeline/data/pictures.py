"""Images whose answer is a picture too: pairs of input and target, whole for judging and in patches for training.

Building blocks for a source of a dense task: read the pairs, hand them to `picture_source`. Torch-free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from pipeline.data import draws
from pipeline.data.source import Source
from pipeline.data.split import pixel_hash
from pipeline.errors import UserError

Pair = tuple[np.ndarray, np.ndarray]  # input uint8 (H, W, C), target uint8 (s*H, s*W, C' or more)


class Pairs(Protocol):
    """Pairs by number: a list, or an object that reads a pair whenever it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


class WholePictures:
    """Whole images of any size, each with its target; what validation and test are made of.

    `pairs` gives them whole. As `Images` (`load`, `targets`) it gives the middle of each in the size of a patch, for
    those who need inputs of the network's size: parity, profiles. labels: all 0, since a picture has no class.
    """

    def __init__(
        self, pairs: Pairs, *, patch: int, scale: int, target_channels: int, channels: int, streamed: bool = False
    ) -> None:
        self.all, self.patch, self.scale, self.streamed = pairs, patch, scale, streamed
        self.shape = (patch, patch, channels)
        self.target_shape = (patch * scale, patch * scale, target_channels)

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self), np.int64)

    def __len__(self) -> int:
        return len(self.all)

    def pairs(self, indices: np.ndarray) -> Iterator[Pair]:
        """(input uint8 (H, W, C), target uint8 (s*H, s*W, C' or more)) of each, one in memory at a time."""
        for index in indices:
            yield self.all[int(index)]

    def pieces(self, indices: np.ndarray) -> Iterator[Pair]:
        """One piece of each in the size of a patch; the target cut to the channels that are trained on."""
        for index in indices:
            image, target = self.all[self.image_of(int(index))]
            image, target = at_least(image, target, self.patch, self.scale)
            top, left = self.place(int(index), image.shape[0] - self.patch, image.shape[1] - self.patch)
            yield (
                cut(image, top, left, self.patch),
                cut(target[..., : self.target_shape[2]], top * self.scale, left * self.scale, self.target_shape[0]),
            )

    def image_of(self, index: int) -> int:
        return index

    def place(self, index: int, height: int, width: int) -> tuple[int, int]:
        """Where the piece begins, in 0..height and 0..width."""
        return height // 2, width // 2

    def load(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, patch, patch, C)."""
        return self.both(indices)[0]

    def targets(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, s*patch, s*patch, C')."""
        return self.both(indices)[1]

    def both(self, indices: np.ndarray) -> Pair:
        """What `load` and `targets` give, each image read once."""
        images = np.empty((len(indices), *self.shape), np.uint8)
        targets = np.empty((len(indices), *self.target_shape), np.uint8)
        for place, (image, target) in enumerate(self.pieces(indices)):
            images[place], targets[place] = image, target
        return images, targets

    def origins(self, indices: np.ndarray) -> list[bytes]:
        """blake2b-128 of the whole input that each sample is, or is cut from."""
        numbers = [self.image_of(int(index)) for index in indices]
        known = {number: pixel_hash(np.ascontiguousarray(self.all[number][0])) for number in dict.fromkeys(numbers)}
        return [known[number] for number in numbers]


class Patches(WholePictures):
    """Training samples: `per_image` pieces of every image. Which piece a sample is depends on its number alone."""

    def __init__(
        self,
        pairs: Pairs,
        *,
        patch: int,
        scale: int,
        target_channels: int,
        channels: int,
        per_image: int,
        streamed: bool = False,
    ) -> None:
        super().__init__(
            pairs, patch=patch, scale=scale, target_channels=target_channels, channels=channels, streamed=streamed
        )
        self.per_image = per_image

    def __len__(self) -> int:
        return len(self.all) * self.per_image

    def image_of(self, index: int) -> int:
        return index // self.per_image

    def place(self, index: int, height: int, width: int) -> tuple[int, int]:
        sample = np.array([index])
        row = draws.uniform(0, 0, sample, draws.PATCH_ROW)[0]
        column = draws.uniform(0, 0, sample, draws.PATCH_COLUMN)[0]
        return int(row * (height + 1)), int(column * (width + 1))


def cut(picture: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return picture[top : top + side, left : left + side]


def at_least(image: np.ndarray, target: np.ndarray, patch: int, scale: int) -> Pair:
    """Both, padded by reflection below and on the right to a patch where they are smaller."""
    missing = [max(0, patch - side) for side in image.shape[:2]]
    if not any(missing):
        return image, target

    def widened(picture: np.ndarray, factor: int) -> np.ndarray:
        return np.pad(picture, [(0, factor * missing[0]), (0, factor * missing[1]), (0, 0)], mode="symmetric")

    # Symmetric (the edge repeated), so that the s x s pixels of the target still belong to the input's pixel.
    return widened(image, 1), widened(target, scale)


def split_images(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Places 0..count-1 as (kept, taken), sorted int64: about `share` of the images are taken, at least one of each.

    For data without a validation (or test) split; a pure function of its arguments.
    """
    order = draws.shuffled(np.arange(count), 0, 0, draws.VALIDATION)
    taken = min(max(round(count * share), 1), count - 1)
    return np.sort(order[taken:]), np.sort(order[:taken])


def picture_source(
    *,
    name: str,
    where: str,
    train: Pairs,
    validation: Pairs,
    test: Pairs,
    patch: int,
    per_image: int,
    scale: int = 1,
    target_channels: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    fingerprint: str | None = None,
    streamed: bool = False,
) -> Source:
    """A source of pictures: patches to train on, whole images for validation and test, no image in two of them.

    scale: output pixels of one input pixel along a side. target_channels: C' of the network's answer; a target may have
    more, which only the metric sees. mean, std: one value a channel on 0 to 1; None: 0 and 1, so that the network gets
    [0, 1]. fingerprint: of the content; None: made of all pixels. streamed: `pairs` reads files, so that worker
    processes pay. Raises UserError, one line that begins with `where`, for splits that are empty or pairs that do not
    fit each other.
    """
    for split, pairs in (("train", train), ("validation", validation), ("test", test)):
        if not len(pairs):
            raise UserError(f"{where}: {split}: no images; a data set needs some in train, validation and test")
        if split != "train" and len(pairs) == 1:
            raise UserError(f"{where}: {split}: one image only; a paired interval needs two or more")
        check_pair(pairs[0], scale=scale, target_channels=target_channels, where=f"{where}: {split}")
    sizes = {"patch": patch, "scale": scale, "target_channels": target_channels, "channels": train[0][0].shape[2]}
    return Source(
        name=name,
        class_names=(),
        train=Patches(train, per_image=per_image, streamed=streamed, **sizes),
        validation=WholePictures(validation, streamed=streamed, **sizes),
        test=WholePictures(test, streamed=streamed, **sizes),
        mean=tuple(mean) if mean is not None else (0.0,) * sizes["channels"],
        std=tuple(std) if std is not None else (1.0,) * sizes["channels"],
        fingerprint=fingerprint or digest_of([train, validation, test], scale=scale, patch=patch, per_image=per_image),
    )


def check_pair(pair: Pair, *, scale: int, target_channels: int, where: str) -> None:
    image, target = pair
    for what, picture in (("input", image), ("target", target)):
        if picture.dtype != np.uint8 or picture.ndim != 3:
            raise UserError(f"{where}: the {what} is {picture.dtype} {picture.shape}; expected uint8 (H, W, C)")
    wanted = (image.shape[0] * scale, image.shape[1] * scale)
    if target.shape[:2] != wanted or target.shape[2] < target_channels:
        raise UserError(
            f"{where}: an input of {image.shape} has a target of {target.shape}; expected {wanted} with "
            f"{target_channels} channels or more (scale = {scale})"
        )


def digest_of(splits: Sequence[Pairs], **settings: int) -> str:
    """sha256 of all pixels of all pairs, and of what decides which patches they are cut into."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for pairs in splits:
        for index in range(len(pairs)):
            for picture in pairs[index]:
                digest.update(repr(picture.shape).encode())
                digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()
