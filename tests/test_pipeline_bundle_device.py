"""What a device measures of a bundle, and how its record comes back to the run; without any run."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import RULES_OF_IT, SIZES, host_report, manifest_of, parts, small_bundle
from cli_runner import cli
from onnx import TensorProto, load_from_string
from steady_speed import steady

from pipeline.bundle.arrays import array_bytes
from pipeline.bundle.contents import hashed, read_manifest, unpacked
from pipeline.bundle.device import RECORDED, measure
from pipeline.bundle.join import join, joined, judged_again
from pipeline.bundle.layout import MANIFEST
from pipeline.bundle.settings import recipe_of
from pipeline.errors import UserError
from pipeline.gates.judge import judge
from pipeline.manifest import sha256_file
from pipeline.reports.report import render_html, render_markdown, schema

FILES = parts()
LIGHT = (np.arange(SIZES["test"]) % 4 - 1).astype(np.int32)  # every fourth image has no value
QUICK = {"min_seconds": 0.05, "runtimes": ("onnxruntime",), "threads": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a column of slices."""
    report = host_report()
    report["data"]["slices"] = {"light": ["day", "dusk", "night"]}
    files = FILES | {"report.json": json.dumps(report).encode(), "slices/0.npy": array_bytes(LIGHT)}
    return small_bundle(tmp_path_factory.mktemp("bundle") / "x.edgestill.zip", files, slices=["light"])


