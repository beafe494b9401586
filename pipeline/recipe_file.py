"""Recipes as files: find, read, override, shrink for smoke, validate with plain lines. Imports nothing heavy."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import RecipeError, UserError, nearest
from pipeline.recipe import Recipe
from pipeline.recipe_errors import lines_of
from pipeline.tasks import smoke_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

FOLDER = Path(__file__).parent / "recipes"

# What --smoke does to any recipe before its task (which has data of its own for this) and the recipe's own [smoke] have
# their say: no weights from elsewhere (they belong to other images), one epoch of everything, short measurements.
SMOKE: dict[str, Any] = {
    "data": {"root": "", "download": False, "workers": 0, "unlabelled": ""},
    "teacher": {
        "weights": "",
        "min_accuracy": 0.0,
        "check": "warn",
        "mean": [],
        "std": [],
        "train": {"epochs": 1, "warmup_epochs": 0.0, "early_stopping": 0, "compile": False},
    },
    "student": {"weights": ""},
    "distill": {"epochs": 1, "warmup_epochs": 0.0, "early_stopping": 0, "repeats": 1, "compile": False},
    "profile": {"device": "cpu", "min_seconds": 0.3},
    "sweep": {"repeats": 0},
}
SMOKE_SAMPLES = 32


def shipped() -> dict[str, Path]:
    """The recipes that come with edgestill: name -> file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """A validated recipe from a .toml file or the name of a shipped one.

    `overrides` are `"distill.epochs=3"`, `"gate.0.max=2pt"`: the value is read as TOML, else taken as text. With
    `smoke` the recipe is shrunk to seconds on digits and its name ends in `-smoke`, so that its results lie apart.
    Raises `RecipeError`, one line a fault: file, place, what was got, what to do.
    """
    path, where = find(name_or_path)
    values = read_toml(path, where)
    if not smoke and values.get("smoke"):
        validate(values, where)
        validate(shrink(values), f"{where} with [smoke]")
    if smoke:
        values = shrink(values)
    places = [override(values, text) for text in overrides]
    return validate(values, where, places)


def find(name_or_path: str | Path) -> tuple[Path, str]:
    """The file of a recipe and how errors call it. A bare name is a shipped recipe, anything else a path."""
    text = str(name_or_path)
    known = shipped()
    if text in known:
        return known[text], f"{text}.toml"
    path = Path(text)
    if path.is_file():
        return path, text
    if path.is_dir():
        raise RecipeError(f"{text}: a folder, not a recipe; give a .toml file or one of {', '.join(known)}")
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise RecipeError(f"{text}: no such recipe file; write one with 'edgestill init {text}'")
    raise RecipeError(f"no such recipe {text!r}{nearest(text, list(known))}")


def read_toml(path: Path, where: str | None = None) -> dict[str, Any]:
    """A TOML file as a dict. Raises `RecipeError`, one line with the place of the fault."""
    where = where or str(path)
    try:
        return parse_toml(path.read_text(encoding="utf-8"), where)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except OSError as error:
        raise RecipeError(f"{where}: cannot be read ({error.strerror}); check its permissions") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """TOML text as a dict. Raises `RecipeError`, one line with the place of the fault; `where` begins it."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(?s)(.*) \(at (?:(line \d+, column \d+)|end of document)\)", str(error))
        said, place = (found[1], f"{found[2] or 'at its end'}: ") if found else (str(error), "")
        raise RecipeError(f"{where}: {place}not TOML: {said[:1].lower()}{said[1:]}") from None


def shrink(values: Mapping[str, Any]) -> dict[str, Any]:
    """The smoke form of a recipe: `SMOKE`, what its task adds, then its own `[smoke]`, laid over it. Further teachers,
    peers and generations shrink as teacher and student do, and terms count from the first epoch to the last."""
    own = values.get("smoke", {})
    own = own if isinstance(own, dict) else {}
    shrunk = merge(merge(dict(values), SMOKE), smoke_of(values.get("task")))
    _each(shrunk.get("teacher"), "others", lambda part: part | {"weights": "", "mean": [], "std": []})
    _each(shrunk, "generation", lambda part: part | {"weights": ""} | _shrink_distill(part.get("distill")))
    shrunk |= _shrink_distill(shrunk.get("distill"))
    if shrunk.get("quantize") is not False:
        shrunk = merge(shrunk, {"quantize": {"samples": SMOKE_SAMPLES}})
    shrunk = merge(shrunk, own)
    if isinstance(values.get("name"), str):
        shrunk["name"] = f"{values['name']}-smoke"
    return shrunk


def _shrink_distill(table: Any) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        return {}
    small = {key: value for key, value in SMOKE["distill"].items() if key in table}
    small = {"distill": dict(table) | small}
    _each(
        small["distill"],
        "losses",
        lambda term: term | {key: 0.0 for key in ("warmup_epochs", "until_epoch") if key in term},
    )
    _each(small["distill"], "peers", lambda peer: peer | {"weights": ""})
    return small


def _each(table: Any, key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every table of the list `table[key]`; what is no list of tables is left to validation."""
    if isinstance(table, dict) and isinstance(table.get(key), list):
        table[key] = [change(dict(part)) if isinstance(part, Mapping) else part for part in table[key]]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, table by table; a list replaces a list."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key, {}), Mapping):
            merged[key] = merge(merged.get(key, {}), value)
        else:
            merged[key] = value
    return merged


