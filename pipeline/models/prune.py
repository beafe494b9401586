"""`pruned:MODEL?macs=0.5`: structured channel pruning, after which every layer is a smaller ordinary layer.

Each group of coupled channels (of layers whose channels can only go together; torch-pruning, Fang et al. 2023,
arXiv:2301.12900, traces them) loses the same share. It is the smallest at which the multiply-accumulates
at the input size come down to what was asked for, so the structure follows from network, classes and input size alone;
weights only decide which channels stay: those of the largest magnitude over the whole group.
"""

from __future__ import annotations

import bisect
import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pipeline.errors import UserError
from pipeline.models.cifar_resnet import BasicBlock, PaddedShortcut

NUDGE = 1e-9  # a ratio this much below j / n removes exactly j of n channels, whatever floating point does
# (network, input, share) -> (ratio, MACs): a run builds the same student several times.
_FOUND: dict[tuple[object, ...], tuple[float, int]] = {}


def prune(
    module: nn.Module, *, macs: float = 0.5, input_size: tuple[int, int, int], name: str = "the network"
) -> nn.Module:
    """A copy of `module` with the channels of least magnitude removed; its outputs, the classes, all stay.

    macs: the share, in (0, 1), of multiply-accumulates at `input_size` (C, H, W) that is kept at most; the share
    reached is as close below it as one ratio for all layers allows. In a network with padded shortcuts only channels
    inside of blocks go, since those of its residual sums mean different channels on either side of a padding.
    Raises `UserError` with one line, which begins with `name`, for a share that cannot be reached, a network that
    cannot be traced or that computes outside of convolutions and linear layers, and without torch-pruning.
    """
    assert 0 < macs < 1, macs
    shape = (1, *input_size)
    key = (repr(module), tuple(tensor.shape for tensor in module.state_dict().values()), shape, macs)
    with _told(name, shape):
        positions, last = _run_once(module, shape, name)
        kept = _kept_layers(module, last)
        if key not in _FOUND:
            _FOUND[key] = _search(module, macs, shape, positions, kept, name)
        ratio, expected = _FOUND[key]
        smaller = copy.deepcopy(module)
        with _as_traced(smaller):
            _pruner(smaller, ratio, shape, kept).step()
        if (got := _macs(smaller, positions)) != expected:
            raise ValueError(f"{got} multiply-accumulates are left, expected {expected}")
    return smaller


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Channels that go together: `size` of them may be removed, each being `layers[path, axis] / size` of a layer's."""

    size: int
    layers: Counter[tuple[str, Literal["out", "in"]]]

    def kept(self, ratio: float) -> int:
        return int(self.size * (1 - ratio))  # as torch-pruning rounds


def _search(
    module: nn.Module, macs: float, shape: tuple[int, ...], positions: Counter[str], kept: list[str], name: str
) -> tuple[float, int]:
    """The smallest ratio whose MACs fit into the share, and those MACs; computed from the groups, pruning nothing."""
    empty = copy.deepcopy(module).to("meta")
    with _as_traced(empty):
        groups = _groups(empty, shape, kept)
    if not groups:
        raise UserError(f"{name}: has no channels that can be removed; prune a convolutional network")
    most = 1 - 1 / min(group.size for group in groups)  # every group keeps a channel
    ratios = sorted({j / n - NUDGE for n in {group.size for group in groups} for j in range(1, n) if j / n <= most})
    budget = macs * _macs(module, positions)
    costs = _Costs(module, groups, positions)
    if costs[ratios[-1]] > budget:
        least = math.ceil(1000 * macs * costs[ratios[-1]] / budget) / 1000
        raise UserError(f"{name}: macs = {macs:g} is below what pruning reaches; give {least:g} or more")
    found = ratios[bisect.bisect_left(ratios, True, key=lambda ratio: costs[ratio] <= budget)]
    return found, costs[found]


class _Costs:
    """MACs by ratio: each layer's weights shrink with its outputs and its inputs."""

    def __init__(self, module: nn.Module, groups: list[_Group], positions: Counter[str]) -> None:
        self.groups = groups
        self.layers: dict[str, tuple[Any, int]] = {
            path: (module.get_submodule(path), times) for path, times in positions.items()
        }

    def __getitem__(self, ratio: float) -> int:
        removed: Counter[tuple[str, str]] = Counter()
        for group in self.groups:
            for key, count in group.layers.items():
                removed[key] += count * (group.size - group.kept(ratio)) // group.size
        total = 0
        for path, (layer, times) in self.layers.items():
            after, before = _channels(layer)
            rest = (after - removed[path, "out"]) * (before - removed[path, "in"])
            total += times * int(layer.weight.numel()) * rest // (after * before)
        return total


