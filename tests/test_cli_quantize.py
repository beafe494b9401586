"""Files that this project did not make: inspected, quantized, profiled and gated, or refused with node and reason."""

import json

import numpy as np
import onnx
import pytest
from cli_runner import cli
from foreign_files import CLASSES, FAMILY, SIDE, images, network, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from exporters import open_runner
from exporters.adopt_onnx import adopt, opened
from exporters.artifact import ExportError
from exporters.layer_names import name_nodes
from exporters.onnx_file import load_model
from exporters.opset import opset_of
from exporters.quantize_onnx import quantize_int8
from exporters.to_fp16 import convert_fp16

PLAIN = ("--mean", "0,0,0", "--std", "1,1,1")
RNG = np.random.default_rng(0)
BATCHES = [RNG.uniform(size=(1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(4)]


def all_forms(path, folder, shapes=None):
    """Adopted and in every form that ONNX Runtime runs; how far each is from the file, in dB."""
    model, spec = opened(path, shapes)
    feeds = {spec.name: BATCHES[0]}
    teacher = adopt(model, spec, folder / "teacher.onnx", feeds=feeds, metadata={}, where=str(path)).path
    files = [convert_fp16(teacher, folder / "fp16.onnx", batches=BATCHES).path]
    files += [
        quantize_int8(teacher, folder / f"{form}.onnx", form=form, batches=BATCHES).path
        for form in ("portable", "cpu", "gpu", "trt86")
    ]
    found = {}
    renamed = onnx.load(str(path))
    name_nodes(renamed)  # of nodes with equal names, which the runtime refuses
    reference = folder / "reference.onnx"
    onnx.save(renamed, str(reference))
    with open_runner("onnxruntime", reference, threads=1, shapes=tuple(spec.shape)) as runner:
        expected = runner(feeds)[runner.outputs[0].name]
    for file in (teacher, *files):
        with open_runner("onnxruntime", file, threads=1) as runner:
            got = runner({runner.inputs[0].name: BATCHES[0]})[runner.outputs[0].name]
        noise = float(((got - expected) ** 2).sum())
        found[file.stem] = 10 * np.log10(float((expected**2).sum()) / max(noise, 1e-20))
    return found


@pytest.mark.parametrize("kind", FAMILY)
def test_any_file_is_adopted_and_quantized_in_every_form(kind, tmp_path):
    path = saved(network(**FAMILY[kind]), tmp_path / "model.onnx")
    found = all_forms(path, tmp_path)
    assert found["teacher"] > 100 and found["fp16"] > 45, found
    assert all(found[form] > 15 for form in ("portable", "cpu", "gpu", "trt86")), found
    teacher = load_model(tmp_path / "teacher.onnx")
    assert opset_of(teacher) >= 13 and len(teacher.graph.input) == 1
    assert not any(node.op_type in ("Constant", "BatchNormalization") for node in teacher.graph.node)


def test_weights_beside_the_file_are_taken_in(tmp_path):
    (tmp_path / "given").mkdir()
    path = saved(network(), tmp_path / "given" / "model.onnx", external=True)
    assert (tmp_path / "given" / "weights.bin").is_file()
    assert all_forms(path, tmp_path)["teacher"] > 100
    (tmp_path / "given" / "weights.bin").unlink()
    with pytest.raises(ExportError, match="its weights lie in another file that cannot be read; keep both"):
        opened(path)


def test_functions_of_the_model_s_own_are_inlined(tmp_path):
    model = network(domains=(("mine", 1),))
    model.ir_version = 8
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Bend", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    bend = next(node for node in model.graph.node if node.op_type == "Relu")
    bend.op_type, bend.domain = "Bend", "mine"
    found = all_forms(saved(model, tmp_path / "model.onnx"), tmp_path)
    assert found["teacher"] > 100 and "Relu" in [n.op_type for n in load_model(tmp_path / "teacher.onnx").graph.node]


TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(TEXT, min_size=10, max_size=10, unique=True), opset=st.sampled_from([9, 10, 11, 12, 13, 15, 17, 19])
)
def test_no_name_and_no_opset_breaks_it(names, opset, tmp_path):
    called = dict(zip(("x", "y", "w", "b", "h", "hb", "c", "r", "p", "f"), names, strict=True))
    path = saved(network(opset=opset, names=called), tmp_path / "model.onnx")
    model, spec = opened(path)
    teacher = adopt(model, spec, tmp_path / "teacher.onnx", feeds={spec.name: BATCHES[0]}, metadata={}, where="m").path
    quantized = quantize_int8(teacher, tmp_path / "q.onnx", form="portable", batches=BATCHES).path
    onnx.checker.check_model(str(quantized), full_check=True)
    assert [value.name for value in load_model(quantized).graph.output] == [called["y"]]


STANDARD = "export the model with standard ONNX operators"


def with_node(node, *, opset=17, domain=None):
    model = network(opset=opset, domains=((domain, 1),) if domain else ())
    model.graph.node[0].output[0] = "before"
    model.graph.node.insert(1, node)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            with_node(helper.make_node("Warp", ["before"], ["c"], "bend it")),
            f"node 'bend it' has the unsupported operator Warp (opset 17); {STANDARD}",
        ),
        (
            with_node(helper.make_node("Warp", ["before"], ["c"], "", domain="my.own"), domain="my.own"),
            f"node 'c' has the unsupported operator my.own::Warp (opset 1); {STANDARD}",
        ),
        (
            with_node(helper.make_node("Gelu", ["before"], ["c"], "g", domain="com.microsoft"), domain="com.microsoft"),
            (
                "node 'g' has the operator com.microsoft::Gelu, which onnxruntime alone knows; give the file as it was "
                "before onnxruntime optimized it"
            ),
        ),
        (
            with_node(helper.make_node("Scan", ["before"], ["c"], "loop"), opset=8),
            None,
        ),
    ],
)
def test_what_cannot_be_taken_is_refused_with_its_node(model, message, tmp_path):
    path = saved(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError) as error:
        found = opened(path)
        adopt(*found, tmp_path / "t.onnx", feeds={"x": BATCHES[0]}, metadata={}, where=str(path))
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")
    if message:
        assert str(error.value) == f"{path}: {message}"
    assert not (tmp_path / "t.onnx").exists()


