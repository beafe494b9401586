"""Names of torchvision's classifiers and their weights, read from its source text: importing it takes seconds."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError, UserError, nearest
from pipeline.models.find_module import find_module

if TYPE_CHECKING:
    from pipeline.models import ModelName

_REGISTERED = re.compile(r"^@register_model\([^)]*\)\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)
# Arguments that the recipe gives in its own words.
OURS = {
    "num_classes": "it follows from the data",
    "weights": "give a file in the recipe's weights",
    "progress": "nothing is downloaded",
}


@functools.cache
def torchvision_names() -> tuple[str, ...] | None:
    """All classifiers of the torchvision that is installed, sorted; None when there is none."""
    found = _registered()
    return tuple(sorted(found)) if found is not None else None


@functools.cache
def _registered() -> Mapping[str, Path] | None:
    """Classifier -> the file that defines it."""
    spec = find_module("torchvision.models")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    return {name: file for file in folder.glob("*.py") for name in _REGISTERED.findall(file.read_text("utf-8"))}


def check_torchvision(name: ModelName) -> None:
    """Refuse an unknown `torchvision:NAME` or an argument that is not the model's to take; one line.

    Without torchvision every name passes: `build` then says how to install it.
    """
    known = torchvision_names()
    model = name.family.partition(":")[2]
    if known and model not in known:
        close = nearest(model, known)
        if close.startswith("; known"):  # eighty names are too many for a line
            close = "; `edgestill list models` shows all"
        raise RecipeError(f"torchvision has no classifier {model!r}{close}")
    for key in name.args:
        if key in OURS:
            raise RecipeError(f"model {name.family!r}: {key!r} is not an option: {OURS[key]}")


def check_weights(name: ModelName, weights: str, *, where: str, download: bool) -> None:
    """Refuse `torchvision:NAME` as weights of a model that has none of that name, and a file that is not there.

    where: the recipe's key, which begins every message; download: whether the file may be fetched. Imports nothing.
    Raises `RecipeError` for a name that torchvision does not have, else `UserError`, with one line.
    """
    try:
        path = cached_weights(weights_url(name, weights))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    if not download and not path.is_file():
        fetch = (
            f"torchvision.models.get_model({name.family.partition(':')[2]!r}, weights={weights.partition(':')[2]!r})"
        )
        raise UserError(
            f"{where}: no file {path.name} in {path.parent}; put it there, or fetch it with "
            f'python -c "import torchvision; {fetch}"'
        )


def weights_url(name: ModelName, weights: str) -> str:
    """Where torchvision publishes `weights` (`torchvision:DEFAULT`) of a model; `weights` itself without torchvision.

    The last part is the file's name, which holds the start of its sha256. Raises `RecipeError` with one line.
    """
    if name.source != "torchvision":
        raise RecipeError(f"weights {weights!r} belong to a torchvision:NAME; model {name.family!r} needs a file")
    known = published_weights(name.family.partition(":")[2])
    if known is None:
        return weights
    which = weights.partition(":")[2]
    if which not in known:
        missing = nearest(which, list(known)) if known else "; it publishes none"
        raise RecipeError(f"torchvision has no weights {which!r} for {name.family!r}{missing}")
    return known[which]


def cached_weights(url: str) -> Path:
    """The file in which torch's hub keeps what was downloaded from `url`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(os.environ.get("TORCH_HOME", cache)).expanduser() / "hub" / "checkpoints" / url.rpartition("/")[2]


@functools.cache
def published_weights(model: str) -> Mapping[str, str] | None:
    """Names of a classifier's weights, `DEFAULT` among them -> address; None without torchvision."""
    files = _registered()
    if files is None or model not in files:
        return None
    tree = ast.parse(files[model].read_text("utf-8"))
    builder = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == model)
    hints = [argument.annotation for argument in builder.args.kwonlyargs if argument.arg == "weights"]
    enums = {node.id for hint in hints if hint for node in ast.walk(hint) if isinstance(node, ast.Name)}
    found: dict[str, str] = {}
    for part in tree.body:
        if not isinstance(part, ast.ClassDef) or part.name not in enums:
            continue
        for line in part.body:
            if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
                continue
            if isinstance(line.value, ast.Name):  # DEFAULT = IMAGENET1K_V1
                found[line.targets[0].id] = found[line.value.id]
            elif isinstance(line.value, ast.Call):
                urls = [ast.literal_eval(word.value) for word in line.value.keywords if word.arg == "url"]
                found[line.targets[0].id] = urls[0]
    return found
