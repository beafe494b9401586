"""A key is equal exactly where the answers are, and says in which field two tables differ."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import augment
from pipeline.errors import UserError
from pipeline.recipe import Augment
from pipeline.teacher_table.decide import decide, form_of, live_for_maps, view_count
from pipeline.teacher_table.key import differences, ids_digest, teachers_digest
from pipeline.teacher_table.storage import Layout, check_key, header_of
from tests.table_parts import FINITE, REPLAY, key

CHANGES = {
    "form": ("finite", "form: replay there, finite here"),
    "teacher": ("t" * 64, "teacher (sha256 of its weights): "),
    "mean": ((0.1, 0.2, 0.3), "mean of the teacher's preprocessing: [0.5, 0.5, 0.5] there, [0.1, 0.2, 0.3] here"),
    "std": ((0.1, 0.2, 0.3), "std of the teacher's preprocessing: [0.25, 0.25, 0.25] there, [0.1, 0.2, 0.3] here"),
    "dtype": ("bf16", "precision of the teacher: fp32 there, bf16 here"),
    "augment_version": (99, "version of the augmentation: 1 there, 99 here"),
    "data": ("d" * 64, "data (fingerprint): "),
    "ids": (ids_digest(np.arange(5)), "choice of training images (sha256 of their ids): "),
    "image_shape": ((8, 6, 3), "image shape: [6, 6, 3] there, [8, 6, 3] here"),
}
AUGMENTS = {
    "dihedral": True,
    "seed": 4,
    "pad_crop": 2,
    "flip": False,
    "brightness": 0.5,
    "contrast": 0.1,
    "saturation": 0.1,
}
AUGMENTS |= {"cutout": 3, "mixup": 0.3, "cutmix": 0.0, "mix_probability": 0.5}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_tells_tables_apart_and_is_named(tmp_path, field):
    value, text = CHANGES[field]
    ours, other = key(REPLAY), key(REPLAY, **{field: value})
    assert ours.hash != other.hash
    (found,) = differences(ours.identity(), other.identity())
    assert found.startswith(text)
    header = header_of(ours, Layout.of(samples=26, slices=5, outputs={"logits": 5}), None)
    with pytest.raises(UserError) as error:
        check_key(tmp_path, header, other, slices=1)
    assert str(error.value) == (
        f"table: {tmp_path} is another table: {found}; give the table of this teacher, data and augmentation, or leave "
        "table empty to build one"
    )


@pytest.mark.parametrize("field", AUGMENTS)
def test_every_part_of_the_augmentation_tells_replay_tables_apart(field):
    ours, other = key(REPLAY), key(REPLAY, augment=REPLAY.model_copy(update={field: AUGMENTS[field]}))
    assert ours.hash != other.hash
    (found,) = differences(ours.identity(), other.identity())
    there = "nothing" if field in Augment.later else getattr(REPLAY, field)  # a later key is left out at its default
    assert found == f"augment.{field}: {there} there, {AUGMENTS[field]} here"


def test_the_table_names_every_field_of_the_recipe():
    assert set(AUGMENTS) == set(Augment.model_fields)


def test_the_seed_of_the_views_is_left_out_of_a_finite_key():
    assert key(FINITE).hash == key(FINITE, augment=FINITE.model_copy(update={"seed": 9})).hash


def test_a_probability_of_mixing_means_nothing_without_mixing():
    spec = FINITE.model_copy(update={"mix_probability": 0.25})
    assert key(FINITE).hash == key(FINITE, augment=spec).hash
    assert key(REPLAY).hash != key(REPLAY, augment=REPLAY.model_copy(update={"mix_probability": 0.25})).hash


def test_a_table_with_more_outputs_serves_fewer_and_not_the_other_way_round(tmp_path):
    both = key(FINITE, outputs=("logits", "body.pool"))
    layout = {"samples": 26, "slices": 18}
    check_key(
        tmp_path,
        header_of(both, Layout.of(**layout, outputs={"logits": 5, "body.pool": 3}), None),
        key(FINITE),
        slices=18,
    )
    with pytest.raises(UserError, match=r"outputs: logits there, body\.pool wanted too; give"):
        check_key(tmp_path, header_of(key(FINITE), Layout.of(**layout, outputs={"logits": 5}), None), both, slices=18)
    assert both.hash != key(FINITE).hash


def test_several_teachers_are_told_by_all_of_them_and_their_shares():
    one, two = "a" * 64, "b" * 64
    assert teachers_digest((one,), (3.0,)) == one
    found = {teachers_digest((one, two), (1.0, 1.0)), teachers_digest((two, one), (1.0, 1.0))}
    found |= {teachers_digest((one, two), (1.0, 2.0))}
    assert len(found) == 3
    assert teachers_digest((one, two), (2.0, 2.0)) == teachers_digest((one, two), (1.0, 1.0))


def test_ids_must_be_sorted_and_are_told_by_their_values():
    assert ids_digest(np.array([1, 2])) == ids_digest(np.array([1, 2], dtype=np.int32))
    assert ids_digest(np.array([1, 2])) != ids_digest(np.array([1, 3]))
    for wrong in ([2, 1], [1, 1]):
        with pytest.raises(AssertionError, match="sample ids must be sorted, each once"):
            ids_digest(np.array(wrong))


@given(
    st.builds(
        Augment,
        pad_crop=st.integers(0, 9),
        flip=st.booleans(),
        brightness=st.sampled_from([0.0, 0.5]),
        contrast=st.sampled_from([0.0, 0.5]),
        saturation=st.sampled_from([0.0, 0.5]),
        cutout=st.sampled_from([0, 4]),
        mixup=st.sampled_from([0.0, 1.0]),
        cutmix=st.sampled_from([0.0, 1.0]),
        mix_probability=st.sampled_from([0.0, 1.0]),
    )
)
def test_views_are_counted_alike_with_and_without_torch(spec):
    assert view_count(spec) == augment.view_count(spec)


def test_the_smaller_table_is_chosen():
    assert [form_of(162, 161), form_of(162, 162), form_of(None, 1000), form_of(1, 1)] == [
        "replay",
        "finite",
        "replay",
        "finite",
    ]


CIFAR = {
    "view_count": 162,
    "epochs": 60,
    "samples": 45_000,
    "width": 10,
    "teacher_s": 0.0004,
    "student_s": 0.0006,
    "free_bytes": 10**11,
}


def decided(outputs="auto", **changes):
    return decide(outputs, **(CIFAR | changes))


def test_auto_reads_a_table_when_the_teacher_costs_something_and_the_disk_allows():
    assert decided().form == "replay"
    assert decided().reason == (
        "replay table of 60 epochs, 54.0 MB: the teacher takes 40% of a step; filling it costs 100% of a live "
        "teacher's work in 1 run"
    )
    assert decided(epochs=240, readers=3).reason == (
        "finite table of 162 views an image, 145.8 MB: the teacher takes 40% of a step; filling it costs 22% of a live "
        "teacher's work in 3 runs"
    )


def test_a_cheap_teacher_answers_live():
    found = decided(teacher_s=0.00001)
    assert found.form == "live"
    assert found.reason == "live: the teacher takes 2% of a step, less than a table would save"


def test_one_run_alone_takes_little_of_the_disk_and_several_may_take_most_of_it():
    small = {"free_bytes": 530_000_000}
    assert decided(**small).reason == (
        "live: a replay table of 60 epochs, 54.0 MB would take more than 10% of 530.0 MB free"
    )
    assert decided(**small, readers=3).form == "replay"
    assert decided(free_bytes=59_000_000, readers=3).form == "live"
    assert decided(**small, epochs=200).form == "finite", "it saves work for one run alone"


def test_what_is_asked_for_is_given():
    assert decided("live").form == "live"
    assert decided("table", free_bytes=1, teacher_s=0.0).form == "replay"
    assert decided("table", epochs=200).reason == (
        "finite table of 162 views an image, 145.8 MB: teacher_outputs = 'table'"
    )
    assert live_for_maps(["layer2", "layer3"]).reason == "live: a table holds no feature maps (layer2, layer3)"
