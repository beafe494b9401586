"""The ladder's decisions in closed forms, what is said of a rung, and what the pages show."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from sample_report import sample_report

from pipeline.gates.judge import judge
from pipeline.gates.rules import Rule
from pipeline.ladder import (
    accuracy_rules,
    better,
    climb_sentence,
    faster,
    fewest,
    reaches,
    record_line,
    scaled_counts,
    speed_sentence,
    standing,
    worst,
)
from pipeline.reports.ladder_view import ladder_view, terminal_lines
from pipeline.reports.report import render_html, render_markdown, schema
from pipeline.stages.climb_report import in_order, shipped

DROP = Rule(metric="accuracy_drop", against="student", max="1.0pt")


def pair(lost: int, won: int = 0, n: int = 2000, wrong: int = 600) -> dict[str, Any]:
    both = n - wrong - lost - won
    counts = {"both": both, "only_subject": won, "only_against": lost, "neither": wrong, "n": n, "agree": both + wrong}
    return {"kind": "accuracy", "subject": "q", "against": "student", "split": "validation", **counts}


def stands(row: dict[str, Any], gate_n: int = 10_000) -> dict[str, Any]:
    value = (row["both"] + row["only_subject"]) / row["n"]
    accuracy = {"metric": "top1", "value": value, "n": row["n"], "ci95": [0, 1]}
    return standing("q", accuracy, [row], [DROP], gate_n=gate_n)


@pytest.mark.parametrize(
    ("lost", "won", "gate_n", "state"),
    [
        (4, 4, 10_000, "holds"),  # no drop at all: 0.5 % of answers change, the bound is 0.21 pt
        (22, 2, 10_000, "misses" if 22 - 2 > 20 else "undecided"),  # 1.0 pt by the point, no bound can hold that
        (23, 2, 10_000, "misses"),  # 1.05 pt
        (40, 30, 10_000, "holds"),  # 0.5 pt, bound 0.93 pt at 10,000 samples
        (40, 30, 2_000, "undecided"),  # the same rates decide nothing at 2,000
    ],
)
def test_a_rung_stands_as_the_gate_would_judge_it_on_its_own_samples(lost, won, gate_n, state):
    found = stands(pair(lost, won), gate_n)
    assert found["state"] == state and [check["rule"] for check in found["checks"]] == [
        "accuracy_drop against student <= 1.0pt"
    ]
    assert found["checks"][0]["value"] == pytest.approx((lost - won) / 20, abs=0.02)


def test_a_miss_is_said_with_its_figure():
    assert stands(pair(98, 60))["checks"][0]["reason"] == "accuracy_drop 1.9 on validation, 1.0pt asked"


def test_counts_are_scaled_to_whole_numbers_that_add_up():
    for n in (719, 10_000, 123_457):
        found = scaled_counts(pair(23, 7, n=1999, wrong=411), n)
        assert found["both"] + found["only_subject"] + found["only_against"] + found["neither"] == n
        assert found["both"] <= found["agree"] <= found["both"] + found["neither"]
        assert found["only_against"] == pytest.approx(23 * n / 1999, abs=1)


def test_rules_on_other_subjects_on_speed_and_on_size_make_nothing_climb():
    rules = [
        DROP,
        Rule(metric="size_bytes", max=1e6),
        Rule(metric="speedup_p50", against="teacher", min=2.0),
        Rule(metric="accuracy", min=0.5, subject="student"),
        Rule(metric="psnr_drop", against="teacher", max="0.1dB"),
    ]
    assert accuracy_rules(rules) == [rules[0], rules[4]]


def test_a_dense_metric_is_foreseen_at_the_size_of_its_gate_set():
    rule = Rule(metric="psnr_drop", against="student", max="0.1dB")
    row = {"kind": "metric", "metric": "psnr_y", "unit": "dB", "subject": "q", "against": "student"}
    row |= {"split": "validation", "n": 20, "mean": -0.05, "sd": 0.1, "skewness": 0.0}
    accuracy = {"metric": "psnr_y", "value": 30.0, "n": 20, "ci95": [29, 31]}
    states = [standing("q", accuracy, [row], [rule], gate_n=n)["state"] for n in (20, 100)]
    assert states == ["undecided", "holds"]
    assert standing("q", accuracy, [row | {"mean": -0.2}], [rule], gate_n=100)["state"] == "misses"


def test_states_have_an_order():
    assert worst(["holds", "misses", "undecided"]) == "misses" and worst([]) == "holds"
    assert reaches("holds", "undecided") and reaches("undecided", "undecided") and not reaches("misses", "undecided")


@pytest.mark.parametrize("most", [1, 2, 7, 50])
def test_the_fewest_layers_are_found_and_few_large_numbers_tried(most):
    for needed in range(1, most + 2):
        tried: list[int] = []

        def holds(k: int, needed: int = needed, tried: list[int] = tried) -> bool:
            tried.append(k)
            return k >= needed

        assert fewest(most, holds) == (needed if needed <= most else None)
        assert len(tried) == len(set(tried)) <= 2 * most.bit_length() + 1 and max(tried) <= min(2 * needed, most)


def rung(label: str, state: str = "holds", value: float = 0.7, **more: Any) -> dict[str, Any]:
    checks = [{"reason": f"{label} {state}", "state": state, "rule": "r"}]
    common = {
        "form": "portable",
        "rung": label,
        "label": label,
        "artifact": f"onnx-int8-{label}",
        "runtime": "openvino",
    }
    accuracy = {"value": value, "ci95": [value - 0.02, value + 0.02]}
    timed = {"p50_ms": 0.5, "size_bytes": 1_000_000, "seconds": 3.0}
    return {**common, "state": state, "accuracy": accuracy, "checks": checks, **timed, **more}


def test_a_better_rung_has_the_better_state_and_then_the_better_value():
    assert better(rung("a", "undecided", 0.6), rung("b", "misses", 0.9))
    assert better(rung("a", value=0.71), rung("b", value=0.7)) and not better(rung("a"), rung("b"))


@pytest.mark.parametrize(
    ("against", "sure", "words"),
    [
        (
            {"onnx-fp32": {"ratio": 1.5, "lower": 1.4, "upper": 1.6}},
            True,
            "1.50x as fast as onnx-fp32 (99 % sure: 1.40x",
        ),
        ({"onnx-fp32": {"ratio": 1.1, "lower": 0.9, "upper": 1.3}}, False, "not faster, so no improvement: 1.10x as"),
        ({"onnx-fp32": {"ratio": 3.0, "lower": None, "upper": None}}, False, "not faster, so no improvement: 3.00x as"),
        ({}, None, ""),
    ],
)
def test_int8_that_is_not_faster_is_said_to_be_no_improvement(against, sure, words):
    record = rung("plain", against=against)
    assert faster(record) is sure and speed_sentence(record).startswith(words)


def test_the_climb_in_one_sentence():
    plain, bias, qat = rung("plain", "misses", 0.6), rung("bias-correction", "undecided", 0.68), rung("qat")
    assert climb_sentence("cpu", [plain, bias, qat], "holds", {}) == "cpu: rung qat holds on the validation split"
    assert climb_sentence("cpu", [qat | {"rung": "plain"}], "holds", {}) == (
        "cpu: plain int8 holds on the validation split"
    )
    assert climb_sentence("cpu", [plain, bias], "holds", {}) == (
        "cpu: no rung reaches the rules (plain, bias-correction); bias-correction comes closest: "
        "bias-correction undecided"
    )
    assert climb_sentence("cpu", [plain, bias], "undecided", {}).startswith(
        "cpu: rung bias-correction keeps the limits"
    )
    fp32 = {"checks": [{"state": "misses", "reason": "accuracy_drop 4 on validation, 1.0pt asked"}]}
    assert climb_sentence("cpu", [plain], "misses", fp32) == (
        "cpu: fp32 breaks the rules itself (accuracy_drop 4 on validation, 1.0pt asked), which no rung can mend"
    )
    untimed = plain | {"state": "holds", "rung": "plain", "p50_ms": None, "missing": {"p50_ms": "no GPU is here"}}
    assert climb_sentence("gpu", [untimed | {"runtime": "onnxruntime"}], "holds", {}) == (
        "gpu: plain int8 holds on the validation split; accuracy judged by onnxruntime on the file itself, latency not "
        "measured: no GPU is here"
    )
    slow = {"onnx-fp32": {"ratio": 0.9, "lower": 0.8, "upper": 1.1}}
    assert climb_sentence("cpu", [qat | {"against": slow}], "holds", {}) == (
        "cpu: rung qat holds on the validation split; plain int8 on openvino: not faster, so no improvement: 0.90x as "
        "fast as onnx-fp32 (99 % sure: 0.80x to 1.10x)"
    )
    assert record_line(qat) == "portable, qat: 70.00 % (68.00 % to 72.00 %), 0.500 ms, holds"


def test_the_rung_that_shipped_is_named():
    records = [rung("plain", artifact="onnx-int8"), rung("qat")]
    found = shipped(records, {"chosen": "onnx-int8-qat@openvino"})
    assert (found["rung"], found["artifact"]) == ("qat", "onnx-int8-qat")
    assert found["sentence"] == "onnx-int8-qat@openvino was put before the gate: rung qat of the form portable"
    assert shipped(records, {"chosen": "onnx-int8@openvino"})["sentence"] == (
        "onnx-int8@openvino was put before the gate: plain int8 of the form portable"
    )
    assert shipped(records, {"chosen": "onnx-fp32@openvino"})["rung"] is None
    assert [row["label"] for row in in_order([rung("a"), rung("b", form="cpu"), rung("c")])] == ["a", "c", "b"]


@pytest.fixture
def report():
    made = sample_report()
    verdict = judge(made)
    made |= {"gates": verdict.gates(), "verdict": verdict.verdict}
    layer = {"node": "n", "operator": "Conv", "layer": "stage1.<conv>", "alone_db": 12.5, "rest_db": None}
    candidate = {"kept_fp32": ["stage1.<conv>"], "value": 0.7, "state": "holds", "p50_ms": 0.5, "chosen": True}
    rungs = [
        rung(
            "plain", "misses", artifact="onnx-int8", against={"onnx-fp32": {"ratio": 1.5, "lower": 1.4, "upper": 1.6}}
        ),
        {"form": "portable", "rung": "equalize", "label": "equalize", "artifact": "onnx-int8-equalize", "seconds": 0.1}
        | {"left_out": "nothing to equalize"},
        rung("float-layers", candidates=[candidate], kept_fp32=["stage1.<conv>"]),
    ]
    selection = {"chosen": "onnx-int8@openvino"}
    made["ladder"] = {
        "forms": {
            "portable": {"runtime": "openvino", "target": "holds", "sentence": "portable: rung float-layers holds"}
        },
        "rungs": rungs,
        "sensitivity": {"portable": {"samples": 64, "all_db": 15.0, "layers": [layer] * 14}},
        "shipped": shipped(rungs, selection),
    }
    return made


def test_the_pages_show_every_rung_with_cost_interval_and_latency(report):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(report, schema())
    page, text = render_html(report), render_markdown(report)
    for words in ("The precision ladder", "portable: plain", "left out: nothing to equalize", "68.00 % to 72.00 %"):
        assert words in page and words in text
    assert "stage1.&lt;conv&gt;" in page and "<conv>" not in page
    assert "1.50x as fast as onnx-fp32" in page and "2 less sensitive layers stand in report.json" in page
    assert "| portable: float-layers | ✓ | 70.00 % | 68.00 % to 72.00 % | 0.500 ms |" in text
    assert terminal_lines(report) == [
        "portable: rung float-layers holds",
        "onnx-int8@openvino was put before the gate: plain int8 of the form portable",
    ]


def test_the_ranking_alone_is_shown_too_and_nothing_without_one(report):
    alone = copy.deepcopy(report)
    alone["ladder"] |= {"forms": {}, "rungs": [], "shipped": None}
    page = render_html(alone)
    assert "Sensitivity of the layers, portable" in page and "Rungs from cheap to dear" not in page
    assert terminal_lines(alone) == []
    del alone["ladder"]
    assert ladder_view(alone) is None and "precision ladder" not in render_html(alone) + render_markdown(alone)


def test_a_recipe_without_an_accuracy_rule_has_nothing_to_climb_for():
    from pipeline.errors import RecipeError
    from pipeline.recipe import Quantize
    from pipeline.stages import ladder

    recipe = SimpleNamespace(quantize=Quantize(ladder=True), gate=(Rule(metric="size_bytes", max=1e6),))
    with pytest.raises(RecipeError) as error:
        ladder.stage(recipe)  # type: ignore[arg-type]
    assert str(error.value) == (
        "quantize.ladder: it climbs until the accuracy rules hold, and [[gate]] has none; add one, such as "
        '{ metric = "accuracy_drop", against = "student", max = "1.0pt" }'
    )
