import logging
import weakref

import numpy as np
import onnx
import onnxruntime
import pytest
from exporter_nets import INPUT_SHAPE, batches, export, feeds, file
from onnx import TensorProto, helper, numpy_helper

from exporters import open_runner
from exporters.artifact import ExportError, file_sha256, read_metadata
from exporters.layer_names import layer_of, name_nodes, named_layers
from exporters.onnx_file import save_model
from exporters.parity import compare
from exporters.quantize_onnx import quantize_int8


def zero_points(path):
    model = onnx.load(str(path))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [tensors[node.input[2]] for node in model.graph.node if node.op_type == "DequantizeLinear"]


def test_the_portable_form_is_signed_symmetric_and_only_on_inputs():
    model = onnx.load(str(file("portable")))
    makers = {name: node for node in model.graph.node for name in node.output}
    assert {str(array.dtype) for array in zero_points(file("portable"))} == {"int8"}
    assert not any(array.any() for array in zero_points(file("portable")))
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "Add"):
            assert all(makers[name].op_type == "DequantizeLinear" for name in node.input[:2]), node.name
        if node.op_type == "Conv":
            scale = makers[node.input[1]].input[1]
            size = next(t.dims[0] for t in model.graph.initializer if t.name == scale)
            assert size in (8, 16), "one scale for each output channel"
        if node.op_type in ("Conv", "Gemm"):
            assert node.input[2] not in makers, "the bias stays float"
        if node.op_type == "Relu":
            assert makers[node.input[0]].op_type in ("Conv", "Add"), "no Q/DQ before Relu"


def test_the_cpu_form_has_unsigned_activations_and_signed_weights():
    kinds = {str(array.dtype) for array in zero_points(file("cpu"))}
    assert kinds == {"uint8", "int8", "int32"}
    operators = [node.op_type for node in onnx.load(str(file("cpu"))).graph.node]
    assert "Relu" not in operators, "absorbed by the range of unsigned activations"


@pytest.mark.parametrize("form", ["portable", "cpu"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_is_close_on_both_runtimes(form, runtime):
    with (
        open_runner("onnxruntime", file("fp32"), threads=1) as single,
        open_runner(runtime, file(form), threads=1) as quantized,
    ):
        parity = compare(single, quantized, feeds())
    assert quantized.precision == "int8"
    assert parity.sqnr_db > 20 and parity.cosine > 0.99


@pytest.mark.parametrize("form", ["portable", "cpu"])
def test_the_same_samples_give_the_same_bytes(tmp_path, capfd, form):
    handlers = list(logging.root.handlers)
    artifact = quantize_int8(file("fp32"), tmp_path / "again.onnx", form=form, batches=iter(batches()))
    assert artifact.sha256 == file_sha256(file(form))
    assert artifact.precision == "int8" and "onnxruntime" in artifact.made_by
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers and logging.root.manager.disable == 0
    assert [path.name for path in tmp_path.iterdir()] == ["again.onnx"]


def test_metadata_says_what_it_was_calibrated_on(tmp_path):
    found = read_metadata(file("portable"))
    assert (found["precision"], found["form"], found["calibration_samples"]) == ("int8", "portable", "8")
    other = quantize_int8(file("fp32"), tmp_path / "o.onnx", form="portable", batches=batches(seed=9)).path
    assert read_metadata(other)["calibration_sha256"] != found["calibration_sha256"]


def test_seven_bit_weights(tmp_path):
    path = quantize_int8(file("fp32"), tmp_path / "r.onnx", form="cpu", batches=batches(), reduce_range=True).path
    weights = [t for t in onnx.load(str(path)).graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1]
    assert max(np.abs(numpy_helper.to_array(t).astype(int)).max() for t in weights) <= 64


def test_a_dynamic_batch_takes_batches_of_any_size_and_gives_the_same_ranges(tmp_path):
    rows = np.concatenate(batches())
    paths = [
        quantize_int8(file("dynamic"), tmp_path / f"{n}.onnx", form="cpu", batches=np.split(rows, cuts)).path
        for n, cuts in enumerate(([3], [1, 4]))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_one_batch_is_in_memory_at_a_time(tmp_path):
    references = []

    def stream():
        rng = np.random.default_rng(0)
        for _ in range(8):
            batch = rng.normal(size=INPUT_SHAPE).astype(np.float32)
            references.append(weakref.ref(batch))
            yield batch
            del batch
            # The caller still holds the last one while it asks for the next.
            assert sum(reference() is not None for reference in references) <= 1

    quantize_int8(file("fp32"), tmp_path / "m.onnx", form="portable", batches=stream())
    assert len(references) == 8


ZEROS = np.zeros(INPUT_SHAPE, np.float32)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], ": no calibration samples; give some from the training split"),
        (
            [ZEROS, ZEROS],
            ": all 4 calibration samples are the same; give different images, preprocessed as in training",
        ),
        (
            [batches(1)[0], np.full(INPUT_SHAPE, np.nan, np.float32)],
            ": calibration batch 2: holds NaN or infinity; look at the images and at mean and std",
        ),
        (
            [np.zeros((1, 3, 16, 16), np.float32)],
            ": calibration batch 1: input 'input' got float32[1, 3, 16, 16]; expected input: float32[2, 3, 16, 16]",
        ),
        (
            [np.zeros(INPUT_SHAPE, np.uint8)],
            ": calibration batch 1: input 'input' got uint8[2, 3, 16, 16]; expected input: float32[2, 3, 16, 16]",
        ),
    ],
)
def test_bad_samples_are_refused_and_nothing_is_written(tmp_path, samples, message):
    with pytest.raises(ExportError) as error:
        quantize_int8(file("fp32"), tmp_path / "m.onnx", form="portable", batches=samples)
    assert str(error.value) == f"{file('fp32')}{message}"
    assert list(tmp_path.iterdir()) == []


