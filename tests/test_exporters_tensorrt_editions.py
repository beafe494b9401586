"""TensorRT 8.6, 10.x and 11.x, of which no machine here has the libraries: one path, tested on their three shapes."""

import json
import sys

import pytest
from cuda_fakes import FakeDriver
from exporter_nets import file
from tensorrt_fakes import build, fake_trt

import exporters
from exporters.artifact import ExportError
from exporters.cuda_driver import device_count
from exporters.onnx_file import load_model, save_model
from exporters.tensorrt_api import edition_of, probe
from exporters.tensorrt_engine import read_sidecar, sidecar_path
from exporters.tensorrt_options import BuildOptions
from exporters.to_tensorrt import TensorRtExporter, build_engine

VERSIONS = ("8.6.2", "10.3.0", "11.4.0")


@pytest.fixture
def gpu(monkeypatch):
    driver = FakeDriver()
    monkeypatch.setattr("exporters.cuda_driver.load_driver", lambda: driver)
    return driver


@pytest.mark.parametrize(("version", "typing"), [("8.6.2", "flags"), ("10.3.0", "opt-in"), ("11.4.0", "always")])
def test_editions_are_known_by_what_they_have(version, typing):
    edition = probe("tensorrt", fake_trt(version))
    assert (edition.typing, edition.ahead_of_time, str(edition)) == (typing, False, f"tensorrt {version}")


def test_the_installed_rtx_is_strongly_typed_and_builds_ahead_of_time():
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; pip install 'edgestill[test]'")
    edition = edition_of("tensorrt-rtx")
    assert (edition.typing, edition.ahead_of_time) == ("always", True)


@pytest.mark.parametrize(
    ("version", "creation"),
    [("8.6.2", {"EXPLICIT_BATCH"}), ("10.3.0", {"STRONGLY_TYPED"}), ("11.4.0", set())],
)
def test_networks_are_made_as_each_edition_wants_them(version, creation, tmp_path, gpu):
    _, facts, network, _ = build(version, "fp32", tmp_path, inspector="FP32")
    flags = fake_trt(version).NetworkDefinitionCreationFlag
    # Numbers of flags changed in 11: a 2 there would ask for something else.
    assert {flag.name for flag in flags if network.flags >> int(flag) & 1} == creation
    assert facts["typing"] == ("weak" if version == "8.6.2" else "strong")


@pytest.mark.parametrize(
    ("version", "form", "flags"),
    [
        ("8.6.2", "fp32", []),
        ("8.6.2", "fp16", ["FP16"]),
        ("8.6.2", "trt86", ["INT8", "FP16"]),
        ("10.3.0", "portable", []),
        ("10.3.0", "fp16", []),
        ("11.4.0", "portable", []),
    ],
)
def test_flags_carry_the_precision_in_8_and_the_graph_later(version, form, flags, tmp_path, gpu):
    inspector = {"fp32": "FP32", "portable": "Int8", "trt86": "Int8"}.get(form, "Half")
    artifact, facts, _, config = build(version, form, tmp_path, inspector=inspector)
    assert {flag.name for flag in config.flags} == set(flags)
    assert facts["flags"] == flags
    assert config.profiling_verbosity.name == "DETAILED"
    assert facts["precision"]["obtained"]["layers"].get(artifact.precision)
    assert facts["precision"]["obtained"]["source"] == ("engine inspector" if version == "8.6.2" else "parsed network")
    assert [layer["Name"] for layer in facts["inspector"]["Layers"]][-1] == "relu"


def test_edition_8_makes_fp16_of_the_fp32_file_and_later_ones_do_not(tmp_path, gpu):
    artifact, facts, _, config = build("8.6.2", "fp32", tmp_path, precision="fp16")
    assert artifact.precision == "fp16" and {flag.name for flag in config.flags} == {"FP16"}
    assert facts["precision"]["obtained"]["layers"] == {"fp16": 6}
    with pytest.raises(ExportError) as error:
        build("10.3.0", "fp32", tmp_path, precision="fp16")
    assert str(error.value) == (
        f"{file('fp32')}: asked for fp16, but the graph computes in fp32, and tensorrt 10.3.0 takes the precision from "
        "the graph; give the fp16 file"
    )
    with pytest.raises(ExportError, match=r"asked for int8, but the graph computes in fp32"):
        build("8.6.2", "fp32", tmp_path, precision="int8")


def test_a_silent_fp32_engine_of_edition_8_is_an_error(tmp_path, gpu):
    with pytest.raises(ExportError) as error:
        build("8.6.2", "fp32", tmp_path, precision="fp16", inspector="FP32")
    assert str(error.value) == (
        f"{file('fp32')}: asked for fp16, got 0 of 6 layers in it (fp32 6); the first that is not is "
        "'node_Conv_82': give tensorrt 8.6.2 a graph in fp16"
    )
    assert not (tmp_path / "m.engine").exists()


