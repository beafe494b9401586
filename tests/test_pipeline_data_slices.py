"""Columns of the test images: read strictly, part of the fingerprint, and nothing where there are none."""

import numpy as np
import pytest

from pipeline.data.slices import column_of, fingerprint, of_arrays, of_folder
from pipeline.data.source import Source
from pipeline.errors import UserError
from pipeline.recipe import Data


def arrays_source(path, **more: np.ndarray) -> Source:
    from pipeline.data.arrays import open_source

    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(20) % 2,
        "x_test": rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(10) % 2,
    }
    np.savez(path, **arrays, **more)
    return open_source(Data.model_validate({"name": "arrays", "root": str(path)}))


def test_arrays_bring_columns_and_another_fingerprint(tmp_path):
    plain = arrays_source(tmp_path / "a.npz")
    assert plain.slices == {}
    sliced = arrays_source(tmp_path / "b.npz", slice_light=np.array(["day", "night"] * 5))
    assert sliced.slices["light"].names == ("day", "night")
    assert sliced.slices["light"].codes.tolist() == [0, 1] * 5
    assert sliced.fingerprint != plain.fingerprint
    assert fingerprint(plain.fingerprint, {}) == plain.fingerprint


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(UserError) as error:
        of_arrays({"slice_a": np.zeros((3, 2))}, 3, "x.npz")
    assert str(error.value) == (
        "x.npz: slice_a has dtype float64 and shape (3, 2); expected a whole number or text for each of 3 test images"
    )
    with pytest.raises(UserError, match=r"x: 1,001 different values; slices have at most 1,000"):
        column_of([str(i) for i in range(1_001)], "x")
    with pytest.raises(UserError, match=r"x: no image has a value; fill or remove it"):
        column_of(["", ""], "x")


def test_a_folder_has_its_table(tmp_path):
    names = ["test/cat/1.png", "test/dog/2.png"]
    assert of_folder(tmp_path, names) == {}
    table = tmp_path / "slices.csv"
    table.write_text("path,site,camera\ntest/dog/2.png,oslo,a\ntest/cat/1.png,,b\ntrain/x.png,rome,b\n")
    found = of_folder(tmp_path, names)
    assert found["site"].names == ("oslo",)
    assert found["site"].codes.tolist() == [-1, 0]
    assert found["camera"].codes.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,site\na,b\n", "slices.csv: needs a column 'path' and one or more columns with values"),
        ("path,site\na,b\na,c\n", "slices.csv: 1 paths stand in it twice; keep one row an image"),
        ("path,site\nb,b\n", "slices.csv: 1 of 1 test images have no row, such as 'a'"),
        ("", "slices.csv: needs a column 'path' and one or more columns with values"),
    ],
)
def test_a_bad_table_is_one_clear_line(tmp_path, text, words):
    (tmp_path / "slices.csv").write_text(text)
    with pytest.raises(UserError) as error:
        of_folder(tmp_path, ["a"])
    assert str(error.value).endswith(words)
