"""Every shipped recipe runs in its smoke form; an unfit teacher stops a run unless told not to."""

from pathlib import Path

import pytest
from cli_runner import cli

from pipeline.recipe_file import shipped

SHORT = ("--set", "profile.min_seconds=0.02", "--set", 'profile.runtimes=["onnxruntime"]')
VERDICT_CODES = (0, 3, 4)

# Of the papers' recipes those that take a path of their own through the chain; the rest differ in networks and rates.
# Generations, pictures as answers, mixup without labels.
QUICK_PAPERS = ("paper003", "paper003-edges", "paper003-super-resolution", "paper004")
NAMES = sorted(set(shipped()) - {"digits"})  # digits has tests/test_chain_smoke.py
# cifar100 and fashion-mnist differ from cifar10 in their data alone, in whose place a smoke form puts digits.
SLOW = {name for name in NAMES if name.startswith("paper")} - set(QUICK_PAPERS) | {"cifar100", "fashion-mnist"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES])
def test_the_smoke_form_of_every_recipe_ends_with_a_verdict(name: str, tmp_path: Path) -> None:
    result = cli("run", name, "--smoke", "--out", tmp_path, *SHORT)
    assert result.code in VERDICT_CODES, result.err
    assert (tmp_path / f"{name}-smoke" / "report.html").is_file()


def test_an_unfit_teacher_is_refused_before_any_distillation(tmp_path: Path) -> None:
    result = cli("run", "cifar10", "--smoke", "--out", tmp_path, *SHORT, "--set", "teacher.check=refuse")
    assert result.code == 1
    assert result.err.rstrip().splitlines()[-1].startswith("error: teacher: ")
    assert not list((tmp_path / "cifar10-smoke").glob("distill-*"))
