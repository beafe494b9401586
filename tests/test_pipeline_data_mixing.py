import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from pipeline.data.augment import view_at, view_count, view_index, views
from pipeline.data.mixing import STEPS, cutmix_share, mix, mixes, partners, soft_labels
from pipeline.recipe import Augment

FINITE = [
    (Augment(), 1),
    (Augment(flip=True), 2),
    (Augment(pad_crop=4), 81),
    (Augment(pad_crop=4, flip=True), 162),
    (Augment(pad_crop=1, flip=True, mixup=1.0, mix_probability=0.0), 18),
]
ENDLESS = ({"brightness": 0.1}, {"contrast": 0.1}, {"saturation": 0.1}, {"cutout": 3}, {"mixup": 0.2}, {"cutmix": 1.0})


def random_images(count, height=10, width=12, channels=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8))


def pairs(count):
    """Two batches of views, uint8 (B, C, H, W), channels-last."""
    return [views(random_images(count, seed=seed), np.arange(count), 0, Augment()) for seed in (1, 2)]


@pytest.mark.parametrize(("spec", "count"), FINITE)
def test_views_are_counted(spec, count):
    assert view_count(spec) == count


@pytest.mark.parametrize("change", ENDLESS, ids=lambda change: next(iter(change)))
def test_other_views_cannot_be_counted(change):
    assert view_count(Augment(pad_crop=4, flip=True, **change)) is None


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**40), 2**40),
    epoch=st.integers(0, 10_000),
    pad=st.integers(0, 7),
    flip=st.booleans(),
    channels=st.sampled_from([1, 3]),
    ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
)
def test_a_view_by_its_number_is_the_view(seed, epoch, pad, flip, channels, ids):
    spec = Augment(seed=seed, pad_crop=pad, flip=flip)
    images = random_images(len(ids), height=8, width=9, channels=channels)
    index = view_index(ids, epoch, spec)
    assert index.dtype == np.int64 and index.shape == (len(ids),)
    expected = views(images, ids, epoch, spec)
    got = view_at(images, torch.from_numpy(index), spec)
    assert torch.equal(got, expected) and got.stride() == expected.stride()


def test_all_162_views_are_different_and_all_are_drawn():
    spec = Augment(pad_crop=4, flip=True)
    image = random_images(1, 32, 32).expand(162, -1, -1, -1)
    assert len({view.numpy().tobytes() for view in view_at(image, np.arange(162), spec)}) == 162
    drawn = np.bincount(view_index(np.arange(40_000), 3, spec), minlength=162)
    assert len(drawn) == 162 and (abs(drawn - 40_000 / 162) < 5 * np.sqrt(40_000 / 162)).all()


@settings(max_examples=40, deadline=None)
@given(
    pool=st.sets(st.integers(0, 10_000), min_size=1, max_size=60),
    epoch=st.integers(0, 1000),
    seed=st.integers(-100, 100),
    data=st.data(),
)
def test_partners_are_a_permutation_that_no_batch_changes(pool, epoch, seed, data):
    members, spec = np.array(sorted(pool)), Augment(seed=seed, mixup=1.0)
    together = partners(members, members, epoch, spec)
    assert together.dtype == np.int64 and sorted(together) == sorted(pool)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(pool) - 1), max_size=9)), dtype=np.int64)
    np.testing.assert_array_equal(partners(torch.from_numpy(members[chosen]), members, epoch, spec), together[chosen])


def test_partners_change_with_epoch_and_seed():
    pool = np.arange(200)
    first = partners(pool, pool, 0, Augment(mixup=1.0))
    assert (first == pool).mean() < 0.05
    assert (first == partners(pool, pool, 1, Augment(mixup=1.0))).mean() < 0.05
    assert (first == partners(pool, pool, 0, Augment(mixup=1.0, seed=1))).mean() < 0.05


def test_a_sample_outside_of_the_pool_is_a_fault():
    with pytest.raises(AssertionError, match="a sample that is not in the pool"):
        partners(np.array([2, 9]), np.array([1, 2, 3]), 0, Augment(mixup=1.0))


def test_mixup_is_the_weighted_mean_rounded():
    first, second = pairs(300)
    mixed, weight = mix(first, second, np.arange(300), 4, Augment(mixup=1.0))
    assert mixed.dtype == torch.uint8 and mixed.is_contiguous(memory_format=torch.channels_last)
    assert weight.dtype == torch.float32 and weight.shape == (300,)
    share = weight.double()[:, None, None, None]
    expected = (first * (1 - share) + second * share + 0.5).floor()
    assert torch.equal(mixed, expected.to(torch.uint8))
    assert torch.equal(weight * STEPS, (weight * STEPS).round())
    ends = [mix(first, second, np.arange(300), 4, Augment(mixup=1e-4))[0][place] for place in range(300)]
    assert all(torch.equal(end, a) or torch.equal(end, b) for end, a, b in zip(ends, first, second, strict=True))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha):
    blank = torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8)
    _, weight = mix(blank, blank, np.arange(20_000), 0, Augment(mixup=alpha))
    # Moments to five standard errors; and Kolmogorov's test once the rounding is undone by spreading each share evenly.
    assert abs(float(weight.mean()) - 0.5) < 5 * beta(alpha, alpha).std() / 20_000**0.5
    assert abs(float(weight.std()) - beta(alpha, alpha).std()) < 0.01
    middle = weight.numpy()[(weight > 0.02).numpy() & (weight < 0.98).numpy()]
    spread = middle + (np.random.default_rng(0).random(len(middle)) - 0.5) / STEPS
    low, high = beta(alpha, alpha).cdf([2.5 / STEPS, 125.5 / STEPS])
    assert kstest(spread, lambda x: (beta(alpha, alpha).cdf(x) - low) / (high - low)).pvalue > 0.001


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e6])
def test_extreme_alphas_give_shares(alpha):
    blank = torch.zeros(100, 1, 1, 1, dtype=torch.uint8)
    weight = mix(blank, blank, np.arange(100), 0, Augment(mixup=alpha))[1]
    assert set(weight.tolist()) == ({0.5} if alpha > 1 else {0.0, 1.0})