def test_a_black_image_among_others_is_fair(tmp_path):
    quantize_int8(file("fp32"), tmp_path / "m.onnx", form="portable", batches=[ZEROS, *batches(1)])


@pytest.mark.parametrize(("form", "found"), [("portable", "int8"), ("cpu", "int8"), ("fp16", "fp16")])
def test_a_file_that_is_not_fp32_is_refused(tmp_path, form, found):
    with pytest.raises(ExportError) as error:
        quantize_int8(file(form), tmp_path / "m.onnx", form="portable", batches=batches())
    assert str(error.value) == f"{file(form)}: is {found} already; quantize the fp32 file"


def test_a_graph_without_weighted_operators_is_refused(tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", 1, [1, 4])], [value("y", 1, [1, 4])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save_model(model, tmp_path / "relu.onnx")
    with pytest.raises(ExportError) as error:
        quantize_int8(tmp_path / "relu.onnx", tmp_path / "m.onnx", form="cpu", batches=[np.ones((1, 4), np.float32)])
    assert str(error.value) == (
        f"{tmp_path / 'relu.onnx'}: nothing to quantize; it has none of Conv, ConvTranspose, Gemm, MatMul"
    )


def test_opset_18_works_too(tmp_path):
    source = export(tmp_path / "18.onnx", opset=18)
    assert quantize_int8(source, tmp_path / "q.onnx", form="portable", batches=batches()).path.is_file()


def weights_in_float(path):
    """The layers whose weight the graph reads as it is, without a DequantizeLinear."""
    model = onnx.load(str(path))
    made = {name for node in model.graph.node for name in node.output}
    return {
        node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] not in made
    }


@pytest.mark.parametrize("form", ["portable", "cpu"])
@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["fc"], {"fc.weight"}),
        (["blocks.0", "node_linear"], {"blocks.0.conv1.weight", "blocks.0.conv2.weight", "fc.weight"}),
    ],
)
def test_layers_that_are_named_stay_in_float(tmp_path, form, names, kept):
    path = quantize_int8(file("fp32"), tmp_path / "q.onnx", form=form, batches=batches(), keep_fp32=names).path
    assert weights_in_float(path) == kept
    assert weights_in_float(file(form)) == set()
    with (
        open_runner("onnxruntime", file("fp32"), threads=1) as single,
        open_runner("onnxruntime", path, threads=1) as quantized,
    ):
        assert compare(single, quantized, feeds()).sqnr_db > 25


