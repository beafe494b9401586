"""Sources whose targets are pictures: patches, whole images, views of both alike, hashes of whole images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_dense import SIZES, open_source, pair

from pipeline.data.augment import view_at, view_count, view_index, views
from pipeline.data.drawn import borders, picture
from pipeline.data.feed import view_batches
from pipeline.data.loader import batches
from pipeline.data.pictures import Patches, WholePictures, picture_source, split_images
from pipeline.data.source import Source
from pipeline.data.split import calibration_indices, image_hashes, make_splits, origin_hashes
from pipeline.errors import UserError
from pipeline.recipe import Augment, Data
from pipeline.teacher_table.decide import view_count as planned_count

ALL = np.arange(160)


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(Data.model_construct(name="toy"))


def spec(**changes: object) -> Augment:
    return Augment.model_validate({"seed": 3, "dihedral": True} | changes)


def shrunk(targets: np.ndarray) -> np.ndarray:
    """What the toy's inputs are of targets (B, 2H, 2W, 3)."""
    count, height, width, _ = targets.shape
    return targets.reshape(count, height // 2, 2, width // 2, 2, 3).mean((2, 4)) / 2


def test_patches_are_cut_at_the_same_place_of_input_and_target(source: Source) -> None:
    images, targets = source.train.load(ALL), source.train.targets(ALL)  # type: ignore[attr-defined]
    assert images.shape == (160, 12, 12, 3) and targets.shape == (160, 24, 24, 3) and images.dtype == np.uint8
    assert np.abs(images - shrunk(targets)).max() <= 0.5
    np.testing.assert_array_equal(source.train.load(ALL[::-1])[::-1], images)
    assert len({image.tobytes() for image in images}) > 140, "a sample's place follows from its number"


def test_whole_images_have_any_size_and_their_middle_that_of_a_patch(source: Source) -> None:
    assert source.validation is not None and len(source.validation) == SIZES["validation"][0]
    ((image, target),) = source.validation.pairs(np.array([3]))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(image, pair(3, 34, 30, 1)[0])
    assert target.shape == (34, 30, 3)
    np.testing.assert_array_equal(source.validation.load(np.array([3]))[0], image[2:14, 1:13])


def test_a_pair_smaller_than_a_patch_is_padded_alike() -> None:
    image, target = pair(0, 10, 40, 0)
    held = WholePictures([(image, target)], patch=12, scale=2, target_channels=3, channels=3)
    got, wanted = held.both(np.array([0]))
    assert got.shape == (1, 12, 12, 3) and np.abs(got - shrunk(wanted)).max() <= 0.5


def test_further_channels_of_a_target_are_for_the_metric_alone() -> None:
    image, target = pair(0, 40, 40, 0)
    held = Patches(
        [(image, np.concatenate([target, target], 2))], patch=12, scale=2, target_channels=3, channels=3, per_image=2
    )
    assert held.targets(np.array([0, 1])).shape == (2, 24, 24, 3)
    assert next(held.pairs(np.array([0])))[1].shape == (40, 40, 6)


def test_a_view_of_the_input_is_that_of_its_target(source: Source) -> None:
    seen = set()
    for epoch in range(3):
        for view, target in view_batches(
            source.train, ALL, 16, spec=spec(), epoch=epoch, pool=ALL, num_classes=3, device=torch.device("cpu")
        ):
            assert target.dtype == torch.float32 and target.shape[1:] == (3, 24, 24) and target.min() >= 0
            back = (target * 255).permute(0, 2, 3, 1).numpy()
            assert np.abs(view.images.permute(0, 2, 3, 1).numpy() - shrunk(back)).max() <= 0.51
            seen.update(view_index(view.sample_ids, epoch, spec()).tolist())
    assert seen == set(range(8))


def test_turns_are_the_eight_of_a_square_and_pure_functions_of_their_number() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 6, 6, 3), dtype=np.uint8))
    assert view_count(spec()) == planned_count(spec()) == 8
    assert view_count(spec(pad_crop=1, flip=True)) == planned_count(spec(pad_crop=1, flip=True)) == 144
    turned = {view_at(image, [number], spec()).contiguous().numpy().tobytes() for number in range(8)}
    wanted = {
        np.ascontiguousarray(np.rot90(part, times).transpose(2, 0, 1)[None]).tobytes()
        for part in (image[0].numpy(), image[0].numpy()[:, ::-1])
        for times in range(4)
    }
    assert turned == wanted
    many = image.repeat(40, 1, 1, 1)
    whole = views(many, np.arange(40), 5, spec())
    assert torch.equal(views(many[7:8], [7], 5, spec()), whole[7:8])
    with pytest.raises(UserError, match=r"augment\.dihedral turns square images only, and these are 6x4; take flip"):
        views(image[:, :, :4], [0], 0, spec())


