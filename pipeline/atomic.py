"""Files that are whole or absent: temporary file beside the target, fsync, rename, fsync of the folder.

A reader never sees half a file, and a power cut after the return loses nothing. Errors of the disk become one line
that says where and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

TEMPORARY_SUFFIX = ".edgestill-tmp"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's OSError of a full disk, without an errno


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace `path` by `data`, all or nothing; the folder is made if needed. A disk error is a `UserError`."""
    with writing(path, needed_bytes=len(data)) as temporary, temporary.open("wb") as file:
        file.write(data)


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of UTF-8; line ends are kept as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """`value` as indented JSON in the order of its keys; the same value gives the same bytes.

    Infinities and NaN are not JSON: they are refused with `ValueError`, because a number that was not measured is null.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def writing(path: Path | str, *, needed_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; when the block ends well, it takes the place of `path`.

    For writers that want a file name (`numpy.savez`, `onnx.save`). When the block fails, the temporary file is removed
    and `path` is as it was. The temporary name keeps the suffix of `path`, since some writers append their own.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}{path.suffix}")
    with disk_errors(path, needed_bytes=needed_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with disk_errors(path, needed_bytes=needed_bytes):
            sync(temporary)
            os.replace(temporary, path)  # noqa: PTH105 - the plain system call
            sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # An error about another file, one that the block reads, is not ours to translate.
        if isinstance(error, OSError) and (no_space(error) or error.filename in (None, str(temporary), str(path))):
            raise disk_error(error, path, needed_bytes=needed_bytes) from error
        raise


def sync(path: Path) -> None:
    """Have the kernel put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems refuse fsync of a folder; the rename itself is still atomic there.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Delete what killed writers left under `folder`. Only for a folder that has one writer."""
    for path in folder.rglob(f".*{TEMPORARY_SUFFIX}*"):
        if path.is_file():
            path.unlink()


@contextlib.contextmanager
def disk_errors(path: Path | str, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn a full disk, a missing permission and other errors of writing to `path` into one-line `UserError`s."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, needed_bytes=needed_bytes) from error


def disk_error(error: OSError, path: Path | str, *, needed_bytes: int | None = None) -> UserError:
    """The `UserError` for an `OSError` met while writing to `path`."""
    if no_space(error):
        return disk_full(path, needed_bytes=needed_bytes)
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{path}: cannot be written ({reason}); mend that or give another --out")


def disk_full(path: Path | str, *, needed_bytes: int | None = None) -> UserError:
    """The `UserError` of a full disk or a used up quota."""
    needed = f" (needed about {format_bytes(needed_bytes)})" if needed_bytes else ""
    return UserError(f"{path}: no space left{needed}; free some or give another --out; finished stages are kept")


def no_space(error: BaseException | None) -> bool:
    """Whether a full disk is behind `error`, also where a library wrapped it in an exception of its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        if "no space left on device" in str(error).lower() or _SHORT_WRITE.fullmatch(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def format_bytes(count: int) -> str:
    """`1234567` as `1.2 MB`; decimal units, as on data sheets and in shops."""
    if count < 1000:
        return f"{count} bytes"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.95 or unit == "TB":
            return f"{value:.1f} {unit}"
    raise AssertionError("unreachable")
