"""Names to code, without importing it: tables are literal dicts `name -> "module:attribute"`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pipeline.errors import RecipeError, nearest


def resolve(table: Mapping[str, str], name: str, *, what: str) -> Any:
    """The object behind `name` in `table`; an unknown name is refused with the nearest one. `what` names the table."""
    if name not in table:
        raise RecipeError(f"{what}: unknown name {name!r}{nearest(name, list(table))}")
    return load(table[name])


def load(target: str) -> Any:
    """Import `"package.module:attribute"`; errors name the target and what was missing."""
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise RecipeError(f"{target!r} is not of the form 'package.module:attribute'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{target!r}: cannot import {error.name!r}; install it or put its folder on PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise RecipeError(f"{target!r}: module {module_name!r} has no {attribute!r}{nearest(attribute, names)}")
    return getattr(module, attribute)
