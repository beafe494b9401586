"""Data sources by name. Importing this asks for nothing heavy: each source is imported when it is opened.

A new source: one file with `open_source(data) -> Source` and `stamp(data)`, and one line in `SOURCES`; one whose
targets are no classes has a line in `SERVES` too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import RecipeError, nearest
from pipeline.registry import load

if TYPE_CHECKING:
    from pipeline.data.source import Source
    from pipeline.recipe import Data

SOURCES: dict[str, str] = {
    "arrays": "pipeline.data.arrays:open_source",
    "bsds500": "pipeline.data.bsds500:open_source",
    "bsds500-photographs": "pipeline.data.super_resolution:open_bsds500",
    "cifar10": "pipeline.data.torchvision_sets:open_source",
    "cifar100": "pipeline.data.torchvision_sets:open_source",
    "digits": "pipeline.data.digits:open_source",
    "drawn-edges": "pipeline.data.drawn_edges:open_source",
    "fashion-mnist": "pipeline.data.torchvision_sets:open_source",
    "imagefolder": "pipeline.data.imagefolder:open_source",
    "photographs": "pipeline.data.super_resolution:open_photographs",
    "sample-photographs": "pipeline.data.super_resolution:open_samples",
}

# Which tasks a source serves, where that is not classification: its targets are made for them.
CLASSES = ("classification",)
SERVES: dict[str, tuple[str, ...]] = {
    "bsds500": ("edges",),
    "bsds500-photographs": ("super-resolution",),
    "drawn-edges": ("edges",),
    "photographs": ("super-resolution",),
    "sample-photographs": ("super-resolution",),
}

# What a source needs from [data], with the example that its error shows.
NEEDS_ROOT = {
    "arrays": "a .npz file with x_train, y_train, x_test and y_test",
    "bsds500": "the folder or .zip of BSDS500",
    "bsds500-photographs": "the folder or .zip of BSDS500",
    "cifar10": "the folder that holds, or will hold, the downloaded files",
    "cifar100": "the folder that holds, or will hold, the downloaded files",
    "fashion-mnist": "the folder that holds, or will hold, the downloaded files",
    "imagefolder": "a folder with one folder of images a class",
    "photographs": "a folder of photographs, or of train/, val/ and test/",
}
NEEDS_IMAGE_SIZE = ("imagefolder",)
DOWNLOADS = ("cifar10", "cifar100", "fashion-mnist")
SMALLEST_SIDE = 4
LARGEST_SIDE = 4096


def check_source(data: Data) -> None:
    """Refuse a `[data]` table that no source can serve, without touching the disk.

    Raises `RecipeError` (a `ValueError`) with one line: the key, what was got, what to write instead.
    """
    if data.name not in SOURCES:
        raise RecipeError(f"data.name: unknown data set {data.name!r}{nearest(data.name, list(SOURCES))}")
    if data.name in NEEDS_ROOT and not data.root:
        raise RecipeError(f"data.root is missing: {data.name!r} needs {NEEDS_ROOT[data.name]}")
    if data.name in NEEDS_IMAGE_SIZE and not data.image_size:
        raise RecipeError(
            f"data.image_size is missing: {data.name!r} needs the side to which images are cut, "
            "such as image_size = 224"
        )
    if data.image_size and not SMALLEST_SIDE <= data.image_size <= LARGEST_SIDE:
        raise RecipeError(f"data.image_size = {data.image_size} is not between {SMALLEST_SIDE} and {LARGEST_SIDE}")
    if data.download and data.name not in DOWNLOADS:
        raise RecipeError(
            f"data.download = true: {data.name!r} has nothing to download; only {', '.join(DOWNLOADS)} do"
        )


def open_source(data: Data) -> Source:
    """Read the data set that `[data]` names: images, labels, class names and the fingerprint of their content.

    Raises `UserError` with one line, or one line a file for unreadable images, before anything is computed from it.
    """
    check_source(data)
    return load(SOURCES[data.name])(data)


def stamp(data: Data) -> Any:
    """Cheap outside facts (file sizes and times, a package's version), JSON-able: a change makes stages look again.

    Reads no image. A root that does not exist yet gives a stamp too; opening it then says what is missing.
    """
    check_source(data)
    return load(SOURCES[data.name].partition(":")[0] + ":stamp")(data)