def override(values: dict[str, Any], text: str) -> tuple[str, ...]:
    """Write one `a.b.0.c=value` into `values`; returns its place. Unknown keys are left to validation."""
    place, equals, written = text.partition("=")
    keys = tuple(part.strip() for part in place.split("."))
    if not equals or not all(keys):
        raise RecipeError(f"--set {text}: expected key=value, such as distill.epochs=3")
    target: Any = values
    for depth, key in enumerate(keys):
        said = f"--set {text}: {'.'.join(keys[:depth])}"
        last = depth == len(keys) - 1
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                entries = f"{len(target)} entr{'y' if len(target) == 1 else 'ies'}, numbered from 0"
                raise RecipeError(f"{said} has {entries}; got {key!r}")
            slot: Any = int(key)
        elif isinstance(target, dict):
            slot = key
            if not last:
                target.setdefault(key, _default(keys[: depth + 1]) if keys[depth + 1].isdigit() else {})
        else:
            raise RecipeError(f"{said} = {target!r} is a value, not a table; leave out {'.'.join(keys[depth:])!r}")
        if last:
            target[slot] = _value(written.strip())
        else:
            target[slot] = _copy(target[slot])
            target = target[slot]
    return keys


def _value(written: str) -> Any:
    """As TOML would read it after `key = `; what TOML cannot read is text."""
    try:
        found = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return written
    return found["value"] if set(found) == {"value"} else written


def _default(keys: tuple[str, ...]) -> Any:
    """The default of the recipe at `keys` as TOML would hold it, so that `--set export.0.opset=20` finds its entry."""
    from pipeline.recipe_errors import field_at

    field = field_at(keys)
    default = field.get_default(call_default_factory=True) if field and not field.is_required() else None
    if not isinstance(default, tuple):
        return {}
    return [entry.model_dump(mode="json") if hasattr(entry, "model_dump") else entry for entry in default]


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value


def validate(values: Mapping[str, Any], where: str, set_places: Sequence[tuple[str, ...]] = ()) -> Recipe:
    """A Recipe from plain values. `set_places` are the keys that came from --set; faults there say so."""
    try:
        recipe = Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError("\n".join(lines_of(error, where, set_places))) from None
    _check_runtimes(recipe, where if ("profile", "runtimes") not in set_places else "--set")
    return recipe


def _check_runtimes(recipe: Recipe, where: str) -> None:
    # Not the recipe's own business: it knows no exporter.
    from exporters import RUNTIMES

    for name in () if recipe.profile.runtimes == "auto" else recipe.profile.runtimes:
        if name not in RUNTIMES:
            raise RecipeError(f"{where}: profile.runtimes: unknown runtime {name!r}{nearest(name, list(RUNTIMES))}")


def check_files(recipe: Recipe) -> None:
    """Refuse files that the recipe names and that are not there, before anything is computed. Raises `RecipeError`."""
    from pipeline.models import is_named, parse_name
    from pipeline.models.torchvision_names import check_weights
    from pipeline.recipe_modes import FROM_TEACHER, networks

    missing = []
    for place, model, name in networks(recipe):
        key = f"{place}.weights"
        if is_named(name):
            try:
                check_weights(parse_name(model).unpruned, name, where=key, download=recipe.data.download)
            except UserError as error:
                missing.append(str(error))
        elif name and name != FROM_TEACHER and not Path(name).is_file():
            seen = f"looked in {Path.cwd()}" if not Path(name).is_absolute() else "the path is absolute"
            missing.append(f"{key}: no such file {name!r} ({seen}); give another with --set {key}=FILE")
    if missing:
        raise RecipeError("\n".join(missing))


def schema() -> dict[str, Any]:
    """JSON Schema of a recipe, with names from the tables, so that editors complete and explain keys."""
    from pipeline.data import SOURCES
    from pipeline.gates.rules import METRICS
    from pipeline.losses import LOSSES
    from pipeline.tasks import TASKS

    document = Recipe.model_json_schema()
    parts = document["$defs"]
    parts["Data"]["properties"]["name"]["enum"] = sorted(SOURCES)
    parts["LossTerm"]["properties"]["loss"]["enum"] = sorted(LOSSES)
    parts["GateRule"]["properties"]["metric"]["enum"] = sorted(METRICS)
    document["properties"]["task"]["enum"] = sorted(TASKS)
    document["properties"]["quantize"]["anyOf"] = [{"$ref": "#/$defs/Quantize"}, {"const": False}]
    document["properties"]["quantize"].pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document, "title": "edgestill recipe"}
