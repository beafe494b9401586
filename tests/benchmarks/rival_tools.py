"""What other tools make of the same fp32 ONNX file and the same calibration images; each in the variants its users try.

A tool that is not installed, or fails, is told with its reason. Olive lives in an environment of its own (it brings a
hundred packages): only files go to and fro.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from exporters.base import fix_shapes
from exporters.run_openvino import OpenVinoRunner, _import_openvino, _specs

TIMEOUT_S = 600
OLIVE = """
import json, sys
from pathlib import Path
import numpy as np
from olive.data.registry import Registry
from olive.workflows import run

model, calibration, out = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3])

class Images:
    def __len__(self):
        return len(calibration)
    def __getitem__(self, i):
        return {"input": calibration[i : i + 1]}, 0
    def __iter__(self):
        return (self[i] for i in range(len(self)))

@Registry.register_dataset()
def our_dataset(**_): return None
@Registry.register_pre_process()
def our_pre_process(dataset, **_): return dataset
@Registry.register_post_process()
def our_post_process(output, **_): return output
@Registry.register_dataloader()
def our_dataloader(dataset=None, **_): return Images()

data = {"name": "images", "type": "DataContainer", "load_dataset_config": {"type": "our_dataset"},
        "pre_process_data_config": {"type": "our_pre_process"}, "dataloader_config": {"type": "our_dataloader"},
        "post_process_data_config": {"type": "our_post_process"}}
for name, options in json.loads(sys.argv[4]).items():
    run({"input_model": {"type": "OnnxModel", "model_path": model}, "data_configs": [data],
         "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "images", **options}},
         "output_dir": str(out / name), "cache_dir": str(out / "cache"), "log_severity_level": 3})
"""
# Olive's options; the first is what it does when nothing is asked, the others are its documentation's advice for CPUs.
OLIVE_VARIANTS = {
    "default": {},
    "u8s8": {"precision": "int8", "activation_type": "uint8", "per_channel": True},
    "qoperator": {"precision": "int8", "activation_type": "uint8", "per_channel": True, "quant_format": "QOperator"},
}


class OpenVinoAsItComes(OpenVinoRunner):
    """OpenVINO without a hint on precision, as a user of NNCF runs it: where the CPU has AMX, floats become bf16."""

    def __enter__(self) -> OpenVinoAsItComes:
        openvino = _import_openvino()
        core = openvino.Core()
        model = core.read_model(str(self.path))
        self.inputs = fix_shapes(_specs(model.inputs), self._shapes, where=str(self.path))
        model.reshape({spec.name: list(spec.shape) for spec in self.inputs})
        options = {"INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(model, "CPU", options)
        self.outputs = _specs(compiled.outputs)
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.versions = {"openvino": openvino.__version__, "inference_precision": hint}
        self._request = compiled.create_infer_request()
        return self


def make_all(folder: Path, olive: Path | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Subjects of every tool from `folder`/onnx-fp32.onnx and calibration.npy (float32, images); tool -> why not."""
    made, failed = [], {}
    tools: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "onnxruntime": lambda: onnxruntime(folder),
        "nncf": lambda: nncf(folder),
        "olive": lambda: by_olive(folder, olive),
    }
    for name, make in tools.items():
        try:
            made += make()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            failed[name] = f"{type(error).__name__}: {lines[0]}"[:300]
    return made, failed


def subject(maker: str, variant: str, path: Path, runtime: str, version: str, **further: Any) -> dict[str, Any]:
    from exporters.artifact import file_sha256

    files = [path] if path.suffix == ".onnx" else [path, path.with_suffix(".bin")]
    return {
        "name": f"{maker}-{variant}@{runtime}",
        "maker": maker,
        "version": version,
        "runtime": runtime,
        "precision": "int8",
        "path": str(path),
        "sha256": file_sha256(files[-1]),
        "size_bytes": sum(file.stat().st_size for file in files),
        **further,
    }


def onnxruntime(folder: Path) -> list[dict[str, Any]]:
    """`quantize_static` after its own preparation: its default, and unsigned activations with channel-wise weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = np.load(folder / "calibration.npy")
    prepared = folder / "onnxruntime-prepared.onnx"
    quant_pre_process(str(folder / "onnx-fp32.onnx"), str(prepared))

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"input": image[None]}

    unsigned = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    variants: dict[str, dict[str, Any]] = {
        "default": {},
        "u8s8": unsigned,
        "qoperator": unsigned | {"quant_format": QuantFormat.QOperator},
    }
    made = []
    for name, options in variants.items():
        path = folder / f"onnxruntime-{name}.onnx"
        quantize_static(str(prepared), str(path), Reader(), **options)
        made.append(subject("onnxruntime", name, path, "onnxruntime", metadata.version("onnxruntime")))
    return made


def nncf(folder: Path) -> list[dict[str, Any]]:
    """`nncf.quantize` of the OpenVINO model with its two presets, run by OpenVINO as it comes."""
    openvino = _import_openvino()
    import nncf as library

    images = np.load(folder / "calibration.npy")
    made = []
    for name, preset in (("default", "PERFORMANCE"), ("mixed", "MIXED")):
        model = openvino.Core().read_model(str(folder / "onnx-fp32.onnx"))
        data = library.Dataset(list(images[:, None]), lambda image: image)
        options = {"preset": getattr(library.QuantizationPreset, preset), "subset_size": len(images)}
        path = folder / f"nncf-{name}.xml"
        openvino.save_model(library.quantize(model, data, **options), str(path), compress_to_fp16=False)
        made.append(subject("nncf", name, path, "openvino", library.__version__, as_it_comes=True))
    return made


def by_olive(folder: Path, python: Path | None) -> list[dict[str, Any]]:
    """Olive's static quantization, in the environment of `python` (this one without)."""
    python = python or Path(sys.executable)
    version = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(m.version('olive-ai'))"],
        capture_output=True,
        text=True,
        check=False,
    )
    if version.returncode:
        raise RuntimeError(
            f"{python}: olive-ai is not installed there; pip install olive-ai requests, in a venv of its own"
        )
    out = folder / "olive"
    arguments = [folder / "onnx-fp32.onnx", folder / "calibration.npy", out, json.dumps(OLIVE_VARIANTS)]
    environment = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1", "CI": "true"}
    environment.pop("PYTHONPATH", None)
    command = [str(python), "-c", OLIVE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=TIMEOUT_S)
    found = {name: out / name / "model.onnx" for name in OLIVE_VARIANTS}
    made = [
        subject("olive", name, path, "onnxruntime", version.stdout.strip())
        for name, path in found.items()
        if path.is_file()
    ]
    if not made:
        raise RuntimeError(f"olive: exit status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return made
