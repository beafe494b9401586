"""How a grid is written: `key=a,b,c` on the command line, a table in a recipe; its values as text, and short names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe_file import override

_LABEL = 40
_CLOSES = {"[": "]", "{": "}"}
Grid = dict[str, list[str]]  # key of the recipe -> its values as `--set` takes them


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every value: `{ "distill.lr" = 0.1 }` and `{ distill = { lr = 0.1 } }` are the same."""
    for key, value in values.items():
        place = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from leaves(value, f"{place}.")
        else:
            yield place, toml_text(value)


def recipe_grid(values: Mapping[str, Any], where: str, above: str = "") -> Grid:
    """The grid of a `[sweep]` table. Raises `RecipeError` for what is not a list of values."""
    found: Grid = {}
    for key, value in values.items():
        place = f"{above}{key}"
        if isinstance(value, Mapping):
            found |= recipe_grid(value, where, f"{place}.")
        elif not isinstance(value, (list, tuple)):
            raise RecipeError(f"{where}: sweep.grid: {place} = {value!r}; write a list of values, such as [{value!r}]")
        else:
            found[place] = _checked([toml_text(entry) for entry in value], f"{where}: sweep.grid: {place}")
    return found


def given_grid(grid: Sequence[str] | Mapping[str, Sequence[Any]]) -> Grid:
    """The grid of the command line or of a caller. Raises `RecipeError`."""
    if isinstance(grid, Mapping):
        return {key: _checked([toml_text(value) for value in values], f"grid: {key}") for key, values in grid.items()}
    found: Grid = {}
    for text in grid:
        key, equals, written = text.partition("=")
        key = key.strip()
        if not equals or not all(part.strip() for part in key.split(".")):
            raise RecipeError(f"--grid {text}: expected key=a,b,c, such as distill.epochs=10,20")
        if key in found:
            raise RecipeError(f"--grid {key}: given twice; write all of its values into one --grid {key}=a,b,c")
        found[key] = _checked(split_values(written, f"--grid {key}"), f"--grid {key}")
    return found


def split_values(written: str, where: str) -> list[str]:
    """`a,b,c` cut at its commas, those inside a list, a table or quotes left alone. Raises `RecipeError`."""
    pieces, open_, quote, escaped = [""], [], "", False
    for letter in written:
        if quote:
            quote = "" if letter == quote and not escaped else quote
            escaped = letter == "\\" and quote == '"' and not escaped
        elif letter in "\"'" and (open_ or not pieces[-1].strip()):
            quote = letter
        elif letter in "[{" and (open_ or not pieces[-1].strip()):
            open_.append(letter)
        elif open_ and letter == _CLOSES[open_[-1]]:
            open_.pop()
        elif letter == "," and not open_:
            pieces.append("")
            continue
        pieces[-1] += letter
    if quote or open_:
        raise RecipeError(f"{where}: {quote or open_[-1]} is not closed; quote the whole option for your shell")
    return [piece.strip() for piece in pieces]


def _checked(texts: list[str], where: str) -> list[str]:
    if texts in ([], [""]):
        raise RecipeError(f"{where}: no value; write its values, such as a,b,c")
    if "" in texts:
        raise RecipeError(f'{where}: value {texts.index("") + 1} of {len(texts)} is empty; write "" for an empty text')
    read = [read_value(text) for text in texts]
    for i, value in enumerate(read):
        if any(type(value) is type(other) and value == other for other in read[:i]):
            raise RecipeError(f"{where}: {texts[i]} stands in it twice; leave one out")
    return texts


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key cut to the fewest last parts that tell it from the others."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        short[key] = next(
            end
            for end in ends
            if end == key or not any(f".{other}".endswith(f".{end}") for other in keys if other != key)
        )
    return short


def labels(texts: Sequence[str]) -> list[str]:
    """A short, unique name for each value: losses by their names, long values cut."""
    short = [_label(read_value(text), text) for text in texts]
    return [label if short.count(label) == 1 else f"{label}#{i + 1}" for i, label in enumerate(short)]


def _label(value: Any, text: str) -> str:
    if isinstance(value, str):
        text = value or '""'
    elif isinstance(value, list) and value and all(isinstance(term, dict) and "loss" in term for term in value):
        text = "+".join(str(term["loss"]) for term in value)
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 3]}..."


def read_value(text: str) -> Any:
    """The value as `--set` reads it."""
    holder: dict[str, Any] = {}
    override(holder, f"value={text}")
    return holder["value"]


def toml_text(value: Any) -> str:
    """`value` as an inline TOML value; dates and the like as text, which validation then refuses where it must."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_text(entry) for entry in value)}]"
    if isinstance(value, Mapping):
        rows = [f"{_key(str(key))} = {toml_text(entry)}" for key, entry in value.items()]
        return f"{{ {', '.join(rows)} }}" if rows else "{}"
    return json.dumps(str(value), ensure_ascii=False)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
