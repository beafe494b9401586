"""OpenVINO's own files in a bundle: two files, both hashed, measured by OpenVINO alone; and artifacts left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bundle_parts import host_report, manifest_of, parts, small_bundle

from exporters.openvino_ir import weights_of
from exporters.to_openvino import convert_ir
from pipeline.bundle.contents import unpacked
from pipeline.bundle.device import measure
from pipeline.bundle.join import judged_again
from pipeline.bundle.pack import models_of
from pipeline.errors import UserError
from pipeline.manifest import sha256_bytes, sha256_file

pytest.importorskip("openvino")
NAME = "openvino-int8-nncf"
QUICK = {"min_seconds": 0.05, "threads": 1, "device": "cpu", "runtimes": ("openvino",)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of a bundle with an .xml and a .bin."""
    made, folder = parts(), tmp_path_factory.mktemp("ir")
    (folder / "net.onnx").write_bytes(made["models/onnx-fp32.onnx"])
    path = convert_ir(folder / "net.onnx", folder / f"{NAME}.xml").path
    return made | {f"models/{NAME}.xml": path.read_bytes(), f"models/{NAME}.bin": weights_of(path).read_bytes()}


def models_with(files: dict[str, bytes], **changes: Any) -> dict[str, Any]:
    models = manifest_of(files)["models"]
    entry = {"file": f"models/{NAME}.xml", "role": "artifact", "precision": "int8", "stage": "quantize"}
    return models | {NAME: entry | {"format": "openvino"} | changes}


def test_openvinos_own_file_is_measured_by_openvino(files: dict[str, bytes], tmp_path: Path) -> None:
    path = small_bundle(tmp_path / "x.zip", files, models=models_with(files))
    with unpacked(path) as opened:
        report = measure(opened, tmp_path / "r", QUICK, command="", memory=False, say=lambda line: None)
    row = next(row for row in report["subjects"] if row["name"].startswith(NAME))
    assert (row["name"], row["format"], row["path"]) == (f"{NAME}@openvino", "openvino", f"models/{NAME}.xml")
    assert row["sha256"] == sha256_bytes(files[f"models/{NAME}.xml"]) and row["accuracy"]["value"] == 1.0
    assert row["size_bytes"] == len(files[f"models/{NAME}.xml"]) + len(files[f"models/{NAME}.bin"])
    other = next(row for row in report["subjects"] if row["name"] == "onnx-fp32@openvino")
    assert row["latency"] and (row["params"], row["macs"]) == (other["params"], other["macs"]), "counted on onnx-fp32"
    host = host_report()
    for entry in host["subjects"]:
        name = entry["name"].partition("@")[0]
        entry["sha256"] = sha256_bytes(files[f"models/{name}.onnx"]) if f"models/{name}.onnx" in files else "0" * 64
    with pytest.raises(UserError, match=f"measured {NAME} of sha256 .*it has none of that name"):
        judged_again(report, host, "here")


def test_where_openvino_does_not_run_it_is_left_out_with_the_reason(files: dict[str, bytes], tmp_path: Path) -> None:
    path = small_bundle(tmp_path / "x.zip", files, models=models_with(files))
    said: list[str] = []
    with unpacked(path) as opened:
        settings = QUICK | {"runtimes": ("onnxruntime",)}
        report = measure(opened, tmp_path / "r", settings, command="", memory=False, say=said.append)
    row = next(row for row in report["subjects"] if row["name"] == f"{NAME}@openvino")
    assert row["accuracy"] is None and row["missing"]["latency"] == "--runtime names others"
    assert row["size_bytes"] == len(files[f"models/{NAME}.xml"]) + len(files[f"models/{NAME}.bin"])
    assert said[0] == f"note: {NAME}@openvino is left out: --runtime names others"