def test_what_is_said_of_64_bit_integers_is_a_note_in_8_alone(tmp_path, gpu):
    line = "onnx2trt_utils.cpp:372: Your ONNX model has been generated with INT64 weights, while TensorRT does not "
    line += "natively support INT64. Attempting to cast down to INT32."
    _, facts, *_ = build("8.6.2", "fp32", tmp_path, inspector="FP32", warnings=(line,))
    assert facts["notes"] == [line]
    with pytest.raises(ExportError) as error:
        build("10.3.0", "fp32", tmp_path, warnings=(line,))
    assert str(error.value) == f"{file('fp32')}: tensorrt 10.3.0 warned while building the engine: {line}"
    memory = "Skipping tactic 3 due to insufficient memory on requested size of 66048"
    _, facts, *_ = build("10.3.0", "fp32", tmp_path, warnings=(memory,), options=BuildOptions(strict=False))
    assert facts["notes"] == [memory], "on a device it is noted"


@pytest.mark.parametrize("version", VERSIONS)
def test_options_reach_the_builder_by_name(version, tmp_path, gpu):
    cache = tmp_path / "timing.cache"
    options = BuildOptions(
        workspace_bytes=1 << 20,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        tf32=True,
        timing_cache=cache,
    )
    _, facts, _, config = build(version, "fp32", tmp_path, options=options, inspector="FP32")
    assert config.pools == {"WORKSPACE": 1 << 20}
    assert {flag.name for flag in config.flags} == {"VERSION_COMPATIBLE", "TF32"}
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert facts["flags"] == ["VERSION_COMPATIBLE", "TF32"] and facts["hardware_compatibility"] == "ampere_plus"
    first = cache.read_bytes()
    assert first.startswith(b"timings")
    build(version, "fp32", tmp_path, options=options, inspector="FP32")
    assert cache.read_bytes() == first + b".", "the second build began with the timings of the first"


def test_a_foreign_timing_cache_is_refused(tmp_path, gpu):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"of another GPU")
    with pytest.raises(ExportError) as error:
        build("10.3.0", "fp32", tmp_path, options=BuildOptions(timing_cache=cache))
    assert str(error.value) == (
        f"{cache}: is no timing cache of this device and tensorrt 10.3.0; remove it or name another"
    )
    assert cache.read_bytes() == b"of another GPU"


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        (
            "8.6.2",
            BuildOptions(hardware_compatibility="same_compute_capability"),
            "hardware_compatibility: got 'same_compute_capability'; tensorrt 8.6.2 knows ampere_plus, none",
        ),
        (
            "11.4.0",
            BuildOptions(compute_capabilities=("SM89",)),
            "tensorrt 11.4.0 builds for the GPU it runs on; leave compute_capabilities out",
        ),
        (
            "11.4.0",
            BuildOptions(shapes=(1, 3, 16, 16)),
            "--input 1,3,16,16 does not fit input input: float32[2, 3, 16, 16]",
        ),
        (
            "11.4.0",
            BuildOptions(shapes=(2, 3, 16, 16), profiles=((2, 3, 16, 16),) * 3),
            "got shapes and profiles; shapes fix open sizes, profiles leave them open: give one",
        ),
    ],
)
def test_what_an_edition_cannot_do_is_refused(version, options, message, tmp_path, gpu):
    with pytest.raises(ExportError) as error:
        build(version, "fp32", tmp_path, options=options)
    assert str(error.value).endswith(message)


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        (
            ((4, 3, 16, 16), (2, 3, 16, 16), (8, 3, 16, 16)),
            (
                "profile of 'input' got [4, 3, 16, 16], [2, 3, 16, 16], [8, 3, 16, 16]; "
                "give the smallest, the best and the largest shape"
            ),
        ),
        (
            ((1, 3, 16, 16), (2, 3, 16, 16), (8, 3, 32, 32)),
            "--input 8,3,32,32 does not fit input input: float32[batch, 3, 16, 16] (largest shape of its profile)",
        ),
        (
            {"pixels": ((1, 3, 16, 16),) * 3},
            "no input named 'pixels'; its inputs are ['input'] (smallest shape of its profile)",
        ),
    ],
)
def test_profiles_that_do_not_fit_are_refused(profiles, message, tmp_path, gpu):
    with pytest.raises(ExportError) as error:
        build("11.4.0", "dynamic", tmp_path, options=BuildOptions(profiles=profiles))
    assert str(error.value) == f"{file('dynamic')}: {message}"


