"""What a bundle says of itself, and what is noticed when any byte of it is another one."""

from __future__ import annotations

import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import RULES_OF_IT, SIZES, changed_json, manifest_of, parts, small_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bundle.archive import read_archive, write_archive
from pipeline.bundle.arrays import array_bytes, array_size, read_array
from pipeline.bundle.contents import read_manifest, unpacked
from pipeline.bundle.layout import MANIFEST
from pipeline.bundle.pack import hash_of
from pipeline.bundle.verify import Change, verify_bundle
from pipeline.errors import UserError
from pipeline.manifest import sha256_file

FILES = parts()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundle") / "x.edgestill.zip")


def line_of(path: Path) -> str:
    """The one line that opening it ends with."""
    with pytest.raises(UserError) as caught, unpacked(path):
        pass
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{path}: "), line
    return line.removeprefix(f"{path}: ")


# --- arrays ---


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.int64), np.zeros((2, 3, 4, 1), np.uint8), np.ones(3, bool)])
def test_arrays_are_plain_npy_files(tmp_path: Path, array: np.ndarray) -> None:
    data = array_bytes(array)
    assert np.array_equal(np.load(io.BytesIO(data), allow_pickle=False), array)
    assert len(data) == array_size(array.dtype.name, array.shape)
    (tmp_path / "a.npy").write_bytes(data)
    found = read_array(tmp_path / "a.npy", array.dtype.name, array.shape, where="a")
    assert found.dtype == array.dtype and np.array_equal(found, array)


def test_arrays_of_another_type_size_or_of_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for data in (array_bytes(np.arange(4)), array_bytes(np.zeros(3, np.uint8)) + b"x", b"", buffer.getvalue()):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"^where: is not an array of uint8\[3\]; make the bundle again$"):
            read_array(path, "uint8", (3,), where="where")


# --- the manifest and its files ---


