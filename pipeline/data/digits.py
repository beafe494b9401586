"""scikit-learn's handwritten digits: 1,797 gray images of 8x8, shipped with the package, nothing to download.

From the UCI set of Alpaydin and Kaynak (1998); pixels are counts 0 to 16. It has no test split of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data import draws
from pipeline.data.source import Source, array_source
from pipeline.errors import UserError
from pipeline.recipe import Data

TEST_SEED = 0  # fixed: the recipe's seed must not move samples between train and test
INSTALL = "data.name = 'digits' needs scikit-learn; install it with: pip install scikit-learn"


def open_source(data: Data) -> Source:
    """The digits as uint8 (N, 8, 8, 1), 0 to 255; `data.test` is the share of each class kept for the test split."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise UserError(INSTALL) from error
    from pipeline.data.split import stratified

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int64)
    train, test = stratified(labels, data.test, seed=TEST_SEED, stream=draws.TEST)
    return array_source(
        name=data.name,
        where="digits",
        class_names=None,
        train=(images[train], labels[train]),
        test=(images[test], labels[test]),
        image_size=data.image_size,
    )


def stamp(data: Data) -> Any:
    """The version of the package that holds the images."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"scikit-learn": version("scikit-learn")}
    except PackageNotFoundError:
        return {"scikit-learn": None}
