"""The recipe: what is refused, with which words, and what overrides and smoke make of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jsonschema
import pytest

from pipeline.errors import RecipeError
from pipeline.losses import LOSSES
from pipeline.recipe import Distill, Recipe
from pipeline.recipe_file import load_recipe, merge, read_toml, schema, shipped
from pipeline.tasks import smoke_of

MINIMAL = """
name = "mine"
[data]
name = "digits"
[teacher]
model = "cifar-resnet20"
[student]
model = "cifar-resnet20?width=0.5"
"""


def known(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(path: str, *overrides: str, smoke: bool = False) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, smoke=smoke)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(path, "mine.toml")


def test_the_smallest_recipe_gets_the_stated_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert (recipe.name, recipe.seed, recipe.task) == ("mine", 0, "classification")
    assert [term.loss for term in recipe.distill.losses] == ["kd", "cross_entropy"]
    assert [term.weight for term in recipe.distill.losses] == [0.9, 0.1]
    assert recipe.distill.losses[0].options == {"temperature": 4.0}
    assert recipe.quantize is not None and recipe.quantize.forms == ("portable", "cpu")
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe  # as it stands in report.json


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_loads_also_in_smoke_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description and recipe.smoke
    small = load_recipe(name, smoke=True)
    there = smoke_of(recipe.task).get("data", {}).get("name", "digits")  # data that is there at once
    assert small.name == f"{name}-smoke" and small.data.name == there and small.distill.epochs <= 3
    header = shipped()[name].read_text(encoding="utf-8").split("\nname =")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"edgestill run {name}" in header or f"edgestill sweep {name}" in header


MISTAKES = {
    'name = "mine"\n[distill]\ntempreature = 4.0': (
        "mine.toml: [data] is missing; add that table\n"
        "mine.toml: [teacher] is missing; add that table\n"
        "mine.toml: [student] is missing; add that table\n"
        f"mine.toml: distill: unknown key 'tempreature'; known: {known(Distill.model_fields)}"
    ),
    MINIMAL + "[distill]\nepoch = 4": "mine.toml: distill: unknown key 'epoch'; did you mean 'epochs'?",
    MINIMAL + "[distil]\nepochs = 4": "mine.toml: unknown key 'distil'; did you mean 'distill'?",
    MINIMAL + "[distill]\nepochs = 'ten'": "mine.toml: distill.epochs: got 'ten'; expected a whole number",
    MINIMAL + "[distill]\nepochs = '10'": "mine.toml: distill.epochs: got '10'; expected a whole number",
    MINIMAL + "[distill]\nepochs = true": "mine.toml: distill.epochs: got true; expected a whole number",
    MINIMAL + "[distill]\nepochs = 0": "mine.toml: distill.epochs: got 0; it must be at least 1",
    MINIMAL + "[distill]\nlr = nan": "mine.toml: distill.lr: got nan; expected a finite number",
    MINIMAL + "[distill]\nlr = 0": "mine.toml: distill.lr: got 0; it must be above 0",
    MINIMAL + "[distill]\ncontrol = 1": "mine.toml: distill.control: got 1; expected true or false",
    MINIMAL + "[distill]\noptimizer = 'sdg'": "mine.toml: distill.optimizer: got 'sdg'; did you mean 'sgd'?",
    MINIMAL + "[distill]\nepochs = 3\nwarmup_epochs = 3": (
        "mine.toml: distill: warmup_epochs = 3 leaves nothing of epochs = 3"
    ),
    MINIMAL + "[distill]\nlosses = []": (
        "mine.toml: distill.losses: the weights of all terms are 0; give one term a positive weight"
    ),
    MINIMAL + "[distill]\nlosses = [{ loss = 'kb', weight = 1.0 }]": (
        f"mine.toml: distill.losses.0: unknown loss 'kb'; known: {known(LOSSES)}"
    ),
    MINIMAL + "[distill]\nlosses = [{ loss = 'kd', weight = 1.0, temprature = 2 }]": (
        "mine.toml: distill.losses.0: loss 'kd' has no option 'temprature'; did you mean 'temperature'?"
    ),
    MINIMAL + "[profile]\nruntimes = 3": (
        'mine.toml: profile.runtimes: got 3; expected "auto" or a list of runtimes, such as ["onnxruntime"]'
    ),
    MINIMAL + "[profile]\nruntimes = 'openvin'": (
        "mine.toml: profile.runtimes: unknown runtime 'openvin'; did you mean 'openvino'?"
    ),
    MINIMAL + "[profile]\ndevice = 'tpu'": ("mine.toml: profile.device: got 'tpu'; expected 'cpu', 'cuda' or 'cuda:1'"),
    MINIMAL + "[gate]\nmax = 1": "mine.toml: gate: got {'max': 1}; expected a list of tables, such as [[gate]]",
    MINIMAL + "[[gate]]\nmetric = 'accuracy_drop'\nagainst = 'teacher'\nmax = 1.0": (
        "mine.toml: gate.0: max = 1.0: accuracy_drop needs a unit, such as '1.0pt' or '1%rel'"
    ),
    MINIMAL + "[[gate]]\nmetric = 'size_bytes'\nmax = [1]": (
        'mine.toml: gate.0.max: got [1]; expected a number, or a number with its unit, such as "1.0pt"'
    ),
    MINIMAL.replace("digits", "digit"): "mine.toml: data.name: unknown data set 'digit'; did you mean 'digits'?",
    MINIMAL.replace('"digits"', '"arrays"'): (
        "mine.toml: data.root is missing: 'arrays' needs a .npz file with x_train, y_train, x_test and y_test"
    ),
    MINIMAL.replace('"mine"', '"a b"'): (
        "mine.toml: name: got 'a b'; use letters, digits, '.', '_' and '-', beginning with a letter or digit"
    ),
    MINIMAL.replace('name = "mine"', ""): "mine.toml: name is missing; add name = ...",
    "task = 'detection'" + MINIMAL: (
        "mine.toml: task: unknown task 'detection'; known: classification, edges, super-resolution"
    ),
    "quantize = 3" + MINIMAL: "mine.toml: quantize: got 3; expected a table, or false to leave int8 out",
    "teacher = 3\n" + MINIMAL.replace("[teacher]", "[x]"): (
        "mine.toml: teacher: got 3; expected a table, such as [teacher]\n"
        f"mine.toml: unknown key 'x'; known: {known(Recipe.model_fields)}"
    ),
    MINIMAL + "[smoke.distill]\nepoch = 1": (
        "mine.toml with [smoke]: distill: unknown key 'epoch'; did you mean 'epochs'?"
    ),
    MINIMAL + "[teacher]": "mine.toml: line 9, column 9: not TOML: cannot declare ('teacher',) twice",
    'name = "mine': "mine.toml: at its end: not TOML: unterminated string",
    "name mine": "mine.toml: line 1, column 6: not TOML: expected '=' after a key in a key/value pair",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line_with_place_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(write(tmp_path, text)) == message


def test_what_is_not_a_recipe_file_is_refused(tmp_path: Path) -> None:
    assert refusal("digist") == "no such recipe 'mine.toml'; did you mean 'digits'?"
    assert refusal("recipes/no.toml") == ("mine.toml: no such recipe file; write one with 'edgestill init mine.toml'")
    assert refusal(str(tmp_path)).startswith("mine.toml: a folder, not a recipe; give a .toml file or one of ")
    (tmp_path / "b.toml").write_bytes(b"name = '\xff'")
    assert refusal(str(tmp_path / "b.toml")) == "mine.toml: byte 8 is not UTF-8; save the file as UTF-8 text"


def test_overrides_are_typed_and_reach_tables_lists_and_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, MINIMAL),
        [
            "distill.epochs=3",
            "teacher.train.augment.flip=true",
            "export.0.opset=20",
            "distill.losses.0.weight=0.5",
            "data.root=some/where",
            "profile.runtimes=onnxruntime",
            "quantize=false",
            'gate=[{ metric = "size_bytes", max = 1000 }]',
            "gate.0.max=2_000",
            "description=a=b",
        ],
    )
    assert recipe.distill.epochs == 3 and recipe.teacher.train.augment.flip and recipe.export[0].opset == 20
    assert [term.weight for term in recipe.distill.losses] == [0.5, 0.1]
    assert recipe.data.root == "some/where" and recipe.profile.runtimes == ("onnxruntime",)
    assert recipe.quantize is None and recipe.gate[0].max == 2000 and recipe.description == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "--set epochs: expected key=value, such as distill.epochs=3"),
        ("distill..epochs=3", "--set distill..epochs=3: expected key=value, such as distill.epochs=3"),
        ("distill.epoch=3", "--set: distill: unknown key 'epoch'; did you mean 'epochs'?"),
        ("distill.epochs=ten", "--set: distill.epochs: got 'ten'; expected a whole number"),
        ("name.x=3", "--set name.x=3: name = 'mine' is a value, not a table; leave out 'x'"),
        ("export.1.opset=20", "--set export.1.opset=20: export has 1 entry, numbered from 0; got '1'"),
        ("teacher.mean=['a']", "--set: teacher.mean.0: got 'a'; expected a number"),
        ("teacher.std=[nan]", "--set: teacher.std.0: got nan; expected a finite number"),
        ("data.name=digit", "--set: data.name: unknown data set 'digit'; did you mean 'digits'?"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    assert refusal(write(tmp_path, MINIMAL), override) == message


def test_smoke_lays_the_recipes_own_table_over_the_common_one(tmp_path: Path) -> None:
    text = MINIMAL.replace('"digits"', '"cifar10"\nroot = "somewhere"\ndownload = true')
    text = text.replace('"cifar-resnet20"', '"cifar-resnet20"\nweights = "best.pt"')
    text += "[quantize]\nsamples = 512\n[smoke]\ndistill = { epochs = 2 }\n[[smoke.gate]]\nmetric = 'params'\nmax = 9"
    recipe = load_recipe(write(tmp_path, text), ["profile.blocks=5"], smoke=True)
    assert (recipe.data.name, recipe.data.root, recipe.data.download) == ("digits", "", False)
    assert recipe.teacher.weights == "" and recipe.teacher.train.epochs == 1 and recipe.distill.epochs == 2
    assert recipe.quantize is not None and recipe.quantize.samples == 32 and recipe.profile.blocks == 5
    assert [rule.metric for rule in recipe.gate] == ["params"]


def test_merge_replaces_lists_and_leaves_its_arguments() -> None:
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge(below, {"a": {"c": [9]}, "d": {"e": 1}}) == {"a": {"b": 1, "c": [9]}, "d": {"e": 1}}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_the_schema_accepts_what_loads(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(read_toml(shipped()[name]), schema(), cls=jsonschema.Draft202012Validator)


def test_the_schema_knows_names_and_refuses_typos() -> None:
    values = read_toml(shipped()["digits"])
    for bad in ({"distil": {}}, {"quantize": True}, {"data": {"name": "digit"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(merge(values, bad), schema(), cls=jsonschema.Draft202012Validator)
    jsonschema.validate(merge(values, {"quantize": False}), schema(), cls=jsonschema.Draft202012Validator)
    assert json.loads(json.dumps(schema()))["title"] == "edgestill recipe"


def test_loading_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.recipe_file import load_recipe, schema; load_recipe('digits'); schema();"
        "print([m for m in ('torch', 'torchvision', 'onnx', 'onnxruntime', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
