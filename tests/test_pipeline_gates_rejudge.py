"""The verdict again from recorded outcomes, of tasks whose answers are pictures; what is not as recorded is said."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_report import sample_report

from pipeline.data.bsds500 import target_of
from pipeline.data.drawn import picture
from pipeline.gates.judge import judge
from pipeline.gates.rejudge import rejudge
from pipeline.gates.rules import rule_of
from pipeline.gates.selection import select
from pipeline.stages.evaluate import write_outcomes
from pipeline.tasks import task_of
from pipeline.thinning import outlines

SIZES = {"validation": 10, "test": 12}
NOISE = {"teacher": 0.5, "student": 1.0, "onnx-int8@openvino": 1.2}
RULES: dict[str, list[dict[str, Any]]] = {
    "super-resolution": [
        {"metric": "psnr_drop", "against": "teacher", "max": "30dB"},
        {"metric": "ssim", "min": "1pt"},
    ],
    "edges": [{"metric": metric, "against": "teacher", "max": "99pt"} for metric in ("dice_drop", "f_measure_drop")],
}
NAMED = {
    "super-resolution": "onnx-int8@openvino: accuracy: value: recorded ",
    "edges": "onnx-int8@openvino: accuracy: ods: recorded ",
}


def answer(task: str, index: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """What a network with that much noise gives for a drawn picture, and the target."""
    image, regions = picture(index, 28, 32)
    grain = np.random.default_rng(index).normal(0, noise, (*image.shape[:2], 1)).astype(np.float32)
    if task == "super-resolution":
        return image / np.float32(255) + grain / 20, image
    lines = outlines(regions)
    target = target_of((255 * lines).astype(np.uint8), lines[None], consensus=0.0, width=1)
    return 2 * lines[..., None].astype(np.float32) - 1 + grain, target


def run_of(task: str, folder: Path) -> dict[str, Any]:
    """A report of three subjects and their outcome files in `folder`, as the stages make both."""
    judged = task_of(task)
    report = sample_report() | {"gates": [], "verdict": "undecided", "comparisons": []}
    report["recipe"] |= {"task": task, "gate": RULES[task]}
    report["subjects"] = [row | {"latency": row["latency"][:1]} for row in report["subjects"] if row["name"] in NOISE]
    outcomes: dict[str, dict[str, Any]] = {split: {} for split in SIZES}
    for row in report["subjects"]:
        name = row["name"]
        for start, (split, n) in enumerate(SIZES.items()):
            pairs = [answer(task, 100 * start + index, NOISE[name]) for index in range(n)]
            outcomes[split][name] = judged.outcomes(*zip(*pairs, strict=True))
        file = write_outcomes(folder, name, outcomes)
        sha256 = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        row["stored"] = {"outcomes": {"path": file, "sha256": sha256}}
        validation = judged.summary(outcomes["validation"][name])["value"]
        row["accuracy"] = judged.summary(outcomes["test"][name]) | {"validation": validation}
    rows = {
        split: [
            {"kind": row["kind"], "subject": name, "against": "teacher", "split": split, **row}
            for name in NOISE
            if name != "teacher"
            for row in judged.comparisons(found[name], found["teacher"])
        ]
        for split, found in outcomes.items()
    }
    report["comparisons"] = rows["test"]
    report["selection"] = select(report, [rule_of(rule) for rule in RULES[task]], rows["validation"])
    return report | judge(report).recorded()


def again(report: dict[str, Any], folder: Path) -> Any:
    return rejudge(report, lambda name, sha256: (folder / name).read_bytes())


@pytest.mark.parametrize("task", list(RULES))
def test_pictures_are_judged_again_and_what_differs_is_named(task: str, tmp_path: Path) -> None:
    report = run_of(task, tmp_path)
    found = again(report, tmp_path)
    assert found.differences == () and found.verdict == report["verdict"] == "released"
    assert found.samples == 3 and [gate["n"] for gate in found.gates] == [SIZES["test"]] * 2
    other = copy.deepcopy(report)
    row = next(row for row in other["subjects"] if row["name"] == "onnx-int8@openvino")
    row["accuracy"]["ods" if task == "edges" else "value"] += 0.01
    assert [line for line in again(other, tmp_path).differences if line.startswith(NAMED[task])]
    row["stored"]["outcomes"]["path"] = "outcomes-student.npz"
    lines = again(other, tmp_path).differences
    assert any(line.startswith("onnx-int8@openvino against teacher: mean: recorded ") for line in lines)
    strict = {"super-resolution": "-50dB", "edges": "-50pt"}[task]  # it would have to gain so much
    other["recipe"]["gate"] = [RULES[task][0] | {"max": strict}]
    assert again(other, tmp_path).verdict == "refused"