def test_workers_give_what_one_process_gives(source: Source) -> None:
    streamed = Patches(
        [pair(index, 40, 48, 0) for index in range(4)],
        patch=12, scale=2, target_channels=3, channels=3, per_image=8, streamed=True,
    )  # fmt: skip
    order = np.arange(32)[::-1]
    alone, together = (list(batches(streamed, order, 8, workers=workers)) for workers in (0, 1))
    for (ids, images, targets), (other, *tensors) in zip(alone, together, strict=True):
        assert (ids == other).all() and torch.equal(images, tensors[0]) and torch.equal(targets, tensors[1])


def test_calibration_takes_no_patch_of_a_picture_that_judges(source: Source) -> None:
    splits = make_splits(source, validation=0.5, seed=0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [160, 12, 14]
    forbidden = set(origin_hashes(source.train, np.array([0, 159])))
    chosen = calibration_indices(splits, source.train.labels, 100, seed=0, images=source.train, exclude=forbidden)
    assert len({*image_hashes(source.train, chosen)}) == 100
    assert {0, 19}.isdisjoint(index // 8 for index in chosen), "no patch of the first nor of the last picture"
    assert len(set(origin_hashes(source.train, np.arange(8)))) == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"test": []}, "toy: test: no images; a data set needs some in train, validation and test"),
        ({"test": [pair(0, 8, 8, 0)]}, "toy: test: one image only; a paired interval needs two or more"),
        ({"scale": 4}, "toy: train: an input of (20, 24, 3) has a target of (40, 48, 3); expected (80, 96) with 3"),
        ({"target_channels": 4}, "expected (40, 48) with 4 channels or more (scale = 2)"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(change: dict[str, object], text: str) -> None:
    held = [pair(index, 40, 48, 0) for index in range(2)]
    settings: dict[str, object] = {"train": held, "validation": held, "test": held, "scale": 2, "target_channels": 3}
    with pytest.raises(UserError) as error:
        picture_source(name="toy", where="toy", patch=12, per_image=2, **settings | change)  # type: ignore[arg-type]
    assert text in str(error.value)


def test_images_are_split_by_their_number_alone() -> None:
    kept, taken = split_images(20, 0.25)
    assert sorted([*kept, *taken]) == list(range(20)) and len(taken) == 5
    assert [part.tolist() for part in split_images(20, 0.25)] == [kept.tolist(), taken.tolist()]
    assert [len(part) for part in split_images(2, 0.01)] == [1, 1]


def test_drawn_pictures_are_pure_functions_with_known_borders() -> None:
    image, regions = picture(3, 40, 50, seed=1)
    assert image.shape == (40, 50, 3) and image.dtype == np.uint8 and (picture(3, 40, 50, seed=1)[0] == image).all()
    assert (picture(4, 40, 50, seed=1)[0] != image).any() and len(np.unique(regions)) > 2
    edge = borders(regions)
    assert edge.any() and not borders(np.zeros((4, 4), np.int64)).any()
    assert borders(np.array([[0, 1], [0, 1]])).tolist() == [[True, False], [True, False]]
