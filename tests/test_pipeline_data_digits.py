import numpy as np
import pytest

from pipeline.data import open_source, stamp
from pipeline.recipe import Data


@pytest.fixture(scope="module")
def digits():
    return open_source(Data(name="digits"))


def test_shape_and_classes(digits):
    assert digits.class_names == tuple("0123456789")
    assert digits.train.shape == digits.test.shape == (8, 8, 1)
    assert len(digits.train) + len(digits.test) == 1797
    assert digits.train.images.max() == 255


def test_every_class_is_split_by_the_share(digits):
    both = np.bincount(digits.train.labels) + np.bincount(digits.test.labels)
    np.testing.assert_allclose(np.bincount(digits.test.labels), both * 0.4, atol=0.5)
    half = open_source(Data(name="digits", test=0.5))
    assert abs(len(half.test) - 898) <= 5


def test_pixels_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    both = np.concatenate([digits.train.images, digits.test.images])
    assert {image.tobytes() for image in both} == {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in pixels
    }


def test_the_split_never_changes_by_accident(digits):
    assert digits.fingerprint == "80f896faceb6ad71fb589ae43df23cb8859b3d4e17d720ed5ac1e8f520b9591e"


def test_image_size():
    source = open_source(Data(name="digits", image_size=16))
    assert source.train.shape == (16, 16, 1)


def test_stamp_is_the_packages_version():
    import sklearn

    assert stamp(Data(name="digits")) == {"scikit-learn": sklearn.__version__}
