"""A sweep over a chain small enough to know by heart: what is shared, resumed, skipped, counted and written."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_report import sample_report

import pipeline
from pipeline import chain, environment
from pipeline.atomic import write_json
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.sweeps.run import reason_of, stage_keys
from pipeline.sweeps.table import KEYS, POINT_KEYS, summary

STUDENT = {0.1: (0.90, 0.91, 0.92), 0.05: (0.93, 0.92, 0.94)}  # accuracy by lr and seed
CONTROL = (0.89, 0.90, 0.92)
NO_GPU = {"peak_cuda_bytes": "no stage used a GPU through torch"}


class Small:
    """data -> teacher -> distill, control -> evaluate -> gate, each writing a line; who ran is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
        self.out = out
        self.ran: list[str] = []
        self.said: list[str] = []
        self.failing: Callable[[Recipe, str], None] = lambda recipe, stage: None
        monkeypatch.setattr(chain, "stages", self.stages)
        monkeypatch.setattr("os.fsync", lambda _: None)  # a busy disk would be most of the time

    def stages(self, recipe: Recipe, *, command: str = "") -> tuple[Stage, ...]:
        def stage(name: str, needs: tuple[str, ...], config: dict[str, Any], files: dict[str, Any]) -> Stage:
            def run(context: Context) -> None:
                self.ran.append(name)
                self.failing(recipe, name)
                for file, content in files.items():
                    write_json(context.folder / file, content)

            return Stage(name=name, version=1, needs=needs, config=config, run=run, volatile=("training.json",))

        lr, repeats = recipe.distill.lr, recipe.distill.repeats
        seeds = [{"seed": i, "student": STUDENT[lr][i], "control": CONTROL[i]} for i in range(repeats)]
        training = {"s_per_epoch": 10 * lr, "teacher_share": 0.25}
        report = sample_report() | {"distillation": {"repeats": seeds}, "command": command}
        pages = {"report.json": report, "report.md": command, "report.html": command}
        more = [
            stage(f"distill-seed{i}", ("data", "teacher"), {"lr": lr}, {"w": [lr, i], "training.json": training})
            for i in range(1, repeats)
        ]
        return (
            stage("data", (), {}, {"data.json": "digits"}),
            stage("teacher", ("data",), {"model": recipe.teacher.model}, {"w": recipe.teacher.model}),
            stage("distill", ("data", "teacher"), {"lr": lr}, {"w": lr, "training.json": training}),
            stage("control", ("data",), {}, {"w": "alone"}),
            *more,
            stage("evaluate", ("distill", "control"), {"repeats": repeats}, {"evaluate.json": seeds}),
            stage("gate", ("evaluate",), {}, pages),
        )

    def sweep(self, **options: Any) -> dict[str, Any]:
        self.ran, self.said = [], []
        chosen = {"grid": {"distill.lr": [0.1, 0.05]}, "repeats": 3} | options
        return pipeline.sweep("digits", out=self.out, say=self.said.append, **chosen)

    @property
    def folder(self) -> Path:
        return self.out / "digits" / "sweep"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Small:
    return Small(monkeypatch, tmp_path / "out")


def test_what_is_the_same_runs_once_and_is_counted_once(small: Small) -> None:
    found = small.sweep()
    ran = Counter(small.ran)
    assert {name: ran[name] for name in ("data", "teacher", "control", "distill", "distill-seed1", "gate")} == {
        **dict.fromkeys(("data", "teacher", "control"), 1),
        **dict.fromkeys(("distill", "distill-seed1", "gate"), 2),
    }
    first, second = found["points"]
    assert not any(stage["shared"] for stage in first["stages"].values())
    shared = {name for name, stage in second["stages"].items() if stage["shared"]}
    assert shared == {"data", "teacher", "control"}
    assert first["added_s"] == first["total_s"] == sum(stage["seconds"] for stage in first["stages"].values())
    saved = sum(second["stages"][name]["seconds"] for name in shared)
    assert second["total_s"] - second["added_s"] == pytest.approx(saved) == pytest.approx(found["saved_s"])


