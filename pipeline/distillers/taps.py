"""Features by module path, with forward hooks: no model is edited."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from pipeline.errors import RecipeError, UserError, nearest

Shape = tuple[int, ...]


def check_paths(module: nn.Module, paths: Sequence[str], *, where: str) -> None:
    """Refuse a path that names no part of `module`; `where` begins the message. Raises `RecipeError`, one line."""
    known = [name for name, _ in module.named_modules() if name]
    for path in paths:
        if path not in known:
            close = nearest(path, known)
            if close.startswith("; known"):  # a network has hundreds of parts: its top level is what helps
                close = f"; its parts are {', '.join(name for name, _ in module.named_children())}"
            raise RecipeError(f"{where}: the network has no module {path!r}{close}")


class Taps:
    """Keeps the output of each named module during a forward pass; `take` hands them over and forgets them.

    A later layer may overwrite an output (`ReLU(inplace=True)`, `out += identity`). Those of the paths `copied` are
    copied as soon as they are made: with `copy` all of them, else those that `dry_run` sees overwritten.
    """

    def __init__(self, module: nn.Module, paths: Sequence[str], *, copy: bool = False) -> None:
        self.paths = tuple(dict.fromkeys(paths))
        self.values: dict[str, torch.Tensor] = {}
        self.calls: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.copied = frozenset(self.paths if copy else ())
        self.handles = [
            module.get_submodule(path).register_forward_hook(functools.partial(self._keep, path)) for path in self.paths
        ]

    def _keep(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls[path] = self.calls.get(path, 0) + 1
        if not isinstance(output, torch.Tensor):
            raise RecipeError(
                f"module {path!r} returns a {type(output).__name__}, not one tensor; name a part whose output is one"
            )
        if not output.is_inference():
            self.versions[path] = output._version
        self.values[path] = output.clone() if path in self.copied else output

    def take(self) -> dict[str, torch.Tensor]:
        """Path -> output of the last forward pass."""
        values, self.values, self.calls = self.values, {}, {}
        return values

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def dry_run(self, module: nn.Module, input_size: Shape) -> dict[str, Shape]:
        """Path -> shape of its output a sample, from one forward pass of two black images in eval mode.

        Also finds out which outputs a later layer overwrites: those are copied from now on. Dropout is on meanwhile,
        since an in-place one overwrites nothing in eval mode.
        Raises `RecipeError` for a module that is not run, run more than once, or gives something else than one tensor.
        """
        self.copied = frozenset()
        modes = {part: part.training for part in module.modules()}
        parameter = next(module.parameters())
        module.eval()
        for part in module.modules():
            if isinstance(part, _DropoutNd):
                part.train()
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                module(torch.zeros(2, *input_size, device=parameter.device))
        finally:
            for part, training in modes.items():
                part.training = training
        for path in self.paths:
            count = self.calls.get(path, 0)
            if count != 1:
                raise RecipeError(
                    f"module {path!r} is run {count} times in one pass; name one that is run once, such as the module "
                    "around it"
                )
        self.copied = frozenset(path for path, value in self.values.items() if value._version != self.versions[path])
        return {path: tuple(value.shape[1:]) for path, value in self.take().items()}


def shapes_of(module: nn.Module, paths: Sequence[str], input_size: Shape, *, where: str) -> dict[str, Shape]:
    """Path -> shape a sample of what the module at that path gives for images of `input_size` (C, H, W)."""
    check_paths(module, paths, where=where)
    taps = Taps(module, paths)
    try:
        return taps.dry_run(module, input_size)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        size = "x".join(str(side) for side in input_size)
        raise UserError(
            f"{where}: the network does not take images of {size} ({str(error).splitlines()[0]})"
        ) from error
    finally:
        taps.remove()


@dataclass(frozen=True, kw_only=True)
class ModuleOutput:
    """One part of a network: `shape` of its output a sample; None where that is not one tensor, or is never made."""

    path: str
    kind: str
    shape: Shape | None
    calls: int


def outline(module: nn.Module, input_size: Shape) -> list[ModuleOutput]:
    """Every part that a loss could tap, in the order of its name, from one pass of two black images in eval mode."""
    shapes: dict[str, Shape | None] = {}
    calls: Counter[str] = Counter()

    def keep(path: str, part: nn.Module, inputs: Any, output: Any) -> None:
        calls[path] += 1
        shapes[path] = tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else None

    parts = [(path, part) for path, part in module.named_modules() if path]
    handles = [part.register_forward_hook(functools.partial(keep, path)) for path, part in parts]
    parameter = next(module.parameters())
    module.eval()
    try:
        with torch.no_grad():
            module(torch.zeros(2, *input_size, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return [
        ModuleOutput(path=path, kind=type(part).__name__, shape=shapes.get(path), calls=calls[path])
        for path, part in parts
    ]


def pooled(feature: torch.Tensor) -> torch.Tensor:
    """(B, D): a map (B, D, H, W) is averaged over its places."""
    return feature.mean(dim=tuple(range(2, feature.ndim))) if feature.ndim > 2 else feature
