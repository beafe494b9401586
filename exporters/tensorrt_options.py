"""What may be asked of a TensorRT build, and whether an edition can do it: refused with its name, never left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.artifact import PRECISIONS, PREFIX, ExportError, IOSpec
from exporters.base import Shapes, fix_shapes
from exporters.cuda_driver import device_count
from exporters.onnx_file import graph_precision
from exporters.tensorrt_api import Edition, has, members

if TYPE_CHECKING:
    from onnx import ModelProto

# (smallest, best, largest) shape of an input with open sizes.
Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build. The default has the fewest surprises: a static engine, true fp32, no compatibility modes.

    `shapes` fixes open sizes; `profiles` leaves them open between a smallest and a largest shape (batch, mostly).
    `compute_capabilities` (RTX) are names such as "SM89". `hardware_compatibility` is "ampere_plus" or
    "same_compute_capability"; that and `version_compatible` cost speed. `tf32` lets fp32 products round to 10 bits.
    `strict` makes a warning of the builder a failure; without it they are notes in the sidecar, for builds on a device,
    where most are about the machine. A warning of the parser is about the graph, and always a failure.
    """

    shapes: Shapes | None = None
    profiles: Mapping[str, Profile] | Profile | None = None
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    tf32: bool = False
    strict: bool = True


def profiles_of(inputs: tuple[IOSpec, ...], options: BuildOptions, *, where: str) -> dict[str, Profile]:
    """(smallest, best, largest) shape of each input with open sizes; empty for a static graph."""
    given = options.profiles
    if given is None:
        fixed = fix_shapes(inputs, options.shapes, where=where)
        return {
            spec.name: (spec.shape,) * 3  # type: ignore[misc]
            for spec, before in zip(fixed, inputs, strict=True)
            if before.dynamic
        }
    if options.shapes is not None:
        raise ExportError(
            f"{where}: got shapes and profiles; shapes fix open sizes, profiles leave them open: give one"
        )
    if not isinstance(given, Mapping):
        if len(inputs) != 1:
            raise ExportError(f"{where}: got one profile for {len(inputs)} inputs; give one for each by name")
        given = {inputs[0].name: given}
    for place, what in enumerate(("smallest", "best", "largest")):
        try:
            fix_shapes(inputs, {name: tuple(profile[place]) for name, profile in given.items()}, where=where)
        except ExportError as error:
            raise ExportError(f"{error} ({what} shape of its profile)") from None
    for name, (least, best, most) in given.items():
        if not all(low <= middle <= high for low, middle, high in zip(least, best, most, strict=True)):
            raise ExportError(
                f"{where}: profile of {name!r} got {list(least)}, {list(best)}, {list(most)}; "
                "give the smallest, the best and the largest shape"
            )
    dynamic = {spec.name for spec in inputs if spec.dynamic}
    return {name: profile for name, profile in given.items() if name in dynamic}


def close_sizes(
    specs: tuple[IOSpec, ...], inputs: tuple[IOSpec, ...], profiles: Mapping[str, Profile]
) -> tuple[IOSpec, ...]:
    """`specs` (inputs or outputs) with every open size that a profile of the `inputs` fixes; the others stay open."""
    sizes: dict[int | str, int] = {}
    for spec in inputs:
        least, _, most = profiles.get(spec.name, ((), (), ()))
        sizes.update({name: low for name, low, high in zip(spec.shape, least, most, strict=False) if low == high})
    return tuple(
        IOSpec(
            name=spec.name,
            dtype=spec.dtype,
            shape=tuple(sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape),
        )
        for spec in specs
    )


def requested_precision(model: ModelProto, precision: str | None, edition: Edition, *, where: str) -> str:
    """What is asked for, by default what the file says of itself; refused where the graph would give something else."""
    found = graph_precision(model)
    stated = next((prop.value for prop in model.metadata_props if prop.key == f"{PREFIX}precision"), None)
    requested = precision or stated or found
    known = [name for name in PRECISIONS if name != "int8-linear"]  # that one is torch's alone
    if requested not in known:
        raise ExportError(f"{where}: unknown precision {requested!r}; known: {', '.join(known)}")
    # Flags can lower fp32 to fp16; nothing but Q/DQ makes int8 without a calibrator.
    lowered = edition.typing == "flags" and (found, requested) == ("fp32", "fp16")
    if requested != found and not lowered:
        raise ExportError(
            f"{where}: asked for {requested}, but the graph computes in {found}, and {edition} takes the precision "
            f"from the graph; give the {requested} file"
        )
    if edition.typing == "flags" and requested == "bf16":
        raise ExportError(f"{where}: {edition} has no bf16; give the fp16 or the fp32 file")
    return requested


def flags_of(edition: Edition, requested: str, options: BuildOptions, *, where: str) -> tuple[str, ...]:
    """Names of the builder flags to set. What this edition does not know is refused, not left out."""
    flags = []
    if edition.typing == "flags":
        # What Q/DQ leaves in float goes to fp16: leftovers in fp32 made int8 engines slower than fp16 ones.
        flags += {"int8": ["INT8", "FP16"], "fp16": ["FP16"]}.get(requested, [])
    if options.version_compatible:
        flags.append("VERSION_COMPATIBLE")
    if options.tf32:
        flags.append("TF32")
    for flag in flags:
        if not has(edition.module, "BuilderFlag", flag):
            raise ExportError(f"{where}: {edition} has no builder flag {flag}")
    if edition.ahead_of_time:
        # RTX compiles for its GPU when it loads: these it warns of, ignores or (the first) has no library for.
        for name in ("version_compatible", "hardware_compatibility", "timing_cache"):
            if getattr(options, name):
                raise ExportError(
                    f"{where}: {edition} does nothing for {name}; name the compute capabilities (--cc) instead"
                )
    level = options.hardware_compatibility
    known = members(getattr(edition.module, "HardwareCompatibilityLevel", None))
    if level is not None and level.upper() not in known:
        names = ", ".join(sorted(name.lower() for name in known)) or "none"
        raise ExportError(f"{where}: hardware_compatibility: got {level!r}; {edition} knows {names}")
    return tuple(flags)


def capabilities_of(edition: Edition, options: BuildOptions, *, where: str) -> tuple[str, ...]:
    """Names of the compute capabilities to build for; empty where the edition knows none but the GPU it runs on."""
    given = options.compute_capabilities
    if not edition.ahead_of_time:
        if given:
            raise ExportError(f"{where}: {edition} builds for the GPU it runs on; leave compute_capabilities out")
        if not device_count():
            raise ExportError(f"{where}: {edition} needs an NVIDIA GPU to build; none is seen here")
        return ()
    known = [name for name in members(edition.module.ComputeCapability) if name not in ("NONE", "CURRENT")]
    for name in given:
        if name not in known:
            raise ExportError(f"{where}: compute_capabilities: got {name!r}; {edition} builds for {', '.join(known)}")
    if not given and not device_count():
        raise ExportError(
            f"{where}: no NVIDIA GPU is seen here; name the compute capabilities (--cc), from {', '.join(known)}"
        )
    return given or ("CURRENT",)
