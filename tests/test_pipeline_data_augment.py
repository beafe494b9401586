import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import draws
from pipeline.data.augment import AUGMENT_VERSION, views
from pipeline.errors import UserError
from pipeline.recipe import Augment

EVERYTHING = Augment(seed=3, pad_crop=2, flip=True, brightness=0.4, contrast=0.3, saturation=0.5, cutout=4)


def random_images(count, height=10, width=12, channels=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8))


def reference_crop_and_flip(image, sample, epoch, spec):
    """numpy's own padding and slicing of one image (H, W, C)."""
    pad, (height, width) = spec.pad_crop, image.shape[:2]
    one = np.array([sample])
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect") if pad else image
    top = draws.below(2 * pad + 1, spec.seed, epoch, one, draws.CROP_ROW)[0] if pad else 0
    left = draws.below(2 * pad + 1, spec.seed, epoch, one, draws.CROP_COLUMN)[0] if pad else 0
    view = padded[top : top + height, left : left + width]
    return view[:, ::-1] if spec.flip and draws.uniform(spec.seed, epoch, one, draws.FLIP)[0] < 0.5 else view


@pytest.mark.parametrize("spec", [Augment(pad_crop=4, flip=True), Augment(pad_crop=9), Augment(flip=True), Augment()])
def test_crop_and_flip_are_numpys_reflected_padding_and_slicing(spec):
    images, ids = random_images(40), np.arange(100, 140)
    got = views(images, ids, 5, spec)
    assert got.dtype == torch.uint8 and got.shape == (40, 3, 10, 12)
    for view, image, sample in zip(got.numpy(), images.numpy(), ids, strict=True):
        expected = reference_crop_and_flip(image, sample, 5, spec)
        np.testing.assert_array_equal(view, expected.transpose(2, 0, 1))


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(list(range(12))),
    size=st.integers(1, 12),
    epoch=st.integers(0, 10_000),
    seed=st.integers(-(2**40), 2**40),
    channels=st.sampled_from([1, 3]),
)
def test_a_view_does_not_depend_on_its_batch(order, size, epoch, seed, channels):
    images = random_images(12, channels=channels)
    spec = EVERYTHING.model_copy(update={"seed": seed})
    ids = np.arange(12) * 37
    together = views(images, ids, epoch, spec)
    chosen = np.array(order[:size])
    np.testing.assert_array_equal(views(images[chosen], ids[chosen], epoch, spec), together[chosen])
    alone = views(images[chosen[:1]], torch.from_numpy(ids[chosen[:1]]), epoch, spec)
    np.testing.assert_array_equal(alone[0], together[chosen[0]])


def test_bytes_of_a_view_never_change_by_accident():
    # When this fails on purpose, raise AUGMENT_VERSION: stored teacher outputs belong to the old views.
    digest = hashlib.sha256(views(random_images(16), np.arange(16), 2, EVERYTHING).contiguous().numpy().tobytes())
    assert (AUGMENT_VERSION, digest.hexdigest()[:16]) == (1, "c0f2cb13bc3cbcc7")


def test_views_change_with_epoch_and_seed_and_sample():
    images = random_images(1).repeat(64, 1, 1, 1)
    spec = Augment(pad_crop=3, flip=True)
    first = views(images, np.arange(64), 0, spec)
    assert len({view.numpy().tobytes() for view in first}) > 30
    assert not torch.equal(first, views(images, np.arange(64), 1, spec))
    assert not torch.equal(first, views(images, np.arange(64), 0, spec.model_copy(update={"seed": 1})))


def test_half_of_the_views_are_mirrored():
    images = torch.zeros(2000, 1, 2, 1, dtype=torch.uint8)
    images[:, :, 1] = 9
    mirrored = views(images, np.arange(2000), 0, Augment(flip=True))[:, 0, 0, 0] == 9
    assert 0.46 < mirrored.float().mean() < 0.54


@pytest.mark.parametrize(
    ("key", "stream"),
    [("brightness", draws.BRIGHTNESS), ("contrast", draws.CONTRAST), ("saturation", draws.SATURATION)],
)
def test_jitter_agrees_with_torchvision(key, stream):
    from torchvision.transforms import functional

    adjust = getattr(functional, f"adjust_{key}")
    images, ids = random_images(20), np.arange(20)
    got = views(images, ids, 1, Augment(seed=9, **{key: 0.6}))
    factors = 1 + 0.6 * (2 * draws.uniform(9, 1, ids, stream) - 1)
    for view, image, factor in zip(got, images.permute(0, 3, 1, 2), factors, strict=True):
        expected = adjust(image.float() / 255, float(factor)) * 255
        # A level of rounding, and another one of the mean gray, which is rounded here so that it is exact everywhere.
        assert (view.float() - expected).abs().max() <= 1.6


def test_saturation_leaves_gray_images_alone():
    images = random_images(4, channels=1)
    assert torch.equal(views(images, np.arange(4), 0, Augment(saturation=1.0)), images.permute(0, 3, 1, 2))


def test_cutout_is_one_square_of_the_own_mean():
    images, ids = random_images(50, 16, 16), np.arange(50)
    got = views(images, ids, 0, Augment(cutout=6)).permute(0, 2, 3, 1).numpy()
    rows, columns = draws.below(16, 0, 0, ids, draws.CUTOUT_ROW), draws.below(16, 0, 0, ids, draws.CUTOUT_COLUMN)
    for view, image, row, column in zip(got, images.numpy(), rows, columns, strict=True):
        expected = image.copy()
        top, left = max(0, row - 3), max(0, column - 3)
        expected[top : row + 3, left : column + 3] = np.floor(image.mean(axis=(0, 1)) + 0.5)
        np.testing.assert_array_equal(view, expected)


def test_padding_that_does_not_fit_is_refused():
    with pytest.raises(UserError) as caught:
        views(random_images(2, 8, 9), np.arange(2), 0, Augment(pad_crop=8))
    assert str(caught.value) == "augment.pad_crop = 8 does not fit images of 8x9; it must be below their side"


def test_threads_do_not_change_a_view():
    images, ids = random_images(300), np.arange(300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = views(images, ids, 0, EVERYTHING)
        torch.set_num_threads(2)
        assert torch.equal(one, views(images, ids, 0, EVERYTHING))
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_bytes():
    images, ids = random_images(64), np.arange(64)
    on_gpu = views(images.cuda(), ids, 4, EVERYTHING)
    assert torch.equal(on_gpu.cpu(), views(images, ids, 4, EVERYTHING))
