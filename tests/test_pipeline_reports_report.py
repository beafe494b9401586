"""The report renders whatever was measured, escapes what users named, and refuses what is no report in one line."""

import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console
from sample_report import sample_report

from pipeline.errors import UserError
from pipeline.gates.judge import judge
from pipeline.quantities import show, signed
from pipeline.reports import charts, ledger
from pipeline.reports.report import load, print_ledger, render_html, render_markdown, schema


def judged(**options):
    report = sample_report(**options)
    verdict = judge(report)
    return report | {"gates": verdict.gates(), "verdict": verdict.verdict}


@pytest.fixture(scope="module")
def released():
    return judged()


@pytest.mark.parametrize("options", [{}, {"latency": False}, {"chosen": None}])
def test_the_sample_keeps_the_schema_and_renders(options):
    jsonschema = pytest.importorskip("jsonschema")
    report = judged(**options)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(json.dumps(report)), schema())
    page, text = render_html(report), render_markdown(report)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)
    for subject in report["subjects"]:
        assert subject["name"] in page
        assert subject["name"] in text
    assert f"# cifar10: {report['verdict']}" in text
    for word in ("None", "nan", "Undefined"):
        assert not re.search(rf"\b{word}\b", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


@pytest.mark.parametrize("key", ["verdict", "subjects", "command"])
def test_the_schema_refuses_what_is_not_in_the_design(key):
    jsonschema = pytest.importorskip("jsonschema")
    broken = judged() | {key: 5}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(judged() | {"extra": 1}, schema())


def test_the_page_is_self_contained_and_starts_with_the_verdict(released):
    page = render_html(released)
    assert not re.search(r"<script|<link|@import|src=|https?://", page)
    order = [page.index(f">{words}<") for words in ("Released", "From teacher to artifact", "The ledger", "Training")]
    order += [page.index(f">{words}<") for words in ("Gate checks", "Where this was measured", "Run it again")]
    assert order == sorted(order)
    assert "edgestill run cifar10 --set data.root=data" in page
    for fact in ("0123abcd0123 with local changes", "8.20 GB", "10,000 images", "AMD EPYC 7B13"):
        assert f">{fact}<" in page


def test_names_from_users_cannot_become_markup(released):
    hostile = json.loads(json.dumps(released).replace("onnx-fp32@openvino", "<img src=x>|&"))
    page = render_html(hostile)
    assert "<img" not in page
    assert "&lt;img src=x&gt;|&amp;" in page
    assert "<img" not in render_markdown(hostile).replace("\\<img", "")
    assert "\\<img src=x\\>\\|&" in render_markdown(hostile)


@pytest.mark.parametrize("verdict", ["refused", "undecided"])
def test_what_is_not_released_does_not_say_that_it_ships(released, verdict):
    page = render_html(released | {"verdict": verdict})
    assert ">ships<" not in page
    assert ">judged<" in page


def test_a_bare_report_renders():
    report = sample_report()
    for key in ("distillation", "selection", "stages", "command", "created"):
        report.pop(key)
    report["subjects"] = [
        {"name": "teacher", "role": "teacher", "precision": "fp32", "runtime": "torch", "accuracy": None, "latency": []}
    ]
    report["comparisons"], report["environment"] = [], {}
    page = render_html(report)
    assert "nothing was judged" in page
    assert "<svg" not in page
    assert render_markdown(report).startswith("# cifar10: undecided\n")


def test_the_terminal_ends_with_verdict_and_next_command(released):
    stream = io.StringIO()
    print_ledger(released, Console(file=stream, width=140), folder=Path("artifacts/digits"))
    lines = stream.getvalue().rstrip().splitlines()
    assert lines[-3] == "RELEASED  onnx-int8@openvino keeps all 6 limits."
    assert lines[-2] == "report: artifacts/digits/report.html"
    assert lines[-1] == "next: edgestill predict artifacts/digits/quantize/onnx-int8.onnx FOLDER_OF_IMAGES"
    assert any("onnx-int8@openvino \u2605" in line and "22.9\u00d7" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"schema_version": 1, "rec', "damaged or cut short (line 1, column 23: "),
        ("[]", "holds a list, not a report; give the report.json of a run"),
        ('{"schema_version": 9}', "schema_version is 9, not 1; use the edgestill that wrote it"),
        ('{"schema_version": 1}', "not a report: 'recipe' is missing; give the report.json of a run"),
        (b"\xff\xfe\x00", "not a text file; give the report.json of a run"),
    ],
)
def test_what_is_no_report_is_one_line(tmp_path, content, text):
    path = tmp_path / "report.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert str(error.value).startswith(f"{path}: {text}")
    assert "\n" not in str(error.value)


def test_a_missing_report_names_the_command(tmp_path):
    with pytest.raises(UserError, match="no such report; make one with 'edgestill run RECIPE'"):
        load(tmp_path / "nothing.json")


def test_load_gives_back_what_was_written(tmp_path, released):
    (tmp_path / "report.json").write_text(json.dumps(released))
    assert load(tmp_path) == json.loads(json.dumps(released))


def test_the_chain_ends_with_what_ships(released):
    hops = ledger.chain(released)
    assert [hop.title for hop in hops] == ["Teacher", "Student", "fp32", "fp16", "int8"]
    assert [hop.change for hop in hops] == ["", "\u22124.59 pt", "0.00 pt", "\u22120.01 pt", "\u22120.10 pt"]
    assert [hop.chosen for hop in hops] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        (94_000_000, "2.00\u00d7 less than the teacher"),
        (188_000_000, "the same as the teacher"),
        (188_100_000, "the same as the teacher"),
        (376_000_000, "2.00\u00d7 more than the teacher"),
        (None, "not compared"),
    ],
)
def test_a_headline_says_how_it_stands_to_the_teacher(memory, text):
    released = judged()
    teacher = next(row for row in released["subjects"] if row["name"] == "teacher@openvino")
    chosen = next(row for row in released["subjects"] if row["name"] == released["selection"]["chosen"])
    teacher["peak_memory_bytes"], chosen["peak_memory_bytes"] = 188_000_000, memory
    (tile,) = (tile for tile in ledger.tiles(released) if tile.name == "peak memory")
    assert tile.against == text


