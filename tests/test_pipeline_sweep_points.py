"""Grids on the command line and in recipes: how they are cut, named, combined and refused."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.recipe_file import load_recipe, read_toml, shipped
from pipeline.sweeps.grid import given_grid, labels, leaves, read_value, short_keys, split_values, toml_text
from pipeline.sweeps.points import Plan, plan
from pipeline.sweeps.run import counted, job_of, stage_keys

KD = '[{loss="kd",weight=0.9,temperature=4.0},{loss="cross_entropy",weight=0.1}]'
ALONE = '[{loss="cross_entropy",weight=1.0}]'


def names(found: Plan) -> list[str]:
    return [point.name for point in found.points]


@pytest.mark.parametrize(
    ("written", "pieces"),
    [
        ("1,2,3", ["1", "2", "3"]),
        (" a , b ", ["a", "b"]),
        (f"{KD},{ALONE}", [KD, ALONE]),
        ("[1,[2,3]],[4]", ["[1,[2,3]]", "[4]"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("'a,b',c", ["'a,b'", "c"]),
        (r'"a\",b",c', [r'"a\",b"', "c"]),
        ("{a=1,b=2},{}", ["{a=1,b=2}", "{}"]),
        ("cifar-resnet20?width=0.5,it's", ["cifar-resnet20?width=0.5", "it's"]),
        ('["]"],[1]', ['["]"]', "[1]"]),
        ("", [""]),
    ],
)
def test_values_are_cut_at_outer_commas_only(written: str, pieces: list[str]) -> None:
    assert split_values(written, "--grid x") == pieces


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x7f"), max_size=8)
PLAIN = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), TEXT)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT.filter(bool), inner, max_size=3)
)


@settings(deadline=None)
@given(VALUES)
def test_a_value_written_as_text_reads_as_itself(value: Any) -> None:
    assert read_value(toml_text(value)) == value


@settings(deadline=None)
@given(st.lists(VALUES.filter(lambda value: value != ""), min_size=1, max_size=4))
def test_values_joined_by_commas_are_cut_where_they_were_joined(values: list[Any]) -> None:
    texts = [toml_text(value) for value in values]
    assert split_values(",".join(texts), "--grid x") == texts


def test_nested_tables_and_dotted_keys_are_the_same() -> None:
    values = {"distill.lr": 0.1, "teacher": {"train": {"epochs": 3}}, "gate": [{"metric": "accuracy", "min": 0.5}]}
    assert dict(leaves(values)) == {
        "distill.lr": "0.1",
        "teacher.train.epochs": "3",
        "gate": '[{ metric = "accuracy", min = 0.5 }]',
    }


def test_short_names() -> None:
    assert short_keys(["distill.lr", "teacher.train.lr", "seed"]) == {
        "distill.lr": "distill.lr",
        "teacher.train.lr": "train.lr",
        "seed": "seed",
    }
    assert short_keys(["teacher.model", "student.model"]) == {
        "teacher.model": "teacher.model",
        "student.model": "student.model",
    }
    assert labels([KD, ALONE, "0.1", '"a"', '""']) == ["kd+cross_entropy", "cross_entropy", "0.1", "a", '""']
    assert labels([KD, KD.replace("4.0", "2.0")]) == ["kd+cross_entropy#1", "kd+cross_entropy#2"]
    (long,) = labels([f"[{', '.join(string.ascii_letters)}]"])
    assert len(long) == 40 and long.endswith("...")


def test_the_points_are_the_product_and_each_is_the_recipe_that_set_would_make() -> None:
    grid = ["distill.epochs=3,5", "teacher.model=cifar-resnet20,cifar-resnet32"]
    found = plan("digits", grid=grid, overrides=["seed=7"], repeats=3)
    assert names(found) == [
        f"epochs={epochs} model={model}" for epochs in (3, 5) for model in ("cifar-resnet20", "cifar-resnet32")
    ]
    last = found.points[-1]
    assert last.slug == "epochs=5__model=cifar-resnet32"
    assert last.values == {"distill.epochs": 5, "teacher.model": "cifar-resnet32"}
    assert found.fixed == ("seed=7", "distill.repeats=3")
    assert last.recipe == load_recipe("digits", [*found.fixed, *last.changes])


def test_a_mapping_and_a_loaded_recipe_give_the_same_points_as_texts_and_a_name() -> None:
    by_text = plan("digits", grid=["distill.lr=0.1,0.05"], smoke=True)
    by_value = plan(load_recipe("digits", smoke=True), grid={"distill.lr": [0.1, 0.05]})
    assert [point.recipe for point in by_text.points] == [point.recipe for point in by_value.points]
    assert names(by_text) == names(by_value) == ["lr=0.1", "lr=0.05"]


def test_losses_are_a_value_of_the_grid() -> None:
    found = plan("digits", grid=[f"distill.losses={KD},{ALONE}"])
    assert names(found) == ["losses=kd+cross_entropy", "losses=cross_entropy"]
    assert [term.loss for term in found.points[1].recipe.distill.losses] == ["cross_entropy"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """digits with a [sweep]: two named runs by two sizes of the student, three seeds."""
    path = tmp_path / "table.toml"
    path.write_text(
        shipped()["digits"].read_text(encoding="utf-8")
        + """