@pytest.fixture(scope="module")
def record(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")

    def measured(attempt: int) -> dict[str, Any]:
        with unpacked(bundle) as opened:
            out = folder / f"record{attempt}"
            return measure(opened, out, QUICK, command="edgestill profile x", memory=False, say=lambda line: None)

    return folder / f"record{steady(measured)}"


def test_a_record_is_a_report_bound_to_the_bytes_that_ran(record: Path, bundle: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    report = json.loads((record / "report.json").read_text())
    jsonschema.validate(report, schema())
    manifest, _, entries = read_manifest(bundle)
    rows = {row["name"]: row for row in report["subjects"]}
    assert list(rows) == ["teacher", "teacher@onnxruntime", "onnx-fp32@onnxruntime"]
    for name in ("teacher@onnxruntime", "onnx-fp32@onnxruntime"):
        row = rows[name]
        assert row["sha256"] == manifest.files[row["path"]].sha256
        assert row["accuracy"]["n"] == SIZES["test"] and row["accuracy"]["value"] == 1.0
        assert [entry["kind"] for entry in row["latency"]] == ["device", "end_to_end"]
        for place in row["stored"].values():
            assert sha256_file(record / place["path"]) == place["sha256"]
    assert rows["teacher"]["latency"] == [] and rows["teacher"]["missing"]["latency"] == RECORDED
    assert report["bundle"]["manifest_sha256"] == hashed(bundle, entries[MANIFEST])[0]
    assert report["selection"]["chosen"] == "onnx-fp32@onnxruntime"
    assert [gate["outcome"] for gate in report["gates"]] == ["pass", "pass"] and report["verdict"] == "released"
    speed = {"metric": "speedup_p50", "against": "teacher", "min": 0.01}
    assert judge(report, [speed]).verdict == "released"
    assert str(Path.home()) not in (record / "report.json").read_text()


def answers(record: Path) -> None:
    path = record / "evaluate/outcomes-onnx-fp32@onnxruntime.npz"
    path.write_bytes((record / "evaluate/outcomes-teacher@onnxruntime.npz").read_bytes() + b" ")


def quicker(record: Path) -> None:
    path = record / "profile/latency-device-onnx-fp32@onnxruntime.npy"
    timings = np.load(path)
    timings[0] //= 2
    np.save(path, timings)


def better(record: Path) -> None:
    text = (record / "report.json").read_text()
    found = json.loads(text)
    found["subjects"][-1]["accuracy"]["value"] = 0.5
    (record / "report.json").write_text(json.dumps(found))


def released(record: Path) -> None:
    found = json.loads((record / "report.json").read_text())
    found["recipe"]["gate"] = [{"metric": "size_bytes", "max": 10}]
    (record / "report.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (answers, "error: evaluate/outcomes-onnx-fp32@onnxruntime.npz: sha256: expected "),
        (quicker, "error: profile/latency-device-onnx-fp32@onnxruntime.npy: sha256: expected "),
        (better, "error: report.json: onnx-fp32@onnxruntime: accuracy: value: recorded 0.5, its samples give 1"),
        (released, "error: report.json: the verdict: recorded released, its samples say refused"),
    ],
)
def test_the_record_of_a_device_is_judged_again(record: Path, tmp_path: Path, spoil: Any, line: str) -> None:
    copied = shutil.copytree(record, tmp_path / "copied")
    done = cli("verify", copied)
    assert done.code == 0 and "judged again from 6 files of samples: RELEASED  " in done.out, done.err
    assert re.match(r"whole: 6 files of \d\S* kB are", done.out) and done.out.endswith(
        f"next: edgestill gate {copied}\n"
    )
    spoil(copied)
    done = cli("verify", copied)
    assert done.code == 1 and any(said.startswith(line) for said in done.err.splitlines()), done.err


def test_a_slice_is_judged_from_the_columns_of_the_bundle(record: Path) -> None:
    report = json.loads((record / "report.json").read_text())
    (check,) = judge(report, [{"metric": "accuracy", "min": 0.5, "slice": "light=night"}]).checks
    assert check.n == (LIGHT == 2).sum() == 10 and check.outcome == "pass"
    assert check.reason.endswith("light=night, 10 samples")


def test_columns_that_contradict_the_bundle_are_refused(tmp_path: Path) -> None:
    names = {"light": ["day", "night"]}
    for known, codes, columns, line in (
        (names, [0, 2], ["light"], "report.json: data.slices does not name what 'light' has; make the bundle again"),
        (names, [0, -2], ["light"], "report.json: data.slices does not name what 'light' has; make the bundle again"),
        ({}, [0, 1], ["light"], "report.json: data.slices does not name what 'light' has; make the bundle again"),
        (names, [0], ["light"], "manifest.json: slices/0.npy cannot have 132 bytes, but 288; make the bundle again"),
        (names, [0, 1], ["light"] * 2, "manifest.json: a column of slices is named twice; make the bundle again"),
        (names, [0, 1], [], "manifest.json: slices/0.npy is not known in its files; make the bundle again"),
    ):
        report = host_report()
        report["data"]["slices"] = known
        values = np.resize(np.array(codes, np.int32), SIZES["test"] if len(codes) > 1 else 1)
        files = FILES | {"report.json": json.dumps(report).encode(), "slices/0.npy": array_bytes(values)}
        path = small_bundle(tmp_path / "x.zip", files, slices=columns)
        with pytest.raises(UserError) as caught, unpacked(path) as opened:
            opened.slices()
        assert str(caught.value) == f"{path}: {line}"


def test_without_the_teacher_speed_against_it_is_undecided(tmp_path: Path) -> None:
    files = {name: content for name, content in FILES.items() if name != "models/teacher.onnx"}
    rules = [*RULES_OF_IT, {"metric": "speedup_p50", "against": "teacher", "min": 0.01}]
    files["gate.json"] = json.dumps({"gate": rules}).encode()
    models = {"onnx-fp32": manifest_of(FILES)["models"]["onnx-fp32"]}
    with unpacked(small_bundle(tmp_path / "x.zip", files, models=models)) as opened:
        report = measure(opened, tmp_path / "r", QUICK, command="", memory=False, say=lambda line: None)
    assert report["verdict"] == "undecided"
    assert report["gates"][2]["reason"] == (
        "the teacher was not measured at fp32 on onnxruntime, the runtime of onnx-fp32@onnxruntime"
    )


def test_a_model_that_does_not_load_is_left_out_with_its_reason(tmp_path: Path) -> None:
    models = manifest_of(FILES)["models"]
    models["onnx-int8"] = models["onnx-fp32"] | {"file": "models/onnx-int8.onnx", "precision": "int8"}
    broken = load_from_string(FILES["models/onnx-fp32.onnx"])
    broken.graph.node[0].op_type = "Convolve"
    files = FILES | {"models/onnx-int8.onnx": broken.SerializeToString()}
    said: list[str] = []
    with unpacked(small_bundle(tmp_path / "x.zip", files, models=models)) as opened:
        report = measure(opened, tmp_path / "r", QUICK, command="", memory=False, say=said.append)
    row = next(row for row in report["subjects"] if row["name"] == "onnx-int8@onnxruntime")
    assert row["accuracy"] is None and row["latency"] == []
    assert row["missing"]["accuracy"].startswith("models/onnx-int8.onnx: onnxruntime cannot load it (")
    assert said[1].startswith("note: onnx-int8@onnxruntime is left out: ")
    assert report["selection"]["chosen"] == "onnx-fp32@onnxruntime"
    assert "onnx-int8@onnxruntime" in render_html(report) and "onnx-int8@onnxruntime" in render_markdown(report)
    only = {"onnx-int8": models["onnx-int8"]}
    del files["models/onnx-fp32.onnx"], files["models/teacher.onnx"]
    alone = small_bundle(tmp_path / "y.zip", files, models=only)
    with (
        unpacked(alone) as opened,
        pytest.raises(UserError, match="no artifact of it runs on cpu here: models/onnx-int8"),
    ):
        measure(opened, tmp_path / "s", QUICK, command="", memory=False, say=said.append)


def test_a_model_with_weights_in_another_file_is_refused(tmp_path: Path) -> None:
    model = load_from_string(FILES["models/onnx-fp32.onnx"])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    path = small_bundle(tmp_path / "x.zip", FILES | {"models/onnx-fp32.onnx": model.SerializeToString()})
    with unpacked(path) as opened, pytest.raises(UserError) as caught:
        measure(opened, tmp_path / "r", QUICK, command="", memory=False, say=lambda line: None)
    assert str(caught.value) == (
        f"{path}: models/onnx-fp32.onnx: its tensor 'kernel' lies in another file; do not use this bundle"
    )


def test_a_recipe_of_another_version_is_measured_all_the_same(tmp_path: Path) -> None:
    """A device looks at a few tables of the recipe; how the networks were trained may be told in words of its host."""
    report = host_report()
    report["recipe"]["teacher"] = {"model": "of-tomorrow", "osmosis": True}
    path = small_bundle(tmp_path / "x.zip", FILES | {"report.json": json.dumps(report).encode()})
    with unpacked(path) as opened:
        found = measure(opened, tmp_path / "r", QUICK, command="", memory=False, say=lambda line: None)
    assert found["recipe"]["teacher"] == {"model": "of-tomorrow", "osmosis": True}
    assert found["recipe"]["profile"]["min_seconds"] == 0.05 and found["recipe"]["gate"][0]["max"] == "50pt"


def test_a_recipe_with_waivers_is_read_from_its_report() -> None:
    waiver = {"metric": "size_bytes", "owner": "Ada", "reason": "new flash in July", "expires": "2026-07-31"}
    report = host_report()
    report["recipe"]["waiver"] = [waiver]
    (found,) = recipe_of(report, "here").waiver
    assert found.owner == "Ada" and found.expires == datetime.date(2026, 7, 31)
    for wrong in ([waiver | {"expires": "soon"}], [waiver | {"metric": []}], [5], 5, [{}]):
        report["recipe"]["waiver"] = wrong
        with pytest.raises(UserError, match=r"^here: "):
            recipe_of(report, "here")


def test_settings_and_outcomes_that_cannot_be_are_refused(tmp_path: Path, bundle: Path) -> None:
    with unpacked(bundle) as opened:
        for settings_, line in (
            ({"device": "tpu"}, "recipe: profile.device: got 'tpu'"),
            ({"runtimes": ("nothing",)}, "--runtime: unknown runtime 'nothing'"),
        ):
            with pytest.raises(UserError, match=line):
                measure(opened, tmp_path / "r", settings_, command="", say=lambda line: None)
    labels = "outcomes/teacher-validation-correct.npy"
    files = FILES | {labels: array_bytes(np.zeros(SIZES["validation"], bool))}
    path = small_bundle(tmp_path / "x.zip", files)
    with unpacked(path) as opened, pytest.raises(UserError, match="the outcomes of teacher contradict its labels"):
        measure(opened, tmp_path / "r", QUICK, command="", memory=False, say=lambda line: None)


# --- back on the host ---


def host_run(folder: Path) -> dict[str, Any]:
    """A report of a run that made the very bytes of the bundle."""
    report = host_report()
    sha256 = {name: entry["sha256"] for name, entry in manifest_of(FILES)["files"].items()}
    for row in report["subjects"]:
        row["sha256"] = sha256.get(f"models/{row['name'].partition('@')[0]}.onnx", row["sha256"])
    report["verdict"] = judge(report).verdict
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))
    return report


