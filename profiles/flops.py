"""Multiply-accumulates of a torch module or an ONNX graph, by one convention, with all that is left out listed.

MACs are the products of convolutions, linear layers, matrix products and attention; FLOPs = 2 x MACs. This is what
torchvision publishes as `_ops` and half of what `torch.utils.flop_counter` reports; normalisation, activations,
pooling and additions are not in it, and `uncounted` names them. Other tools count otherwise: never compare blindly.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Operations of one forward pass over the whole given input, its batch included.

    `params`: learned numbers, each counted once. `conv_linear_weights`: those that are weights (not biases) of
    convolutions and linear layers. `uncounted`: operation -> calls, for those that compute and are not in `macs`.
    """

    params: int
    conv_linear_weights: int
    macs: int
    flops: int
    uncounted: dict[str, int]


# aten operations that only move, make or reinterpret data; views are recognised by their schema
MOVES = frozenset(
    """
    _local_scalar_dense _to_copy _unsafe_index arange as_strided cat channel_shuffle clone constant_pad_nd
    contiguous copy embedding empty empty_like empty_strided eye fill flip full full_like gather im2col col2im index
    index_select lift_fresh lift_fresh_copy masked_fill new_empty new_empty_strided new_full new_ones new_zeros ones
    ones_like pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d repeat replication_pad2d resize roll
    rot90 scalar_tensor scatter slice_scatter select_scatter stack to tril triu tile native_channel_shuffle where zero
    zeros zeros_like _reshape_copy _reshape_alias _unsafe_view
    """.split()  # noqa: SIM905
)


def count_torch(module: torch.nn.Module, input_shape: tuple[int, ...]) -> Counts:
    """Count a module in eval mode on one float input of `input_shape`, such as (1, 3, 224, 224).

    Runs on the meta device, which computes nothing, and for real where the module cannot run there. Attention is taken
    apart into its products, since fused kernels are counted differently on each device. The module is left as it was.
    Raises ProfileError when the forward pass fails.
    """
    import torch

    weights = _conv_linear_weights(module)
    try:
        macs, uncounted = _forward(_on_meta(module), input_shape, "meta")
    except Exception:  # data-dependent control flow, tensors kept outside of parameters, operations without meta form
        first = next(iter(module.parameters()), torch.empty(0))
        modes = [(part, part.training) for part in module.modules()]
        try:
            macs, uncounted = _forward(module.eval(), input_shape, str(first.device))
        except Exception as error:
            size = ",".join(str(length) for length in input_shape)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ProfileError(
                f"{type(module).__name__}: forward pass on input {size} failed ({reason}); "
                "give the input size that the model takes"
            ) from None
        finally:
            for part, mode in modes:
                part.training = mode
    return Counts(
        params=sum(parameter.numel() for parameter in module.parameters()),
        conv_linear_weights=weights,
        macs=macs,
        flops=2 * macs,
        uncounted=uncounted,
    )


def count_onnx(path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Counts:
    """Count an ONNX file, also one with Q/DQ or integer operators; `shapes` gives the size of every open input.

    See `profiles.flops_onnx`. Raises ProfileError for open sizes that were not given and for products whose shapes
    cannot be told.
    """
    from profiles.flops_onnx import count_onnx as count

    return count(Path(path), shapes)


def _on_meta(module: torch.nn.Module) -> torch.nn.Module:
    """A copy in eval mode whose parameters and buffers have shapes but no bytes."""
    import torch

    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        meta = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = torch.nn.Parameter(meta, requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo).eval()


def _forward(module: torch.nn.Module, input_shape: tuple[int, ...], device: str) -> tuple[int, dict[str, int]]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    x = torch.zeros(input_shape, dtype=dtype, device=device)
    # The recorder is entered first, so that it sees operations after the counter has decomposed them.
    with (
        torch.no_grad(),
        _no_attention_fastpath(),
        sdpa_kernel(SDPBackend.MATH),
        _recorder() as calls,
        FlopCounterMode(display=False) as counter,
    ):
        module(x)
    total = counter.get_total_flops()
    assert total % 2 == 0, total
    return total // 2, dict(sorted(calls.items()))


@contextmanager
def _no_attention_fastpath() -> Iterator[None]:
    """The fused path of nn.MultiheadAttention is one operation that no counter knows."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _recorder() -> Iterator[Counter[str]]:
    """Counts the calls of aten operations that compute and have no formula."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    calls: Counter[str] = Counter()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            packet = getattr(func, "_overloadpacket", func)
            name = getattr(func, "__name__", str(func)).split(".")[0].rstrip("_")
            if packet not in flop_registry and not _moves(func, name):
                calls[name] += 1
            return func(*args, **(kwargs or {}))

    with Recorder():
        yield calls


def _moves(func: Any, name: str) -> bool:
    namespace = getattr(func, "namespace", "aten")
    return namespace in ("prim", "profiler") or bool(getattr(func, "is_view", False)) or name in MOVES


def _conv_linear_weights(module: torch.nn.Module) -> int:
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    found: dict[int, int] = {}
    for part in module.modules():
        weights: list[Any] = []
        if isinstance(part, (_ConvNd, nn.Linear, nn.Bilinear)):
            weights = [part.weight]
        elif isinstance(part, nn.MultiheadAttention):  # its input projections are bare parameters
            weights = [part.in_proj_weight, part.q_proj_weight, part.k_proj_weight, part.v_proj_weight]
        found.update({id(weight): weight.numel() for weight in weights if weight is not None})
    return sum(found.values())