[sweep]
repeats = 3
grid = { "student.model" = ["mlperf-resnet8", "cifar-resnet20?width=0.5"] }
[[sweep.runs]]
name = "plain"
[[sweep.runs]]
name = "hot"
set = { distill.losses = [{ loss = "kd", weight = 1.0, temperature = 10.0 }] }
"""
    )
    return path


def test_a_recipe_names_runs_a_grid_and_repeats(table: Path) -> None:
    found = plan(table)
    assert names(found) == [
        f"{run} model={model}" for run in ("plain", "hot") for model in ("mlperf-resnet8", "cifar-resnet20?width=0.5")
    ]
    assert found.points[3].slug == "hot__model=cifar-resnet20-width=0.5"
    assert {point.recipe.distill.repeats for point in found.points} == {3}
    assert found.points[2].recipe.distill.losses[0].options == {"temperature": 10.0}
    assert load_recipe(table).distill.repeats == 1, "`run` takes no notice of [sweep]"


def test_what_the_command_line_says_takes_the_place_of_the_recipe_s_sweep(table: Path) -> None:
    assert names(plan(table, grid=["distill.lr=0.1,0.2"])) == ["lr=0.1", "lr=0.2"]
    repeats = [
        plan(table, repeats=2),
        plan(table, overrides=["distill.repeats=4"]),
        plan(table, overrides=["sweep.repeats=5"]),
        plan(table, smoke=True),
    ]
    assert [found.points[0].recipe.distill.repeats for found in repeats] == [2, 4, 5, 1]


def test_only_keeps_points_by_run_by_name_and_by_slug(table: Path) -> None:
    assert names(plan(table, only=["hot"])) == names(plan(table))[2:]
    assert names(plan(table, only=["plain model=mlperf-resnet8"])) == ["plain model=mlperf-resnet8"]
    assert names(plan(table, only=["hot__model=mlperf-resnet8"])) == ["hot model=mlperf-resnet8"]
    with pytest.raises(RecipeError, match=r"^--only hott: no such point; did you mean 'hot'"):
        plan(table, only=["hott"])


def test_slugs_are_unique_and_short_enough_for_a_folder() -> None:
    found = plan("digits", grid={"description": ["a b", "a  b", "a/b", "x" * 200]})
    slugs = [point.slug for point in found.points]
    assert len({slug.lower() for slug in slugs}) == 4
    assert all(len(slug) < 100 and "/" not in slug for slug in slugs)


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        (["distill.epoch=1,2"], "sweep point 'epoch=1': distill: unknown key 'epoch'; did you mean 'epochs'?"),
        (["distil.epochs=1"], "sweep point 'epochs=1': unknown key 'distil'; did you mean 'distill'?"),
        (["distill.epochs"], "--grid distill.epochs: expected key=a,b,c, such as distill.epochs=10,20"),
        (["distill..epochs=1"], "--grid distill..epochs=1: expected key=a,b,c, such as distill.epochs=10,20"),
        (["distill.epochs="], "--grid distill.epochs: no value; write its values, such as a,b,c"),
        (["distill.epochs=1,,2"], '--grid distill.epochs: value 2 of 3 is empty; write "" for an empty text'),
        (["distill.epochs=1,2,1"], "--grid distill.epochs: 1 stands in it twice; leave one out"),
        (
            ["seed=1", "seed=2"],
            "--grid seed: given twice; write all of its values into one --grid seed=a,b,c",
        ),
        (["distill.epochs=3,few"], "sweep point 'epochs=few': distill.epochs: got 'few'; expected a whole number"),
        (
            ["distill.losses=[{loss='kd'"],
            "--grid distill.losses: { is not closed; quote the whole option for your shell",
        ),
        (["name=a,b"], "--grid name: cannot be varied; all runs of a sweep share one name and one store"),
        (
            ["distill.losses.5.weight=1"],
            "sweep point 'weight=1': distill.losses.5.weight=1: distill.losses has 2 entries, numbered from 0; got '5'",
        ),
        (
            [f"seed={','.join(map(str, range(101)))}", f"distill.epochs={','.join(map(str, range(1, 101)))}"],
            "--grid: 10,100 points; at most 10,000 are run, so leave out a key or values",
        ),
        (["student.weights=none.pt"], "student.weights: no such file 'none.pt'"),
        ([], "digits.toml: nothing to vary; give --grid key=a,b,c or --repeats N, or write a [sweep] table"),
    ],
)
def test_a_bad_grid_is_one_line_before_anything_runs(grid: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as error:
        plan("digits", grid=grid)
    assert error.value.exit_code == 2
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"repeats": 0}, "--repeats 0: it must be at least 1"),
        (
            {"repeats": 2, "grid": ["distill.repeats=1,2"]},
            "--repeats and --grid distill.repeats say the same; keep one",
        ),
        (
            {"repeats": 2, "overrides": ["distill.repeats=3"]},
            "--repeats and --set distill.repeats say the same; keep one",
        ),
        (
            {"grid": ["distill.lr=0.1,0.2"], "overrides": ["distill.lr=0.3"]},
            "--grid distill.lr: given by --set too; keep one",
        ),
    ],
)
def test_two_options_that_say_the_same_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError) as error:
        plan("digits", **options)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ('grid = { "distill.lr" = 0.1 }', "sweep.grid: distill.lr = 0.1; write a list of values, such as [0.1]"),
        ('grid = { "distill.lr" = [] }', "sweep.grid: distill.lr: no value; write its values, such as a,b,c"),
        ("repeat = 3", "sweep: unknown key 'repeat'; did you mean 'repeats'?"),
        (
            'runs = [{ name = "a" }, { name = "a" }]',
            "sweep.runs: two runs are named 'a'; give each a name of its own",
        ),
    ],
)
def test_a_bad_sweep_table_is_one_line(tmp_path: Path, section: str, line: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(shipped()["digits"].read_text(encoding="utf-8") + f"\n[sweep]\n{section}\n")
    with pytest.raises(RecipeError) as error:
        plan(path)
    assert str(error.value) == f"{path}: {line}"


def test_a_named_run_and_the_grid_may_not_set_the_same_key(table: Path) -> None:
    table.write_text(table.read_text().replace("distill.losses = [", "student.model = 'mlperf-resnet8', distill.x = ["))
    with pytest.raises(RecipeError, match=r"^sweep\.runs: hot: student\.model: in the grid too; keep one$"):
        plan(table)


@pytest.mark.parametrize("name", [name for name, path in shipped().items() if read_toml(path).get("sweep")])
@pytest.mark.parametrize("smoke", [False, True])
def test_the_sweep_of_every_shipped_recipe_holds_valid_points(name: str, smoke: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr("pipeline.sweeps.points.check_files", lambda recipe: None)  # weights are the user's
    assert plan(name, smoke=smoke).points


def test_an_empty_text_is_a_value() -> None:
    assert given_grid(['student.weights="",a.pt']) == {"student.weights": ['""', "a.pt"]}


@pytest.mark.parametrize(
    ("grid", "readers"),
    [
        ("distill.losses.0.temperature=2,4,8", [{"table": 6}] * 3),  # three points of two seeds read one table
        ("teacher.train.lr=0.1,0.05", [{"table": 2}] * 2),  # a teacher, so a table, each
        ("distill.epochs=8,9", [{"table": 2}] * 2),  # replay tables of other epochs
        ("profile.batch=1,8", [{"table": 2}] * 2),  # the same students
        ("distill.teacher_outputs=live", [{}]),
    ],
)
def test_readers_of_a_table_are_counted_over_the_points_that_share_it(grid: str, readers: list[Any]) -> None:
    found = plan("digits", grid=[grid], repeats=2, overrides=["distill.augment={seed=1,cutout=2}"])
    plain = [job_of(point, found, ["digits"]) for point in found.points]
    jobs = counted(plain)
    assert [job.readers for job in jobs] == readers
    assert [stage_keys(job.stages) for job in jobs] == [stage_keys(job.stages) for job in plain], "no stage goes stale"
