"""Engines built ahead of time by TensorRT-RTX itself, without a GPU: what it takes, what it refuses, what it says.

Acceptance is proven here, and the precision of the parsed network; kernels and speed are not.
"""

import json

import numpy as np
import onnx
import pytest
import torch
from cli_runner import cli
from exporter_nets import PREPROCESSING, file
from onnx import TensorProto, helper, numpy_helper

from exporters.artifact import ExportError, IOSpec, Preprocessing, file_sha256, input_specs, read_metadata
from exporters.quantize_onnx import quantize_int8
from exporters.tensorrt_api import edition_of, tools_of
from exporters.tensorrt_engine import read_sidecar, sidecar_path
from exporters.tensorrt_options import BuildOptions
from exporters.to_fp16 import convert_fp16
from exporters.to_onnx import export_onnx
from exporters.to_tensorrt import TensorRtRtxExporter, build_engine

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; pip install 'edgestill[test]'")
ADA = BuildOptions(compute_capabilities=("SM89",))
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "portable": "int8", "gpu": "int8", "trt86": "int8"}


def edition():
    return edition_of("tensorrt-rtx")


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """The three forms of the small residual net, built once."""
    folder = tmp_path_factory.mktemp("engines")
    return {
        form: build_engine(file(form), folder / f"{form}.engine", edition=edition(), options=ADA) for form in PRECISIONS
    }


def permitted(notes, form):
    """Nothing is warned of, but that scales in fp16, which the gpu form alone has, are read as fp32."""
    return all(form == "gpu" and "scales to fp32" in note for note in notes)


@pytest.mark.parametrize("form", PRECISIONS)
def test_what_we_ship_builds_at_the_precision_asked_for(engines, form):
    artifact = engines[form]
    facts = read_sidecar(artifact.path).facts
    assert artifact.kind == "engine" and artifact.precision == PRECISIONS[form]
    assert facts["precision"] == {
        "requested": PRECISIONS[form],
        "obtained": {"layers": {PRECISIONS[form]: 7}, "others": [], "source": "parsed network"},
    }
    assert permitted(facts["notes"], form) and facts["typing"] == "strong" and facts["compute_capabilities"] == ["SM89"]
    assert artifact.inputs == (IOSpec(name="input", dtype="float32", shape=(2, 3, 16, 16)),)
    assert artifact.outputs == (IOSpec(name="logits", dtype="float32", shape=(2, 5)),)


def test_the_engine_is_plain_and_the_sidecar_says_the_rest(engines):
    path = engines["portable"].path
    sidecar = json.loads(sidecar_path(path).read_text())
    assert path.read_bytes()[:4] == b"vtrt", "TensorRT-RTX's own first bytes, nothing of ours before them"
    assert sidecar["engine"]["sha256"] == engines["portable"].sha256 == file_sha256(path)
    assert sidecar["onnx"] == {"name": "portable.onnx", "sha256": file_sha256(file("portable"))}
    assert (sidecar["edition"], sidecar["version"]) == ("tensorrt-rtx", trt.__version__)
    assert Preprocessing.of_file(path) == PREPROCESSING
    assert read_metadata(path) == read_metadata(file("portable"))
    assert input_specs(path) == input_specs(file("portable"))


def samples(shape):
    return [np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed in range(2)]


def settle(module, shape):
    """Statistics of the data in every BatchNorm: without, activations of untrained networks vanish, down to scales that
    fp16 cannot hold, and such layers are rightly left in fp16."""
    for layer in module.train().modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean over all passes, whatever it began with
    with torch.no_grad():
        for _ in range(2):
            module(torch.randn(shape))
    module.eval()


