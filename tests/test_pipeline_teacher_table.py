"""Answers from a table: those of the live teacher to the very same view, or none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.augment import view_count
from pipeline.data.view import View
from pipeline.errors import UserError
from pipeline.recipe import Augment
from pipeline.teacher_table import storage
from pipeline.teacher_table.storage import Layout
from pipeline.teacher_table.table import Table
from tests.table_parts import CLASSES, FINITE, REPLAY, Pixels, chosen, filled, images, key, student_view

EPOCHS = 5


@pytest.fixture(scope="module")
def finite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finite")
    filled(folder, key(FINITE), slices=18)
    return Table(folder, key(FINITE), chosen(), slices=18)


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    filled(folder, key(REPLAY), slices=EPOCHS)
    return Table(folder, key(REPLAY), chosen(), slices=EPOCHS)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.lists(st.sampled_from(chosen().tolist()), min_size=1, max_size=30, unique=True),
    epoch=st.integers(0, 100_000),
)
def test_a_finite_table_answers_as_the_live_teacher_in_every_epoch(finite, samples, epoch):
    view = student_view(np.array(samples), epoch, FINITE)
    rows = finite(view)["logits"]
    assert rows.dtype == torch.float32 and rows.shape == (len(samples), CLASSES)
    torch.testing.assert_close(rows, Pixels()(view)["logits"].half().float(), rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.lists(st.sampled_from(chosen().tolist()), min_size=1, max_size=30, unique=True),
    epoch=st.integers(0, EPOCHS - 1),
)
def test_a_replay_table_answers_as_the_live_teacher_to_mixed_views_too(replay, samples, epoch):
    view = student_view(np.array(samples), epoch, REPLAY)
    torch.testing.assert_close(replay(view)["logits"], Pixels()(view)["logits"].half().float(), rtol=0, atol=0)


def test_a_finite_table_serves_any_seed_of_the_views(finite):
    other = FINITE.model_copy(update={"seed": 77})
    table = Table(finite.folder, key(FINITE, augment=other), chosen(), slices=18)
    view = student_view(chosen(), 2, other)
    torch.testing.assert_close(table(view)["logits"], Pixels()(view)["logits"].half().float(), rtol=0, atol=0)
    assert not torch.equal(finite(view)["logits"], table(view)["logits"])


def test_pooled_features_stand_beside_the_logits_and_may_be_left_unread(tmp_path):
    both = key(FINITE, outputs=("logits", "body.pool"))
    filled(tmp_path, both, slices=18, teacher=Pixels(features=True))
    view = student_view(chosen()[:9], 4, FINITE)
    rows = Table(tmp_path, both, chosen(), slices=18)(view)
    assert list(rows) == ["logits", "body.pool"]
    expected = view.images.float().mean(dim=(2, 3)).half().float()
    torch.testing.assert_close(rows["body.pool"], expected, rtol=0, atol=0)
    alone = Table(tmp_path, key(FINITE), chosen(), slices=18)(view)
    assert list(alone) == ["logits"] and torch.equal(alone["logits"], rows["logits"])


def test_a_replay_table_of_more_epochs_serves_fewer_but_not_more(replay):
    Table(replay.folder, key(REPLAY), chosen(), slices=EPOCHS - 2)
    with pytest.raises(UserError) as error:
        Table(replay.folder, key(REPLAY), chosen(), slices=EPOCHS + 1)
    assert str(error.value) == (
        f"table: {replay.folder} is another table: epochs: 5 there, 6 here; give the table of this teacher, data and "
        "augmentation, or leave table empty to build one"
    )
    view = View(images=torch.zeros(1, dtype=torch.uint8), sample_ids=chosen()[:1], epoch=EPOCHS)
    with pytest.raises(UserError) as error:
        replay(view)
    assert str(error.value) == (
        f"table: {replay.folder} holds epochs 0 to 4, epoch 5 was asked for; build it for more epochs, or set "
        "teacher_outputs = 'live'"
    )


@pytest.mark.parametrize("sample", [0, 3, 40, 10_000, -1])
def test_a_sample_that_is_not_in_the_table_is_not_answered(replay, finite, sample):
    for table in (replay, finite):
        view = View(images=torch.zeros(1, dtype=torch.uint8), sample_ids=np.array([1, sample]), epoch=0)
        with pytest.raises(UserError) as error:
            table(view)
        assert str(error.value) == (
            f"table: {table.folder} holds no answer for image {sample}; it is of other training images"
        )


def test_a_mixed_view_is_not_answered_by_a_finite_table(finite):
    mixed = student_view(chosen(), 0, REPLAY)
    with pytest.raises(AssertionError, match="a mixed view has no number"):
        finite(mixed)


@pytest.mark.parametrize("spec", [FINITE, REPLAY])
def test_rows_do_not_depend_on_how_slices_are_spread_over_shards(tmp_path, monkeypatch, spec):
    slices = view_count(spec) or EPOCHS
    view = student_view(chosen()[::-1].copy(), 3, spec)
    found = []
    for shard_bytes in (1, 1500, 1 << 28):
        monkeypatch.setattr(storage, "SHARD_BYTES", shard_bytes)
        monkeypatch.setattr(storage, "FEWEST_SHARDS", 2)
        folder = tmp_path / str(shard_bytes)
        filled(folder, key(spec), slices=slices)
        found.append(Table(folder, key(spec), chosen(), slices=slices, hashes=True)(view)["logits"])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 10**7), slices=st.integers(1, 2000), width=st.integers(1, 2000))
def test_every_slice_has_one_place_and_shards_are_bounded(samples, slices, width):
    layout = Layout.of(samples=samples, slices=slices, outputs={"logits": width})
    spread = [number for shard in range(layout.shards) for number in layout.slices_of(shard)]
    assert spread == list(range(slices))
    assert sum(layout.shard_bytes(shard) for shard in range(layout.shards)) == layout.nbytes
    assert layout.slices_per_shard == 1 or layout.shard_bytes(0) <= 256 << 20


@pytest.mark.parametrize("spec", [FINITE, REPLAY, Augment(seed=1)])
def test_rows_computed_again_agree(tmp_path, spec):
    slices = view_count(spec) or EPOCHS
    form = "replay" if spec == REPLAY else "finite"
    filled(tmp_path, key(spec, form=form), slices=slices)
    table = Table(tmp_path, key(spec, form=form), chosen(), slices=slices)
    for seed in range(5):
        assert table.check(Pixels(), images(), seed=seed) < 0.001


def test_another_teacher_or_other_views_under_the_right_key_are_found_out(finite):
    for teacher, source in ((Pixels(seed=1), images()), (Pixels(), images(seed=1))):
        with pytest.raises(UserError) as error:
            finite.check(teacher, source, seed=0)
        text = str(error.value)
        assert text.startswith(
            f"table: {finite.folder} is of another teacher or other views: of 8 rows computed again one is off by "
        )
        assert text.endswith("% of the largest value (at most 0.5%); delete the folder to have it built anew")


def test_a_table_answers_from_many_processes_at_once_without_being_changed(finite):
    before = [part.copy() for part in finite.maps]
    rows = finite(student_view(chosen(), 0, FINITE))["logits"]
    rows.add_(1)
    assert all(np.array_equal(old, new) for old, new in zip(before, finite.maps, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("fits", [True, False])
def test_answers_on_a_gpu_are_those_of_the_files(finite, replay, monkeypatch, fits):
    if not fits:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4, 4))
    for table, spec in ((finite, FINITE), (replay, REPLAY)):
        fresh = Table(table.folder, table.key, chosen(), slices=table.layout.slices)
        for epoch in (0, 3, 1):
            view = student_view(chosen(), epoch, spec)
            on_gpu = View(images=view.images.cuda(), sample_ids=view.sample_ids, epoch=epoch)
            rows = fresh(on_gpu)["logits"]
            assert rows.is_cuda and (fresh.resident is not None) == fits
            assert torch.equal(rows.cpu(), table(view)["logits"])
