"""Photographs as a source: splits by whole images, reductions, the border of the metric, faults in plain lines."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import SERVES, open_source, stamp
from pipeline.data.bicubic import modcrop, shrink
from pipeline.data.source import Source
from pipeline.errors import RecipeError, UserError
from pipeline.recipe import Data


def save(path: Path, seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def opened(root: Path, **keys: object) -> Source:
    return open_source(Data.model_validate({"name": "photographs", "root": str(root), "patch": 8, **keys}))


def wholes(images) -> list[np.ndarray]:
    return [target[..., :3] for _, target in images.pairs(np.arange(len(images)))]


@pytest.fixture
def three_folders(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for index in range(count):
            save(tmp_path / split / f"{index}.png", seed=len(split) * 10 + index, height=40 + index, width=51)
    return tmp_path


def test_folders_named_train_val_and_test_are_taken_as_they_are(three_folders: Path) -> None:
    source = opened(three_folders, patches=5)
    assert (len(source.train), len(source.test)) == (15, 2) and source.validation is not None
    assert len(source.validation) == 2
    assert source.train.shape == (8, 8, 3) and source.target_shape == (32, 32, 3)
    assert (source.mean, source.std) == ((0, 0, 0), (1, 1, 1))
    photograph = np.asarray(Image.open(three_folders / "test" / "1.png"))
    (image, target) = next(iter(source.test.pairs(np.array([1]))))
    assert target.shape == (40, 48, 4)  # 41x51, cut to multiples of 4
    assert np.array_equal(target[..., :3], modcrop(photograph, 4))
    assert np.array_equal(image, shrink(modcrop(photograph, 4), 4))
    assert (target[4:-4, 4:-4, 3] == 255).all() and target[..., 3].sum() == 255 * 32 * 40


def test_a_patch_of_the_input_belongs_to_its_patch_of_the_target(three_folders: Path) -> None:
    source = opened(three_folders, patches=6)
    indices = np.arange(len(source.train))
    inputs, targets = source.train.load(indices), source.train.targets(indices)
    assert inputs.shape == (18, 8, 8, 3) and targets.shape == (18, 32, 32, 3)
    for small, large in zip(inputs, targets, strict=True):
        inner = shrink(large, 4).astype(int)[3:-3, 3:-3]  # beyond the kernel's reach of the patch's own border
        assert abs(inner - small[3:-3, 3:-3]).max() == 0


@pytest.mark.parametrize("scale", [2, 3])
def test_other_scales_and_the_blur(three_folders: Path, scale: int) -> None:
    sharp, soft = opened(three_folders, scale=scale), opened(three_folders, scale=scale, blur=1.5)
    assert sharp.target_shape == (8 * scale, 8 * scale, 3)
    (image, target), (blurred, same) = (next(iter(s.test.pairs(np.array([0])))) for s in (sharp, soft))
    assert np.array_equal(target, same) and blurred.std() < image.std()
    assert target.shape[0] == scale * image.shape[0] and not target[:scale, :, 3].any()
    assert sharp.fingerprint != soft.fingerprint


def test_one_folder_is_split_by_whole_photographs_and_adding_one_moves_few(tmp_path: Path) -> None:
    for index in range(40):
        save(tmp_path / f"holiday{index % 3}" / f"{index:02}.png", seed=index)
    source = opened(tmp_path, test=0.25, validation=0.2)
    assert source.validation is not None
    assert (len(source.train) // 16, len(source.validation), len(source.test)) == (24, 6, 10)
    of_train = {bytes(photograph) for photograph in wholes_of_train(source)}
    tested, validated = ({bytes(w) for w in wholes(part)} for part in (source.test, source.validation))
    assert len(of_train | tested | validated) == 40
    again = opened(tmp_path, test=0.25, validation=0.2)
    assert again.fingerprint == source.fingerprint
    save(tmp_path / "new.png", seed=99)
    moved = {bytes(w) for w in wholes(opened(tmp_path, test=0.25, validation=0.2).test)}
    assert len(moved & tested) >= 9


def wholes_of_train(source: Source) -> list[np.ndarray]:
    return [source.train.all[index][1] for index in range(len(source.train) // 16)]


def test_a_folder_too_large_for_memory_is_read_again_and_gives_the_same(three_folders: Path) -> None:
    kept, streamed = opened(three_folders), opened(three_folders, memory_limit_mb=0)
    assert not kept.train.streamed and streamed.train.streamed
    assert kept.fingerprint == streamed.fingerprint
    indices = np.arange(len(kept.train))
    assert np.array_equal(kept.train.load(indices), streamed.train.load(indices))
    for a, b in zip(wholes(kept.test), wholes(streamed.test), strict=True):
        assert np.array_equal(a, b)


def test_the_stamp_sees_a_changed_file(three_folders: Path) -> None:
    data = Data(name="photographs", root=str(three_folders))
    before = stamp(data)
    save(three_folders / "train" / "0.png", seed=1234, height=64)
    assert stamp(data) != before and stamp(data)["files"] == 7
    assert stamp(Data(name="photographs", root=str(three_folders / "none"))) is None


def test_gray_turned_and_transparent_photographs_become_rgb(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for index in range(2):
            save(tmp_path / split / f"{index}.png", seed=index)
    Image.new("L", (48, 40), 99).save(tmp_path / "test" / "a_gray.png")
    turned = Image.new("RGB", (64, 40), (9, 99, 200))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "test" / "b_turned.jpg", exif=exif)
    shapes = [target.shape[:2] for _, target in opened(tmp_path).test.pairs(np.arange(4))]
    assert shapes[2:] == [(40, 48), (64, 40)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"^data.root: no photographs in '.*'; .jpg, .jpeg, .png, .webp and .bmp are read$"),
        (lambda root: (root / "train").mkdir(), r"^data.root: '.*train' holds no photograph; fill or remove it$"),
        (lambda root: [save(root / f"{i}.png", i) for i in range(3)], r"too few photographs to keep 2 of 3 apart"),
        (
            lambda root: [save(root / f"{i}.png", i, height=20 if i == 3 else 40) for i in range(12)],
            r"data.root: 1 of 12 image cannot be used; mend or remove it:\n  .*3.png: 20x50 pixels; a .* needs 32",
        ),
        (
            lambda root: [save(root / f"{i}.png", i) for i in range(12)] and (root / "5.png").write_bytes(b"no image"),
            r"5.png: not a readable JPEG, PNG, WEBP, BMP image",
        ),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used(tmp_path: Path, make, message: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_no_folder_and_no_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.root: no folder '.*none'; give a folder of photographs$"):
        opened(tmp_path / "none")
    with pytest.raises(RecipeError, match=r"^data.root is missing: 'photographs' needs a folder of photographs"):
        open_source(Data(name="photographs"))


def test_sample_photographs_are_squares_of_other_places_in_each_split() -> None:
    if find_spec("sklearn") is None:  # importing it would take seconds
        pytest.skip("scikit-learn is not installed")
    source = open_source(Data(name="sample-photographs", patch=16, patches=2))
    assert source.validation is not None
    assert (len(source.train), len(source.validation), len(source.test)) == (48, 8, 16)
    parts = [wholes(source.validation), wholes(source.test), [source.train.all[index][1] for index in range(24)]]
    squares = [bytes(square) for part in parts for square in part]
    assert len(set(squares)) == 48 and all(square.shape == (104, 104, 3) for part in parts for square in part)


def test_bsds500s_photographs_need_no_boundaries(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("val", 2), ("test", 3)):
        for index in range(count):
            save(tmp_path / "images" / split / f"{index}.jpg", seed=index)
    source = open_source(Data(name="bsds500-photographs", root=str(tmp_path), patch=8))
    assert (len(source.train), len(source.test)) == (32, 3)
    assert stamp(Data(name="bsds500-photographs", root=str(tmp_path)))
    assert {SERVES[name] for name in SERVES if name.endswith("photographs")} == {("super-resolution",)}
