"""ONNX -> a TensorRT engine, in Python alone: one path for TensorRT 8.6, 10.x, 11.x and TensorRT-RTX.

The precision lives in the ONNX graph (fp16 by conversion, int8 by explicit Q/DQ), which 10.x, 11.x and RTX build
strongly typed; 8.6 gets its INT8 and FP16 flags. NVIDIA's parser reads the graph after our own check of it, a warning
of parser or builder is a failure, and what was obtained is compared with what was asked for before anything is written.

`tensorrt` builds for the GPU that it runs on. `tensorrt-rtx` builds without a GPU for the compute capabilities named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.artifact import PREFIX, Artifact, ExportError, file_sha256
from exporters.base import missing_package
from exporters.cuda_driver import device_count
from exporters.onnx_file import io_specs, load_model, replace_bytes
from exporters.opset import opset_of
from exporters.tensorrt_api import MODULES, Edition, Tools, edition_of, has, one_line, said, tools_of
from exporters.tensorrt_check import check_graph, rules_of
from exporters.tensorrt_engine import engine_artifact, spec_json, write_engine
from exporters.tensorrt_opset import accepted
from exporters.tensorrt_options import (
    BuildOptions,
    Profile,
    capabilities_of,
    close_sizes,
    flags_of,
    profiles_of,
    requested_precision,
)
from exporters.tensorrt_precision import check_obtained, of_inspector, of_network

if TYPE_CHECKING:
    from onnx import ModelProto

# The one thing that may be warned of: TensorRT computes with fp32 scales, whatever they are stored in.
_SCALES = re.compile(r"converting .*scales to fp32", re.IGNORECASE)
# Edition 8.6 has no 64-bit integers and says so of the shapes and axes of every graph (ONNX knows no others there), and
# that it needs no calibrator for Q/DQ, which is what is meant.
_EDITION_8 = re.compile(
    r"generated with INT64 weights.*cast down to INT32|calibrator won't be used in explicit precision", re.I | re.S
)


class TensorRtExporter:
    """The exporter named "tensorrt" in `exporters.EXPORTERS`."""

    name = "tensorrt"

    def unavailable(self) -> str | None:
        if missing := missing_package(MODULES[self.name], self.name):
            return missing
        return None if device_count() else "needs an NVIDIA GPU to build and to run; none is seen here"

    @property
    def export(self) -> Callable[..., Artifact]:
        def export(source: Path | str, path: Path | str, **options: Any) -> Artifact:
            precision = options.pop("precision", None)
            return build_engine(
                source, path, edition=edition_of(self.name), precision=precision, options=BuildOptions(**options)
            )

        return export


class TensorRtRtxExporter(TensorRtExporter):
    """The exporter named "tensorrt-rtx": it needs no GPU."""

    name = "tensorrt-rtx"

    def unavailable(self) -> str | None:
        return missing_package(MODULES[self.name], self.name)


def build_engine(
    source: Path | str,
    path: Path | str,
    *,
    edition: Edition,
    precision: str | None = None,
    options: BuildOptions | None = None,
) -> Artifact:
    """Build the ONNX file `source` into an engine at `path`, with a sidecar `path`.json.

    `precision` is what is asked for, by default what the file says of itself. Whatever does not fit (the graph, the
    options, a warning, the precision obtained) is an `ExportError`, and then nothing is written.
    """
    options, label, where = options or BuildOptions(), str(edition), str(source)
    model = load_model(source)
    requested = requested_precision(model, precision, edition, where=where)
    inputs, outputs = io_specs(model)
    profiles = profiles_of(inputs, options, where=where)
    flags = flags_of(edition, requested, options, where=where)
    capabilities = capabilities_of(edition, options, where=where)
    tools = tools_of(edition)
    with accepted(Path(source), model, edition, profiles) as (file, taken), tools.listening() as lines:
        # The parser holds the weights that the network points to, so it must live as long.
        network, _parser = _parse(file, taken, edition, tools, where=where)
        notes = _only_notes(lines, edition, where=where, doing="reading the graph")
        obtained = None
        if edition.typing != "flags":
            obtained = of_network(network, requested)
            check_obtained(obtained, requested, model, where=where, label=label)
        config = _configure(tools.builder, edition, flags, options, capabilities)
        _add_profiles(tools.builder, config, profiles, where=where)
        cache = _timing_cache(config, edition, options)
        plan = tools.builder.build_serialized_network(network, config)
        if plan is None:
            reason = said(lines)
            advice = "; lower --workspace, or end what else uses the GPU" if "memory" in reason.lower() else ""
            raise ExportError(f"{where}: {label} cannot build it ({reason}){advice}")
        further = lines[len(notes) :]
        if options.strict:
            _only_notes(further, edition, where=where, doing="building the engine")
        notes += [one_line(line) for _, line in further]
        plan = bytes(memoryview(plan))
        layers = _inspect(plan, edition, tools.logger)
    if obtained is None:
        if layers is None:
            raise ExportError(f"{where}: {label} gives no detailed inspector output, so its precision is unknown")
        obtained = of_inspector(layers, requested)
        check_obtained(obtained, requested, model, where=where, label=label)
    if cache is not None and options.timing_cache is not None:
        replace_bytes(options.timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))
    metadata = {
        prop.key.removeprefix(PREFIX): prop.value for prop in model.metadata_props if prop.key.startswith(PREFIX)
    }
    write_engine(
        path,
        plan,
        {
            "edition": edition.name,
            "version": edition.version,
            "onnx": {"name": Path(source).name, "sha256": file_sha256(source)},
            "opset": {"file": opset_of(model), "built": opset_of(taken)},
            "compute_capabilities": list(capabilities),
            "precision": {"requested": requested, "obtained": obtained.to_json()},
            "flags": list(flags),
            "typing": "weak" if edition.typing == "flags" else "strong",
            "workspace_bytes": options.workspace_bytes,
            "hardware_compatibility": options.hardware_compatibility,
            "profiles": {name: [list(shape) for shape in profile] for name, profile in profiles.items()},
            "inputs": spec_json(close_sizes(inputs, inputs, profiles)),
            "outputs": spec_json(close_sizes(outputs, inputs, profiles)),
            "metadata": {**metadata, "precision": requested},
            "notes": notes,
            "inspector": layers,
        },
    )
    return engine_artifact(path)


def _parse(file: Path, model: ModelProto, edition: Edition, tools: Tools, *, where: str) -> tuple[Any, Any]:
    trt = edition.module
    creation = 0
    # 8.6 still knows graphs without a batch dimension, and 10.x weak typing; later editions know neither.
    wanted = {"flags": "EXPLICIT_BATCH", "opt-in": "STRONGLY_TYPED"}.get(edition.typing)
    if wanted:
        creation = 1 << int(getattr(trt.NetworkDefinitionCreationFlag, wanted))
    network = tools.builder.create_network(creation)
    parser = trt.OnnxParser(network, tools.logger)
    supports = getattr(parser, "supports_operator", None)
    check_graph(model, rules_of(edition.name, edition.version), where=where, supports=supports)
    # By path, so that weights beside the file are found.
    if not parser.parse_from_file(str(file)):
        raise ExportError(f"{where}: {edition} cannot read {_parser_error(parser, model) or said(tools.lines)}")
    return network, parser


def _parser_error(parser: Any, model: ModelProto) -> str:
    if not parser.num_errors:
        return ""
    error = parser.get_error(0)
    index = error.node()
    node = model.graph.node[index] if 0 <= index < len(model.graph.node) else None
    name = error.node_name() if hasattr(error, "node_name") else node.name if node is not None else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else node.op_type if node is not None else "?"
    return f"node {name!r} ({operator}): {one_line(error.desc())}"


def _only_notes(lines: list[tuple[str, str]], edition: Edition, *, where: str, doing: str) -> list[str]:
    """The lines when all of them may be; else an `ExportError` with the first that may not."""
    allowed = [_SCALES, *([_EDITION_8] if edition.typing == "flags" else [])]
    for _, line in lines:
        if not any(pattern.search(line) for pattern in allowed):
            raise ExportError(f"{where}: {edition} warned while {doing}: {one_line(line)}")
    return [one_line(line) for _, line in lines]


def _configure(
    builder: Any, edition: Edition, flags: tuple[str, ...], options: BuildOptions, capabilities: tuple[str, ...]
) -> Any:
    trt = edition.module
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if not options.tf32 and has(trt, "BuilderFlag", "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.hardware_compatibility:
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
        config.hardware_compatibility_level = level
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for place, name in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), place)
    return config


def _add_profiles(builder: Any, config: Any, profiles: Mapping[str, Profile], *, where: str) -> None:
    if not profiles:
        return
    made = builder.create_optimization_profile()
    for name, (least, best, most) in profiles.items():
        made.set_shape(name, least, best, most)
    if config.add_optimization_profile(made) < 0:
        raise ExportError(f"{where}: its optimization profile was refused: {dict(profiles)}")


def _timing_cache(config: Any, edition: Edition, options: BuildOptions) -> Any:
    """Timings of earlier builds on this device, so that a rebuild chooses the same kernels, and sooner."""
    if options.timing_cache is None:
        return None
    before = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
    # A cache of another device or version says so and is refused here: its timings mean nothing. On a device, where
    # nobody chose the file, the build then begins without.
    for data in (before,) if options.strict else (before, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    raise ExportError(
        f"{options.timing_cache}: is no timing cache of this device and {edition}; remove it or name another"
    )


def _inspect(plan: bytes, edition: Edition, logger: Any) -> dict[str, Any] | None:
    """The inspector's JSON of the built engine; None where no GPU is there to load it."""
    if not device_count():
        return None
    trt = edition.module
    runtime = trt.Runtime(logger)  # an engine must not outlive it
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:  # built ahead of time for another GPU
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        return json.loads(text)
    except ValueError:
        return None
