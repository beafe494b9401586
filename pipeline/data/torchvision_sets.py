"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), Fashion-MNIST (Xiao et al., arXiv 1708.07747), by torchvision."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.source import Source, array_source
from pipeline.errors import UserError
from pipeline.recipe import Data

UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, AssertionError, KeyError, pickle.UnpicklingError)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A set of `torchvision.datasets`: its class there and the folder that it reads under root."""

    attribute: str
    folder: str


ROWS = {
    "cifar10": Row(attribute="CIFAR10", folder="cifar-10-batches-py"),
    "cifar100": Row(attribute="CIFAR100", folder="cifar-100-python"),
    "fashion-mnist": Row(attribute="FashionMNIST", folder="FashionMNIST/raw"),
}


def open_source(data: Data) -> Source:
    """The official train and test splits, uint8 (N, 32, 32, 3) or (N, 28, 28, 1), with torchvision's class names.

    torchvision checks the CIFAR files against their published md5 before it reads them. With `data.download` missing
    files are fetched into `data.root`. Raises UserError, one line, when they are missing, damaged or out of reach.
    """
    train, test = _open(data, train=True), _open(data, train=False)
    return array_source(
        name=data.name,
        where=f"{data.name} in {data.root!r}",
        class_names=tuple(train.classes),
        train=_arrays(train),
        test=_arrays(test),
        image_size=data.image_size,
    )


def stamp(data: Data) -> Any:
    """Sizes and times of the files that torchvision reads; empty when there are none."""
    folder = Path(data.root) / ROWS[data.name].folder
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    except OSError:
        return {}


def _open(data: Data, *, train: bool) -> Any:
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise UserError(
            f"data.name = {data.name!r} needs torchvision; install it with: pip install torchvision"
        ) from error

    row = ROWS[data.name]
    folder = Path(data.root) / row.folder
    dataset = getattr(datasets, row.attribute)
    with warnings.catch_warnings():
        # The published pickles make newer numpy warn of how they were written; nobody can mend those files.
        warnings.filterwarnings("ignore", message=".*align should be passed.*")
        try:
            # Without `download` first: with it, older torchvision prints to stdout even when all files are there.
            return dataset(data.root, train=train, download=False)
        except UNREADABLE as error:
            if not data.download:
                raise UserError(_absent_or_damaged(data, folder)) from error
        try:
            return dataset(data.root, train=train, download=True)
        except UNREADABLE as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"data.download: cannot fetch {data.name} into {data.root!r} ({reason}); "
                f"check the network, or put {row.folder!r} there yourself"
            ) from error


def _absent_or_damaged(data: Data, folder: Path) -> str:
    if folder.is_dir():
        return (
            f"data.root: {data.name} in {str(folder)!r} is incomplete or damaged; "
            "delete that folder and add --set data.download=true"
        )
    return (
        f"data.root: no {data.name} in {data.root!r} (looked for {str(folder)!r}); "
        "add --set data.download=true, or point data.root at the folder that holds it"
    )


def _arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    images = np.asarray(dataset.data)
    images = images[..., None] if images.ndim == 3 else images
    return np.ascontiguousarray(images), np.asarray(dataset.targets, dtype=np.int64)
