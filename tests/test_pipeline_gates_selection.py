"""Which artifact goes before the gate, and whether distillation helped: decided from counts alone."""

from typing import Any

import pytest

from pipeline.gates.rules import Rule
from pipeline.gates.selection import no_gain, select
from pipeline.recipe import Recipe
from pipeline.stages.gate import distillation, t_interval

DROP = Rule(metric="accuracy_drop", against="teacher", max="1.0pt")


def artifact(name: str, p50_ms: float | None, accuracy: float = 0.9, size_bytes: int = 1000) -> dict[str, Any]:
    latency = [] if p50_ms is None else [{"kind": "device", "p50_ms": p50_ms}, {"kind": "end_to_end", "p50_ms": 0.001}]
    return {
        "name": name,
        "role": "artifact",
        "latency": latency,
        "accuracy": {"validation": accuracy},
        "size_bytes": size_bytes,
    }


def pair(name: str, lost: int, n: int = 200) -> dict[str, Any]:
    return {
        "subject": name,
        "against": "teacher",
        "n": n,
        "both": n - lost - 10,
        "only_subject": 0,
        "only_against": lost,
        "neither": 10,
        "agree": n - lost,
    }


def test_the_fastest_one_is_chosen_when_all_keep_the_limits() -> None:
    report = {"subjects": [artifact("slow", 2.0), artifact("fast", 1.0), artifact("untimed", None)]}
    found = select(report, [DROP], [pair("slow", 0), pair("fast", 2)])
    assert found == {"chosen": "fast", "order": ["fast", "slow"], "reason": "the fastest artifact"}


def test_a_faster_one_that_loses_too_much_on_validation_is_passed_over_and_said() -> None:
    report = {"subjects": [artifact("slow", 2.0), artifact("fast", 1.0)]}
    found = select(report, [DROP], [pair("slow", 1), pair("fast", 3)])
    assert found["chosen"] == "slow"
    assert found["reason"] == (
        "the fastest artifact that keeps the accuracy limits on the validation split; "
        "fast passed over: accuracy_drop 1.5 on validation, 1.0pt asked"
    )


def test_the_most_accurate_one_is_judged_when_none_keeps_the_limits() -> None:
    report = {"subjects": [artifact("slow", 2.0, 0.8), artifact("fast", 1.0, 0.7)]}
    found = select(report, [DROP], [pair("slow", 9), pair("fast", 20)])
    assert found["chosen"] == "slow"
    assert found["reason"].startswith(
        "none keeps the limits on the validation split, so the most accurate one is judged"
    )


def test_what_was_not_measured_is_passed_over_and_exact_limits_choose_too() -> None:
    report = {"subjects": [artifact("big", 1.0, size_bytes=9000), artifact("small", 2.0)]}
    found = select(report, [Rule(metric="size_bytes", max=5000)], [])
    assert found["chosen"] == "small"
    assert select(report, [DROP], [pair("small", 0)])["reason"].endswith(
        "big passed over: accuracy_drop was not measured"
    )


def test_a_rule_against_the_last_release_does_not_choose() -> None:
    """It has no counterpart before `edgestill gate NEW --against LAST`; all would be passed over."""
    report = {"subjects": [artifact("slow", 2.0, 0.9), artifact("fast", 1.0, 0.8)]}
    ratchet = Rule(metric="accuracy_drop", against="last-release", max="1.0pt")
    found = select(report, [DROP, ratchet], [pair("slow", 0), pair("fast", 2)])
    assert found == {"chosen": "fast", "order": ["fast", "slow"], "reason": "the fastest artifact"}


def test_without_an_artifact_nothing_is_chosen() -> None:
    assert select({"subjects": []}, [DROP], []) == {"chosen": None, "order": [], "reason": "no artifact was measured"}


def test_int8_that_is_not_faster_is_not_a_gain() -> None:
    def subject(name: str, precision: str) -> dict[str, Any]:
        return {
            "name": name,
            "precision": precision,
            "runtime": "ort",
            "latency": [{"kind": "device", "p50_ms": 1.0}],
        }

    int8, fp32 = subject("onnx-int8@ort", "int8"), subject("onnx-fp32@ort", "fp32")
    pair = {"kind": "latency", "latency_kind": "device", "subject": "onnx-int8@ort", "against": "onnx-fp32@ort"}
    report = {"subjects": [int8, fp32], "comparisons": [pair | {"ratio": 1.01, "ratio_lower": 0.97}]}
    assert no_gain(report, int8) == ("onnx-fp32@ort", "not faster than onnx-fp32@ort (1.01x, 99 % sure of 0.97x)")
    assert no_gain(report, fp32) is None
    report["comparisons"] = [pair | {"ratio": 1.2, "ratio_lower": 1.1}]
    assert no_gain(report, int8) is None
    report["comparisons"] = []
    assert no_gain(report, int8) == ("onnx-fp32@ort", "not faster than onnx-fp32@ort (not compared side by side)")


def recipe(**distill: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "data": {"name": "digits"},
            "teacher": {"model": "cifar-resnet20"},
            "student": {"model": "mlperf-resnet8"},
            "distill": distill,
        }
    )


def judgement(**values: float) -> dict[str, Any]:
    return {"subjects": {name.replace("_", "-"): {"test": {"value": value}} for name, value in values.items()}}


def test_one_seed_is_judged_by_its_paired_samples() -> None:
    counts = {"both": 850, "only_subject": 60, "only_against": 20, "neither": 70, "n": 1000, "agree": 900}
    found = judgement(student=0.91, control=0.87)
    found["comparisons"] = [{"subject": "student", "against": "control", "split": "test", **counts}]
    result = distillation(recipe(), found)
    assert result["helped"] is True and result["gain_pt"] == pytest.approx(4.0)
    low, high = result["ci"]
    assert 0 < low < 4 < high
    assert result["sentence"].startswith("distillation helped: +4.00 pt against the control (+")


def test_several_seeds_are_judged_by_their_spread() -> None:
    found = judgement(student=0.91, control=0.90, distill_seed1=0.90, control_seed1=0.91)
    result = distillation(recipe(repeats=2), found)
    assert result["helped"] is None and result["gain_pt"] == pytest.approx(0.0)
    assert [row["seed"] for row in result["repeats"]] == [0, 1]
    assert "made no difference that can be told from chance" in result["sentence"]


def test_without_a_control_nothing_is_claimed() -> None:
    result = distillation(recipe(control=False), judgement(student=0.9))
    assert result["helped"] is None and result["gain_pt"] is None
    assert result["sentence"].startswith("no control was trained")


def test_t_interval_of_three_values() -> None:
    # mean 2, s.d. 1, n 3: 2 -+ 4.302653 / sqrt(3)
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
