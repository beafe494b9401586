"""A climb of the ladder on digits, interrupted in its middle: rungs, training, report; what is done stays done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Result, cli

from exporters.artifact import read_metadata
from pipeline.reports.report import schema
from pipeline.stages import ladder

RECIPE = """
name = "climb"
data = { name = "digits", validation = 0.1, test = 0.4 }
teacher = { model = "mlperf-resnet8", train = { epochs = 1, batch_size = 64, lr = 0.05 }, check = "warn" }
student = { model = "mlperf-resnet8" }
export = [{ precisions = ["fp32"] }]
quantize = { samples = 16, forms = ["cpu"], ladder = RUNGS, ladder_stop = false }
profile = { runtimes = ["onnxruntime"], min_seconds = 0.05 }
gate = [{ metric = "accuracy_drop", against = "student", max = "5pt" }]

[distill]
epochs = 1
batch_size = 64
lr = 0.05
control = false
augment = { pad_crop = 1 }
teacher_outputs = "table"
"""
RUNGS = '["calibration", "float-layers", "qat"]'
LABELS = ["plain", "percentile", "entropy", "float-layers", "qat"]
pytestmark = pytest.mark.timeout(600)  # two runs of the chain, on a machine that others use
BEFORE = ("data", "teacher", "teacher-check", "table", "distill", "export", "quantize")


class Climbed:
    """Two runs of the command: the first is interrupted after the third rung, the second goes on."""

    def __init__(self, folder: Path, forms: str = '["cpu"]') -> None:
        recipe = folder / "climb.toml"
        recipe.write_text(RECIPE.replace("RUNGS", RUNGS).replace('["cpu"]', forms))
        add = ladder.Climb.add

        def interrupted(self: Any, record: dict[str, Any]) -> dict[str, Any]:
            if record["label"] == "entropy":
                raise KeyboardInterrupt
            return add(self, record)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ladder.Climb, "add", interrupted)
            self.first: Result = cli("run", recipe, "--out", folder / "out")
        self.second: Result = cli("run", recipe, "--out", folder / "out")
        self.recipe, self.folder = recipe, folder / "out" / "climb"

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Climbed:
    return Climbed(tmp_path_factory.mktemp("climb"))


def test_rungs_that_were_done_survive_an_interruption(climbed: Climbed) -> None:
    assert climbed.first.code == 130 and "ladder: interrupted" in climbed.first.err
    said = climbed.second.err.splitlines()
    assert [line for line in said if line.endswith(": fresh")] == [f"{stage}: fresh" for stage in BEFORE]
    taken = [line for line in said if "was done before the interruption" in line]
    assert taken == [
        f"ladder: cpu-{label} was done before the interruption, and is taken as it is"
        for label in ("plain", "percentile", "entropy")
    ]
    assert climbed.second.code in (0, 3, 4)


def test_every_rung_stands_in_the_report_with_cost_accuracy_and_latency(climbed: Climbed) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    report = climbed.report
    jsonschema.validate(report, schema())
    rungs = report["ladder"]["rungs"]
    assert [row["label"] for row in rungs] == LABELS
    for row in rungs:
        assert row["seconds"] > 0 and row["accuracy"]["n"] == report["data"]["sizes"]["validation"]
        low, high = row["accuracy"]["ci95"]
        assert low <= row["accuracy"]["value"] <= high
        assert row["p50_ms"] > 0 and row["against"]["onnx-fp32"]["ratio"] > 0
        assert row["state"] in ("holds", "undecided", "misses") and row["runtime"] == "onnxruntime"
    mixed = rungs[LABELS.index("float-layers")]
    assert mixed["kept_fp32"] and sum(row["chosen"] for row in mixed["candidates"]) == 1
    assert report["ladder"]["sensitivity"]["cpu"]["layers"]
    chosen, shipped = report["selection"]["chosen"], report["ladder"]["shipped"]
    assert chosen.startswith(shipped["artifact"]) and shipped["sentence"] in climbed.second.out
    assert "The precision ladder" in (climbed.folder / "report.html").read_text()


def test_rungs_that_hold_are_judged_like_all_other_artifacts(climbed: Climbed) -> None:
    report = climbed.report
    held = {row["artifact"] for row in report["ladder"]["rungs"] if row["state"] == "holds"}
    judged = {row["name"].partition("@")[0] for row in report["subjects"] if row["precision"] == "int8"}
    assert judged == held | {"onnx-int8-cpu"} and "onnx-int8-cpu-qat" in held
    assert all(row["parity"]["against"] == "onnx-fp32" for row in report["subjects"] if row["precision"] == "int8")


def test_the_trained_file_is_the_module_that_was_trained(climbed: Climbed) -> None:
    row = next(row for row in climbed.report["ladder"]["rungs"] if row["label"] == "qat")
    assert row["agreement"]["equal"] > 0.999 and row["agreement"]["most"] <= 1
    assert (row["settings"]["epochs"], row["settings"]["lr"]) == (1, pytest.approx(0.0005))
    (path,) = climbed.folder.glob("qat-*/onnx-int8-cpu-qat.onnx")
    found = read_metadata(path)
    assert (found["form"], found["qat_epochs"], found["qat_lr"]) == ("cpu", "1", "0.0005")


def test_a_third_run_finds_everything_fresh_and_a_climb_that_stops_keeps_what_came_before(climbed: Climbed) -> None:
    out = climbed.folder.parent
    again = cli("run", climbed.recipe, "--out", out)
    assert [line for line in again.err.splitlines() if not line.endswith(": fresh")] == []
    rows = cli("plan", climbed.recipe, "--out", out, "--set", "quantize.ladder_stop=true", "--json").json
    assert [row["stage"] for row in rows if row["state"] == "fresh"] == list(BEFORE)
    off = cli("plan", climbed.recipe, "--out", out, "--set", "quantize.ladder=false", "--json").json
    assert {row["stage"] for row in off} == {*BEFORE, "evaluate", "profile", "gate"}


@pytest.mark.slow
def test_forms_for_gpus_are_climbed_and_trained_where_no_gpu_is(tmp_path: Path) -> None:
    """`profile.runtimes` names ONNX Runtime's CPU provider alone, so that a host with a GPU does the same."""
    climbed = Climbed(tmp_path, '["trt86", "gpu"]')
    assert sum("was done before the interruption" in line for line in climbed.second.err.splitlines()) == 3
    found = climbed.report["ladder"]
    assert [(row["form"], row["label"]) for row in found["rungs"]] == [
        (f, label) for f in ("trt86", "gpu") for label in LABELS
    ]
    for row in found["rungs"]:
        assert row["accuracy"]["value"] > 0 and row["runtime"] == "onnxruntime"
        assert row["p50_ms"] is None and "NVIDIA" in row["missing"]["p50_ms"]
    assert all(row["agreement"]["equal"] > 0.999 for row in found["rungs"] if row["label"] == "qat")
    for form, row in found["forms"].items():
        assert row["sentence"].startswith(f"{form}: ") and "latency not measured" in row["sentence"]
        (path,) = climbed.folder.glob(f"qat-*/onnx-int8-{form}-qat.onnx")
        assert read_metadata(path)["form"] == form
