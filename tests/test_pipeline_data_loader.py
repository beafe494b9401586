import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.loader import batches, epoch_order, normalize, resident, shard
from pipeline.data.source import InMemory
from pipeline.errors import UserError


def in_memory(count=23, channels=3):
    rng = np.random.default_rng(0)
    return InMemory(rng.integers(0, 256, (count, 5, 6, channels), np.uint8), rng.integers(0, 4, count))


class Streamed(InMemory):
    """Images that say they are on disk, so that worker processes load them."""

    streamed = True

    def __init__(self, images, labels, broken=-1):
        super().__init__(images, labels)
        self.broken = broken

    def load(self, indices):
        if self.broken in indices:
            raise UserError(f"pictures/{self.broken}.jpg: image file is truncated")
        return super().load(indices)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 23, 50])
def test_batches_follow_the_order_whoever_loads_them(workers, batch_size):
    memory = in_memory()
    images = Streamed(memory.images, memory.labels) if workers else memory
    order = epoch_order(np.arange(3, 23), 1, 0)
    parts = list(batches(images, order, batch_size, workers=workers))
    assert [len(indices) for indices, _, _ in parts[:-1]] == [batch_size] * (len(parts) - 1)
    np.testing.assert_array_equal(np.concatenate([indices for indices, _, _ in parts]), order)
    pixels, labels = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    assert pixels.dtype == torch.uint8 and labels.dtype == torch.int64
    np.testing.assert_array_equal(pixels, memory.images[order])
    np.testing.assert_array_equal(labels, memory.labels[order])


def test_no_samples_give_no_batches():
    assert list(batches(in_memory(), np.zeros(0, np.int64), 4)) == []


def test_workers_leave_the_global_random_state_alone():
    memory = in_memory()
    before = torch.get_rng_state()
    list(batches(Streamed(memory.images, memory.labels), np.arange(20), 4, workers=2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_error_stays_one_line(workers):
    memory = in_memory()
    with pytest.raises(UserError) as caught:
        list(batches(Streamed(memory.images, memory.labels, broken=9), np.arange(20), 4, workers=workers))
    assert str(caught.value) == "pictures/9.jpg: image file is truncated"


class Deadly(Streamed):
    def load(self, indices):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line():
    memory = in_memory()
    with pytest.raises(UserError) as caught:
        list(batches(Deadly(memory.images, memory.labels), np.arange(20), 4, workers=1))
    message = str(caught.value)
    assert message.startswith("data.workers = 1: a decoding process ended early (DataLoader worker (pid")
    assert message.endswith("); give it more memory or set data.workers lower")
    assert "\n" not in message


def test_leaving_early_ends_the_workers():
    import multiprocessing

    memory = in_memory()
    stream = batches(Streamed(memory.images, memory.labels), np.arange(20), 2, workers=2)
    next(stream)
    stream.close()
    del stream
    for child in multiprocessing.active_children():
        child.join(timeout=60)
    assert not multiprocessing.active_children()


def test_epoch_order_is_a_permutation_of_its_own():
    indices = np.arange(50, 150)
    orders = [epoch_order(indices, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), indices)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_the_formula(channels, channels_last):
    images = torch.from_numpy(in_memory(channels=channels).images).permute(0, 3, 1, 2)
    mean, std = (0.4914, 0.4822, 0.4465)[:channels], (0.2470, 0.2435, 0.2616)[:channels]
    got = normalize(images, mean, std, torch.float32, channels_last)
    expected = (images.double().numpy() / 255 - np.reshape(mean, (1, -1, 1, 1))) / np.reshape(std, (1, -1, 1, 1))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout)
    assert images.dtype == torch.uint8


def test_normalize_casts_last_and_serves_training_after_inference_mode():
    images = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    with torch.inference_mode():
        half = normalize(images, (0.125,), (0.7,), torch.bfloat16)
    assert half.dtype == torch.bfloat16 and float(half[0, 0, 0, 0]) == 1.25
    weight = torch.ones(1, requires_grad=True)
    (normalize(images, (0.125,), (0.7,), torch.float32) * weight).sum().backward()
    assert weight.grad is not None and abs(float(weight.grad) - 32 * 1.25) < 1e-4


def test_images_resident_on_a_device_give_the_same_batches() -> None:
    images = InMemory(np.arange(10 * 2 * 2 * 1, dtype=np.uint8).reshape(10, 2, 2, 1), np.arange(10, dtype=np.int64))
    pixels, labels = resident(images, torch.device("cpu"))
    order = np.array([7, 0, 9, 3], dtype=np.int64)
    for indices, raw, target in batches(images, order, 3):
        places = torch.from_numpy(indices)
        assert torch.equal(pixels.index_select(0, places), raw)
        assert torch.equal(labels.index_select(0, places), target)


@settings(max_examples=60, deadline=None)
@given(world=st.integers(1, 5), per_rank=st.integers(1, 6), full=st.integers(0, 4), last=st.integers(0, 29))
def test_the_shares_of_all_ranks_are_the_batches_of_one_process(world, per_rank, full, last):
    batch_size = world * per_rank
    last %= batch_size
    order = epoch_order(np.arange(100, 100 + full * batch_size + last), 0, 0)
    if 0 < last < world:
        with pytest.raises(UserError):
            shard(order, batch_size, 0, world)
        return
    shares = [shard(order, batch_size, rank, world) for rank in range(world)]
    if not last:
        assert {len(share) for share in shares} == {full * per_rank}
    steps = -(-len(order) // batch_size)
    cut = [np.split(share, range(per_rank, len(share), per_rank)) if len(share) else [] for share in shares]
    assert [len(parts) for parts in cut] == [steps] * world
    for step in range(steps):
        together = np.concatenate([parts[step] for parts in cut])
        np.testing.assert_array_equal(together, order[step * batch_size : (step + 1) * batch_size])


@pytest.mark.parametrize(
    ("count", "batch_size", "world", "message"),
    [
        (
            9,
            4,
            3,
            "batch_size = 4 does not divide by 3 processes; set it to 3 or 6, or start another number of processes",
        ),
        (9, 2, 3, "batch_size = 2 does not divide by 3 processes; set it to 3, or start another number of processes"),
        (
            9,
            4,
            2,
            (
                "the last batch of 9 samples has 1, too few for 2 processes; "
                "start fewer processes or set another batch_size"
            ),
        ),
    ],
)
def test_shares_that_cannot_be_equal_are_refused(count, batch_size, world, message):
    for rank in range(world):
        with pytest.raises(UserError) as caught:
            shard(np.arange(count), batch_size, rank, world)
        assert str(caught.value) == message
