"""Validation errors of a recipe as plain lines: place, what was got, what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from pipeline.errors import nearest
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": 'text in quotes, such as "name"',
    "tuple_type": "a list, such as [1, 2]",
    "dict_type": "a table",
    "model_type": "a table",
    "finite_number": "a finite number",
}
# A union is tried alternative by alternative, each with its own error; people get one line for all.
UNIONS = {
    ("profile", "runtimes"): '"auto" or a list of runtimes, such as ["onnxruntime"]',
    ("quantize",): "a table, or false to leave int8 out",
}
LIMIT_OF_A_RULE = 'a number, or a number with its unit, such as "1.0pt"'


def lines_of(error: ValidationError, where: str, set_places: Sequence[tuple[str, ...]] = ()) -> list[str]:
    """One line a fault, in the order of the recipe; `set_places` are the keys that came from --set."""
    lines: dict[tuple[str, ...], str] = {}
    faults = [(_known_part(tuple(str(part) for part in fault["loc"])), fault) for fault in error.errors()]
    for place, fault in faults:
        # A list with a faulty entry is also "too short", and a union fails once for each alternative.
        if fault["type"] != "value_error" and any(
            len(other) > len(place) == _shared(place, other) for other, _ in faults
        ):
            continue
        table, text = _explain(fault, place)
        origin = "--set" if any(_came_from(kept, place, text) for kept in set_places) else where
        lines.setdefault(place, ": ".join(part for part in (origin, ".".join(table), text) if part))
    return list(dict.fromkeys(lines.values()))


def _shared(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _came_from(kept: tuple[str, ...], place: tuple[str, ...], text: str) -> bool:
    """Whether the fault at `place` lies in, or directly above, the key that --set gave."""
    if not place:  # rules over several tables name their key in the text
        return re.match(re.escape(".".join(kept)) + r"\b", text) is not None
    return _shared(kept, place) == min(len(kept), len(place))


def _explain(fault: Any, place: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    kind, got, context = fault["type"], fault["input"], fault.get("ctx", {})
    union = UNIONS.get(place)
    if place and place[0] == "gate" and place[-1] in ("max", "min"):
        union = LIMIT_OF_A_RULE
    if kind == "value_error":
        return place, _one_line(str(context["error"]))
    if kind == "extra_forbidden":
        return place[:-1], f"unknown key {place[-1]!r}{nearest(place[-1], _keys_at(place[:-1]))}"
    if kind == "missing":
        return place[:-1], _missing(place)
    if union and kind in EXPECTED | {"literal_error": ""}:
        return place, f"got {_show(got)}; expected {union}"
    if kind in EXPECTED:
        return place, f"got {_show(got)}; expected {_expected(kind, place)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return place, f"got {_show(got)}{nearest(str(got), known)}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        words = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below"}.get(kind, "at most")
        limit = context.get("gt", context.get("ge", context.get("lt", context.get("le"))))
        return place, f"got {_show(got)}; it must be {words} {limit:g}"
    if kind == "string_pattern_mismatch":
        return place, f"got {_show(got)}; use letters, digits, '.', '_' and '-', beginning with a letter or digit"
    if kind in ("too_long", "too_short"):
        return place, f"got {context['actual_length']} entries; expected exactly one [[{'.'.join(place)}]]"
    return place, f"got {_show(got)}; {_one_line(fault['msg'])}"


def _expected(kind: str, place: tuple[str, ...]) -> str:
    if EXPECTED[kind] == "a table":
        return "a table" if place[-1].isdigit() else f"a table, such as [{'.'.join(place)}]"
    if kind == "tuple_type" and _model_at(place) is not None:
        return f"a list of tables, such as [[{'.'.join(place)}]]"
    return EXPECTED[kind]


def _missing(place: tuple[str, ...]) -> str:
    field = field_at(place)
    if field is not None and _model(field.annotation) is not None:
        return f"[{'.'.join(place)}] is missing; add that table"
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{place[-1]} is missing; add {place[-1]} = ...{meaning}"


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _model(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Part`, `Part | None` or `tuple[Part, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model(inner))), None)


def _model_at(place: Sequence[str]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Recipe
    for key in place:
        if model is None or key.isdigit():
            continue
        field = model.model_fields.get(key)
        model = _model(field.annotation) if field else None
    return model


def _keys_at(place: Sequence[str]) -> list[str]:
    model = _model_at(place)
    return list(model.model_fields) if model else []


def field_at(place: Sequence[str]) -> FieldInfo | None:
    """The recipe's field at `place`, list positions skipped; None where there is none."""
    model = _model_at(place[:-1])
    return model.model_fields.get(place[-1]) if model and place else None


def _known_part(raw: tuple[str, ...]) -> tuple[str, ...]:
    """`raw` without the names that pydantic gives to alternatives of a union."""
    place: tuple[str, ...] = ()
    for part in raw:
        if part.isdigit() or field_at((*place, part)) is not None:
            place = (*place, part)
        elif part == raw[-1] and (model := _model_at(place)) and part not in model.model_fields and _plain(part):
            place = (*place, part)  # an unknown key
    return place


def _plain(part: str) -> bool:
    return part not in ("str", "float", "int", "bool", "Quantize", "none") and "[" not in part
