"""A trained model in one file: weights as safetensors, and in its header what is needed to build and feed it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import write_bytes
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn

KEY = "edgestill.model"
VERSION = 1
INT8_LINEAR = "int8_linear"  # in made_by: the names of the layers that bitsandbytes made int8
LARGEST_HEADER = 100_000_000  # as in the safetensors library


@dataclass(frozen=True, kw_only=True)
class ModelMeta:
    """model: the name given to `models.build`. input_size: (C, H, W). mean, std: one a channel, on the scale 0 to 1.

    made_by: tool versions or whatever else is worth keeping; it is part of the file's bytes. output_shape: (C', H', W')
    of the picture that answers an input, with num_classes = C' and no class names; () for a classifier.
    """

    model: str
    num_classes: int
    class_names: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    made_by: Mapping[str, str] = field(default_factory=dict)
    output_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        names = 0 if self.output_shape else self.num_classes
        assert len(self.class_names) == names, f"{len(self.class_names)} names, {self.num_classes} classes"
        assert len(self.input_size) == 3, self.input_size
        assert len(self.mean) == len(self.std) == channels, f"{self.mean} {self.std} for {channels} channels"


def save_checkpoint(path: Path | str, module: nn.Module, meta: ModelMeta) -> None:
    """Write `module`'s state dict and `meta`, all or nothing; the same values give the same bytes.

    Raises `UserError` when the disk is full or the folder cannot be written.
    """
    import torch
    from safetensors.torch import save

    state = {
        name.removeprefix("_orig_mod."): tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }
    write_bytes(path, save(state, metadata=header_of(meta)))


def header_of(meta: ModelMeta) -> dict[str, str]:
    """`meta` as a checkpoint's metadata. One key: safetensors writes several in an order that differs each time."""
    described = {"version": VERSION} | asdict(meta) | {"made_by": dict(meta.made_by)}
    if not meta.output_shape:  # so that a classifier's file has the bytes that it had before there were others
        del described["output_shape"]
    return {KEY: json.dumps(described, sort_keys=True)}


def load_checkpoint(path: Path | str) -> tuple[nn.Module, ModelMeta]:
    """The module in eval mode on the CPU, with its meta; torch's random generators are left as they were.

    Raises `UserError` with one line for a missing, damaged or foreign file.
    """
    import torch

    from pipeline.models import PRUNED, build, parse_name
    from pipeline.models.weights import load_weights, read_state

    meta = read_meta(path)
    size = meta.input_size if parse_name(meta.model).source == PRUNED else None
    with torch.random.fork_rng(devices=[]):
        module = build(meta.model, num_classes=meta.num_classes, in_channels=meta.input_size[0], input_size=size)
    if int8 := meta.made_by.get(INT8_LINEAR):
        from exporters.to_int8_linear import load_int8_linears

        load_int8_linears(module, int8.split(), read_state(path, where="checkpoint"))
    else:
        load_weights(module, path, where="checkpoint")
    return module.eval(), meta


def read_meta(path: Path | str) -> ModelMeta:
    """The meta of a checkpoint, read from its header alone, without torch. Raises as `load_checkpoint`."""
    header = _header(Path(path))
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise UserError(
            f"checkpoint: {path}: plain weights, not a checkpoint of edgestill; give them as weights of a named model"
        )
    try:
        values: dict[str, Any] = json.loads(metadata[KEY])
        if values.pop("version") != VERSION:
            raise UserError(f"checkpoint: {path}: written by another version of edgestill; build it again")
        channels, height, width = (int(side) for side in values.pop("input_size"))
        values |= {key: tuple(values.get(key, ())) for key in ("class_names", "mean", "std", "output_shape")}
        return ModelMeta(**values, input_size=(channels, height, width))
    except (KeyError, TypeError, AttributeError, AssertionError, json.JSONDecodeError) as error:
        raise UserError(f"checkpoint: {path}: its description is damaged ({error}); build it again") from error


def _header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: 8 bytes of length, little-endian, then the text."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_HEADER:
                raise ValueError("no safetensors header")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise UserError(f"checkpoint: no file {str(path)!r}; run the stage that writes it") from error
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"checkpoint: {path}: corrupted, or not a safetensors file; build it again") from error
    if not isinstance(header, dict):
        raise UserError(f"checkpoint: {path}: corrupted, or not a safetensors file; build it again")
    return header
