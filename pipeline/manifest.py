"""manifest.json, the record of a finished stage: what it was made from, what it holds, and whether that is still so.

Fingerprint: SHA-256 over what the stage depends on. Digest: SHA-256 over what it wrote, volatile files aside. A stage
depends on the digests of its inputs, so an input that is built again with the same bytes leaves it fresh.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.stage import RESUME_FOLDER, Stage

NAME = "manifest.json"
SCHEMA_VERSION = 1
_SEAL = "manifest_sha256"
_KEYS = ("stage", "version", "fingerprint", "config", "stamp", "inputs", "files", "volatile", "digest", "seconds")


class BrokenFolderError(ValueError):
    """A folder of the store is not what its manifest says; the message names the file."""


def canonical(value: Any) -> Any:
    """`value` as JSON reads it back (tuples become lists), so that it compares equal after a round trip."""
    return json.loads(_canonical_text(value))


def sha256_json(value: Any) -> str:
    """SHA-256 of the canonical JSON text: sorted keys, no spaces, no NaN."""
    return hashlib.sha256(_canonical_text(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_bytes(content: bytes) -> str:
    """SHA-256 of `content`, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def names(folder: Path) -> set[str]:
    """Relative posix paths of the files in a folder; manifest and checkpoints aside."""
    return {path.relative_to(folder).as_posix() for path in _files(folder)}


def bytes_in(folder: Path) -> int:
    """Size of all files below `folder`, whoever wrote them; links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def dependencies(stage: Stage, digests: Mapping[str, str | None]) -> dict[str, Any]:
    """All that the result of `stage` may depend on; `digests` of its needed stages, None while one is not known."""
    return canonical(
        {
            "stage": stage.name,
            "version": stage.version,
            "config": stage.config,
            "stamp": stage.stamp() if stage.stamp else None,
            "inputs": {name: digests[name] for name in stage.needs},
        }
    )


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """`{relative posix path: {sha256, size}}` of every file in a folder, sorted; manifest and checkpoints aside."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
        for path in _files(folder)
    }


def digest_of(files: Mapping[str, Mapping[str, Any]], volatile: tuple[str, ...] | list[str]) -> str:
    """SHA-256 over (file, sha256) of the files that no pattern of `volatile` matches."""
    return sha256_json(
        sorted(
            [name, entry["sha256"]]
            for name, entry in files.items()
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in volatile)
        )
    )


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its own hash, so that a flipped bit in the record itself is noticed as well."""
    body = {key: value for key, value in canonical(manifest).items() if key != _SEAL}
    return {**body, _SEAL: sha256_json(body)}


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`. Raises `BrokenFolderError` when it is missing, cut short, altered or not ours."""
    try:
        manifest = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        raise BrokenFolderError(f"{NAME} is missing") from None
    except OSError as error:
        raise BrokenFolderError(f"{NAME} cannot be read ({error.strerror})") from error
    except ValueError:
        raise BrokenFolderError(f"{NAME} is corrupted (not JSON)") from None
    if not isinstance(manifest, dict) or not all(key in manifest for key in _KEYS):
        raise BrokenFolderError(f"{NAME} is corrupted (keys are missing)")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise BrokenFolderError(f"{NAME} has schema_version {manifest.get('schema_version')}; this is {SCHEMA_VERSION}")
    if seal(manifest)[_SEAL] != manifest.get(_SEAL):
        raise BrokenFolderError(f"{NAME} is corrupted (sha256 differs)")
    if not _is_table(manifest["files"], sha256=str, size=int) or not _is_table(
        manifest["inputs"], fingerprint=str, digest=str
    ):
        raise BrokenFolderError(f"{NAME} is corrupted (its files or inputs are not listed as they should be)")
    return manifest


def _is_table(value: Any, **types: type) -> bool:
    """Whether `value` has tables of such values by name: whoever seals a manifest may write anything into it."""
    return isinstance(value, dict) and all(
        isinstance(row, dict) and all(type(row.get(key)) is kind for key, kind in types.items())
        for row in value.values()
    )


def verify(folder: Path, fingerprint: str) -> dict[str, Any]:
    """Read the manifest and hash every file again. Raises `BrokenFolderError` naming the first file that differs.

    Always the bytes, never size and time alone: a bad sector changes neither.
    """
    manifest = read(folder)
    if manifest["fingerprint"] != fingerprint:
        raise BrokenFolderError(f"{NAME} belongs to other settings (fingerprint differs)")
    for name, entry in manifest["files"].items():
        try:
            found = sha256_file(folder / name)
        except FileNotFoundError:
            raise BrokenFolderError(f"{name} is missing") from None
        except OSError as error:
            raise BrokenFolderError(f"{name} cannot be read ({error.strerror})") from error
        if found != entry["sha256"]:
            raise BrokenFolderError(f"{name} is corrupted (sha256 differs)")
    return manifest


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Why a stage built as `old` (a manifest) is not what `new` (its `dependencies`) asks for; one reason an entry."""
    reasons: list[str] = []
    if old["version"] != new["version"]:
        reasons.append(f"its code changed (version {old['version']} -> {new['version']})")
    for label, key in (("changed", "config"), ("changed outside", "stamp")):
        before, after = dict(_flat(old[key])), dict(_flat(new[key]))
        reasons += [
            f"{label}: {name or key} {_short(before, name)} -> {_short(after, name)}"
            for name in sorted(before.keys() | after.keys())
            if before.get(name, _UNSET) != after.get(name, _UNSET)
        ]
    inputs = new["inputs"]
    for name in sorted(old["inputs"].keys() | inputs.keys()):
        if name not in inputs:
            reasons.append(f"{name} is no longer needed")
        elif name not in old["inputs"]:
            reasons.append(f"{name} is needed now")
        elif inputs[name] is not None and old["inputs"][name]["digest"] != inputs[name]:
            reasons.append(f"{name} changed")
    return tuple(reasons)


_UNSET = object()


def _canonical_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] != RESUME_FOLDER and parts != (NAME,):
            yield path


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif prefix or value != {}:
        yield prefix, value


def _short(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "(not set)"
    text = json.dumps(values[name], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
