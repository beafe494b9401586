"""Target devices by name: `profiles/devices/*.toml`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from profiles.errors import ProfileError

FOLDER = Path(__file__).parent / "devices"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of device: `runtimes` and `precisions` to try, in order; `record`: keys of `machine()` to state."""

    name: str
    description: str
    device: str
    runtimes: tuple[str, ...]
    precisions: tuple[str, ...]
    record: tuple[str, ...] = ()


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
    known = {field.name for field in fields(Target)} - {"name"}
    required = known - {"record"}
    if not required <= values.keys() <= known:
        raise ProfileError(
            f"{path}: got keys {', '.join(sorted(values))}; "
            f"needs {', '.join(sorted(required))} and may have {', '.join(sorted(known - required))}"
        )
    for name, value in values.items():
        plain = name in ("description", "device")
        if not (isinstance(value, str) if plain else _strings(value)):
            raise ProfileError(
                f"{path}: {name}: got {value!r}; expected {'a string' if plain else 'a list of strings'}"
            )
    fitted: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return Target(name=path.stem, **fitted)


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
