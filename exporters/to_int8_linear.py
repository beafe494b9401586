"""int8 linear layers (LLM.int8, bitsandbytes' Linear8bitLt) as an artifact of the torch runtime: a safetensors file.

Each row of a weight gets a scale of its own, activations are quantized row by row while running, so no calibration is
needed. Convolutions stay as they are: a convolutional net keeps nearly all of its size and gains no time (figures:
tests/benchmarks/int8_linear.py). It cannot be exported to ONNX. Imported only where torch is.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.artifact import Artifact, ExportError, installed_versions
from exporters.base import missing_package
from exporters.onnx_file import replace_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

PRECISION = "int8-linear"


class Int8LinearExporter:
    """The exporter named "int8-linear" in `exporters.EXPORTERS`."""

    name = PRECISION

    def unavailable(self) -> str | None:
        return missing_package("torch", "train") or missing_package("bitsandbytes", "train")

    @property
    def export(self) -> Callable[..., Artifact]:
        return export_int8_linear


def export_int8_linear(module: nn.Module, path: Path | str, *, metadata: Mapping[str, str]) -> Artifact:
    """Write `module`'s state with int8 linear layers at `path` (.safetensors); the module is not changed.

    `metadata` is the file's header: one entry, because safetensors writes several in an order that differs.
    """
    from safetensors.torch import save

    if reason := Int8LinearExporter().unavailable():
        raise ExportError(f"{path}: int8 linear layers need {reason}")
    converted = copy.deepcopy(module).cpu().float().eval()
    with_int8_linears(converted)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in converted.state_dict().items()}
    replace_bytes(Path(path), save(state, metadata=dict(metadata)))
    versions = installed_versions("torch", "bitsandbytes")
    return Artifact.of_file(path, kind="torch", precision="int8-linear", inputs=(), outputs=(), made_by=versions)


def linear_names(module: nn.Module) -> tuple[str, ...]:
    """The linear layers that are made int8, by name; those inside attention modules, which read weights alone, stay."""
    from torch import nn

    attention = [name for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)]
    return tuple(
        name
        for name, part in module.named_modules()
        if type(part) is nn.Linear and not any(name.startswith(f"{outer}.") for outer in attention)
    )


def with_int8_linears(module: nn.Module, names: Collection[str] | None = None) -> tuple[str, ...]:
    """Put int8 layers in the place of the linear layers `names` (of all that can be), in place; returns their names.

    A net without any is an `ExportError`.
    """
    bnb = import_bitsandbytes()
    chosen = tuple(linear_names(module) if names is None else names)
    if not chosen:
        raise ExportError("int8-linear: the model has no linear layer; leave this form out")
    for name in chosen:
        linear = module.get_submodule(name)
        made = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False
        )
        made.load_state_dict(linear.state_dict())
        outer, _, last = name.rpartition(".")
        # Moving it to a device, be it the one where it is, is what quantizes it.
        setattr(module.get_submodule(outer), last, made.to("cpu").requires_grad_(False).train(linear.training))
    return chosen


def load_int8_linears(module: nn.Module, names: Collection[str], state: Mapping[str, torch.Tensor]) -> None:
    """Make `names` int8 layers and fill the module, in place, with what `export_int8_linear` wrote."""
    with_int8_linears(module, names)
    expected = set(module.state_dict())
    if odd := sorted(expected ^ set(state)):
        raise ExportError(f"int8-linear: {odd[0]!r} is {'missing from' if odd[0] in expected else 'odd in'} the file")
    module.load_state_dict(dict(state), strict=False)


def has_int8_linears(module: nn.Module) -> bool:
    return any(type(part).__name__ == "Linear8bitLt" for part in module.modules())


def import_bitsandbytes() -> Any:
    """bitsandbytes, imported without its advice about further packages."""
    if missing := missing_package("bitsandbytes", "train"):
        raise ExportError(f"int8-linear: {missing}")
    with _quiet():
        import bitsandbytes

        # It logs at the first call that fp32 inputs are rounded on their way to int8, which is what is wanted.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return bitsandbytes


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
