import os
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.data import open_source, stamp
from pipeline.data.loader import batches
from pipeline.data.split import image_hashes
from pipeline.errors import UserError
from pipeline.recipe import Data

SIDE = 16


def draw(path, seed, height=20, width=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def flat_folder(root, count=10):
    for label, name in enumerate(["cat", "dog"]):
        for index in range(count):
            suffix = ["png", "jpg", "JPEG", "bmp", "webp"][index % 5]
            draw(root / name / f"{index}.{suffix}", 100 * label + index, 20 + index, 24)
    return root


def split_folder(root, test="test"):
    for part in ("train", test):
        for label, name in enumerate(["cat", "dog", "owl"]):
            for index in range(3 if part == "train" else 2):
                draw(root / part / name / f"{index}.png", 1000 * (part == "train") + 10 * label + index)
    return root


def folder(root, **keys):
    return Data(name="imagefolder", root=str(root), image_size=SIDE, **keys)


def refusal(data):
    with pytest.raises(UserError) as caught:
        open_source(data)
    return str(caught.value)


def test_one_folder_is_split_by_share_and_path(tmp_path):
    source = open_source(folder(flat_folder(tmp_path)))
    assert source.class_names == ("cat", "dog")
    assert source.train.shape == (SIDE, SIDE, 3) and not source.train.streamed
    assert np.bincount(source.train.labels).tolist() == [6, 6]
    assert np.bincount(source.test.labels).tolist() == [4, 4]
    assert not set(image_hashes(source.train)) & set(image_hashes(source.test))


def test_an_added_file_moves_few_others(tmp_path):
    before = open_source(folder(flat_folder(tmp_path)))
    draw(tmp_path / "cat" / "new.png", 999)
    after = open_source(folder(tmp_path))
    assert before.fingerprint != after.fingerprint
    moved = set(image_hashes(before.train)) & set(image_hashes(after.test))
    assert len(moved) <= 1


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_train_and_test_folders(tmp_path, test):
    source = open_source(folder(split_folder(tmp_path, test)))
    assert source.class_names == ("cat", "dog", "owl")
    assert (len(source.train), len(source.test)) == (9, 6)
    assert source.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_train_folder_alone_is_split(tmp_path):
    shutil.rmtree(split_folder(tmp_path) / "test")
    source = open_source(folder(tmp_path))
    assert (len(source.train), len(source.test)) == (6, 3)


@pytest.mark.parametrize("size", [(20, 24), (33, 17), (16, 16), (8, 31)])
def test_pixels_are_torchvisions_resize_and_centre_crop(tmp_path, size):
    from torchvision import transforms

    for name in ("cat", "dog"):
        for index in range(2):
            draw(tmp_path / name / f"{index}.png", index, *size)
    source = open_source(folder(tmp_path))
    transform = transforms.Compose([transforms.Resize(SIDE), transforms.CenterCrop(SIDE)])
    expected = {np.asarray(transform(Image.open(tmp_path / "cat" / f"{index}.png"))).tobytes() for index in range(2)}
    got = {image.tobytes() for part in (source.train, source.test) for image in part.load(np.arange(2))}
    assert got == expected


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_streamed_images_are_the_same(tmp_path, workers):
    memory = open_source(folder(flat_folder(tmp_path)))
    streamed = open_source(folder(tmp_path, memory_limit_mb=0, workers=workers))
    assert streamed.train.streamed and streamed.fingerprint == memory.fingerprint
    order = np.array([7, 0, 3, 11, 2])
    np.testing.assert_array_equal(streamed.train.load(order), memory.train.load(order))
    np.testing.assert_array_equal(streamed.train.labels, memory.train.labels)
    assert image_hashes(streamed.train) == image_hashes(memory.train)
    parts = list(batches(streamed.train, order, 2, workers=workers))
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), memory.train.load(order))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_while_it_is_streamed(tmp_path, workers):
    source = open_source(folder(flat_folder(tmp_path), memory_limit_mb=0))
    broken = tmp_path / source.train.listing.names[3]
    broken.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        list(batches(source.train, np.arange(6), 2, workers=workers))
    assert str(caught.value) == f"{broken}: empty file; it could be read when this run began"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_changes_while_it_is_streamed(tmp_path, workers):
    source = open_source(folder(flat_folder(tmp_path), memory_limit_mb=0))
    path = source.train.listing.root / source.train.listing.names[3]
    draw(path, 999)  # another image, whole and readable
    with pytest.raises(UserError) as caught:
        list(batches(source.train, np.arange(len(source.train)), 4, workers=workers))
    assert str(caught.value) == f"{path}: changed while this run was going on; run it again"


