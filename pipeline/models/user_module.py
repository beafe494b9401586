"""Builders of the user's own: `my_pkg.my_module:build`, called with what it accepts of num_classes and in_channels."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError, UserError, nearest
from pipeline.models.find_module import find_module, source_of
from pipeline.registry import load

if TYPE_CHECKING:
    from torch import nn

    from pipeline.models import ModelName

OURS = ("num_classes", "in_channels")


def find_source(module: str) -> Path | None:
    """The `.py` file of dotted `module`, found without running it; None when there is none."""
    spec = find_module(module)
    return source_of(spec) if spec else None


def check_target(target: str) -> None:
    """Refuse a target that is malformed, whose module is not there, or whose source has no such name; runs nothing.

    Raises `RecipeError` with one line.
    """
    module, _, attribute = target.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise RecipeError(f"model {target!r} is neither 'torchvision:NAME' nor of the form 'my_pkg.my_module:build'")
    spec = find_module(module)
    if spec is None:
        raise RecipeError(f"model {target!r}: no module {module!r}; install it or put its folder on PYTHONPATH")
    source = source_of(spec)
    names = _names(source) if source else None
    if names is not None and attribute not in names:
        close = nearest(attribute, names) if names else ""
        raise RecipeError(f"model {target!r}: {source} has no {attribute!r}{close}")


def _names(source: Path) -> list[str] | None:
    """Names that a module binds; None when only running it can tell (star import, `__getattr__`, bad syntax)."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names += [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
    return None if "*" in names or "__getattr__" in names else [name for name in names if not name.startswith("_")]


def build_user(name: ModelName, *, num_classes: int | None, in_channels: int) -> nn.Module:
    """Call the builder with the name's arguments, and num_classes and in_channels where it takes them.

    Raises `RecipeError` for a target that cannot be imported or an argument that it does not take, `UserError` for a
    builder that fails or returns something else than an `nn.Module`.
    """
    from torch import nn

    check_target(name.family)
    builder = load(name.family)
    if not callable(builder):
        raise RecipeError(f"model {name.family!r} is of type {type(builder).__name__}; expected a function or class")
    given: dict[str, object] = {"in_channels": in_channels}
    if num_classes is not None:
        given["num_classes"] = num_classes
    try:
        parameters = inspect.signature(builder).parameters
    except ValueError:  # a builtin without a signature
        parameters = {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    by_name = [
        key
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    for key in name.args:
        if key not in by_name and not takes_any:
            own = [key for key in by_name if key not in OURS]
            raise RecipeError(
                f"model {name.family!r} has no argument {key!r}{nearest(key, own) if own else '; it takes none'}"
            )
    arguments = {key: value for key, value in given.items() if key in by_name} | name.args
    try:
        module = builder(**arguments)
    except Exception as error:  # the user's code may raise anything; one line says whose it was
        reason = str(error).partition("\n")[0]
        raise UserError(f"model {name.family!r} failed: {type(error).__name__}: {reason}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"model {name.family!r} returned a {type(module).__name__}; expected a torch.nn.Module")
    return module
