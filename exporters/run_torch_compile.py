"""A torch module compiled by torch.compile (inductor), as a `Runner`: the honest baseline that eager torch is not.

On a CPU, weights are frozen into the code (measured: a third faster than without). Compiling takes 10 to 60 seconds a
network, once for each shape of input.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from exporters.artifact import ExportError
from exporters.onnx_file import first_line
from exporters.run_torch import TorchRunner


class TorchCompileRunner(TorchRunner):
    """As `TorchRunner`, compiled when it is entered; `input_shape` without open sizes keeps it from compiling again."""

    def __init__(self, module: nn.Module, *, name: str = "torch-compile", **settings: Any) -> None:
        super().__init__(module, name=name, **settings)
        self.versions = {**self.versions, "torch-compile": "inductor"}

    def _made_ready(self, module: nn.Module) -> Any:
        return torch.compile(module, dynamic=False)

    def _infer(self, images: torch.Tensor) -> torch.Tensor:
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor import config

        with _quiet(), config.patch(freezing=self.device == "cpu"):
            try:
                return super()._infer(images)
            except TorchDynamoException as error:
                cause = getattr(error, "inner_exception", None) or error.__cause__ or error
                reason = f"{type(cause).__name__}: {first_line(cause)}"
                raise ExportError(f"torch-compile: cannot compile the model ({reason})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Inductor warns about its own internals while it compiles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