def test_every_bad_file_is_named_at_once(tmp_path):
    flat_folder(tmp_path)
    empty, cut, text, link = (tmp_path / "cat" / name for name in ("a.jpg", "1.jpg", "z.png", "zz.png"))
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-200])
    text.write_text("not an image")
    link.symlink_to(tmp_path / "nowhere.png")
    pixels = np.zeros((4, 4), np.float32)
    Image.fromarray(pixels).save(tmp_path / "dog" / "float.tiff")  # no image by its name, so it is left out
    message = refusal(folder(tmp_path)).splitlines()
    assert message[0] == "data.root: 4 of 23 images cannot be used; mend or remove them:"
    assert sorted(message[1:]) == sorted(
        [
            f"  {empty}: empty file",
            next(line for line in message if line.startswith(f"  {cut}: image file is truncated")),
            f"  {text}: not a readable JPEG, PNG, WEBP, BMP image",
            f"  {link}: No such file or directory",
        ]
    )


def test_modes_become_rgb(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    ramp = np.tile(np.arange(SIDE, dtype=np.uint16) * 4096, (SIDE, 1))
    Image.fromarray(ramp).save(tmp_path / "cat" / "deep.png")
    gray = Image.fromarray((ramp >> 8).astype(np.uint8))
    gray.save(tmp_path / "cat" / "gray.png")
    clear = gray.convert("RGBA")
    clear.putalpha(7)
    clear.save(tmp_path / "dog" / "alpha.png")
    palette = gray.convert("P")
    palette.info["transparency"] = b"\x01\x02"
    palette.save(tmp_path / "dog" / "palette.png")
    source = open_source(folder(tmp_path))
    expected = np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2)
    for part in (source.train, source.test):
        for image in part.load(np.arange(2)):
            np.testing.assert_array_equal(image, expected)


def test_exif_orientation_is_applied(tmp_path):
    flat_folder(tmp_path, 2)
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "cat" / "0.png", exif=exif)
    source = open_source(folder(tmp_path))
    turned = pixels[::-1].tobytes()
    assert turned in {image.tobytes() for part in (source.train, source.test) for image in part.load(np.arange(2))}


def test_no_folder_and_a_file(tmp_path):
    absent = tmp_path / "absent"
    assert refusal(folder(absent)) == (
        f"data.root: no folder {str(absent)!r}; give the folder that holds the class folders"
    )
    absent.write_text("x")
    assert refusal(folder(absent)) == (
        f"data.root: {str(absent)!r} is a file; 'imagefolder' needs a folder ('arrays' takes .npz files)"
    )


def test_folders_without_classes_or_images(tmp_path):
    draw(tmp_path / "loose.png", 0)
    assert refusal(folder(tmp_path)) == (
        f"data.root: {str(tmp_path)!r} has no class folders; put the images of each class in a folder of its own"
    )
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    assert refusal(folder(tmp_path)) == (
        f"data.root: no images under {str(tmp_path)!r}; its class folders hold no .jpg, .jpeg, .png, .webp, .bmp file"
    )
    draw(tmp_path / "cat" / "0.png", 0)
    assert refusal(folder(tmp_path)) == (
        f"data.root: class folder {str(tmp_path / 'dog')!r} holds no .jpg, .jpeg, .png, .webp, .bmp file; "
        "fill or remove it"
    )


def test_one_class_only(tmp_path):
    draw(tmp_path / "cat" / "0.png", 0)
    assert refusal(folder(tmp_path)) == (
        f"data.root: {str(tmp_path)!r} has one class only ('cat'); a classifier needs two or more"
    )


def test_one_image_a_class(tmp_path):
    draw(tmp_path / "cat" / "0.png", 0)
    draw(tmp_path / "dog" / "0.png", 1)
    assert refusal(folder(tmp_path)) == (
        f"data.root: {str(tmp_path)!r} has one image a class; none is left for a test split"
    )


def test_a_test_class_that_train_does_not_have(tmp_path):
    draw(split_folder(tmp_path) / "test" / "zebra" / "0.png", 0)
    assert refusal(folder(tmp_path)) == (
        f"data.root: {str(tmp_path / 'test' / 'zebra')!r} is a class that {str(tmp_path / 'train')!r} does not have"
    )


def test_links_to_parents_end(tmp_path):
    flat_folder(tmp_path)
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    assert len(open_source(folder(tmp_path)).train) == 12
    assert stamp(folder(tmp_path))["files"] >= 20


def test_stamp_sees_changed_and_added_files(tmp_path):
    data = folder(flat_folder(tmp_path))
    first = stamp(data)
    assert first == stamp(data) and first["files"] == 20
    os.utime(tmp_path / "cat" / "0.png", ns=(1, 1))
    second = stamp(data)
    draw(tmp_path / "dog" / "more.png", 0)
    assert len({str(first), str(second), str(stamp(data))}) == 3
    assert stamp(folder(tmp_path / "absent")) is None