def _channels(layer: Any) -> tuple[int, int]:
    """Outputs and inputs; a depthwise convolution's inputs are its outputs, and count once."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, 1 if _is_depthwise(layer) else layer.in_channels


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups == layer.out_channels > 1


def _groups(module: nn.Module, shape: tuple[int, ...], kept: list[str]) -> list[_Group]:
    pruner = _pruner(module, 0.5, shape, kept)
    paths = {part: path for path, part in module.named_modules()}
    found = []
    for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers):
        layers: Counter[tuple[str, Literal["out", "in"]]] = Counter()
        folds = 1  # a grouped convolution loses the same places in each of its groups
        for dependency, places in group:
            layer = dependency.target.module
            out = pruner.DG.is_out_channel_pruning_fn(dependency.handler)
            folds = max(folds, (pruner.out_channel_groups if out else pruner.in_channel_groups).get(layer, 1))
            if isinstance(layer, (_ConvNd, nn.Linear)):
                layers[paths[layer], "out" if out else "in"] += len(places)
        size = len(group[0].idxs) // folds
        if size > 1:
            found.append(_Group(size=size, layers=layers))
    return found


def _pruner(module: nn.Module, ratio: float, shape: tuple[int, ...], kept: list[str]) -> Any:
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise UserError("pruned models need torch-pruning, which is missing; pip install 'edgestill[train]'") from error
    return tp.pruner.BasePruner(
        module,
        torch.zeros(shape, device=next(module.parameters()).device),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[module.get_submodule(path) for path in kept],
        # The library's own defaults for these are shared between calls.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )


@contextmanager
def _as_traced(module: nn.Module) -> Iterator[None]:
    """Eval mode and all gradients on, since channels are traced through autograd; put back afterwards. For copies."""
    modes = {part: part.training for part in module.modules()}
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    module.eval().requires_grad_(True)
    yield
    for part, training in modes.items():
        part.training = training
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name not in frozen
        parameter.grad = None


def _macs(module: nn.Module, positions: Counter[str]) -> int:
    return sum(int(module.get_parameter(f"{path}.weight").numel()) * times for path, times in positions.items())


def _run_once(module: nn.Module, shape: tuple[int, ...], name: str) -> tuple[Counter[str], str]:
    """Layer -> how often each of its weights is used in one pass, and the layer that ran last, by module path."""
    from profiles.flops import count_torch

    positions: Counter[str] = Counter()
    last = ""

    def see(path: str, layer: Any, output: Any) -> None:
        nonlocal last
        last = path
        positions[path] += output.numel() // _channels(layer)[0]

    watched = copy.deepcopy(module).eval()
    for path, part in watched.named_modules():
        if isinstance(part, (_ConvNd, nn.Linear)):
            part.register_forward_hook(lambda part, _inputs, output, path=path: see(path, part, output))
    with torch.no_grad():
        watched(torch.zeros(shape, device=next(module.parameters()).device))
    if not last or _macs(module, positions) != count_torch(module, shape).macs:
        raise UserError(
            f"{name}: computes outside of plain convolutions and linear layers, as attention does; its channels "
            "cannot be pruned; prune a convolutional network"
        )
    return positions, last


def _kept_layers(module: nn.Module, last: str) -> list[str]:
    """Layers that keep all outputs: the one that gives the logits, and in padded networks all but a block's first."""
    kept = [last]
    if any(isinstance(part, PaddedShortcut) for part in module.modules()):
        inside = {id(part.conv1) for part in module.modules() if isinstance(part, BasicBlock)}
        kept += [
            path for path, part in module.named_modules() if isinstance(part, nn.Conv2d) and id(part) not in inside
        ]
    return kept


@contextmanager
def _told(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Whatever goes wrong inside of the library or the network becomes one line; its warnings are not the user's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # the library raises nearly anything where it cannot follow a network
        reason = str(error).partition("\n")[0].strip()[:160] or type(error).__name__
        size = "x".join(map(str, shape[1:]))
        raise UserError(
            f"{name}: its channels cannot be traced with images of {size} ({reason}); prune a plain convolutional net"
        ) from error
