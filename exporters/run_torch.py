"""A torch module, run eagerly, as a `Runner`. Imported only where torch is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from exporters.artifact import ExportError, IOSpec
from exporters.base import INPUT_NAME, OUTPUT_NAME, Feeds, LayerSamples, check_feeds
from exporters.cuda_driver import bus_id
from exporters.onnx_file import first_line

# int8 linear layers (bitsandbytes) take and give floats; all else in such a net stays fp32.
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8-linear": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Most bytes on the device by torch's own allocator since the runner was entered: in tensors, and taken of it."""

    allocated_bytes: int
    reserved_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.reserved_bytes


class TorchRunner:
    """Runs `module`, from one float32 tensor to one, in evaluation mode, at `precision` on `device`.

    `input_shape` is (N, C, H, W) or any other; a string in it is an open size.
    Weights are cast once (autocast would cast them on every call); inputs and outputs stay float32. fp32 is true fp32:
    TF32 is off. The number of threads is a setting of the whole process: it is set on entering and put back on
    leaving, so runners that are open together need the same number. The caller's module is not changed.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        threads: int,
        input_shape: tuple[int | str, ...],
        name: str = "torch",
        device: str = "cpu",
        precision: str = "fp32",
        channels_last: bool = False,
    ) -> None:
        if precision not in _DTYPES:
            raise ExportError(f"{name}: precision {precision!r} cannot be run; known: {', '.join(_DTYPES)}")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ExportError(f"{name}: got device {device!r}, but torch sees no GPU; use cpu or look at the driver")
        self.name = name
        self.device = device
        self.precision = precision
        self.threads = threads
        self.inputs = (IOSpec(name=INPUT_NAME, dtype="float32", shape=tuple(input_shape)),)
        self.outputs: tuple[IOSpec, ...] = ()
        self.versions = {"torch": torch.__version__}
        if device.startswith("cuda"):
            self.versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        self._source = module
        self._module: nn.Module | None = None
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._before: tuple[Any, ...] = ()

    def __enter__(self) -> TorchRunner:
        self._before = (torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self) -> None:
        _set(self.threads, matmul_tf32=False, cudnn_tf32=False)
        if self.device.startswith("cuda"):
            torch.cuda.init()  # before its first use there are no counters to reset
            torch.cuda.reset_peak_memory_stats(self.device)
        module = copy.deepcopy(self._source).eval().requires_grad_(False)
        if self.precision == "int8-linear":
            module = _int8_linears(module)
        module = module.to(self.device, _DTYPES[self.precision], memory_format=self._format)  # type: ignore[call-overload]
        self._module = self._made_ready(module)
        spec = self.inputs[0]
        # Shapes of outputs are found by running once on zeros; open sizes are tried as 1.
        shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape)
        try:
            result = self._infer(self._load(np.zeros(shape, spec.dtype)))
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"{self.name}: the model failed on {spec} ({type(error).__name__}: {first_line(error)}); "
                "give the size that it takes with --input"
            ) from error
        if not isinstance(result, torch.Tensor):
            raise ExportError(f"{self.name}: the model returned {type(result).__name__}; a runner needs one tensor")
        batch = spec.shape[:1] if isinstance(spec.shape[0], str) else tuple(result.shape[:1])
        self.outputs = (IOSpec(name=OUTPUT_NAME, dtype="float32", shape=(*batch, *result.shape[1:])),)

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        self._module = None
        threads, matmul_tf32, cudnn_tf32 = self._before
        _set(threads, matmul_tf32=matmul_tf32, cudnn_tf32=cudnn_tf32)

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        check_feeds(feeds, self.inputs, where=self.name)
        result = self._infer(self._load(feeds[self.inputs[0].name]))
        return {self.outputs[0].name: result.float().cpu().numpy()}

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Move the input to the device in the type and layout that the module computes in."""
        check_feeds(feeds, self.inputs, where=self.name)
        images = self._load(feeds[self.inputs[0].name])
        return lambda: self._infer(images)

    def profile_layers(self, feeds: Feeds, runs: int) -> list[LayerSamples]:
        """What torch.profiler says of each module without children; what the forward passes between are not in it."""
        from exporters.torch_layers import layer_times

        infer = self.prepare(feeds)
        assert self._module is not None
        return layer_times(self._module, infer, runs, cuda=self.device.startswith("cuda"))

    def synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    @property
    def bus_id(self) -> str | None:
        """The PCI place of the GPU that it runs on; None on the cpu."""
        index = self.device.partition(":")[2]
        return bus_id(int(index or 0)) if self.device.startswith("cuda") else None

    def memory(self) -> Memory | None:
        """What this process holds on the GPU at most, other runners of it included; None on a CPU."""
        if not self.device.startswith("cuda"):
            return None
        return Memory(
            allocated_bytes=torch.cuda.max_memory_allocated(self.device),
            reserved_bytes=torch.cuda.max_memory_reserved(self.device),
        )

    def _made_ready(self, module: nn.Module) -> Any:
        """What is called with the images; a runner that compiles does so here."""
        return module

    def _load(self, array: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(np.ascontiguousarray(array)).to(self.device, _DTYPES[self.precision])
        return images.contiguous(memory_format=self._format) if images.ndim == 4 else images

    def _infer(self, images: torch.Tensor) -> torch.Tensor:
        assert self._module is not None, "use the runner inside `with`"
        with torch.inference_mode():
            return self._module(images)


def _int8_linears(module: nn.Module) -> nn.Module:
    """With bitsandbytes' int8 layers in the place of the linear ones, unless the module was loaded with them."""
    from exporters.to_int8_linear import has_int8_linears, with_int8_linears

    if not has_int8_linears(module):
        with_int8_linears(module)
    return module


def _set(threads: int, *, matmul_tf32: bool, cudnn_tf32: bool) -> None:
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
    torch.backends.cudnn.allow_tf32 = cudnn_tf32
