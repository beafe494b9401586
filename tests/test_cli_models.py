"""inspect, profile and predict on real small models: names, ONNX files of anybody, folders of real images."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from cli_runner import brightness_net, cli
from PIL import Image

from pipeline.cli.predict import gray, softmax

INSPECTED = {"params", "conv_linear_weights", "macs", "flops", "uncounted", "size_bytes", "precision_share"}


def test_inspect_counts_a_model_by_name() -> None:
    found = cli("inspect", "mlperf-resnet8", "--input", "1,3,32,32", "--json").json
    assert found.keys() >= INSPECTED
    assert (found["params"], found["macs"], found["flops"]) == (78_186, 12_501_632, 25_003_264)
    assert found["conv_linear_weights"] == 77_360 and found["uncounted"]["relu"] == 7
    assert found["precision_share"] == {"float32": 1.0} and found["input_assumed"] is False
    assert cli("inspect", "mlperf-resnet8", "--json").json["input_assumed"] is True


def test_inspect_builds_with_the_classes_and_channels_asked_for() -> None:
    ten = cli("inspect", "torchvision:resnet18", "--input", "2,3,64,64", "--json").json
    two = cli("inspect", "torchvision:resnet18", "--input", "2,1,64,64", "--classes", "2", "--json").json
    assert ten["params"] - two["params"] == 998 * 513 + 2 * 64 * 49
    assert ten["macs"] % 2 == 0 and "MACs" in cli("inspect", "torchvision:resnet18", "--input", "1x3x64x64").out


def test_inspect_reads_a_foreign_onnx_file(tmp_path: Path) -> None:
    path = brightness_net(tmp_path / "m.onnx", metadata=False)
    found = cli("inspect", path, "--json").json
    assert found.keys() >= INSPECTED
    # 4 x 4 pixels, 3 inputs, 2 maps; then 2 x 2 weights of the head
    assert (found["params"], found["macs"], found["flops"]) == (10, 4 * 4 * 3 * 2 + 4, 200)
    assert found["size_bytes"] == path.stat().st_size and found["uncounted"] == {"GlobalAveragePool": 1}
    assert found["precision"] == "fp32" and found["quantized_share"] == 0.0 and found["opset"] == {"ai.onnx": 18}
    assert found["inputs"] == [{"name": "input", "dtype": "float32", "shape": [1, 3, 4, 4]}]
    text = cli("inspect", path).out
    assert "quantized layers" in text and text.splitlines()[-1] == f"next: edgestill profile {path}"


def test_open_sizes_have_to_be_given(tmp_path: Path) -> None:
    path = brightness_net(tmp_path / "m.onnx", batch="n")
    for command in (["inspect"], ["profile", "--seconds", "0.05"]):
        refused = cli(*command, path)
        assert refused.code == 1 and refused.err.splitlines()[-1].endswith("give --input 1,3,224,224")
    assert cli("inspect", path, "--input", "5,3,4,4", "--json").json["macs"] == 500
    assert cli("inspect", path, "--input", "input=5,3,4,4", "--json").json["macs"] == 500
    wrong = cli("inspect", path, "--input", "1,1,4,4")
    assert wrong.code == 1 and "--input 1,1,4,4 does not fit input input: float32[n, 3, 4, 4]" in wrong.err


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("no.onnx", "no.onnx: no such file; give a model name, a checkpoint (.safetensors) or an .onnx file"),
        ("mlperf-resnet", "unknown model 'mlperf-resnet'; did you mean 'mlperf-resnet8'?"),
        (".", ".: a folder; give a model name, a checkpoint (.safetensors) or an .onnx file"),
        ("m.engine", "m.engine: no such file"),
        ("text.onnx", "text.onnx: not an ONNX file; it"),
        ("best.pt", "best.pt: weights without an architecture; give the model's name, such as torchvision:resnet18"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.onnx").write_text("no model")
    Path("best.pt").write_bytes(b"weights")
    result = cli("inspect", subject)
    assert result.code in (1, 2) and result.err.startswith(f"error: {line}") and result.err.count("\n") == 1


def test_a_malformed_input_is_a_wrong_command_line() -> None:
    result = cli("inspect", "mlperf-resnet8", "--input", "1,3,big")
    assert result.code == 2 and "got '1,3,big'; expected sizes such as 1,3,224,224" in result.err
    result = cli("inspect", "mlperf-resnet8", "--input", "1,3")
    assert result.code == 1 and "--input 1,3 is not of the form batch,channels,height,width" in result.err


def test_profile_puts_runtimes_and_models_side_by_side(tmp_path: Path) -> None:
    path = brightness_net(tmp_path / "m.onnx", metadata=False)
    args = ["profile", path, "--seconds", "0.05", "--blocks", "8", "--runtime", "onnxruntime", "--runtime", "openvino"]
    result = cli(*args, "--kind", "both", "--json")
    assert result.code == 0, result.err
    found = result.json
    assert [row["name"] for row in found["subjects"]] == [f"{path}@onnxruntime", f"{path}@openvino"]
    for row in found["subjects"]:
        assert [entry["kind"] for entry in row["latency"]] == ["device", "end_to_end"]
        assert row["peak_memory_bytes"] > 1e7 and row["first_ms"] > 0 and row["size_bytes"] == path.stat().st_size
    assert [row["against"] for row in found["comparisons"]] == [f"{path}@onnxruntime"] * 2
    assert found["conditions"]["threads"] == 1 and found["conditions"]["cpu"]


def test_profile_compares_with_the_named_subject_on_the_same_runtime(tmp_path: Path) -> None:
    a, b = (brightness_net(tmp_path / f"{name}.onnx") for name in "ab")
    result = cli("profile", f"{a}@openvino", b, "--against", b, "--seconds", "0.05", "--no-memory", "--json")
    assert result.code == 0, result.err
    pairs = {row["subject"]: row["against"] for row in result.json["comparisons"]}
    assert pairs == {f"{a}@openvino": f"{b}@openvino", f"{b}@openvino": f"{b}@onnxruntime"}
    assert result.json["subjects"][0]["missing"] == {"peak_memory_bytes": "--no-memory was given"}


def test_profile_runs_a_model_by_name_on_torch() -> None:
    result = cli("profile", "mlperf-resnet8", "--input", "1,3,8,8", "--seconds", "0.05", "--blocks", "4", "--no-memory")
    assert result.code == 0, result.err
    assert "mlperf-resnet8@torch" in result.out and "1 thread(s) on cpu" in result.out
    refused = cli("profile", "mlperf-resnet8@openvino")
    assert refused.code == 1 and refused.err == (
        "error: mlperf-resnet8@openvino: openvino runs ONNX files; export it, or leave out @openvino\n"
    )


def photographs(folder: Path) -> Path:
    """Two dark images and a bright one, of odd sizes, one of them a gray PNG in a folder of its own."""
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (9, 5), (20, 10, 30)).save(folder / "night.png")
    Image.new("RGB", (4, 4), (240, 250, 230)).save(folder / "day.bmp")
    Image.new("L", (6, 7), 100).save(folder / "more" / "dusk.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_predict_labels_a_folder(tmp_path: Path, batch: int | str) -> None:
    path = brightness_net(tmp_path / "m.onnx", batch=batch)
    folder = photographs(tmp_path / "images")
    result = cli("predict", path, folder, "--csv", tmp_path / "out.csv", "--top", "5", "--json")
    assert result.code == 0, result.err
    labels = {Path(row["file"]).name: row["label"] for row in result.json["predictions"]}
    assert labels == {"day.bmp": "bright", "dusk.png": "dark", "night.png": "dark"}
    # logits of a gray image of level v: +-20 (v / 255 - 0.5)
    dusk = next(row for row in result.json["predictions"] if row["file"].endswith("dusk.png"))
    assert dusk["probability"] == pytest.approx(1 / (1 + np.exp(40 * (100 / 255 - 0.5))), rel=1e-4)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "label", "probability", "label_2", "probability_2"] and len(rows) == 4
    text = cli("predict", path, folder).out
    assert "3 images on openvino: dark 2, bright 1" in text


def test_predict_makes_gray_images_for_a_gray_model(tmp_path: Path) -> None:
    path = brightness_net(tmp_path / "m.onnx", channels=1)
    folder = photographs(tmp_path / "images")
    found = cli("predict", path, folder, "--runtime", "onnxruntime", "--json").json
    assert [row["label"] for row in found["predictions"]] == ["bright", "dark", "dark"]


def test_gray_is_pillows_own() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(gray(pixels)[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))


def test_softmax_survives_large_logits() -> None:
    assert softmax(np.array([[1000.0, 1000.0], [-1e4, 0.0]])).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_predict_names_unreadable_images_and_labels_the_others(tmp_path: Path) -> None:
    path = brightness_net(tmp_path / "m.onnx", batch=2)
    folder = photographs(tmp_path / "images")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "zero.png").write_bytes(b"")
    result = cli("predict", path, folder, "--json")
    assert result.code == 1 and len(result.json["predictions"]) == 3 and len(result.json["unreadable"]) == 2
    assert f"error: {folder / 'zero.png'}: empty file\n" in result.err


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["no.onnx", "images"], "no.onnx: no such file; give the .onnx file of a run, or the folder of a released run"),
        (["m.onnx", "no"], "no: no such folder; give a folder of images"),
        (["m.onnx", "m.onnx"], "m.onnx: a file; give a folder of images"),
        (["m.onnx", "empty"], "empty: no image in it; known are .jpg, .jpeg, .png, .webp, .bmp"),
        (["empty", "images"], "empty: no released artifact; give the .onnx file itself"),
        (
            ["foreign.onnx", "images"],
            "foreign.onnx: no edgestill.mean, edgestill.std, edgestill.input_size, edgestill.",
        ),
        (["m.onnx", "images", "--runtime", "tflite"], "unknown runtime 'tflite'; known: onnxruntime, "),
    ],
)
def test_what_cannot_be_predicted_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    photographs(Path("images"))
    Path("empty").mkdir()
    brightness_net(Path("m.onnx"))
    brightness_net(Path("foreign.onnx"), metadata=False)
    result = cli("predict", *args)
    assert result.code == 1 and result.err.startswith(f"error: {line}") and result.err.count("\n") == 1


def test_predict_takes_the_folder_of_a_released_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "release").mkdir(parents=True)
    path = brightness_net(tmp_path / "run" / "release" / "onnx-int8.onnx")
    found = cli("predict", tmp_path / "run", photographs(tmp_path / "images"), "--json").json
    assert found["artifact"] == str(path)


def test_inspect_lists_the_modules_that_a_feature_loss_can_name() -> None:
    found = {row["path"]: row for row in cli("inspect", "mlperf-resnet8", "--modules", "--json").json["modules"]}
    assert found["stack3"] == {"path": "stack3", "kind": "Stack", "shape": [64, 8, 8], "calls": 1}
    assert found["linear"]["shape"] == [10]
    shown = cli("inspect", "mlperf-resnet8", "--modules").out
    assert re.search(r"stack3\s+Stack\s+64x8x8", shown)


def test_an_onnx_file_has_no_modules(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.touch()
    refused = cli("inspect", str(path), "--modules")
    assert refused.code == 2
    assert "--modules is for a model name or a checkpoint; an ONNX file has no modules" in refused.err
