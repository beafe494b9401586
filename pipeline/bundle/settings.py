"""The recipe that stands in a report, read again as strictly as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.gates.waivers import waivers_of
from pipeline.recipe import Recipe

# What a device looks at. The rest says how networks were trained on the host, whose edgestill may know other keys.
LOOKED_AT = ("name", "seed", "task", "export", "profile", "gate")
NOT_LOOKED_AT = {
    "data": {"name": "digits"},
    "teacher": {"model": "mlperf-resnet8"},
    "student": {"model": "mlperf-resnet8"},
}


def recipe_of(report: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of `report`. Raises UserError, one line."""
    return _read(report["recipe"], where)


def measured_recipe(
    report: Mapping[str, Any], where: str, *, profile: Mapping[str, Any], gate: Sequence[Any]
) -> tuple[Recipe, dict[str, Any]]:
    """What a device needs of the recipe of `report`, with settings of `profile` and the rules of `gate` in the place
    of its own; and the whole recipe with them, as it stands in the record. Raises UserError, one line.
    """
    own = report["recipe"].get("profile")
    changes = {"profile": (own if isinstance(own, dict) else {}) | dict(profile), "gate": list(gate)}
    values = {key: value for key, value in {**report["recipe"], **changes}.items() if key in LOOKED_AT}
    recipe = _read(NOT_LOOKED_AT | values, where)
    dumped = recipe.model_dump(mode="json", include=set(changes))
    return recipe, {**report["recipe"], **dumped}


def _read(values: Mapping[str, Any], where: str) -> Recipe:
    from pipeline.recipe_errors import lines_of

    try:
        if isinstance(waivers := values.get("waiver"), list):  # JSON has no days
            values = {**values, "waiver": [asdict(waiver) for waiver in waivers_of(waivers)]}
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        line = lines_of(error, "recipe")[0]
        raise UserError(f"{where}: {line}; use the edgestill that wrote it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: its recipe cannot be read ({' '.join(str(error).split())[:100]})") from None