def build_all(name, shape, folder, classes=10):
    from pipeline.models import build

    torch.manual_seed(0)
    module = build(name, num_classes=classes, in_channels=shape[1])
    settle(module, (4, *shape[1:]))
    plain = export_onnx(
        module, folder / "fp32.onnx", input_shape=shape, opset=20, dynamic_batch=False, metadata={}
    ).path
    files = {
        "fp32": plain,
        # Not measured: activations of untrained networks vanish, and what fp16 cannot hold would stay in fp32.
        "fp16": convert_fp16(plain, folder / "fp16.onnx").path,
    }
    for form in ("portable", "gpu", "trt86"):
        files[form] = quantize_int8(plain, folder / f"{form}.onnx", form=form, batches=samples(shape)).path  # type: ignore[arg-type]
    for form, path in files.items():
        artifact = build_engine(path, folder / f"{form}.engine", edition=edition(), options=ADA)
        facts = read_sidecar(artifact.path).facts
        assert list(facts["precision"]["obtained"]["layers"]) == [PRECISIONS[form]], facts["precision"]
        assert permitted(facts["notes"], form)


# (channels, side) and classes of the data sets whose recipes do not state them; a folder has as many classes as the
# papers' folders (Intel's scenes 6), or 10.
SIZES = {"digits": (1, 8), "fashion-mnist": (1, 28), "cifar10": (3, 32), "cifar100": (3, 32), "arrays": (3, 32)}
CLASSES = {"cifar100": 100, "scenes": 6}
# One of each kind of network in the default run, small, and as no recipe has them.
QUICK = {
    "attention-sr?channels=8&blocks=1": (3, 32, 3),
    "mlperf-resnet8": (3, 32, 10),
    "cifar-resnet20?width=0.25": (1, 28, 10),
    "torchvision:mobilenet_v2": (3, 64, 10),
}


def as_trained(recipe):
    """(student, (channels, side, classes)) of a recipe: what the network takes and gives there."""
    data, task = recipe["data"], recipe.get("task", "classification")
    channels, side = SIZES.get(data["name"], (3, 0))
    side = data.get("image_size") or data.get("patch") or side
    pictures = {"super-resolution": channels, "edges": 1}
    classes = pictures.get(task) or CLASSES.get(data["name"]) or CLASSES.get(data.get("root"), 10)
    return recipe["student"]["model"], (channels, side, classes)


def students():
    """The network of every shipped recipe at the size of its data; all but a few kinds are left to the long run."""
    from pipeline.recipe_file import read_toml, shipped

    named = {as_trained(read_toml(path)) for path in shipped().values()} | {*QUICK.items()}
    return [
        pytest.param(name, sizes, marks=() if QUICK.get(name) == sizes else pytest.mark.slow, id=f"{name}-{sizes}")
        for name, sizes in sorted(named)
    ]


@pytest.mark.parametrize(("name", "sizes"), students())
def test_the_student_of_every_recipe_builds_in_every_form(name, sizes, tmp_path):
    channels, side, classes = sizes
    assert side, "its recipe states no size and its data implies none: name it in SIZES"
    build_all(name, (1, channels, side, side), tmp_path, classes=classes)


def test_batches_may_stay_open_between_bounds(tmp_path):
    bounds = ((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))
    options = BuildOptions(compute_capabilities=("SM86", "SM120"), profiles=bounds, workspace_bytes=1 << 24)
    artifact = build_engine(file("dynamic"), tmp_path / "d.engine", edition=edition(), options=options)
    assert artifact.inputs == (IOSpec(name="input", dtype="float32", shape=("batch", 3, 16, 16)),)
    facts = read_sidecar(artifact.path).facts
    assert facts["profiles"] == {"input": [list(shape) for shape in bounds]}
    assert facts["workspace_bytes"] == 1 << 24 and facts["compute_capabilities"] == ["SM86", "SM120"]
    with pytest.raises(ExportError) as error:
        build_engine(file("dynamic"), tmp_path / "e.engine", edition=edition(), options=ADA)
    assert str(error.value).endswith("has open sizes; give --input 1,3,224,224")