def test_a_whole_bundle_opens_and_is_gone_afterwards(bundle: Path) -> None:
    with unpacked(bundle) as opened:
        images, labels = opened.samples("test")
        assert images.shape == (SIZES["test"], 4, 4, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
        outcomes = opened.outcomes("teacher", "test")
        assert np.array_equal(outcomes["prediction"] == labels, outcomes["correct"])
        assert opened.rules == RULES_OF_IT
        folder = opened.folder
        assert sha256_file(folder / "models/teacher.onnx") == opened.manifest.files["models/teacher.onnx"].sha256
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"schema_version": 2}, "manifest.json: schema_version is 2, not 1; use the edgestill that wrote it"),
        ({"kind": "zip"}, "manifest.json: kind: Input should be 'edgestill-bundle'; make the bundle again"),
        ({"task": "poetry"}, "manifest.json: unknown task 'poetry'; make the bundle again"),
        ({"recipe": "../../etc"}, "manifest.json: recipe: String should match pattern"),
        ({"surprise": 1}, "manifest.json: surprise: Extra inputs are not permitted; make the bundle again"),
        ({"references": ["teacher", "teacher"]}, "manifest.json: a reference is named twice; make the bundle again"),
        ({"references": ["mother"]}, "manifest.json: references.0: Input should be 'teacher', 'control' or 'student'"),
        (
            {"references": ["teacher", "student"]},
            "manifest.json: outcomes/student-test-confidence.npy is missing from its files; make the bundle again",
        ),
        ({"references": []}, "manifest.json: outcomes/teacher-test-confidence.npy is not known in its files"),
        ({"image_shape": [4, 4]}, "manifest.json: image_shape: List should have at least 3 items"),
        (
            {"image_shape": [5, 4, 3]},
            "manifest.json: samples/validation-images.npy cannot have 1,088 bytes, but 1,328; make the bundle again",
        ),
        (
            {"samples": {split: {"n": 10**15, "of": 1} for split in SIZES}},
            "manifest.json: samples/validation-images.npy cannot have 1,088 bytes, but",
        ),
        ({"samples": {"test": {"n": 40, "of": 40}}}, "manifest.json: samples of validation and test are needed"),
        ({"models": {}}, "manifest.json: models: Dictionary should have at least 1 item"),
        (
            {"models": {"teacher": manifest_of({})["models"]["teacher"]}},
            "manifest.json: there is no artifact in it; make the bundle again",
        ),
        (
            {"models": {"x": manifest_of({})["models"]["teacher"]}},
            "manifest.json: models.x is 'models/teacher.onnx' in the role teacher; make the bundle again",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    assert line_of(small_bundle(tmp_path / "x.zip", FILES, **changes)).startswith(line)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({}, "has no manifest.json; make it with 'edgestill bundle RUN'"),
        ({MANIFEST: b"nothing"}, "manifest.json: is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ({MANIFEST: b"[" * 100_000}, "manifest.json: nested too deeply; make the bundle again"),
        ({MANIFEST: b"[]"}, "manifest.json: : Input should be a valid dictionary or instance of Manifest"),
        ({MANIFEST: b"\xff\xfe"}, "manifest.json: is not JSON ("),
        ({MANIFEST: b" " * ((4 << 20) + 1)}, "manifest.json has 4.2 MB; at most 4.2 MB are read"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, files: dict[str, bytes], line: str) -> None:
    write_archive(tmp_path / "x.zip", {"a": b"1"} | files)
    assert line_of(tmp_path / "x.zip").startswith(line)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("report.json", b"{", "report.json: is not JSON"),
        ("report.json", b"[" * 100_000, "report.json: nested too deeply"),
        ("report.json", b"{}", "report.json: schema_version is None, not 1; use the edgestill that wrote it"),
        ("report.json", changed_json(FILES["report.json"], data={}), "report.json: data.class_names is no list"),
        ("gate.json", b"[]", "gate.json: has no list of rules; make the bundle again"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    assert line_of(small_bundle(tmp_path / "x.zip", FILES | {name: content})).startswith(line)


def test_verify_says_which_file_changed_and_from_what_to_what(tmp_path: Path, bundle: Path) -> None:
    manifest = manifest_of(FILES)
    labels = "samples/test-labels.npy"
    other = FILES[labels][:-8] + bytes([1 - FILES[labels][-8]]) + bytes(7)
    files = {**FILES, labels: other, "report.json": FILES["report.json"] + b" ", "models/evil.so": b"\x7fELF"}
    del files["preprocessing.json"]
    write_archive(tmp_path / "x.zip", files | {MANIFEST: json.dumps(manifest).encode()})
    found = verify_bundle(tmp_path / "x.zip").changes
    size = len(FILES["report.json"])
    assert found == (
        Change(file="models/evil.so", what="not in the manifest"),
        Change(file="preprocessing.json", what="missing"),
        Change(file="report.json", what="size", expected=f"{size:,} bytes", got=f"{size + 1:,} bytes"),
        Change(file=labels, what="sha256", expected=manifest["files"][labels]["sha256"], got=hash_of(other)["sha256"]),
    )
    assert line_of(tmp_path / "x.zip").partition(";")[0] == "models/evil.so is not in its manifest"
    whole = verify_bundle(bundle)
    assert whole.changes == () and whole.signed is None and whole.files == len(FILES) + 1


def test_a_turned_bit_in_any_file_is_named(tmp_path: Path, bundle: Path) -> None:
    data = bundle.read_bytes()
    path = tmp_path / "x.zip"
    for name, entry in read_archive(bundle).items():
        spoilt = bytearray(data)
        spoilt[entry.offset + entry.size - 1] ^= 4
        path.write_bytes(spoilt)
        assert line_of(path)
        try:
            assert [change.file for change in verify_bundle(path).changes] == [name]
        except UserError as error:
            assert name == MANIFEST, error  # its last byte closes the JSON


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_turned_and_cut_bytes_always_end_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Nothing is written but the unpacked files in a folder of their own, which is gone; never a traceback."""
    root = tmp_path_factory.mktemp("fuzz")
    path = small_bundle(root / "x.zip", FILES)
    whole = bytearray(path.read_bytes())
    for place in data.draw(st.sets(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
        whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))])
    assert line_of(path)
    assert [entry.name for entry in root.iterdir()] == ["x.zip"]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_manifest_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    values: Any = copy.deepcopy(manifest_of(FILES))
    place, key = values, data.draw(st.sampled_from(sorted(values)))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place, key = place[key], data.draw(st.sampled_from(sorted(place[key])))
    place[key] = data.draw(JUNK)
    path = tmp_path_factory.mktemp("junk") / "x.zip"
    write_archive(path, FILES | {MANIFEST: json.dumps(values).encode()})
    try:
        read_manifest(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


def test_unpacking_writes_nowhere_else(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with unpacked(bundle) as opened:
        assert opened.folder.parent == tmp_path
        if os.name == "posix":
            assert opened.folder.stat().st_mode & 0o077 == 0, "nobody else may change what runs"
    assert list(tmp_path.iterdir()) == []
