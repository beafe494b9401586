import importlib
import json
import subprocess
import sys

import pytest

from pipeline.data import SOURCES, check_source, open_source, stamp
from pipeline.errors import RecipeError
from pipeline.recipe import Data


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_row_resolves(name):
    module_name, _, attribute = SOURCES[name].partition(":")
    module = importlib.import_module(module_name)
    assert callable(getattr(module, attribute))
    assert callable(module.stamp)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "cifar01"}, "data.name: unknown data set 'cifar01'; did you mean 'cifar10'?"),
        (
            {"name": "x"},
            f"data.name: unknown data set 'x'; known: {', '.join(sorted(SOURCES))}",
        ),
        (
            {"name": "arrays"},
            "data.root is missing: 'arrays' needs a .npz file with x_train, y_train, x_test and y_test",
        ),
        (
            {"name": "imagefolder", "image_size": 32},
            "data.root is missing: 'imagefolder' needs a folder with one folder of images a class",
        ),
        (
            {"name": "imagefolder", "root": "x"},
            (
                "data.image_size is missing: 'imagefolder' needs the side to which images are cut, "
                "such as image_size = 224"
            ),
        ),
        ({"name": "digits", "image_size": 2}, "data.image_size = 2 is not between 4 and 4096"),
        (
            {"name": "digits", "download": True},
            "data.download = true: 'digits' has nothing to download; only cifar10, cifar100, fashion-mnist do",
        ),
    ],
)
def test_bad_data_tables(keys, message):
    with pytest.raises(RecipeError) as caught:
        check_source(Data(**keys))
    assert str(caught.value) == message
    with pytest.raises(RecipeError):
        open_source(Data(**keys))
    with pytest.raises(RecipeError):
        stamp(Data(**keys))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_stamp_is_json_and_needs_no_data(name, tmp_path):
    keys = {} if name == "digits" else {"root": str(tmp_path / "absent")}
    if name == "imagefolder":
        keys["image_size"] = 8
    data = Data(name=name, **keys)
    assert json.loads(json.dumps(stamp(data))) == stamp(data)


def test_asking_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom pipeline.data import stamp\nfrom pipeline.recipe import Data\n"
        "stamp(Data(name='digits'))\n"
        f"stamp(Data(name='arrays', root={str(tmp_path)!r}))\n"
        f"stamp(Data(name='imagefolder', root={str(tmp_path)!r}, image_size=8))\n"
        f"stamp(Data(name='cifar10', root={str(tmp_path)!r}))\n"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'scipy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
