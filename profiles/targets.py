"""Target devices by name: `profiles/devices/*.toml`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from profiles.errors import ProfileError

FOLDER = Path(__file__).parent / "devices"


@dataclass(frozen=True, kw_only=True)
class Release:
    """System software of a device, such as JetPack 6.2, and what comes with it.

    `edition` ("tensorrt", "tensorrt-rtx") and `version` name the TensorRT; empty where it has none. `python` is the
    system's own. `note` says what is particular.
    """

    name: str
    edition: str = ""
    version: str = ""
    python: str = ""
    cuda: str = ""
    l4t: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of device: `runtimes` and `precisions` to try, in order; `record`: keys of `machine()` to state.

    `compute_capability` of its GPU, empty without. `power_modes` as nvpmodel names them. `hints`: what to try there.
    """

    name: str
    description: str
    device: str
    runtimes: tuple[str, ...]
    precisions: tuple[str, ...]
    record: tuple[str, ...] = ()
    compute_capability: str = ""
    power_modes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    releases: tuple[Release, ...] = field(default=())


def devices(folder: Path = FOLDER) -> dict[str, Target]:
    """Every target in `folder`, by name, in order of name. Raises ProfileError for a file that does not fit."""
    return {path.stem: _load(path) for path in sorted(folder.glob("*.toml"))}


def _load(path: Path) -> Target:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path}: cannot be read ({error}); mend the file") from None
    _check(Target, values, f"{path}", {"name"})
    releases = values.pop("releases", [])
    if not (isinstance(releases, list) and all(isinstance(entry, dict) for entry in releases)):
        raise ProfileError(f"{path}: releases: got {releases!r}; write [[releases]] tables")
    for entry in releases:
        _check(Release, entry, f"{path}: releases", set())
    fitted: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return Target(name=path.stem, releases=tuple(Release(**entry) for entry in releases), **fitted)


def _check(kind: Any, values: Mapping[str, Any], where: str, given: set[str]) -> None:
    """Refuse unknown and missing keys, and values that are no string or list of strings, as the field says."""
    known = {entry.name: entry for entry in fields(kind) if entry.name not in given}
    required = {name for name, entry in known.items() if entry.default is MISSING}
    if not required <= values.keys() <= known.keys():
        raise ProfileError(
            f"{where}: got keys {', '.join(sorted(values))}; "
            f"needs {', '.join(sorted(required))} and may have {', '.join(sorted(set(known) - required))}"
        )
    for name, value in values.items():
        if name == "releases":
            continue
        plain = known[name].type == "str"
        if not (isinstance(value, str) if plain else _strings(value)):
            raise ProfileError(
                f"{where}: {name}: got {value!r}; expected {'a string' if plain else 'a list of strings'}"
            )


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
