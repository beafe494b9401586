"""The file itself: a plain zip that any unzip opens, whose every byte is determined by what it holds.

Files are stored, not compressed, in order of name, with fixed times and rights and nothing else around them. So equal
contents give equal bytes, a compression bomb cannot be written, and the reader accepts nothing but what the writer
makes: whatever was added, hidden, cut off or turned over in the frame is noticed by comparing it with the frame that
the names, sizes and checksums call for.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.atomic import format_bytes, writing
from pipeline.errors import UserError

# Numbers of the format (APPNOTE.TXT, sections 4.3.7, 4.3.12 and 4.3.16)
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCAL_SIGN, _CENTRAL_SIGN, _END_SIGN = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_NEEDED, _MADE_BY = 20, 3 << 8 | 20  # version 2.0, made on Unix
_MIDNIGHT, _FIRST_DAY = 0, 0x21  # 1980-01-01 00:00
_STORED = 0
_RIGHTS = (stat.S_IFREG | 0o644) << 16

LARGEST_BYTES = 0xFFFFFFFF  # what the format's plain form can count
MOST_FILES = 1000
LONGEST_NAME = 200
PIECE = 1 << 20
_PART = r"[A-Za-z0-9][A-Za-z0-9._@+-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of an archive: where its bytes begin, how many they are, and the checksum that the frame gives."""

    name: str
    offset: int
    size: int
    crc32: int


def write_archive(path: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write `files` (name -> content, or the file that has it) to `path`, whole or not at all.

    Raises UserError when the format cannot hold them.
    """
    entries = []
    offset = 0
    for name in sorted(files):
        assert not name_fault(name), name
        crc32, size = 0, 0
        for piece in _pieces(files[name]):
            crc32, size = zlib.crc32(piece, crc32), size + len(piece)
        offset += _LOCAL.size + len(name)
        entries.append(Entry(name=name, offset=offset, size=size, crc32=crc32))
        offset += size
    total = offset + sum(_CENTRAL.size + len(entry.name) for entry in entries) + _END.size
    if total > LARGEST_BYTES or len(entries) > MOST_FILES:
        raise UserError(
            f"{path}: {len(entries)} files of {format_bytes(total)} are more than a bundle holds "
            f"({format_bytes(LARGEST_BYTES)}); take fewer images with --samples"
        )
    with writing(path, needed_bytes=total) as temporary, temporary.open("wb") as file:
        for entry in entries:
            file.write(_local(entry))
            written = 0
            for piece in _pieces(files[entry.name]):
                written += file.write(piece)
            if written != entry.size:
                raise UserError(f"{path}: {entry.name} changed while it was packed; run the command again")
        directory = b"".join(_central(entry) for entry in entries)
        file.write(directory + _end(len(entries), len(directory), offset))


def read_archive(path: Path) -> dict[str, Entry]:
    """The files of an archive by name. Nothing of their content is read: see `pieces`.

    Raises UserError, one line, for what `write_archive` would not have written: something else than a zip, cut short,
    compressed, links, names that point outside, one name twice, bytes between or behind the files.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if file.read(4) != _LOCAL_SIGN:
            raise UserError(f"{path}: not a bundle; make one with 'edgestill bundle RUN'")
        file.seek(max(0, size - _END.size))
        tail = file.read()
        sign, *_, count, length, offset, _ = _END.unpack(tail) if len(tail) == _END.size else (b"", 0, 0, 0, 0)
        if sign != _END_SIGN or offset + length + _END.size != size or tail != _end(count, length, offset):
            raise UserError(f"{path}: cut short, or changed at its end; copy it again")
        if count > MOST_FILES or length > MOST_FILES * (_CENTRAL.size + LONGEST_NAME):
            raise UserError(f"{path}: claims {count} files; a bundle has at most {MOST_FILES}")
        file.seek(offset)
        found = _directory(path, file.read(length), count)
        place = 0
        for entry in found.values():
            header = _local(entry)
            file.seek(place)
            if entry.offset != place + len(header) or file.read(len(header)) != header:
                raise _foreign(path, f"the header of {entry.name}")
            place = entry.offset + entry.size
        if place != offset:
            raise _foreign(path, "the place of its list of files")
    return found


def pieces(path: Path, entry: Entry) -> Iterator[bytes]:
    """The content of one file, at most 1 MiB at a time. Raises UserError when the archive ends before it does."""
    with path.open("rb") as file:
        file.seek(entry.offset)
        yield from _exactly(file, entry.size, f"{path}: {entry.name}")


def name_fault(name: str) -> str:
    """Why a file may not be called `name` in an archive; empty when it may."""
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        if ".." in name.split("/") or name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
            return "points outside of the archive"
        return "is not a plain name (letters, digits and . _ @ + - between slashes)"
    return ""


def _directory(path: Path, text: bytes, count: int) -> dict[str, Entry]:
    """The entries that the archive lists; what is wrong with a single one is said in its own words."""
    found: dict[str, Entry] = {}
    place = 0
    for number in range(count):
        head = text[place : place + _CENTRAL.size]
        if len(head) < _CENTRAL.size or head[:4] != _CENTRAL_SIGN:
            raise _foreign(path, f"entry {number + 1} of its list of files")
        _, _, _, _, method, _, _, crc32, packed, size, length, _, _, _, _, rights, start = _CENTRAL.unpack(head)
        name = text[place + _CENTRAL.size : place + _CENTRAL.size + length].decode("ascii", errors="replace")
        if fault := name_fault(name):
            raise UserError(f"{path}: the name {name[:60]!r} {fault}; do not use this file")
        if stat.S_ISLNK(rights >> 16):
            raise UserError(f"{path}: {name} is a link; a bundle has plain files only; do not use this file")
        if method != _STORED or packed != size:
            raise UserError(f"{path}: {name} is compressed; a bundle stores its files as they are; copy it again")
        entry = Entry(name=name, offset=start + _LOCAL.size + length, size=size, crc32=crc32)
        expected = _central(entry)
        if text[place : place + len(expected)] != expected:
            raise _foreign(path, f"the entry of {name}")
        if name in found:
            raise UserError(f"{path}: holds {name} twice; do not use this file")
        if found and name < next(reversed(found)):
            raise _foreign(path, "the order of its files")
        found[name] = entry
        place += len(expected)
    if place != len(text):
        raise _foreign(path, "the length of its list of files")
    return found


def _foreign(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what} is not as 'edgestill bundle' writes it; the file was changed: copy it again")


def _local(entry: Entry) -> bytes:
    name = entry.name.encode("ascii")
    fields = (_NEEDED, 0, _STORED, _MIDNIGHT, _FIRST_DAY, entry.crc32, entry.size, entry.size, len(name), 0)
    return _LOCAL.pack(_LOCAL_SIGN, *fields) + name


def _central(entry: Entry) -> bytes:
    name = entry.name.encode("ascii")
    fields = (_MADE_BY, _NEEDED, 0, _STORED, _MIDNIGHT, _FIRST_DAY, entry.crc32, entry.size, entry.size, len(name))
    start = entry.offset - _LOCAL.size - len(name)
    return _CENTRAL.pack(_CENTRAL_SIGN, *fields, 0, 0, 0, 0, _RIGHTS, start) + name


def _end(count: int, length: int, offset: int) -> bytes:
    return _END.pack(_END_SIGN, 0, 0, count, count, length, offset, 0)


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _exactly(file: BinaryIO, size: int, where: str) -> Iterator[bytes]:
    left = size
    while left:
        piece = file.read(min(PIECE, left))
        if not piece:
            raise UserError(f"{where} ends too early; copy the file again")
        left -= len(piece)
        yield piece