def test_accuracy_and_gain_over_seeds_are_those_of_the_textbook(small: Small) -> None:
    point = small.sweep()["points"][1]
    gains = [100 * (student - control) for student, control in zip(STUDENT[0.05], CONTROL, strict=True)]
    assert [seed["gain_pt"] for seed in point["seeds"]] == pytest.approx(gains)
    for key, values in (("accuracy", STUDENT[0.05]), ("control", CONTROL), ("gain_pt", gains)):
        mean = sum(values) / 3
        std = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
        half = 4.302652729749464 * std / math.sqrt(3)  # Student's t, two degrees of freedom, 0.975
        assert point[key]["mean"] == pytest.approx(mean) and point[key]["std"] == pytest.approx(std)
        assert point[key]["ci95"] == pytest.approx([mean - half, mean + half])
    assert point["s_per_epoch"] == pytest.approx(0.5) and point["teacher_share"] == 0.25
    assert point["missing"] == NO_GPU


def test_compression_is_the_teacher_over_the_student_and_its_artifact(small: Small) -> None:
    point = small.sweep()["points"][0]
    subjects = {row["name"]: row for row in sample_report()["subjects"]}
    teacher, student = subjects["teacher"], subjects["student"]
    artifact = subjects[sample_report()["selection"]["chosen"]]
    assert (point["artifact"], point["size_bytes"]) == (artifact["name"], artifact["size_bytes"])
    assert point["artifact_accuracy"] == artifact["accuracy"]["value"]
    assert point["compression"] == {
        "params": teacher["params"] / student["params"],
        "macs": teacher["macs"] / student["macs"],
        "bytes": teacher["size_bytes"] / artifact["size_bytes"],
    }


