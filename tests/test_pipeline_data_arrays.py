import os

import numpy as np
import pytest

from pipeline.data import open_source, stamp
from pipeline.errors import UserError
from pipeline.recipe import Data


def good(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (12, 8, 6, 3), np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (4, 8, 6, 3), np.uint8),
        "y_test": np.array([0, 1, 1, 0]),
    } | changes
    return {key: value for key, value in arrays.items() if value is not None}


def saved(folder, **changes):
    path = folder / "set.npz"
    np.savez(path, **good(**changes))
    return Data(name="arrays", root=str(path))


def test_arrays_arrive_as_they_are(tmp_path):
    arrays = good(class_names=np.array(["ant", "bee", "cow"]))
    source = open_source(saved(tmp_path, **arrays))
    assert (source.name, source.class_names) == ("arrays", ("ant", "bee", "cow"))
    assert source.train.shape == (8, 6, 3) and len(source.train) == 12 and not source.train.streamed
    np.testing.assert_array_equal(source.train.load(np.array([3, 1])), arrays["x_train"][[3, 1]])
    np.testing.assert_array_equal(source.test.labels, arrays["y_test"])
    assert source.train.labels.dtype == np.int64


def test_gray_images_and_column_labels(tmp_path):
    arrays = good()
    gray = {key: arrays[key][..., 0] for key in ("x_train", "x_test")}
    columns = {key: arrays[key].astype(np.uint8)[:, None] for key in ("y_train", "y_test")}
    source = open_source(saved(tmp_path, **gray, **columns))
    assert source.train.shape == (8, 6, 1)
    assert source.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(source.train.labels, arrays["y_train"])


def test_fingerprint_follows_the_content(tmp_path):
    first = open_source(saved(tmp_path)).fingerprint
    assert first == open_source(saved(tmp_path)).fingerprint
    pixels = good()["x_test"].copy()
    pixels[0, 0, 0, 0] ^= 1
    names = np.array(["a", "b", "c"])
    others = [{"x_test": pixels}, {"y_test": np.array([1, 1, 1, 0])}, {"class_names": names}]
    prints = {open_source(saved(tmp_path, **other)).fingerprint for other in others}
    assert len(prints | {first}) == 4
    assert len(first) == 64


def test_resizing_cuts_the_centre(tmp_path):
    data = saved(tmp_path).model_copy(update={"image_size": 4})
    source = open_source(data)
    assert source.train.shape == (4, 4, 3) and source.test.shape == (4, 4, 3)
    assert source.fingerprint == open_source(saved(tmp_path)).fingerprint


FLOATS = "multiply by 255 if they lie in 0 to 1, and convert with .round().astype(np.uint8)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y_test": None, "x_test": None},
            "no x_test, y_test; it holds x_train, y_train; save it with np.savez and these names",
        ),
        (
            {"x_train": np.zeros((12, 8, 6, 3))},
            f"x_train has dtype float64; images must be uint8, 0 to 255; {FLOATS}",
        ),
        (
            {"x_test": np.zeros((4, 3, 8, 6), np.uint8)},
            (
                "x_test has shape (4, 3, 8, 6); expected (N, H, W), (N, H, W, 1) or (N, H, W, 3); "
                "this looks like (N, C, H, W): use x_test.transpose(0, 2, 3, 1)"
            ),
        ),
        (
            {"x_test": np.zeros((4, 48), np.uint8)},
            "x_test has shape (4, 48); expected (N, H, W), (N, H, W, 1) or (N, H, W, 3)",
        ),
        (
            {"x_test": np.zeros((0, 8, 6, 3), np.uint8)},
            "x_test is empty, shape (0, 8, 6, 3); a data set needs images in train and in test",
        ),
        (
            {"x_test": np.zeros((4, 8, 8, 3), np.uint8)},
            "x_train has images of (8, 6, 3), x_test of (8, 8, 3); they must agree",
        ),
        ({"y_train": np.zeros(12)}, "y_train has dtype float64; labels must be whole numbers, 0 to classes - 1"),
        (
            {"y_train": np.zeros(11, int)},
            "y_train has shape (11,), x_train holds 12 images; one label an image",
        ),
        ({"y_train": np.zeros(12, int)}, "train: one class only ('0'); a classifier needs two or more"),
        ({"y_train": np.arange(12) % 3 - 1}, "train: label -1; labels count from 0"),
        (
            {"y_train": np.arange(12) % 3 * 2},
            "train: no image of class '1', '3'; add some or number the classes without gaps",
        ),
        (
            {"y_train": np.arange(12) * 10**12},
            "train: 12 images cannot hold all of 11000000000001 classes; check the labels",
        ),
        ({"y_test": np.array([0, 1, 3, 0])}, "test: label 3, but there are 3 classes (0 to 2)"),
        ({"class_names": np.array(["a", "b"])}, "train: label 2, but there are 2 classes (0 to 1)"),
        ({"class_names": np.array(["a", "b", "a"])}, "train: class name 'a' is used twice"),
        ({"class_names": np.arange(3)}, "class_names has dtype int64 and shape (3,); expected strings (K,)"),
        (
            {"y_test": np.array([0, "x", 1, 0], dtype=object)},
            "y_test holds Python objects, which are never loaded; save plain arrays",
        ),
        (
            {"y_test": np.array([0, 1, 1, 2**63], dtype=np.uint64)},
            "y_test holds 9223372036854775808; labels must be whole numbers, 0 to classes - 1",
        ),
    ],
)
def test_bad_arrays(tmp_path, changes, message):
    data = saved(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        open_source(data)
    assert str(caught.value) == f"{data.root}: {message}"


def test_no_such_file_and_a_folder(tmp_path):
    with pytest.raises(UserError) as caught:
        open_source(Data(name="arrays", root=str(tmp_path / "absent.npz")))
    assert str(caught.value) == (
        f"data.root: no file {str(tmp_path / 'absent.npz')!r}; "
        "give the .npz file that holds x_train, y_train, x_test, y_test"
    )
    with pytest.raises(UserError) as caught:
        open_source(Data(name="arrays", root=str(tmp_path)))
    assert str(caught.value) == (
        f"data.root: {str(tmp_path)!r} is a folder; 'arrays' needs a .npz file ('imagefolder' takes folders)"
    )


def test_a_single_array(tmp_path):
    path = tmp_path / "one.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(UserError) as caught:
        open_source(Data(name="arrays", root=str(path)))
    assert str(caught.value) == (
        f"{path}: a single array; save all four with np.savez(x_train, y_train, x_test, y_test)"
    )


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_damaged_files_are_one_line(tmp_path, damage):
    data = saved(tmp_path)
    path = tmp_path / "set.npz"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[300] ^= 0xFF
    path.write_bytes({"empty": b"", "text": b"hello", "cut": bytes(content[:700]), "flipped": bytes(content)}[damage])
    with pytest.raises(UserError) as caught:
        open_source(data)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "save" in message


def test_stamp_sees_a_changed_file(tmp_path):
    data = saved(tmp_path)
    first = stamp(data)
    assert first == stamp(data)
    os.utime(data.root, ns=(1, 1))
    assert stamp(data) != first
    assert stamp(Data(name="arrays", root=str(tmp_path / "absent.npz"))) is None
