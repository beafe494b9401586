"""What pipeline/SECURITY.md claims and the source can prove: its tests exist, nothing is unpickled or run as code."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# call -> the argument that it must have
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
NEVER = {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "yaml.load"}


@functools.cache
def calls() -> list[tuple[Path, ast.Call, str]]:
    paths = [
        path for package in ("pipeline", "exporters", "profiles") for path in sorted((ROOT / package).rglob("*.py"))
    ]
    return [
        (path.relative_to(ROOT), node, ast.unparse(node.func))
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "pipeline" / "SECURITY.md").read_text())
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_threat_names_a_test() -> None:
    defended = (ROOT / "pipeline" / "SECURITY.md").read_text().partition("## Defended")[2].partition("\n## ")[0]
    rows = [line for line in defended.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert [row for row in rows if "`tests/" not in row.split("|")[3]] == []


@pytest.mark.parametrize("function", sorted(SAFE))
def test_nothing_is_unpickled(function: str) -> None:
    key, value = SAFE[function]
    for path, call, name in calls():
        if name == function:
            given = [word.value for word in call.keywords if word.arg == key]
            assert [ast.literal_eval(each) for each in given] == [value], f"{path}:{call.lineno}"


def test_no_text_is_run_as_code_or_by_a_shell() -> None:
    found = [
        f"{path}:{call.lineno}: {name}"
        for path, call, name in calls()
        if name in NEVER or any(word.arg == "shell" for word in call.keywords)
    ]
    assert found == []
