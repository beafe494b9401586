"""torchvision's own formats, written tiny. Its md5 lists name the published files, so here they name ours."""

import gzip
import hashlib
import os
import pickle
import struct

import numpy as np
import pytest
from torchvision import datasets

from pipeline.data import open_source, stamp
from pipeline.errors import UserError
from pipeline.recipe import Data

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def planes(count, seed):
    """Images (N, 32, 32, 3) and the rows (N, 3072) in which the CIFAR files hold them: all red, all green, all blue."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return images, images.transpose(0, 3, 1, 2).reshape(count, -1)


def put(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return [name, hashlib.md5(content).hexdigest()]


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    lists = []
    for index in range(1, 6):
        images, rows = planes(10, index)
        batch = {"data": rows, "labels": list(range(10))}
        lists.append(put(folder, f"data_batch_{index}", pickle.dumps(batch)))
    test_images, rows = planes(4, 9)
    tests = [put(folder, "test_batch", pickle.dumps({"data": rows, "labels": [3, 1, 4, 1]}))]
    meta = put(folder, "batches.meta", pickle.dumps({"label_names": CIFAR10_NAMES}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", tests)
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path, images, test_images


def test_cifar10(cifar10):
    root, last_train, tests = cifar10
    source = open_source(Data(name="cifar10", root=str(root)))
    assert (source.name, list(source.class_names)) == ("cifar10", CIFAR10_NAMES)
    assert len(source.train) == 50 and source.train.shape == (32, 32, 3)
    np.testing.assert_array_equal(source.train.load(np.arange(40, 50)), last_train)
    np.testing.assert_array_equal(source.test.load(np.arange(4)), tests)
    assert source.test.labels.tolist() == [3, 1, 4, 1]


def test_download_is_not_tried_when_the_files_are_there(cifar10, monkeypatch, capsys):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/none.tar.gz")
    open_source(Data(name="cifar10", root=str(cifar10[0]), download=True))
    assert capsys.readouterr() == ("", "")


def test_cifar100(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    names = [f"class {index}" for index in range(100)]
    images, rows = planes(100, 0)
    train = {"data": rows, "fine_labels": list(range(100)), "coarse_labels": [0] * 100}
    test = {"data": rows[:2], "fine_labels": [7, 99], "coarse_labels": [0, 0]}
    meta = put(folder, "meta", pickle.dumps({"fine_label_names": names}))
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [put(folder, "train", pickle.dumps(train))])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [put(folder, "test", pickle.dumps(test))])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": meta[0], "key": "fine_label_names", "md5": meta[1]})
    source = open_source(Data(name="cifar100", root=str(tmp_path)))
    assert source.class_names == tuple(names)
    assert source.test.labels.tolist() == [7, 99]
    np.testing.assert_array_equal(source.train.load(np.array([5])), images[5:6])


def idx(array):
    return struct.pack(">I", 0x0800 + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_fashion_mnist(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    rng = np.random.default_rng(0)
    images = {
        "train": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "t10k": rng.integers(0, 256, (3, 28, 28), np.uint8),
    }
    for part, pixels in images.items():
        labels = (np.arange(len(pixels)) % 10).astype(np.uint8)
        put(folder, f"{part}-images-idx3-ubyte", idx(pixels))
        put(folder, f"{part}-labels-idx1-ubyte", idx(labels))
        put(folder, f"{part}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
    source = open_source(Data(name="fashion-mnist", root=str(tmp_path)))
    assert source.train.shape == (28, 28, 1)
    assert source.class_names[0] == "T-shirt/top" and len(source.class_names) == 10
    np.testing.assert_array_equal(source.test.load(np.arange(3))[..., 0], images["t10k"])
    assert source.train.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "folder"),
    [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"), ("fashion-mnist", "FashionMNIST/raw")],
)
def test_missing_files_name_root_and_the_switch(tmp_path, name, folder):
    root = tmp_path / "here"
    with pytest.raises(UserError) as caught:
        open_source(Data(name=name, root=str(root)))
    assert str(caught.value) == (
        f"data.root: no {name} in {str(root)!r} (looked for {str(root / folder)!r}); "
        "add --set data.download=true, or point data.root at the folder that holds it"
    )
    assert not root.exists()


def test_damaged_files(cifar10):
    folder = cifar10[0] / "cifar-10-batches-py"
    (folder / "data_batch_3").write_bytes(b"broken")
    with pytest.raises(UserError) as caught:
        open_source(Data(name="cifar10", root=str(cifar10[0])))
    assert str(caught.value) == (
        f"data.root: cifar10 in {str(folder)!r} is incomplete or damaged; "
        "delete that folder and add --set data.download=true"
    )


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(UserError) as caught:
        open_source(Data(name="cifar10", root=str(tmp_path), download=True))
    message = str(caught.value)
    assert message.startswith(f"data.download: cannot fetch cifar10 into {str(tmp_path)!r} (")
    assert message.endswith("); check the network, or put 'cifar-10-batches-py' there yourself")
    assert "\n" not in message


def test_stamp_sees_changed_files(cifar10):
    data = Data(name="cifar10", root=str(cifar10[0]))
    first = stamp(data)
    assert set(first) == {f"data_batch_{index}" for index in range(1, 6)} | {"test_batch", "batches.meta"}
    os.utime(cifar10[0] / "cifar-10-batches-py" / "test_batch", ns=(1, 1))
    assert stamp(data) != first
    assert stamp(Data(name="cifar10", root=str(cifar10[0] / "absent"))) == {}
