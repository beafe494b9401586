import numpy as np
import pytest
import torch

from pipeline.data.augment import views
from pipeline.data.feed import view_batches
from pipeline.data.loader import epoch_order, shard
from pipeline.data.mixing import mix, partners, soft_labels
from pipeline.data.source import InMemory
from pipeline.recipe import Augment

CLASSES = 4
PLAIN = Augment(seed=1, pad_crop=2, flip=True)
MIXED = Augment(seed=1, pad_crop=2, flip=True, cutout=2, mixup=0.5, cutmix=1.0, mix_probability=0.9)
POOL = np.arange(2, 30, dtype=np.int64)


class Streamed(InMemory):
    """Images that say they are on disk, so that worker processes load them."""

    streamed = True


def labelled(kind=InMemory, unlabelled=()):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 30)
    labels[list(unlabelled)] = -1
    return kind(rng.integers(0, 256, (30, 8, 9, 3), np.uint8), labels)


def collect(images, order, batch_size, spec, **keys):
    return list(view_batches(images, order, batch_size, spec=spec, epoch=3, pool=POOL, num_classes=CLASSES, **keys))


def together(parts):
    """Images, ids, partners, weights and targets of all batches, one after the other."""
    seen = [view for view, _ in parts]
    return (
        torch.cat([view.images for view in seen]),
        np.concatenate([view.sample_ids for view in seen]),
        np.concatenate([view.partner_ids for view in seen]),
        torch.cat([view.partner_weight for view in seen]),
        torch.cat([target for _, target in parts]),
    )


def test_without_mixing_the_views_come_with_their_labels():
    images, order = labelled(), epoch_order(POOL, 0, 0)
    parts = collect(images, order, 8, PLAIN)
    assert [len(target) for _, target in parts] == [8, 8, 8, 4]
    assert all(view.epoch == 3 and view.partner_ids is view.partner_weight is None for view, _ in parts)
    expected = views(torch.from_numpy(images.images[order]), order, 3, PLAIN)
    assert torch.equal(torch.cat([view.images for view, _ in parts]), expected)
    np.testing.assert_array_equal(np.concatenate([view.sample_ids for view, _ in parts]), order)
    targets = torch.cat([target for _, target in parts])
    assert targets.dtype == torch.int64 and torch.equal(targets, torch.from_numpy(images.labels[order]))


def test_with_mixing_views_and_labels_are_mixed_alike():
    images, order = labelled(unlabelled=(5, 11)), epoch_order(POOL, 0, 0)
    parts = collect(images, order, 8, MIXED)
    assert [len(target) for _, target in parts] == [8, 8, 8, 4]
    pixels, ids, others, weight, target = together(parts)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(others, partners(order, POOL, 3, MIXED))
    first, second = (views(torch.from_numpy(images.images[part]), part, 3, MIXED) for part in (order, others))
    expected, shares = mix(first, second, order, 3, MIXED)
    assert torch.equal(pixels, expected) and torch.equal(weight, shares)
    labels = torch.from_numpy(images.labels)
    assert torch.equal(target, soft_labels(labels[order], labels[others], shares, CLASSES))
    assert parts[0][0].images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("spec", [PLAIN, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(spec, workers):
    order = epoch_order(POOL, 0, 0)
    expected, got = collect(labelled(), order, 8, spec), collect(labelled(Streamed), order, 8, spec, workers=workers)
    for (view, target), (other, other_target) in zip(expected, got, strict=True):
        assert torch.equal(view.images, other.images) and torch.equal(target, other_target)


@pytest.mark.parametrize("batch_size", [1, 5, 28, 40])
def test_batches_and_resumption_change_no_view(batch_size):
    images, order = labelled(), epoch_order(POOL, 0, 0)
    expected = together(collect(images, order, 28, MIXED))
    for got, wanted in zip(together(collect(images, order, batch_size, MIXED)), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    for got, wanted in zip(together(collect(images, order[10:], batch_size, MIXED)), expected, strict=True):
        np.testing.assert_array_equal(got, wanted[10:])


def test_two_processes_see_what_one_sees():
    images, order = labelled(), epoch_order(POOL, 0, 0)
    ranks = [collect(images, shard(order, 8, rank, 2), 4, MIXED) for rank in range(2)]
    for whole, *halves in zip(collect(images, order, 8, MIXED), *ranks, strict=True):
        assert torch.equal(whole[0].images, torch.cat([view.images for view, _ in halves]))
        assert torch.equal(whole[1], torch.cat([target for _, target in halves]))


def test_no_samples_give_no_batches():
    none = np.zeros(0, np.int64)
    assert collect(labelled(), none, 4, PLAIN) == collect(labelled(), none, 4, MIXED) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_views_and_labels():
    order = epoch_order(POOL, 0, 0)
    on_gpu = together(collect(labelled(), order, 8, MIXED, device=torch.device("cuda")))
    for got, wanted in zip(on_gpu, together(collect(labelled(), order, 8, MIXED)), strict=True):
        np.testing.assert_array_equal(torch.as_tensor(got).cpu(), wanted)
