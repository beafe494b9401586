"""The file of a bundle: what is written comes back, and nothing that the writer would not have written is accepted."""

from __future__ import annotations

import io
import re
import stat
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bundle import archive
from pipeline.bundle.archive import name_fault, pieces, read_archive, write_archive
from pipeline.errors import UserError

FILES: dict[str, bytes] = {"b/two.bin": bytes(range(256)) * 9, "a.json": b"{}", "b/empty": b""}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_archive(tmp_path / "x.zip", FILES)
    return tmp_path / "x.zip"


def content(path: Path) -> dict[str, bytes]:
    return {name: b"".join(pieces(path, entry)) for name, entry in read_archive(path).items()}


def test_what_is_written_comes_back_in_order_of_name(path: Path) -> None:
    assert content(path) == FILES
    assert list(read_archive(path)) == sorted(FILES)


def test_it_is_a_plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as other:
        assert other.testzip() is None
        assert {info.filename: other.read(info) for info in other.infolist()} == FILES
        assert {info.compress_type for info in other.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in other.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {stat.S_IMODE(info.external_attr >> 16) for info in other.infolist()} == {0o644}


def test_equal_files_give_equal_bytes_whatever_they_are_given_as(path: Path, tmp_path: Path) -> None:
    (tmp_path / "two.bin").write_bytes(FILES["b/two.bin"])
    mixed = {"b/empty": b"", "a.json": b"{}", "b/two.bin": tmp_path / "two.bin"}
    write_archive(tmp_path / "y.zip", mixed)
    assert (tmp_path / "y.zip").read_bytes() == path.read_bytes()


@settings(deadline=None, max_examples=30)
@given(files=st.dictionaries(st.from_regex(r"[a-z][a-z0-9._-]{0,9}(/[a-z]{1,5})?", fullmatch=True), st.binary()))
def test_any_files_come_back(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    if not files:
        return
    path = tmp_path_factory.mktemp("any") / "x.zip"
    write_archive(path, files)
    assert content(path) == files


def refused(path: Path) -> str:
    """The one line that reading it ends with."""
    with pytest.raises(UserError) as caught:
        read_archive(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line.removeprefix(f"{path}: ")


def hostile(path: Path, name: str, *, method: int = zipfile.ZIP_STORED, mode: int = stat.S_IFREG | 0o644) -> Path:
    """What Python's own writer makes of one file, with the fixed time of ours."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr, info.create_system = mode << 16, 3
    with zipfile.ZipFile(path, "w") as other:
        other.writestr(info, b"x" * 100, compress_type=method)
    return path


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "\\x", "C:/x", "C:x"])
def test_names_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    line = refused(hostile(tmp_path / "x.zip", name))
    assert line == f"the name {name!r} points outside of the archive; do not use this file"


@pytest.mark.parametrize("name", ["a//b", "a/", ".hidden", "a\\b", "a b", "ä", "x" * 201, "a/./b", "nul\nx"])
def test_other_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    assert "is not a plain name (letters, digits and . _ @ + - between slashes)" in refused(
        hostile(tmp_path / "x.zip", name)
    )
    assert name_fault(name)


def test_links_are_refused(tmp_path: Path) -> None:
    line = refused(hostile(tmp_path / "x.zip", "a", mode=stat.S_IFLNK | 0o777))
    assert line == "a is a link; a bundle has plain files only; do not use this file"


def test_compressed_files_are_refused_so_that_no_bomb_can_be(tmp_path: Path) -> None:
    line = refused(hostile(tmp_path / "x.zip", "a", method=zipfile.ZIP_DEFLATED))
    assert line == "a is compressed; a bundle stores its files as they are; copy it again"


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "y.zip", "w") as other:
            for text in (b"1", b"2"):
                info = zipfile.ZipInfo("a", (1980, 1, 1, 0, 0, 0))
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                other.writestr(info, text)
    assert refused(tmp_path / "y.zip") == "holds a twice; do not use this file"


def test_overlapping_files_are_refused(tmp_path: Path) -> None:
    """The trick of the bombs that need no compression beyond one file: many entries over the same bytes."""
    write_archive(tmp_path / "x.zip", {"a": b"1" * 50, "b": b"1" * 50})
    data = bytearray((tmp_path / "x.zip").read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 42 : at + 46] = bytes(4)  # b begins where a does
    (tmp_path / "x.zip").write_bytes(data)
    assert refused(tmp_path / "x.zip") == (
        "the header of b is not as 'edgestill bundle' writes it; the file was changed: copy it again"
    )


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda data: b"", "not a bundle; make one with 'edgestill bundle RUN'"),
        (lambda data: b"PK", "not a bundle; make one with 'edgestill bundle RUN'"),
        (lambda data: b"\x08\x07onnx", "not a bundle; make one with 'edgestill bundle RUN'"),
        (lambda data: data[:-1], "cut short, or changed at its end; copy it again"),
        (lambda data: data[: len(data) // 2], "cut short, or changed at its end; copy it again"),
        (lambda data: data + b"x", "cut short, or changed at its end; copy it again"),
        (lambda data: data[:4], "cut short, or changed at its end; copy it again"),
    ],
)
def test_other_files_and_cut_ones_are_refused(path: Path, spoil, line: str) -> None:
    path.write_bytes(spoil(path.read_bytes()))
    assert refused(path) == line


def test_too_many_files_are_refused_before_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "x.zip", {"a": b"", "b": b"", "c": b""})
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    assert refused(tmp_path / "x.zip") == "claims 3 files; a bundle has at most 2"
    with pytest.raises(UserError, match="are more than a bundle holds"):
        write_archive(tmp_path / "y.zip", {"a": b"", "b": b"", "c": b""})
    assert not (tmp_path / "y.zip").exists()


def test_what_does_not_fit_the_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST_BYTES", 100)
    with pytest.raises(UserError, match=re.escape("take fewer images with --samples")):
        write_archive(tmp_path / "x.zip", FILES)


def frame_of(data: bytes) -> set[int]:
    """Places of all bytes that are not content."""
    places = set(range(len(data)))
    with zipfile.ZipFile(io.BytesIO(data)) as other:
        for info in other.infolist():
            start = info.header_offset + 30 + len(info.filename)
            places -= set(range(start, start + info.file_size))
    return places


def test_every_single_turned_bit_of_the_frame_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    for place in sorted(frame_of(data)):
        for bit in (0, 3, 7):
            spoilt = bytearray(data)
            spoilt[place] ^= 1 << bit
            path.write_bytes(spoilt)
            assert refused(path)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_no_bytes_at_all_make_it_do_anything_but_refuse(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.zip"
    write_archive(path, FILES)
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(st.binary(max_size=40))
    spoilt = whole[:start] + put + whole[start + data.draw(st.integers(0, 60)) :]
    path.write_bytes(spoilt)
    try:
        found = content(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found.keys() == FILES.keys() and sum(map(len, found.values())) == sum(map(len, FILES.values()))