def test_the_unsigned_form_is_refused_before_the_parser(tmp_path):
    with pytest.raises(ExportError) as error:
        build_engine(file("cpu"), tmp_path / "cpu.engine", edition=edition(), options=ADA)
    assert str(error.value) == (
        f"{file('cpu')}: node 'input_QuantizeLinear' (QuantizeLinear) is unsigned; TensorRT takes signed int8: "
        "quantize in the portable form"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_parser_names_the_node_that_it_does_not_take(tmp_path):
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="grow", mode="cubic", antialias=1)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "scales")],
    )
    path = tmp_path / "resize.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    with pytest.raises(ExportError) as error:
        build_engine(path, tmp_path / "r.engine", edition=edition(), options=ADA)
    assert str(error.value).startswith(f"{path}: {edition()} cannot read node 'grow' (Resize): ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions(compute_capabilities=("SM90",)), "compute_capabilities: got 'SM90'; {} builds for SM75, SM80"),
        (
            BuildOptions(compute_capabilities=("SM89",), timing_cache=PRECISIONS),  # type: ignore[arg-type]
            "{} does nothing for timing_cache; name the compute capabilities (--cc) instead",
        ),
        (
            BuildOptions(compute_capabilities=("SM89",), hardware_compatibility="ampere_plus"),
            "{} does nothing for hardware_compatibility; name the compute capabilities (--cc) instead",
        ),
        (
            BuildOptions(compute_capabilities=("SM89",), version_compatible=True),
            "{} does nothing for version_compatible; name the compute capabilities (--cc) instead",
        ),
    ],
)
def test_what_rtx_cannot_do_is_refused(options, message, tmp_path):
    with pytest.raises(ExportError) as error:
        build_engine(file("fp32"), tmp_path / "e.engine", edition=edition(), options=options)
    assert str(error.value).startswith(f"{file('fp32')}: {message.format(edition())}")


def test_without_a_gpu_the_capabilities_must_be_named(tmp_path, monkeypatch):
    monkeypatch.setattr("exporters.tensorrt_options.device_count", lambda: 0)
    with pytest.raises(ExportError) as error:
        TensorRtRtxExporter().export(file("fp32"), tmp_path / "e.engine")
    assert str(error.value).startswith(
        f"{file('fp32')}: no NVIDIA GPU is seen here; name the compute capabilities (--cc), from SM75, SM80"
    )


def test_what_the_builder_cannot_build_is_one_line(tmp_path):
    # Turing has no fp32 matrix product in this edition.
    options = BuildOptions(compute_capabilities=("SM75",))
    with pytest.raises(ExportError) as error:
        build_engine(file("fp32"), tmp_path / "e.engine", edition=edition(), options=options)
    assert str(error.value).startswith(f"{file('fp32')}: {edition()} cannot build it (")
    assert "SM75" in str(error.value) and "\n" not in str(error.value)


def test_one_builder_and_one_logger_a_process():
    assert tools_of(edition()) is tools_of(edition())


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
def test_strongly_typed_editions_want_the_graph_in_the_precision(precision, tmp_path):
    with pytest.raises(ExportError) as error:
        build_engine(file("fp32"), tmp_path / "e.engine", edition=edition(), precision=precision, options=ADA)
    assert str(error.value) == (
        f"{file('fp32')}: asked for {precision}, but the graph computes in fp32, and {edition()} takes the precision "
        f"from the graph; give the {precision} file"
    )


def test_inspect_shows_what_the_sidecar_says(engines):
    path = engines["portable"].path
    found = cli("inspect", str(path), "--json").json
    assert (found["kind"], found["edition"], found["sha256"]) == ("engine", "tensorrt-rtx", engines["portable"].sha256)
    assert found["precision"]["obtained"]["layers"] == {"int8": 7} and found["layers"] is None
    assert found["metadata"]["class_names"] == list(PREPROCESSING.class_names)
    shown = cli("inspect", str(path)).out
    assert "input float32[2, 3, 16, 16]" in shown and "int8 7" in shown and "SM89" in shown
    path.with_name("bare.engine").write_bytes(b"plan")
    bare = cli("inspect", str(path.with_name("bare.engine")))
    assert bare.code == 1 and bare.err == (
        f"error: {path.with_name('bare.engine')}: no bare.engine.json beside it; build it with edgestill, or keep both "
        "files together\n"
    )
