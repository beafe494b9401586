import json
import os

import numpy as np
import pytest
from PIL import Image

from pipeline.data import open_source
from pipeline.data.loader import batches
from pipeline.data.source import InMemory
from pipeline.data.split import image_hashes
from pipeline.data.unlabelled import Joined, open_unlabelled, unlabelled_stamp, unseen, with_unlabelled
from pipeline.errors import UserError
from pipeline.recipe import Data, Recipe
from pipeline.stage import Context
from pipeline.stages import data as data_stage

SIDE = 16


def draw(path, seed, height=20, width=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def labelled_folder(root, count=10):
    for label, name in enumerate(["cat", "dog"]):
        for index in range(count):
            draw(root / name / f"{index}.png", 100 * label + index)
    return root


def loose_folder(root):
    for index, name in enumerate(["b.png", "a.jpg", "deep/er/c.bmp", "deep/d.webp", ".hidden.png", "notes.txt"]):
        draw((root / name).with_suffix(".png") if name == "notes.txt" else root / name, 5000 + index)
    (root / "notes.png").rename(root / "notes.txt")
    return root


def recipe_for(data):
    return Recipe.model_validate(
        {
            "name": "test",
            "data": data,
            "teacher": {"model": "mlperf-resnet8"},
            "student": {"model": "mlperf-resnet8"},
            "quantize": {"samples": 4},
        }
    )


def run_stage(recipe, folder):
    """The data stage alone: (what it prepared, what it said)."""
    said = []
    folder.mkdir(exist_ok=True)
    data_stage.run(recipe, Context(stage=data_stage.stage(recipe), folder=folder, inputs={}, say=said.append))
    return data_stage.prepared(recipe, folder), said


@pytest.fixture
def roots(tmp_path):
    return labelled_folder(tmp_path / "labelled"), loose_folder(tmp_path / "loose")


def folder(root, loose, **keys):
    return Data(name="imagefolder", root=str(root), image_size=SIDE, unlabelled=str(loose), **keys)


def refusal(data, shape=(SIDE, SIDE, 3)):
    with pytest.raises(UserError) as caught:
        open_unlabelled(data, shape)
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_any_depth_are_cut_as_imagefolder_cuts_them(roots, workers):
    found = open_unlabelled(folder(*roots, workers=workers), (SIDE, SIDE, 3)).images
    assert found.labels.tolist() == [-1] * 4 and found.labels.dtype == np.int64
    assert found.shape == (SIDE, SIDE, 3) and not found.streamed
    # The same files as classes of a labelled folder.
    twin = roots[1].parent / "twin"
    for name, target in {"a.jpg": "x/a.jpg", "b.png": "x/b.png", "deep/d.webp": "y/d.webp"}.items():
        (twin / target).parent.mkdir(parents=True, exist_ok=True)
        (twin / target).write_bytes((roots[1] / name).read_bytes())
    draw(twin / "y/other.png", 1)
    source = open_source(Data(name="imagefolder", root=str(twin), image_size=SIDE))
    expected = set(image_hashes(source.train)) | set(image_hashes(source.test))
    assert len(expected & set(image_hashes(found))) == 3


def test_streamed_images_are_the_same(roots):
    memory = open_unlabelled(folder(*roots), (SIDE, SIDE, 3))
    streamed = open_unlabelled(folder(*roots, memory_limit_mb=0), (SIDE, SIDE, 3))
    assert streamed.images.streamed and streamed.fingerprint == memory.fingerprint
    order = np.array([2, 0, 3])
    np.testing.assert_array_equal(streamed.images.load(order), memory.images.load(order))
    assert image_hashes(streamed.images) == image_hashes(memory.images)


@pytest.mark.parametrize("limit", [0, 100])
def test_gray_data_sets_get_the_luma(roots, limit):
    gray = open_unlabelled(folder(*roots, memory_limit_mb=limit), (SIDE, SIDE, 1)).images
    colour = open_unlabelled(folder(*roots), (SIDE, SIDE, 3)).images
    assert gray.shape == (SIDE, SIDE, 1)
    for one, other in zip(gray.load(np.arange(4)), colour.load(np.arange(4)), strict=True):
        np.testing.assert_array_equal(one[..., 0], np.asarray(Image.fromarray(other).convert("L")))


@pytest.mark.parametrize("limits", [(100, 100), (0, 100), (100, 0), (0, 0)])
def test_joined_images_keep_their_places(roots, limits):
    first = open_source(folder(*roots, memory_limit_mb=limits[0])).train
    second = open_unlabelled(folder(*roots, memory_limit_mb=limits[1]), first.shape).images
    joined = with_unlabelled(first, second)
    assert joined is with_unlabelled(first, second)
    assert isinstance(joined, InMemory) == (limits == (100, 100)) and joined.streamed == (0 in limits)
    assert len(joined) == len(first) + 4 and joined.shape == first.shape
    np.testing.assert_array_equal(joined.labels, [*first.labels, -1, -1, -1, -1])
    order = np.array([len(first) + 2, 0, len(first), 5, 1])
    expected = np.stack([second.load(np.array([2]))[0], *first.load(np.array([0]))])
    np.testing.assert_array_equal(joined.load(order)[:2], expected)
    parts = list(batches(joined, order, 2, workers=2))
    np.testing.assert_array_equal(np.concatenate([pixels for _, pixels, _ in parts]), joined.load(order))
    assert np.concatenate([labels for _, _, labels in parts])[[0, 2]].tolist() == [-1, -1]
    none = np.zeros(0, np.int64)
    assert joined.load(none).shape == Joined(first, second).load(none).shape == (0, SIDE, SIDE, 3)


def test_the_stage_leaves_out_what_is_held_out(roots, tmp_path):
    root, loose = roots
    plain, _ = run_stage(recipe_for({"name": "imagefolder", "root": str(root), "image_size": SIDE}), tmp_path / "0")
    hidden = set(image_hashes(plain.source.test)) | set(image_hashes(plain.source.train, plain.validation))
    for path in sorted(root.glob("*/*.png")):  # every labelled image once more, under other names
        (loose / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    recipe = recipe_for({"name": "imagefolder", "root": str(root), "image_size": SIDE, "unlabelled": str(loose)})
    data, said = run_stage(recipe, tmp_path / "1")
    assert len(hidden) == 10 and data.facts["unlabelled"]["left_out"] == 10 and data.facts["unlabelled"]["n"] == 14
    assert said[0].endswith("; 14 unlabelled (10 left out: they stand in the test or validation split)")
    assert data.unlabelled is not None and len(data.unlabelled) == 24
    images, train = data.distillation_images, data.distillation_train
    assert (np.diff(train) > 0).all() and len(train) == len(data.train) + 14
    assert not hidden & set(image_hashes(images, train))
    np.testing.assert_array_equal(train[: len(data.train)], data.train)
    assert (images.labels[train[len(data.train) :]] == -1).all()
    np.testing.assert_array_equal(images.load(data.validation), data.source.train.load(data.validation))


def test_a_recipe_without_them_keeps_its_facts_and_its_stage(roots, tmp_path):
    plain = recipe_for({"name": "imagefolder", "root": str(roots[0]), "image_size": SIDE})
    data, said = run_stage(plain, tmp_path / "plain")
    assert "unlabelled" not in data_stage.stage(plain).config["data"]
    assert "unlabelled" not in data.facts and "unlabelled" not in said[0]
    assert data.unlabelled is None and data.distillation_images is data.source.train
    assert data.distillation_train is data.train
    with np.load(tmp_path / "plain" / "splits.npz") as arrays:
        assert arrays.files == ["train", "validation", "test", "calibration"]
    more = recipe_for({"name": "imagefolder", "root": str(roots[0]), "image_size": SIDE, "unlabelled": str(roots[1])})
    other, _ = run_stage(more, tmp_path / "more")
    assert {name: fact for name, fact in other.facts.items() if name != "unlabelled"} == data.facts
    assert data_stage.stage(more).config["data"]["unlabelled"] == str(roots[1])


def test_the_stamp_sees_both_folders(roots):
    root, loose = roots
    plain = recipe_for({"name": "imagefolder", "root": str(root), "image_size": SIDE})
    recipe = recipe_for({"name": "imagefolder", "root": str(root), "image_size": SIDE, "unlabelled": str(loose)})
    stamps = [data_stage.stage(plain).stamp(), data_stage.stage(recipe).stamp()]
    os.utime(loose / "b.png", ns=(1, 1))
    stamps.append(data_stage.stage(recipe).stamp())
    os.utime(root / "cat/0.png", ns=(1, 1))
    stamps.append(data_stage.stage(recipe).stamp())
    assert len({json.dumps(stamp) for stamp in stamps}) == 4
    assert unlabelled_stamp(folder(root, loose / "absent")) is None


def test_images_that_change_between_stages_are_refused(roots, tmp_path):
    root, loose = roots
    recipe = recipe_for({"name": "imagefolder", "root": str(root), "image_size": SIDE, "unlabelled": str(loose)})
    run_stage(recipe, tmp_path / "data")
    draw(loose / "b.png", 1)
    changed = data_stage.prepared(recipe, tmp_path / "data")
    with pytest.raises(UserError) as caught:
        _ = changed.distillation_images
    assert str(caught.value) == "data.unlabelled: its images changed while this run was going on; run it again"


def test_folders_that_cannot_be_used(tmp_path):
    root = labelled_folder(tmp_path / "labelled", 2)
    absent = tmp_path / "absent"
    assert refusal(folder(root, absent)) == (
        f"data.unlabelled: no folder {str(absent)!r}; give a folder of images, or leave the key out"
    )
    absent.write_text("x")
    assert refusal(folder(root, absent)) == f"data.unlabelled: {str(absent)!r} is a file; give a folder of images"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("x")
    assert refusal(folder(root, empty)) == (
        f"data.unlabelled: no images under {str(empty)!r}; it holds no .jpg, .jpeg, .png, .webp, .bmp file at any depth"
    )
    assert refusal(folder(root, root / "cat")) == (
        f"data.unlabelled: {str(root / 'cat')!r} is taken for a class, as it lies among the class folders of "
        "data.root; move it elsewhere"
    )


def test_images_that_are_not_square(roots):
    data = Data(name="arrays", root="x.npz", unlabelled=str(roots[1]))
    assert refusal(data, (28, 20, 1)) == (
        "data.unlabelled: images of 'arrays' have 28x20 pixels, and a folder's images are cut to squares; "
        "set data.image_size to make all of them squares"
    )


def test_every_bad_file_is_named_at_once(roots):
    root, loose = roots
    (loose / "a.jpg").write_bytes(b"")
    (loose / "deep/text.png").write_text("not an image")
    assert refusal(folder(root, loose)).splitlines() == [
        "data.unlabelled: 2 of 5 images cannot be used; mend or remove them:",
        f"  {loose / 'a.jpg'}: empty file",
        f"  {loose / 'deep/text.png'}: not a readable JPEG, PNG, WEBP, BMP image",
    ]


def test_images_of_the_test_split_alone(roots):
    source = open_source(Data(name="imagefolder", root=str(roots[0]), image_size=SIDE))
    with pytest.raises(UserError) as caught:
        unseen(source.test, image_hashes(source.test))
    assert str(caught.value) == (
        f"data.unlabelled: all {len(source.test)} images stand in the test or validation split too, "
        "which distillation must not see; give other images"
    )