def test_peaks_of_memory_are_those_of_the_hungriest_stages(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: a machine on whose GPU nothing ran before the second stage."""
    found = iter([{"peak_rss_bytes": 9}, {"peak_rss_bytes": 3, "peak_cuda_bytes": 70}])  # of data and teacher
    monkeypatch.setattr(environment, "peaks", lambda: next(found, {"peak_rss_bytes": 4, "peak_cuda_bytes": 0}))
    point = small.sweep(repeats=1)["points"][0]
    assert (point["peak_memory_bytes"], point["peak_memory_stage"]) == (9, "data")
    assert (point["peak_cuda_bytes"], point["peak_cuda_stage"]) == (70, "teacher")
    assert point["stages"]["data"]["peak_cuda_bytes"] is None and "peak_cuda_bytes" not in point["missing"]
    assert "data; GPU 70 B, teacher" in (small.folder / "sweep.html").read_text()


def test_one_seed_has_no_deviation_and_says_why(small: Small) -> None:
    point = small.sweep(repeats=None)["points"][0]
    assert point["accuracy"] == {"mean": 0.90, "std": None, "ci95": None}
    why = "one seed; --repeats 3 tells how far seeds differ"
    assert point["missing"] == {"std": why, "ci95": why} | NO_GPU


def test_the_documents_have_the_documented_keys(small: Small) -> None:
    found = small.sweep()
    written = json.loads((small.folder / "sweep.json").read_text())
    assert {**written, "created": ""} == {**json.loads(json.dumps(found)), "created": ""}
    assert set(found) == set(KEYS)
    assert all(set(point) == set(POINT_KEYS) for point in found["points"])
    assert found["command"] == "edgestill sweep digits --grid distill.lr=0.1,0.05 --repeats 3"
    assert found["points"][1]["command"] == "edgestill run digits --set distill.repeats=3 --set distill.lr=0.05"
    assert found["environment"] and found["data"]


def test_every_point_keeps_its_own_report_and_nothing_is_released(small: Small) -> None:
    found = small.sweep()
    reports = [json.loads((small.folder / row["slug"] / "report.json").read_text()) for row in found["points"]]
    assert [report["command"] for report in reports] == [row["command"] for row in found["points"]]
    assert [report["distillation"]["repeats"][0]["student"] for report in reports] == [0.90, 0.93]
    assert {path.name for path in (small.out / "digits").iterdir() if not path.name[-12:].isalnum()} <= {".lock"}
    assert not (small.out / "digits" / "release").exists()


def test_a_second_call_and_a_single_run_find_everything_fresh(small: Small) -> None:
    first = small.sweep()
    again = small.sweep()
    assert small.ran == [] and again["points"] == first["points"]
    assert not [line for line in small.said if "delete" in line], "folders of other points are no leftovers"
    more = small.sweep(grid={"distill.lr": [0.1, 0.05]}, repeats=3, only=["lr=0.05"])
    assert small.ran == [] and [row["name"] for row in more["points"]] == ["lr=0.05"]


def test_a_point_that_fails_says_why_and_the_others_go_on(small: Small) -> None:
    def failing(recipe: Recipe, stage: str) -> None:
        if stage == "distill" and recipe.distill.lr == 0.1:
            raise UserError("distill: the loss is nan at epoch 2")

    small.failing = failing
    first, second = small.sweep()["points"]
    assert (first["status"], first["why"]) == ("failed", "distill: the loss is nan at epoch 2")
    assert second["status"] == "done" and first["accuracy"] is None
    assert "[1/2 lr=0.1] failed: distill: the loss is nan at epoch 2" in small.said
    small.failing = lambda recipe, stage: None
    assert [row["status"] for row in small.sweep()["points"]] == ["done", "done"]
    assert small.ran.count("distill") == 1, "only the failed one ran again"


def test_a_stage_that_failed_is_not_tried_again_for_points_that_share_it(small: Small) -> None:
    def failing(recipe: Recipe, stage: str) -> None:
        if stage == "teacher":
            raise RuntimeError("no memory\nat all")

    small.failing = failing
    first, second = small.sweep()["points"]
    assert small.ran == ["data", "teacher"]
    why = "RuntimeError: no memory ('edgestill run' with --debug shows the traceback)"
    assert first["why"] == why
    assert second["why"] == f"as lr=0.1, whose teacher is the same: {why}"


def test_an_interrupted_sweep_keeps_its_table_and_goes_on(small: Small) -> None:
    def failing(recipe: Recipe, stage: str) -> None:
        if stage == "distill-seed1" and recipe.distill.lr == 0.05:
            raise KeyboardInterrupt

    small.failing = failing
    with pytest.raises(KeyboardInterrupt):
        small.sweep()
    written = json.loads((small.folder / "sweep.json").read_text())
    assert [row["status"] for row in written["points"]] == ["done", "pending"]
    small.failing = lambda recipe, stage: None
    small.sweep()
    assert small.ran == ["distill-seed1", "distill-seed2", "evaluate", "gate"]


def test_what_failed_on_ray_is_not_trained_again_here(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_all(jobs: Any, store: Any, say: Any) -> dict[str, tuple[str, str]]:
        return {stage_keys(jobs[1].stages)["distill"]: ("lr=0.05", "distill: its worker ended")}

    monkeypatch.setattr("pipeline.sweeps.on_ray.train_all", train_all)
    found = small.sweep(engine="ray")
    assert [(row["status"], row["why"]) for row in found["points"]] == [
        ("done", None),
        ("failed", "distill: its worker ended"),
    ]
    assert found["engine"] == "ray" and found["command"].endswith(" --engine ray --repeats 3")
    assert small.ran.count("distill") == 1


def test_bad_input_touches_no_store(small: Small) -> None:
    with pytest.raises(UserError, match="did you mean 'lr'"):
        small.sweep(grid=["distill.lrs=0.1"])
    assert not small.out.exists() and small.ran == []


def test_a_package_that_is_missing_ends_the_sweep(small: Small) -> None:
    def failing(recipe: Recipe, stage: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    small.failing = failing
    with pytest.raises(ModuleNotFoundError):
        small.sweep()


def test_keys_are_equal_where_stages_are(small: Small) -> None:
    from pipeline.sweeps.points import plan

    a, b = (stage_keys(chain.stages(p.recipe)) for p in plan("digits", grid=["distill.lr=0.1,0.05"]).points)
    assert {name for name in a if a[name] == b[name]} == {"data", "teacher", "control"}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a: one\nb: two"), "a: one; b: two"),
        (FileNotFoundError(2, "No such file", "x.npz"), "x.npz: No such file"),
        (ValueError(), "ValueError: no message ('edgestill run' with --debug shows the traceback)"),
    ],
)
def test_reasons_are_one_line(error: Exception, line: str) -> None:
    assert reason_of(error) == line


def test_equal_seeds_have_an_interval_of_no_width() -> None:
    assert summary([0.5, 0.5]) == {"mean": 0.5, "std": 0.0, "ci95": [0.5, 0.5]}
