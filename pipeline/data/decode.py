"""Image files to uint8 arrays, checked all at once, and streamed when memory is short. Torch-free.

By Pillow and not by torchvision.io, which is deprecated from torchvision 0.29 on and will be removed. Both decode JPEG
with libjpeg-turbo to the same pixels; making a 224-pixel square of a 500x400 photograph took 1.56 ms by Pillow and
1.53 ms by torchvision (one core of a cloud CPU).
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.imagefolder import Listing
from pipeline.data.resize import fit
from pipeline.data.split import pixel_hash
from pipeline.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one reading of all files gave: `pixels` (N, S, S, C) or else None, hashes, and a line a faulty file."""

    pixels: np.ndarray | None
    pixel_hashes: tuple[bytes, ...]
    file_hashes: tuple[bytes, ...]
    faults: tuple[str, ...]


def decode_image(content: bytes, side: int, channels: int = 3) -> np.ndarray:
    """The bytes of a JPEG, PNG, WebP or BMP file to uint8 RGB (side, side, 3), as `resize.fit` cuts it.

    EXIF orientation is applied, gray and palette images become RGB, an alpha channel is dropped, 16 bits become 8.
    With channels = 1 the result is its luma (side, side, 1). Raises ValueError with a short reason.
    """

    def cut(image: Any) -> np.ndarray:
        fitted = fit(image, side)
        return np.array(fitted) if channels == 3 else np.array(fitted.convert("L"))[..., None]

    return _decoded(content, cut)


def decode_whole(content: bytes) -> np.ndarray:
    """As `decode_image`, in the size that the image has: uint8 RGB (H, W, 3)."""
    return _decoded(content, np.array)


def _decoded(content: bytes, use: Callable[[Any], np.ndarray]) -> np.ndarray:
    """`use` of the image as Pillow's RGB; it stands inside, since some files break only when their pixels are read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not content:
        raise ValueError("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # Pillow would clip 16-bit gray at 255
                image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return use(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"not a readable {', '.join(FORMATS)} image") from error
    except Exception as error:  # a decoder may raise anything on broken bytes: SyntaxError, struct.error, OSError, ...
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error


def scan(listing: Listing, side: int, *, threads: int, keep_pixels: bool, channels: int = 3) -> Scan:
    """Read and decode every file once. Memory: the result, and a few images a thread while it goes on."""
    count = len(listing.names)
    pixels = np.empty((count, side, side, channels), dtype=np.uint8) if keep_pixels else None
    pixel_hashes, file_hashes, faults = [b""] * count, [b""] * count, [""] * count

    def one(place: int) -> None:
        try:
            content = (listing.root / listing.names[place]).read_bytes()
            file_hashes[place] = hashlib.sha256(content).digest()
            image = decode_image(content, side, channels)
        except (OSError, ValueError) as error:
            faults[place] = f"{listing.root / listing.names[place]}: {_reason(error)}"
            return
        if pixels is not None:
            pixels[place] = image
        else:
            pixel_hashes[place] = pixel_hash(image)

    for _ in _threaded(one, range(count), threads):
        pass
    return Scan(
        pixels=pixels,
        pixel_hashes=tuple(pixel_hashes),
        file_hashes=tuple(file_hashes),
        faults=tuple(fault for fault in faults if fault),
    )


class FolderImages:
    """Images decoded whenever they are asked for; `Images` with `streamed` True, and `hashes` known already."""

    streamed = True

    def __init__(
        self, listing: Listing, side: int, hashes: tuple[bytes, ...], *, threads: int, channels: int = 3
    ) -> None:
        self.listing, self.side, self.threads, self.channels = listing, side, threads, channels
        self.labels = listing.labels
        self._hashes = hashes

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.side, self.side, self.channels

    def __len__(self) -> int:
        return len(self.listing.names)

    def hashes(self, indices: np.ndarray) -> list[bytes]:
        """blake2b-128 of the pixels of each image, as `split.image_hashes`, without decoding again."""
        return [self._hashes[index] for index in indices]

    def load(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, S, S, C). Raises UserError naming the file that cannot be read any more, or has changed."""
        # A loader's worker process is one of several already.
        threads = self.threads if multiprocessing.parent_process() is None else 0
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)

        def one(place: int) -> None:
            path = self.listing.root / self.listing.names[indices[place]]
            try:
                images[place] = decode_image(path.read_bytes(), self.side, self.channels)
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: {_reason(error)}; it could be read when this run began") from error
            if pixel_hash(images[place]) != self._hashes[indices[place]]:
                raise UserError(f"{path}: changed while this run was going on; run it again")

        for _ in _threaded(one, range(len(indices)), threads):
            pass
        return images


def _threaded(work: Callable[[int], None], places: range, threads: int) -> Iterator[None]:
    """`work` on every place; decoding releases the interpreter's lock, so threads do run side by side."""
    if threads <= 1 or len(places) < 2 * threads:
        yield from map(work, places)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, places)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


def refuse_faults(faults: Sequence[str], *, files: int, where: str) -> None:
    """Raise UserError with a line each for the files that cannot be used; none, and nothing happens."""
    if not faults:
        return
    verb = (
        "image cannot be used; mend or remove it" if len(faults) == 1 else "images cannot be used; mend or remove them"
    )
    raise UserError(f"{where}: {len(faults)} of {files} {verb}:\n" + "\n".join(f"  {fault}" for fault in faults))


def read_image(path: Path, side: int) -> np.ndarray:
    """One file as the model saw it in training, uint8 (side, side, 3). Raises UserError naming the path."""
    try:
        return decode_image(path.read_bytes(), side)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {_reason(error)}") from error