def test_cutmix_pastes_one_box_and_weighs_its_area():
    first = torch.zeros(400, 3, 10, 12, dtype=torch.uint8)
    second = torch.full_like(first, 255)
    mixed, weight = mix(first, second, np.arange(400), 0, Augment(cutmix=1.0))
    assert torch.equal(weight, (mixed[:, 0] == 255).double().mean(dim=(1, 2)).float())
    assert len(set(weight.tolist())) > 40
    for image in mixed.numpy():
        assert (image == image[:1]).all()
        rows, columns = np.flatnonzero(image[0].any(axis=1)), np.flatnonzero(image[0].any(axis=0))
        assert image[0].sum() == 255 * len(rows) * len(columns)
        assert not len(rows) or rows[-1] - rows[0] + 1 == len(rows)
        assert not len(columns) or columns[-1] - columns[0] + 1 == len(columns)


def test_a_cut_box_has_the_papers_sides():
    # On a large image the box that no border cuts has the sides H * sqrt(r), W * sqrt(r), to one pixel.
    blank = torch.zeros(500, 1, 200, 100, dtype=torch.uint8)
    mixed, _ = mix(blank, blank + 255, np.arange(500), 0, Augment(cutmix=1.0))
    inner = [image[0] for image in mixed.numpy() if not (image[0, [0, -1]].any() or image[0][:, [0, -1]].any())]
    sides = np.array([(image.any(axis=1).sum(), image.any(axis=0).sum()) for image in inner])
    assert len(sides) > 50 and (abs(sides[:, 0] - 2 * sides[:, 1]) <= 1).all()


def test_both_mixings_take_half_each():
    spec = Augment(mixup=1.0, cutmix=1.0)
    first = torch.zeros(4000, 1, 4, 4, dtype=torch.uint8)
    mixed, _ = mix(first, first + 200, np.arange(4000), 0, spec)
    blended = ((mixed > 0) & (mixed < 200)).any(dim=(1, 2, 3)).double().mean()
    assert abs(float(blended) - 0.5) < 0.04
    assert cutmix_share(spec) == 0.5


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_share_of_mixed_images(probability, kind):
    spec = Augment(mix_probability=probability, **{kind: 4.0})
    assert mixes(spec) == (probability > 0)
    first = torch.zeros(4000, 1, 8, 8, dtype=torch.uint8)
    mixed, weight = mix(first, first + 255, np.arange(4000), 0, spec)
    assert abs(float((weight > 0).double().mean()) - probability) < 0.03
    assert torch.equal((mixed > 0).any(dim=3).any(dim=2).any(dim=1), weight > 0)


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(list(range(10))),
    size=st.integers(1, 10),
    epoch=st.integers(0, 1000),
    mixup=st.sampled_from([0.0, 0.4]),
    cutmix=st.sampled_from([0.0, 1.0]),
)
def test_a_mix_does_not_depend_on_its_batch(order, size, epoch, mixup, cutmix):
    spec, ids = Augment(mixup=mixup, cutmix=cutmix, mix_probability=0.8), np.arange(10) * 31
    first, second = pairs(10)
    images, weight = mix(first, second, ids, epoch, spec)
    chosen = np.array(order[:size])
    some, some_weight = mix(first[chosen], second[chosen], ids[chosen], epoch, spec)
    assert torch.equal(some, images[chosen]) and torch.equal(some_weight, weight[chosen])


def test_bytes_of_a_mix_never_change_by_accident():
    # When this fails on purpose, raise AUGMENT_VERSION: stored teacher outputs belong to the old mixes.
    first, second = pairs(32)
    images, weight = mix(first, second, np.arange(32), 2, Augment(seed=3, mixup=0.3, cutmix=1.0, mix_probability=0.9))
    digest = hashlib.sha256(images.contiguous().numpy().tobytes() + weight.numpy().tobytes())
    assert digest.hexdigest()[:16] == "33283831c39309d6"


def test_soft_labels_are_the_mean_of_both():
    target, other = torch.tensor([0, 1, 2, -1, -1]), torch.tensor([1, 1, -1, 0, -1])
    weight = torch.tensor([0.25, 0.5, 0.75, 0.125, 0.5])
    got = soft_labels(target, other, weight, 3)
    assert got.dtype == torch.float32
    expected = [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0.25], [0.125, 0, 0], [0, 0, 0]]
    assert torch.equal(got, torch.tensor(expected))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_mixes_to_the_same_bytes():
    first, second = pairs(256)
    spec = Augment(mixup=0.4, cutmix=1.0)
    images, weight = mix(first.cuda(), second.cuda(), np.arange(256), 4, spec)
    expected, expected_weight = mix(first, second, np.arange(256), 4, spec)
    assert torch.equal(images.cpu(), expected) and torch.equal(weight.cpu(), expected_weight)
    labels = soft_labels(torch.arange(256).cuda() % 7, torch.arange(256).cuda() % 5, weight, 7)
    assert torch.equal(labels.cpu(), soft_labels(torch.arange(256) % 7, torch.arange(256) % 5, expected_weight, 7))