def test_two_rules_that_differ_in_their_subject_keep_their_own_pictures(released):
    """Their texts are equal; each row has its own interval and its own words."""
    report = json.loads(json.dumps(released))
    rules = [
        {"metric": "accuracy_drop", "against": "teacher", "max": "6pt", "subject": name}
        for name in ("student", "onnx-int8-cpu@onnxruntime")
    ]
    report |= judge(report, rules).recorded()
    first, second = report["gates"]
    assert first["rule"] == second["rule"] and first["value"] != second["value"]
    page, text = render_html(report), render_markdown(report)
    for name in ("student", "onnx-int8-cpu@onnxruntime"):
        assert f"images only {name} is right on" in page and f"images only {name} is right on" in text
    values = re.findall(r"aria-label=\"([^\"]*) against a limit of", page)
    assert len(values) == len(set(values)) == 2, values


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("onnx-int8@openvino", "int8"),
        ("onnx-int8-cpu@onnxruntime", "int8 for CPU"),
        ("onnx-int8-gpu@tensorrt", "int8 for GPU"),
        ("onnx-int8-trt86@tensorrt", "int8 for TensorRT 8.6"),
        ("onnx-int8-float-layers@openvino", "int8, float layers"),
        ("onnx-int8-cpu-qat@onnxruntime", "int8 for CPU, qat"),
        ("openvino-int8-nncf@openvino", "int8 by NNCF"),
        ("openvino-int8-nncf-mixed@openvino", "int8 by NNCF, mixed"),
    ],
)
def test_every_form_has_a_title_of_its_own(name, title):
    assert ledger.title_of({"role": "artifact", "name": name, "precision": "int8"}) == title


def test_a_waived_limit_is_told_in_the_terminal(released, tmp_path):
    report = json.loads(json.dumps(released))
    report["gates"][0] |= {"outcome": "fail", "waived": "waived by Ada until 2199-12-31: a trial"}
    out = io.StringIO()
    print_ledger(report, Console(file=out, width=200), folder=tmp_path)
    line = next(line for line in out.getvalue().splitlines() if report["gates"][0]["rule"] in line)
    assert line.startswith("! ") and line.endswith("(waived by Ada until 2199-12-31: a trial)")


def test_reasons_of_what_was_not_measured_are_told_once():
    found = ledger.not_measured(sample_report(latency=False))
    assert found == [
        ("energy", "no power sensor", "all subjects"),
        ("latency", "profiling was interrupted", "all subjects"),
    ]


def test_the_frontier_holds_what_nothing_beats():
    at = {
        name: charts.Point(label=name, x=x, y=y, kind="artifact")
        for name, x, y in (("fast", 1, 0.8), ("beaten", 2, 0.7), ("good", 3, 0.9), ("same", 4, 0.9))
    }
    assert [point.label for point in charts.frontier(at.values())] == ["fast", "good"]


def test_ticks_are_round():
    assert charts.ticks(86.3, 94.1, 4) == [88, 90, 92, 94]
    assert charts.ticks(3, 3) == [3]
    assert charts.log_ticks(0.15, 7) == pytest.approx([0.2, 0.5, 1, 2, 5])


@pytest.mark.parametrize("points", [[], [(0.0, 0.5)], [(1.0, float("nan"))]])
def test_a_chart_without_points_is_empty(points):
    assert (
        charts.pareto([charts.Point(label="a", x=x, y=y, kind="student") for x, y in points], width=9, height=9) == ""
    )


def test_one_point_and_one_epoch_draw():
    assert "<circle" in charts.pareto([charts.Point(label="a", x=1, y=1, kind="student")], width=326, height=300)
    assert "<circle" in charts.curves(
        [charts.Line(label="a", xs=[1.0], ys=[0.5], kind="student")], width=326, height=200, title="t", percent=True
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.88314, "fraction", "88.31 %"),
        (312_345, "bytes", "312 kB"),
        (3_431_000, "bytes", "3.43 MB"),
        (0.158, "ms", "0.158 ms"),
        (0.0123, "ms", "12.3 \u00b5s"),
        (22.86, "x", "22.9\u00d7"),
        (12_501_632, "", "12.5 M"),
        (7, "", "7"),
        (2370, "s", "39 min 30 s"),
        (-0.001, "pt", "0.00 pt"),
        (None, "ms", "\u2013"),
        (float("nan"), "pt", "\u2013"),
        (True, "", "\u2013"),
        (719, "", "719"),
    ],
)
def test_quantities_read_well(value, unit, text):
    assert show(value, unit) == text


def test_signs_are_shown():
    assert [signed(x, "pt") for x in (1.234, -1.234, 0.0)] == ["+1.23 pt", "\u22121.23 pt", "0.00 pt"]