def other_input(dtype=TensorProto.FLOAT, shape=(1, 3, SIDE, SIDE), second=False):
    model = network()
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(dtype, shape))
    if second:
        model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            other_input(second=True),
            "an image network has one float32 input of (N, C, H, W); this has x: float32[1, 3, 8, 8], mask: float32[1]",
        ),
        (
            other_input(dtype=TensorProto.UINT8),
            "an image network has one float32 input of (N, C, H, W); this has x: uint8[1, 3, 8, 8]",
        ),
        (
            other_input(shape=(1, SIDE, SIDE, 3)),
            (
                "input x: float32[1, 8, 8, 3] has 8 channels on axis 1; an image network takes 1 or 3 there "
                "(N, C, H, W); export it in that layout"
            ),
        ),
        (
            network(side="S", batch="N"),
            "input x: float32[N, 3, S, S] has open sizes; give --input 1,3,224,224",
        ),
    ],
)
def test_inputs_that_are_no_images_are_refused(model, message, tmp_path):
    path = saved(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError) as error:
        opened(path)
    assert str(error.value) == f"{path}: {message}"


def test_open_sizes_are_fixed_by_what_is_given(tmp_path):
    path = saved(network(side="S", batch="N"), tmp_path / "model.onnx")
    assert all_forms(path, tmp_path, shapes=(1, 3, SIDE, SIDE))["teacher"] > 100
    dims = load_model(tmp_path / "teacher.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, SIDE, SIDE]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = images(tmp_path_factory.mktemp("pictures"), each=24)
    rows = [f"{path.relative_to(folder)},{'night' if int(path.stem) % 2 else 'day'}" for path in folder.rglob("*.png")]
    (folder / "slices.csv").write_text("\n".join(["path,light", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    return saved(network(opset=11, batch="N", norm=True, node_names=("",) * 5), folder / "their model.onnx")


def test_from_a_foreign_file_to_a_verdict(foreign, pictures, tmp_path, monkeypatch):
    """inspect, quantize, profile, gate: five lines of README."""
    monkeypatch.chdir(tmp_path)
    assert cli("inspect", str(foreign), "--input", f"1,3,{SIDE},{SIDE}", "--json").json["opset"] == {"ai.onnx": 11}
    made = cli("quantize", str(foreign), "--images", str(pictures), *PLAIN, "--samples", "12", "--out", "out", "--json")
    assert made.code == 0, made.err
    assert set(made.json["artifacts"]) == {"teacher", "onnx-fp16", "onnx-int8", "onnx-int8-cpu"}
    bundle = made.json["bundle"]
    assert bundle == "out/their-model.edgestill.zip"
    verified = cli("verify", bundle)
    assert verified.code == 4 and "are as they were written" in verified.out, "whole, and nothing is measured yet"
    (tmp_path / "rules.toml").write_text('[[gate]]\nmetric = "size_bytes"\nmax = 100000\n')
    record = cli("profile", bundle, "--out", "record", "--seconds", "0.1", "--blocks", "4", "--no-memory", "--json")
    assert record.code == 0, record.err
    subjects = {row["name"]: row for row in record.json["subjects"]}
    assert subjects["teacher"]["accuracy"]["value"] > 0.9 and subjects["teacher"]["accuracy"]["n"] >= 9
    assert subjects["onnx-int8-cpu@onnxruntime"]["precision"] == "int8"
    assert [check["rule"].split()[0] for check in record.json["gates"]] == ["accuracy_drop", "speedup_p50"]
    assert cli("gate", "record", "--rules", "rules.toml").code == 0
    assert cli("gate", "record").code in (0, 3, 4)
    (tmp_path / "night.toml").write_text('[[gate]]\nmetric = "accuracy"\nmin = 0.01\nslice = "light=night"\n')
    (night,) = cli("gate", "record", "--rules", "night.toml", "--json").json["gates"]
    assert night["outcome"] == "pass" and 0 < night["n"] < subjects["teacher"]["accuracy"]["n"]
    files = ["out/onnx-int8-cpu.onnx", "--against", "out/teacher.onnx"]
    pair = cli(
        "profile", *files, "--runtime", "onnxruntime", "--seconds", "0.1", "--blocks", "4", "--no-memory", "--json"
    )
    assert [row["subject"] for row in pair.json["comparisons"]] == ["out/onnx-int8-cpu.onnx@onnxruntime"]


def test_images_without_labels_calibrate_and_nothing_more(foreign, pictures, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(pictures.rglob("*.png"))[::6]):
        (flat / f"{number}.png").write_bytes(path.read_bytes())
    made = cli("quantize", str(foreign), "--images", str(flat), *PLAIN, "--form", "gpu", "--out", str(tmp_path / "out"))
    assert made.code == 0, made.err
    said = "onnx-int8-gpu, calibration: minmax on 12 samples, "
    (line,) = (line for line in made.err.splitlines() if line.startswith(said))
    assert "; memory: 0 bytes of histograms and " in line
    assert "edgestill profile" in made.out and "--against" in made.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "teacher.onnx",
        "onnx-fp16.onnx",
        "onnx-int8-gpu.onnx",
        "artifacts.json",
    }
    index = json.loads((tmp_path / "out" / "artifacts.json").read_text())
    assert index["onnx-int8-gpu"]["parity"]["sqnr_db"] > 15
    again = cli("quantize", str(foreign), "--images", str(flat), *PLAIN, "--out", str(tmp_path / "out"))
    assert again.code == 1 and again.err.endswith("is there already; give another --out, or remove it\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "does not say how images become its input; give --mean and --std on the scale 0 to 1, such as --mean "),
        (["--mean", "0.5", "--std", "0.5"], 1, "--mean: got 1 numbers; "),
        (["--mean", "0,0,0"], 1, "--std: got nothing; "),
        (["--mean", "0,0,0", "--std", "1,0,1"], 1, "--std: got 0; it must be positive"),
        (["--mean", "a,b"], 2, "got 'a,b'; expected a number a channel, such as 0.485,0.456,0.406"),
        ([*PLAIN, "--keep", "nothing"], 1, "keep_fp32: no quantized node or layer 'nothing'"),
        ([*PLAIN, "--rules", "none.toml"], 2, "none.toml: no such file; give a .toml file with [[gate]] tables"),
    ],
)
def test_what_is_missing_is_one_line(foreign, pictures, tmp_path, arguments, code, message):
    made = cli("quantize", str(foreign), "--images", str(pictures), "--out", str(tmp_path / "out"), *arguments)
    assert made.code == code and message in made.err, made.err
    assert made.err.splitlines()[-1].startswith("error: ")


def test_class_folders_must_be_the_outputs(foreign, tmp_path):
    two = images(tmp_path / "two", each=4, classes=2)
    made = cli("quantize", str(foreign), "--images", str(two), *PLAIN, "--out", str(tmp_path / "out"))
    assert made.code == 1 and made.err == (
        f"error: {two}: has 2 class folders, but {foreign} has {CLASSES} outputs; name a folder for each, in the order "
        "of the outputs\n"
    )
    made = cli("quantize", str(foreign), "--images", str(foreign), *PLAIN)
    assert made.code == 1 and made.err == f"error: {foreign}: a file; give a folder of images\n"


def test_a_file_that_is_quantized_already_is_refused(tmp_path, pictures):
    path = saved(network(), tmp_path / "plain.onnx")
    done = quantize_int8(path, tmp_path / "done.onnx", form="cpu", batches=BATCHES).path
    made = cli("quantize", str(done), "--images", str(pictures), *PLAIN)
    assert made.code == 1 and made.err == f"error: {done}: is int8 already; give the fp32 file\n"