def test_open_sizes_are_fixed_by_shapes_inputs_and_outputs_alike(tmp_path, gpu):
    artifact, facts, _, config = build("10.3.0", "dynamic", tmp_path, options=BuildOptions(shapes=(4, 3, 16, 16)))
    assert artifact.inputs[0].shape == (4, 3, 16, 16) and artifact.outputs[0].shape == (4, 5)
    assert config.profiles == [{"input": ((4, 3, 16, 16),) * 3}]
    assert facts["profiles"] == {"input": [[4, 3, 16, 16]] * 3}


def test_a_failed_build_is_one_line_and_leaves_nothing(tmp_path, gpu):
    with pytest.raises(ExportError) as error:
        build("10.3.0", "fp32", tmp_path, fails="Could not find any implementation for node {conv}.\n  tried 3 tactics")
    assert str(error.value) == (
        f"{file('fp32')}: tensorrt 10.3.0 cannot build it (Could not find any implementation for node {{conv}}. "
        "tried 3 tactics)"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_the_parser_denies_is_named(tmp_path, gpu):
    model = load_model(file("fp32"))
    model.graph.node.add(op_type="Unique", name="odd", input=["logits"], output=["odd_out"])
    save_model(model, tmp_path / "odd.onnx")
    with pytest.raises(ExportError) as error:
        build_engine(tmp_path / "odd.onnx", tmp_path / "m.engine", edition=probe("tensorrt", fake_trt("10.3.0")))
    assert str(error.value) == (
        f"{tmp_path / 'odd.onnx'}: node 'odd' (Unique) is no operator of tensorrt 10.3.0; export the model without it"
    )


def test_tensorrt_itself_needs_a_gpu_to_build(tmp_path, monkeypatch):
    def no_driver():
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("exporters.cuda_driver.load_driver", no_driver)
    assert device_count() == 0
    with pytest.raises(ExportError) as error:
        build("10.3.0", "fp32", tmp_path)
    assert str(error.value) == f"{file('fp32')}: tensorrt 10.3.0 needs an NVIDIA GPU to build; none is seen here"


def test_what_is_missing_is_said_with_its_reason(monkeypatch):
    driver = FakeDriver(gpus=0)
    monkeypatch.setattr("exporters.cuda_driver.load_driver", lambda: driver)
    monkeypatch.setitem(exporters.PACKAGES, "tensorrt", ("no_such_package", "tensorrt"))
    missing = "no_such_package is not installed; pip install 'edgestill[tensorrt]'"
    assert exporters.unavailable("tensorrt") == exporters.unavailable("tensorrt", "cuda:0") == missing
    module = fake_trt("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(exporters.PACKAGES, "tensorrt", ("tensorrt", "tensorrt"))
    no_gpu = "needs an NVIDIA GPU to build and to run; none is seen here"
    assert exporters.unavailable("tensorrt") == exporters.unavailable("tensorrt", "cuda:0") == no_gpu
    assert TensorRtExporter().unavailable() == no_gpu
    driver.gpus = 1
    assert exporters.unavailable("tensorrt") == "tensorrt does not run on cpu; profile on cuda:0"
    assert exporters.unavailable("tensorrt", "cuda:0") is None and TensorRtExporter().unavailable() is None
    assert edition_of("tensorrt").module is module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.pop("precision"), "has no precision; build the engine again"),
        (
            lambda facts: facts.update(schema_version=9),
            "has schema_version 9, but 1 is read here; build the engine again",
        ),
    ],
)
def test_sidecars_that_do_not_fit_are_refused(change, message, tmp_path, gpu):
    artifact, *_ = build("11.4.0", "fp32", tmp_path)
    path = sidecar_path(artifact.path)
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(ExportError) as error:
        read_sidecar(artifact.path)
    assert str(error.value) == f"{path}: {message}"


def test_an_engine_and_a_sidecar_that_do_not_belong_together(tmp_path, gpu):
    artifact, *_ = build("11.4.0", "fp32", tmp_path)
    artifact.path.write_bytes(b"other")
    with pytest.raises(ExportError) as error:
        read_sidecar(artifact.path)
    assert str(error.value) == (
        f"{artifact.path}: its sha256 is d9298a10d1b0..., m.engine.json speaks of {artifact.sha256[:12]}...; "
        "the two do not belong together: build the engine again"
    )
    sidecar_path(artifact.path).unlink()
    with pytest.raises(ExportError) as error:
        read_sidecar(artifact.path)
    assert str(error.value) == (
        f"{artifact.path}: no m.engine.json beside it; build it with edgestill, or keep both files together"
    )
