"""Any .npz file with x_train, y_train, x_test, y_test and, if wanted, class_names and slice_NAME of the test images."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.slices import PREFIX, fingerprint, of_arrays
from pipeline.data.source import Source, array_source
from pipeline.errors import UserError
from pipeline.recipe import Data

KEYS = ("x_train", "y_train", "x_test", "y_test")


def open_source(data: Data) -> Source:
    """Images uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), labels integers (N,) or (N, 1), class_names strings (K,).

    Raises UserError, one line that names the file, the key, what it got and what to do. Nothing in the file is run.
    """
    path = Path(data.root)
    arrays = _read(path)
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(f"{path}: no {', '.join(missing)}; it holds {held}; save it with np.savez and these names")
    train = _images(path, "x_train", arrays["x_train"])
    test = _images(path, "x_test", arrays["x_test"])
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"{path}: x_train has images of {train.shape[1:]}, x_test of {test.shape[1:]}; they must agree")
    slices = of_arrays(arrays, len(test), str(path))
    source = array_source(
        name=data.name,
        where=str(path),
        class_names=_class_names(path, arrays["class_names"]) if "class_names" in arrays else None,
        train=(train, _labels(path, "y_train", arrays["y_train"], "x_train", len(train))),
        test=(test, _labels(path, "y_test", arrays["y_test"], "x_test", len(test))),
        image_size=data.image_size,
    )
    return replace(source, slices=slices, fingerprint=fingerprint(source.fingerprint, slices))


def stamp(data: Data) -> Any:
    """Size and time of the file; None when it is not there."""
    try:
        facts = Path(data.root).stat()
    except OSError:
        return None
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UserError(f"data.root: no file {str(path)!r}; give the .npz file that holds {', '.join(KEYS)}")
    if path.is_dir():
        raise UserError(
            f"data.root: {str(path)!r} is a folder; 'arrays' needs a .npz file ('imagefolder' takes folders)"
        )
    key = "the file"
    try:
        with path.open("rb") as file:  # opened here: numpy leaves it open when the archive is cut short
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: a single array; save all four with np.savez({', '.join(KEYS)})")
            result = {}
            with archive:
                for key in archive.files:
                    if key in KEYS or key == "class_names" or key.startswith(PREFIX):
                        result[key] = archive[key]
            return result
    except UserError:
        raise
    except ValueError as error:
        if "pickle" in str(error):
            raise UserError(f"{path}: {key} holds Python objects, which are never loaded; save plain arrays") from error
        raise UserError(f"{path}: {key} cannot be read ({_first_line(error)}); save it again with np.savez") from error
    except (OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise UserError(f"{path}: {key} cannot be read ({_first_line(error)}); save it again with np.savez") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, C)."""
    if images.dtype != np.uint8:
        advice = "multiply by 255 if they lie in 0 to 1, and convert with .round().astype(np.uint8)"
        raise UserError(f"{path}: {key} has dtype {images.dtype}; images must be uint8, 0 to 255; {advice}")
    shape = images.shape
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim != 4 or shape[3] not in (1, 3):
        advice = ""
        if images.ndim == 4 and shape[1] in (1, 3):
            advice = f"; this looks like (N, C, H, W): use {key}.transpose(0, 2, 3, 1)"
        raise UserError(f"{path}: {key} has shape {shape}; expected (N, H, W), (N, H, W, 1) or (N, H, W, 3){advice}")
    if 0 in images.shape:
        raise UserError(f"{path}: {key} is empty, shape {shape}; a data set needs images in train and in test")
    return images


def _labels(path: Path, key: str, labels: np.ndarray, images_key: str, count: int) -> np.ndarray:
    """int64 (N,)."""
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}: {key} has dtype {labels.dtype}; labels must be whole numbers, 0 to classes - 1")
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,):
        raise UserError(
            f"{path}: {key} has shape {labels.shape}, {images_key} holds {count} images; one label an image"
        )
    if labels.dtype == np.uint64 and int(labels.max(initial=0)) > np.iinfo(np.int64).max:
        raise UserError(f"{path}: {key} holds {labels.max()}; labels must be whole numbers, 0 to classes - 1")
    return labels.astype(np.int64)


def _class_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(f"{path}: class_names has dtype {names.dtype} and shape {names.shape}; expected strings (K,)")
    return tuple(str(name) for name in names)