def test_a_record_joins_the_run_whose_bytes_it_measured(tmp_path: Path, record: Path) -> None:
    report = host_run(tmp_path / "run")
    kept = join(tmp_path / "run", report, record)
    assert kept == join(tmp_path / "run", report, record / "report.json"), "the same record is kept once"
    devices, left_out = joined(tmp_path / "run", report)
    assert len(devices) == 1 and left_out == []
    for page in (render_markdown(report | {"devices": devices}), render_html(report | {"devices": devices})):
        assert "On the device: " in page and "onnx-fp32@onnxruntime" in page
    assert "On the device" not in render_markdown(report)


def test_the_rules_of_the_run_judge_not_those_of_the_record(tmp_path: Path, record: Path) -> None:
    report = host_run(tmp_path / "run")
    report["recipe"]["gate"] = [{"metric": "size_bytes", "max": 10}]
    join(tmp_path / "run", report, record)
    (device,), _ = joined(tmp_path / "run", report)
    assert device["verdict"] == "refused" and len(device["gates"]) == 1


def test_a_record_of_other_bytes_is_refused_and_left_out(tmp_path: Path, record: Path) -> None:
    report = host_run(tmp_path / "run")
    join(tmp_path / "run", report, record)
    for row in report["subjects"]:
        row["sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"which this run did not make \(not 000000000000\); bundle this run"):
        join(tmp_path / "run", report, record)
    devices, left_out = joined(tmp_path / "run", report)
    assert devices == [] and len(left_out) == 1


def test_what_is_no_record_is_refused(tmp_path: Path, record: Path) -> None:
    report = host_run(tmp_path / "run")
    with pytest.raises(UserError, match="not measured from a bundle; give what 'edgestill profile BUNDLE' wrote"):
        join(tmp_path / "run", report, tmp_path / "run")
    found = json.loads((record / "report.json").read_text())
    for row in found["subjects"]:
        del row["name"], row["accuracy"]
    with pytest.raises(UserError, match="damaged"):
        judged_again(found, report, "here")