@pytest.mark.parametrize(
    ("name", "advice"),
    [("blocks.0.conv3", "did you mean 'blocks.0.conv2'?"), ("node_liner", "did you mean 'node_linear'?")],
)
def test_an_unknown_layer_gets_the_nearest_name(tmp_path, name, advice):
    with pytest.raises(ExportError) as error:
        quantize_int8(file("fp32"), tmp_path / "q.onnx", form="cpu", batches=batches(), keep_fp32=["fc", name])
    assert str(error.value) == f"{file('fp32')}: keep_fp32: no quantized node or layer {name!r}; {advice}"
    assert list(tmp_path.iterdir()) == []


def test_a_name_like_none_gets_the_first_layers():
    once, twice = onnx.load(str(file("fp32"))), onnx.load(str(file("fp32")))
    twice.graph.node.extend(once.graph.node)
    layers = [layer_of(node) for node in once.graph.node if layer_of(node)]
    assert len(layers) == 7 and "blocks.1.shortcut.0" in layers
    more = ", ".join([*layers, layers[0]]) + " and 6 more, and every node by its name"
    for model, expected in ((once, ", ".join(layers)), (twice, more)):
        with pytest.raises(ExportError) as error:
            named_layers(model, ["zzz"], ["Conv", "Gemm"], where="net.onnx")
        assert str(error.value) == f"net.onnx: keep_fp32: no quantized node or layer 'zzz'; known: {expected}"


def test_a_node_that_its_neighbours_quantize_cannot_be_kept_by_itself(tmp_path):
    with pytest.raises(ExportError) as error:
        quantize_int8(file("fp32"), tmp_path / "q.onnx", form="cpu", batches=batches(), keep_fp32=["node_add"])
    assert str(error.value) == (
        f"{file('fp32')}: keep_fp32: Add node 'node_add' would be int8 all the same, for its neighbours quantize all "
        "that it reads and makes; name those layers instead"
    )
    assert list(tmp_path.iterdir()) == []
    path = quantize_int8(
        file("fp32"), tmp_path / "q.onnx", form="portable", batches=batches(), keep_fp32=["node_add"]
    ).path
    assert path.read_bytes() != file("portable").read_bytes()


def test_all_layers_in_float_is_no_int8(tmp_path):
    with pytest.raises(ExportError) as error:
        quantize_int8(
            file("fp32"),
            tmp_path / "q.onnx",
            form="portable",
            batches=batches(),
            keep_fp32=["conv", "blocks", "fc", "node_add", "node_add_1"],
        )
    assert str(error.value) == f"{file('fp32')}: nothing was quantized; all are kept in fp32"


def test_nodes_without_a_name_get_one_of_their_own():
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", [a], [b], name) for a, b, name in (("x", "a", ""), ("a", "b", "r"), ("b", "y", "r"))
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [value("x", 1, [1])], [value("y", 1, [1])]))
    name_nodes(model)
    assert [node.name for node in model.graph.node] == ["Relu_0", "r", "r_2"]


@pytest.mark.parametrize("form", ["portable", "cpu"])
@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_methods_give_other_scales_and_say_so(tmp_path, form, method):
    lines: list[str] = []
    paths = [
        quantize_int8(
            file("fp32"), tmp_path / f"{n}.onnx", form=form, batches=batches(), method=method, say=lines.append
        ).path
        for n in range(2)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes() != file(form).read_bytes()
    said = {"entropy": "entropy", "percentile": "percentile 99.99"}[method]
    assert read_metadata(paths[0])["calibration_method"] == said
    assert "calibration_method" not in read_metadata(file(form)), "the default says nothing new"
    assert lines[0].startswith(f"calibration: {method} on 8 samples, ")
    with (
        open_runner("onnxruntime", file("fp32"), threads=1) as single,
        open_runner("onnxruntime", paths[0], threads=1) as quantized,
    ):
        assert compare(single, quantized, feeds()).sqnr_db > 10


def test_onnxruntime_leaves_a_layer_in_float_that_is_to_stay_there(tmp_path):
    # Its optimizer makes an int8 convolution of any float one that stands between Q/DQ; the file must not let it.
    path = quantize_int8(
        file("fp32"), tmp_path / "q.onnx", form="cpu", batches=batches(), keep_fp32=["blocks.1.conv2"]
    ).path
    counts = []
    for form in (file("cpu"), path):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(form), options, providers=["CPUExecutionProvider"])
        operators = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        counts.append([sum(name in kinds for name in operators) for kinds in (["QLinearConv"], ["Conv", "FusedConv"])])
    assert counts == [[6, 0], [5, 1]]
