"""README and the code may not drift apart: commands, metrics, recipes and exit codes stand in it and exist."""

import re
import sys
from pathlib import Path

import pytest
from cli_runner import cli

from pipeline import errors
from pipeline.cli.main import COMMANDS
from pipeline.gates.rules import METRICS
from pipeline.losses import ROWS
from pipeline.recipe import Distill
from pipeline.recipe_file import load_recipe, shipped
from pipeline.tasks import smoke_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_has_help(name: str) -> None:
    assert f"`edgestill {name}" in TEXT
    result = cli(name, "--help")
    assert result.code == 0 and result.out.startswith("Usage: edgestill " + name)


def test_the_readme_names_no_command_that_is_not_there() -> None:
    assert {match[1] for match in re.finditer(r"`edgestill ([a-z]+)", TEXT)} <= set(COMMANDS)


def test_every_metric_and_shipped_recipe_is_in_the_readme() -> None:
    for name in [*METRICS, *shipped()]:
        assert f"`{name}`" in TEXT


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_loads_in_both_forms(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert load_recipe(name, smoke=True).data.name == smoke_of(recipe.task)["data"]["name"]


def test_the_exit_codes_are_those_of_the_code() -> None:
    codes = {int(match[1]) for match in re.finditer(r"^\| (\d+) \| ", TEXT, flags=re.MULTILINE)}
    assert codes == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_both_set_up_commands_stand_between_their_markers() -> None:
    for marker in ("main", "test"):
        block = re.search(rf"<!-- {marker} command -->\n```\n(.*?)```\n<!-- end -->", TEXT, flags=re.DOTALL)
        assert block is not None
        assert block[1].startswith("python3 -m venv .venv\n.venv/bin/pip install")


def test_the_distillation_that_it_shows_is_a_valid_one() -> None:
    (block,) = re.findall(r"```toml\n(\[distill\].*?)```", TEXT, flags=re.DOTALL)
    losses = Distill.model_validate(tomllib.loads(block)["distill"]).losses
    assert [term.loss for term in losses] == ["dkd", "hint", "cross_entropy"]
    for name in ROWS:
        assert f"`{name}`" in TEXT or name == "cross_entropy"
