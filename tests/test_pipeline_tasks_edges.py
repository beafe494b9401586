"""Edges as a task: Dice, ODS and OIS on closed cases, their comparisons, and what people see."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tasks import TASKS, task_of
from pipeline.tasks.boundary_match import LEVELS
from pipeline.tasks.edges import Edges, best_level, dice, f_measure, f_of, pseudo_values, sigmoid

SHAPE = (32, 48)


def target(*columns: int, people: int = 1, width: int = 1) -> np.ndarray:
    """uint8 (32, 48, 1 + people): vertical lines; every person drew all of them."""
    drawn = np.zeros((*SHAPE, 1 + people), np.uint8)
    drawn[:, list(columns), 1:] = 255
    for column in columns:
        drawn[:, column - width // 2 : column + width // 2 + 1, 0] = 255
    return drawn


def logits(*columns: int, high: float = 4.0, low: float = -4.0) -> np.ndarray:
    found = np.full((*SHAPE, 1), low, np.float32)
    found[:, list(columns)] = high
    return found


def test_the_table_has_it_and_it_says_what_the_chain_asks():
    assert task_of("edges") is Edges and "edges" in TASKS
    assert (Edges.metric, Edges.unit, Edges.show, Edges.answers) == ("dice", "pt", "fraction", "pictures")


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        ((10,), (10,), 1.0),
        ((10, 20), (10,), 2 / 3),
        ((10,), (10, 20), 2 / 3),
        ((12,), (10,), 0.0),
        ((), (), 1.0),
        ((), (10,), 0.0),
    ],
)
def test_dice_of_lines(found: tuple[int, ...], truth: tuple[int, ...], expected: float):
    assert dice(logits(*found), target(*truth)) == pytest.approx(expected)


def test_dice_cuts_at_one_half_and_gives_nothing_for_what_is_not_finite():
    assert dice(logits(10, high=1e-3), target(10)) == 1.0
    assert dice(logits(10, high=0.0), target(10)) == 0.0  # exactly one half is no edge
    broken = logits(10)
    broken[0, 0] = np.nan
    assert dice(broken, target(10)) == 0.0


def test_a_perfect_answer_has_every_figure_at_one():
    outcomes = Edges.outcomes([logits(10, 30), logits(20)], [target(10, 30, people=3), target(20)])
    found = Edges.summary(outcomes)
    assert found["metric"] == "dice" and found["n"] == 2
    assert found["value"] == 1.0 and found["ods"] == pytest.approx(1.0) and found["ois"] == pytest.approx(1.0)


def test_ods_has_one_threshold_for_all_and_ois_one_for_each():
    sure = np.maximum(logits(10, high=4), logits(30, high=2))  # wrong below 0.88
    shy = logits(20, high=0.4)  # right up to 0.6
    outcomes = Edges.outcomes([sure, shy], [target(10), target(20)])
    found = Edges.summary(outcomes)
    assert found["ois"] == pytest.approx(1.0)
    assert found["ods"] == pytest.approx(4 / 5)  # below 0.6: 64 of 96 found are right, all drawn are found
    assert found["ods_threshold"] <= 0.6
    assert found["ods_threshold"] == LEVELS[best_level(outcomes)]


def test_a_broken_answer_is_the_worst_there_is():
    broken = np.full((*SHAPE, 1), np.inf, np.float32)
    outcomes = Edges.outcomes([broken, broken], [target(10), target(20)])
    assert outcomes["dice"].tolist() == [0.0, 0.0] and Edges.summary(outcomes)["ods"] == 0.0


def test_outcomes_of_parts_join_to_those_of_the_whole():
    outputs, targets = [logits(10), logits(12), logits(20, 25)], [target(10, people=2), target(10), target(20)]
    whole = Edges.outcomes(outputs, targets)
    parts = [Edges.outcomes([output], [drawn]) for output, drawn in zip(outputs, targets, strict=True)]
    for key, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), values)
    np.testing.assert_array_equal(Edges.scores(outputs, targets), whole["dice"])


def test_a_target_without_annotators_is_thinned_for_the_benchmark():
    wide = target(20, width=3)[..., :1]
    outcomes = Edges.outcomes([logits(20)], [wide])
    assert outcomes["drawn"][0] == pytest.approx(SHAPE[0], abs=2)
    assert f_measure(outcomes, best_level(outcomes)) > 0.95


def noisy(seed: int, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(seed)
    outputs, targets = [], []
    for index in range(count):
        columns = random.choice(np.arange(4, 44, 4), size=3, replace=False)
        targets.append(target(*columns[:2], people=2))
        outputs.append(logits(*columns[: 1 + index % 3], high=float(random.uniform(0.2, 4))))
    return outputs, targets


def test_comparisons_have_dice_first_and_the_difference_of_ods():
    outputs, targets = noisy(0, 12)
    fewer = [np.where(np.arange(SHAPE[1])[:, None] < 20, output, np.float32(-4)) for output in outputs]
    better, worse = Edges.outcomes(outputs, targets), Edges.outcomes(fewer, targets)
    rows = Edges.comparisons(worse, better)
    assert [row["metric"] for row in rows] == ["dice", "ods"] and {row["unit"] for row in rows} == {"pt"}
    assert rows[0]["mean"] == pytest.approx(100 * (worse["dice"] - better["dice"]).mean())
    gap = f_measure(worse, best_level(worse)) - f_measure(better, best_level(better))
    assert rows[1]["mean"] == pytest.approx(100 * gap) and rows[1]["n"] == 12 and rows[1]["sd"] > 0
    same = Edges.comparisons(better, better)
    assert all(row["mean"] == 0 and row["sd"] == 0 for row in same)


def test_a_gate_on_the_f_measure_is_one_on_ods():
    from pipeline.gates.dense import measures

    assert measures("f_measure_drop", "ods") and measures("dice_drop", "dice")
    outcomes = Edges.outcomes(*noisy(3, 12))
    found = Edges.summary(outcomes)
    assert found["moments"]["ods"]["mean"] == pytest.approx(found["ods"]) and found["moments"]["ods"]["n"] == 12


def test_pseudo_values_have_the_mean_and_the_error_of_ods():
    outcomes = Edges.outcomes(*noisy(1, 60))
    pseudo = pseudo_values(outcomes)
    assert pseudo.mean() == pytest.approx(f_measure(outcomes, best_level(outcomes)))
    error = pseudo.std(ddof=1) / np.sqrt(len(pseudo))
    random = np.random.default_rng(2)
    level = best_level(outcomes)
    drawn = []
    for _ in range(400):
        picks = random.integers(0, 60, 60)
        drawn.append(f_measure({key: values[picks] for key, values in outcomes.items()}, level))
    assert error == pytest.approx(np.std(drawn), rel=0.15)  # as the bootstrap says
    one = {key: values[:1] for key, values in outcomes.items()}
    assert pseudo_values(one).tolist() == [f_measure(one, best_level(one))]


def test_the_f_measure_of_counts():
    assert f_of(0, 0, 0, 0) == 1 and f_of(0, 10, 0, 0) == 0 and f_of(0, 0, 0, 10) == 0
    assert f_of(8, 10, 12, 20) == pytest.approx(2 * 0.8 * 0.6 / 1.4)


def test_sigmoid_never_overflows_and_keeps_order():
    values = np.array([-200, -1, 0, 1, 200], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = sigmoid(values)
    assert found.dtype == np.float32 and found[2] == 0.5 and found[0] >= 0 and found[4] == 1
    assert np.all(np.diff(found) > 0) and found[1] + found[3] == pytest.approx(1)
    assert np.isnan(sigmoid(np.array([np.nan, np.inf, -np.inf]))).all()


def test_people_see_the_probability():
    shown = Edges.postprocess(logits(10))
    assert shown.dtype == np.uint8 and shown.shape == (*SHAPE, 1) and (shown[0, 10, 0], shown[0, 0, 0]) == (250, 5)
    assert Edges.target_picture(target(10, people=4)).shape == (*SHAPE, 1)


def test_the_baseline_draws_the_gradient():
    image = np.zeros((*SHAPE, 3), np.uint8)
    image[:, 24:] = 200
    answer = Edges.baseline(image, (*SHAPE, 1))
    assert answer.shape == (*SHAPE, 1) and answer.dtype == np.float32
    assert dice(answer, target(24, width=3)) > 0.7
    flat = Edges.baseline(np.full((*SHAPE, 3), 7, np.uint8), (*SHAPE, 1))
    assert np.isfinite(flat).all() and dice(flat, target(24)) == 0
