import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import draws
from pipeline.data.source import InMemory, Source
from pipeline.data.split import (
    calibration_indices,
    channel_stats,
    duplicates,
    image_hashes,
    make_splits,
    stratified,
)
from pipeline.errors import UserError


def source_of(labels, seed=0, tests=7):
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels, dtype=np.int64)
    train = InMemory(rng.integers(0, 256, (len(labels), 4, 5, 3), np.uint8), labels)
    test = InMemory(rng.integers(0, 256, (tests, 4, 5, 3), np.uint8), np.zeros(tests, dtype=np.int64))
    names = tuple(str(label) for label in range(labels.max() + 1))
    return Source(name="x", class_names=names, train=train, test=test, fingerprint="0" * 64)


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80), share=st.floats(0.01, 0.9), seed=st.integers(0, 2**32)
)
def test_stratified_splits_every_class_by_its_share(labels, share, seed):
    labels = np.array(labels)
    kept, taken = stratified(labels, share, seed=seed, stream=draws.VALIDATION)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, taken])), np.arange(len(labels)))
    assert np.all(np.diff(kept) > 0) and np.all(np.diff(taken) > 0)
    for label in np.unique(labels):
        size, got = (labels == label).sum(), (labels[taken] == label).sum()
        if size == 1:
            assert got == 0
        else:
            assert 1 <= got <= size - 1
            assert abs(got - size * share) <= 1
    again = stratified(labels, share, seed=seed, stream=draws.VALIDATION)
    np.testing.assert_array_equal(taken, again[1])


def test_make_splits_is_a_function_of_the_seed():
    source = source_of(np.arange(200) % 4)
    first, again = make_splits(source, validation=0.1, seed=0), make_splits(source, validation=0.1, seed=0)
    other = make_splits(source, validation=0.1, seed=1)
    np.testing.assert_array_equal(first.validation, again.validation)
    assert first.validation.tolist() != other.validation.tolist()
    assert np.bincount(source.train.labels[first.validation]).tolist() == [5, 5, 5, 5]
    assert not set(first.train) & set(first.validation)
    assert first.train.dtype == first.validation.dtype == first.test.dtype == np.int64
    np.testing.assert_array_equal(first.test, np.arange(7))


def test_nothing_left_for_validation():
    with pytest.raises(UserError) as caught:
        make_splits(source_of([0, 1, 2]), validation=0.5, seed=0)
    assert str(caught.value) == (
        "data: 3 training images in 3 classes leave none for validation; give at least one class two or more"
    )


def calibrate(source, n, exclude=(), seed=0):
    splits = make_splits(source, validation=0.25, seed=seed)
    labels = source.train.labels
    return splits, calibration_indices(splits, labels, n, seed=seed, images=source.train, exclude=exclude)


def test_calibration_takes_classes_in_turn_from_train_alone():
    source = source_of(np.arange(80) % 4)
    splits, chosen = calibrate(source, 10)
    assert chosen.dtype == np.int64 and len(set(chosen)) == 10
    assert set(chosen) <= set(splits.train)
    assert sorted(source.train.labels[chosen[:4]]) == sorted(source.train.labels[chosen[4:8]]) == [0, 1, 2, 3]
    np.testing.assert_array_equal(chosen, calibrate(source, 10)[1])
    np.testing.assert_array_equal(chosen[:5], calibrate(source, 5)[1])


def test_calibration_shares_no_image_with_the_gate_set():
    source = source_of(np.arange(80) % 4)
    splits, chosen = calibrate(source, 10)
    source.test.images[:3] = source.train.images[chosen[:3]]
    source.train.images[chosen[4]] = source.train.images[chosen[3]]
    gate = image_hashes(source.test, splits.test)
    _, mended = calibrate(source, 10, exclude=gate)
    hashes = image_hashes(source.train, mended)
    assert not set(hashes) & set(gate)
    assert len(set(hashes)) == 10


def test_too_few_calibration_samples():
    source = source_of(np.arange(16) % 4)
    source.test.images[0] = source.train.images[make_splits(source, validation=0.25, seed=0).train[0]]
    with pytest.raises(UserError) as caught:
        calibrate(source, 100, exclude=image_hashes(source.test))
    assert str(caught.value) == (
        "quantize.samples = 100: only 11 of 12 training images are distinct and not in the test split; "
        "set quantize.samples to 11 or less, or give more images"
    )


def test_no_calibration_image_at_all():
    source = source_of(np.arange(16) % 4)
    with pytest.raises(UserError) as caught:
        calibrate(source, 8, exclude=image_hashes(source.train))
    assert str(caught.value) == (
        "quantize.samples = 8: every training image stands in the test split too, so none is left to calibrate with; "
        "give training images of their own, or leave int8 out with quantize = false"
    )


def test_hashes_are_of_the_pixels():
    source = source_of(np.arange(20) % 2)
    hashes = image_hashes(source.train)
    assert hashes[3] == hashlib.blake2b(source.train.images[3].tobytes(), digest_size=16).digest()
    assert image_hashes(source.train, np.array([3, 1])) == [hashes[3], hashes[1]]
    assert len(set(hashes)) == 20
    changed = source.train.images.copy()
    changed[3, 0, 0, 0] ^= 1
    assert image_hashes(InMemory(changed, source.train.labels))[3] != hashes[3]


def test_duplicates_are_counted_with_repeats():
    assert duplicates([b"a", b"a", b"b", b"c"], [b"a", b"c", b"z"]) == 3
    assert duplicates([], [b"a"]) == duplicates([b"a"], []) == 0


def test_channel_stats_are_exact():
    source = source_of(np.arange(1200) % 3)
    indices = np.arange(0, 1200, 2)
    mean, std = channel_stats(source.train, indices)
    pixels = source.train.images[indices].astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)


def test_a_constant_channel_gets_one_gray_level():
    images = np.zeros((4, 2, 2, 3), np.uint8)
    images[:2, ..., 0] = 255
    images[..., 1] = 51
    mean, std = channel_stats(InMemory(images, np.zeros(4, dtype=np.int64)), np.arange(4))
    np.testing.assert_allclose(mean, [0.5, 0.2, 0.0])
    np.testing.assert_allclose(std, [0.5, 1 / 255, 1 / 255])


def test_all_constant_images_are_refused():
    images = InMemory(np.full((4, 2, 2, 1), 7, np.uint8), np.zeros(4, dtype=np.int64))
    with pytest.raises(UserError) as caught:
        channel_stats(images, np.arange(4))
    assert str(caught.value) == ("data: every pixel of all 4 training images has the same value; check the source")