@pytest.mark.parametrize(
    ("gone", "changes", "line"),
    [
        (f"models/{NAME}.bin", {}, f"models/{NAME}.bin is missing from its files"),
        ("", {"file": f"models/{NAME}.onnx"}, f"models.{NAME} is 'models/{NAME}.onnx' in the role artifact"),
        ("", {"file": "../x.xml"}, f"models.{NAME} is '../x.xml' in the role artifact"),
        ("", {"format": "pickle"}, f"models.{NAME}.format: Input should be 'onnx' or 'openvino'"),
        ("", {"format": "onnx", "file": f"models/{NAME}.onnx"}, f"models/{NAME}.bin is not known in its files"),
    ],
)
def test_half_a_file_and_other_names_are_refused(
    files: dict[str, bytes], tmp_path: Path, gone: str, changes: dict[str, Any], line: str
) -> None:
    kept = {name: content for name, content in files.items() if name != gone}
    path = small_bundle(tmp_path / "x.zip", kept, models=models_with(kept, **changes))
    with pytest.raises(UserError) as caught, unpacked(path):
        pass
    assert str(caught.value) == f"{path}: manifest.json: {line}; make the bundle again"


def test_weights_of_another_file_and_uncounted_files_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    other = files | {f"models/{NAME}.bin": b"\0" * len(files[f"models/{NAME}.bin"])}
    said: list[str] = []
    with unpacked(small_bundle(tmp_path / "x.zip", other, models=models_with(other))) as opened:
        measure(opened, tmp_path / "r", QUICK, command="", memory=False, say=said.append)
    assert (
        f"note: {NAME}@openvino is left out: models/{NAME}.bin: is not the file that {NAME}.xml was written with; "
        in (said[0])
    )
    alone = {name: content for name, content in files.items() if not name.endswith(".onnx")}
    path = small_bundle(tmp_path / "y.zip", alone, models={NAME: models_with(alone)[NAME]})
    with (
        pytest.raises(UserError, match=f"models.{NAME} has no onnx-fp32 or teacher beside it, on which its operations"),
        unpacked(path),
    ):
        pass


def test_what_a_bundle_leaves_behind_is_said_in_the_manifest_too(files: dict[str, bytes], tmp_path: Path) -> None:
    for name in (f"{NAME}.xml", f"{NAME}.bin", "onnx-fp32.onnx"):
        (tmp_path / name).write_bytes(files[f"models/{name}"])
    rows = [("onnx-fp32@openvino", "onnx", "onnx-fp32.onnx"), (f"{NAME}@openvino", "openvino", f"{NAME}.xml")]
    rows += [("torch-int8-linear@torch", "torch", "onnx-fp32.onnx")]
    report = {
        "selection": {"chosen": "torch-int8-linear@torch"},
        "subjects": [
            {"name": name, "role": "artifact", "format": form, "precision": "int8", "stage": "quantize", "path": path}
            | {"sha256": sha256_file(tmp_path / path)}
            for name, form, path in rows
        ],
    }
    models, left_out = models_of(report, tmp_path, teacher=True)
    assert list(models) == ["onnx-fp32", NAME] and "format" not in models["onnx-fp32"]
    assert models[NAME]["format"] == "openvino"
    assert models[NAME]["paths"] == {f"models/{NAME}{end}": tmp_path / f"{NAME}{end}" for end in (".xml", ".bin")}
    assert left_out == {
        "torch-int8-linear": (
            "a file of torch cannot be opened on a device without it; it is the one that the run chose, so a device "
            "chooses and judges another"
        )
    }
    path = small_bundle(tmp_path / "x.zip", left_out=left_out)
    said: list[str] = []
    with unpacked(path) as opened:
        settings = QUICK | {"runtimes": ("onnxruntime",)}
        record = measure(opened, tmp_path / "r", settings, command="", memory=False, say=said.append)
    assert said[0] == f"note: torch-int8-linear is not in the bundle: {left_out['torch-int8-linear']}"
    assert (
        json.loads((tmp_path / "r/report.json").read_text())["bundle"]["left_out"]
        == left_out
        == record["bundle"]["left_out"]
    )
    (tmp_path / f"{NAME}.bin").write_bytes(b"other")
    with pytest.raises(UserError, match=f"{NAME}.bin: is not the file that {NAME}.xml was written with"):
        models_of(report, tmp_path, teacher=True)
