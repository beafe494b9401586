"""The shape of the house: one import direction, nothing heavy to answer a question, short files, no dangling names."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from pipeline.gates.rules import METRICS
from pipeline.registry import load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "exporters", "profiles")
MOST_LINES = 320
HEAVY = frozenset(
    {
        *("torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "bitsandbytes"),
        *("sklearn", "scipy", "PIL", "onnxscript", "onnxconverter_common", "safetensors"),
    }
)

# cli -> chain -> stages -> {training, gates, reports, ...} -> {recipe, stage, store, ...}; a module may import its
# own rank.
CLI, CHAIN, STAGES, WORK, GROUND = 4, 3, 2, 1, 0
RECIPE = ("pipeline.recipe", "pipeline.recipe_training")
GROUND_MODULES = {
    f"pipeline.{name}"
    for name in ("atomic", "environment", "errors", "lock", "manifest", "memory", "registry", "stage", "store")
} | set(RECIPE)
# The recipe asks the tables whether a name is known, when it is validated and not before.
CHECKERS = {f"pipeline.{name}" for name in ("data", "gates.rules", "losses", "models", "recipe_modes", "tasks")}


class Import(NamedTuple):
    importer: str
    imported: str
    kind: Literal["module", "function", "typing"]


def rank(module: str) -> int:
    if module.startswith("pipeline.cli") or module == "pipeline.__main__":
        return CLI
    if module in ("pipeline", "pipeline.chain") or module.startswith(("pipeline.bundle", "pipeline.sweep")):
        return CHAIN
    if module.startswith("pipeline.stages"):
        return STAGES
    return GROUND if module in GROUND_MODULES else WORK


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the three packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    """Every import of one of our modules by another, wherever it stands in the file."""
    return tuple(found for name in modules() for found in _imports_of(name, tree_of(name)))


def tree_of(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def _imports_of(importer: str, tree: ast.Module) -> Iterator[Import]:
    def visit(node: ast.AST, kind: Literal["module", "function", "typing"]) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}, line {node.lineno}: relative import; write the full name"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from package import module` imports the module; `from module import name` the module that holds it.
            targets = [name if name in modules() else str(node.module) for name in submodules]
        else:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                kind = "function"
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                kind = "typing"
            for child in ast.iter_child_nodes(node):
                yield from visit(child, kind)
            return
        for target in dict.fromkeys(targets):
            if target.split(".")[0] in PACKAGES and target != importer:
                yield Import(importer, target, kind)

    yield from visit(tree, "module")


def say(found: list[Import]) -> str:
    return "\n" + "\n".join(f"{item.importer} imports {item.imported} ({item.kind})" for item in found)


def test_exporters_and_profiles_know_neither_pipeline_nor_each_other() -> None:
    wrong = [
        item
        for item in imports()
        if (package := item.importer.split(".")[0]) != "pipeline" and item.imported.split(".")[0] != package
    ]
    assert not wrong, say(wrong)


def test_pipeline_imports_point_downwards() -> None:
    wrong = [
        item
        for item in imports()
        if item.importer.startswith("pipeline")
        and item.imported.startswith("pipeline")
        and item.kind != "typing"
        and rank(item.importer) < rank(item.imported)
        and not (item.importer in RECIPE and item.imported in CHECKERS and item.kind == "function")
    ]
    assert not wrong, say(wrong)


def test_the_ground_floor_needs_no_exporter_and_no_profiler() -> None:
    wrong = [
        item
        for item in imports()
        if item.importer in GROUND_MODULES and item.imported.split(".")[0] != "pipeline" and item.kind != "typing"
    ]
    assert not wrong, say(wrong)


def test_there_is_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for item in imports():
        if item.kind == "module":
            graph.setdefault(item.importer, set()).add(item.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_the_checks_see_what_they_look_for() -> None:
    text = (
        "from pipeline import store\n"
        "if TYPE_CHECKING:\n    from pipeline.recipe import Recipe\n"
        "def f():\n    import exporters.artifact\n"
    )
    assert list(_imports_of("profiles.x", ast.parse(text))) == [
        Import("profiles.x", "pipeline.store", "module"),
        Import("profiles.x", "pipeline.recipe", "typing"),
        Import("profiles.x", "exporters.artifact", "function"),
    ]


def heavy_after(code: str) -> list[str]:
    """Which heavy packages a fresh interpreter has loaded after `code`; output of `code` itself goes to stderr."""
    script = (
        f"import contextlib, json, sys\nwith contextlib.redirect_stdout(sys.stderr):\n    {code}\n"
        f"print(json.dumps(sorted({set(HEAVY)!r} & set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LIGHT = (
    "pipeline",
    *(
        "pipeline.chain",
        "pipeline.cli.main",
        "pipeline.data",
        "pipeline.gates.judge",
        "pipeline.losses",
        "pipeline.models",
    ),
    *("pipeline.recipe", "pipeline.recipe_file", "pipeline.reports.report", "pipeline.store", "pipeline.tasks"),
    *("pipeline.bundle.verify", "pipeline.sweeps.points", "pipeline.sweeps.run"),
    *("exporters", "exporters.artifact", "profiles"),
)


def test_importing_to_ask_loads_nothing_heavy() -> None:
    assert heavy_after("import " + ", ".join(LIGHT)) == []


COMMANDS = (
    "--help",
    *("run --help", "plan --help", "list --help", "init --help", "inspect --help", "predict --help"),
    *("profile --help", "compare --help", "gate --help", "report --help", "doctor --help", "sweep --help"),
    *("build --help", "bundle --help", "verify --help", "store --help", "store prune --help"),
    *("list", "list recipes", "list recipes --schema", "plan digits"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_asking_on_the_command_line_loads_nothing_heavy(command: str) -> None:
    code = (
        f"sys.argv = ['edgestill', *{command.split()!r}]\n"
        "    from pipeline.cli.main import main\n"
        "    try:\n        main()\n"
        "    except SystemExit as end:\n        assert not end.code, end.code"
    )
    assert heavy_after(code) == []


def test_files_are_short() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked()
        if path.suffix == ".py"
    }
    assert lengths, "no file was looked at"
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def table_rows() -> Iterator[tuple[str, str]]:
    """(place, target) of each 'module:attribute' text of ours inside a module-level dict, found without importing."""
    ours = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)+:\w+")
    for name in modules():
        for statement in tree_of(name).body:
            value = getattr(statement, "value", None)
            if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or not isinstance(value, ast.Dict):
                continue
            table = ast.unparse(statement.targets[0] if isinstance(statement, ast.Assign) else statement.target)
            for key, row in zip(value.keys, value.values, strict=True):
                for node in ast.walk(row):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str) and ours.fullmatch(node.value):
                        yield f"{name}.{table}[{ast.unparse(key) if key else '**'}]", node.value


@pytest.mark.parametrize(("place", "target"), [pytest.param(*row, id=row[0]) for row in table_rows()])
def test_every_table_row_resolves(place: str, target: str) -> None:
    assert callable(load(target)), place


def test_every_gate_metric_has_its_decider() -> None:
    assert [name for name, row in METRICS.items() if not callable(load(row.decider))] == []


def test_the_package_list_is_complete() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".toml")
    }
    assert sorted(listed) == sorted(folders)
    without = [name for name in listed if not (ROOT / name.replace(".", "/") / "__init__.py").exists()]
    assert without == [], "packages without __init__.py"


def test_no_module_is_named_after_a_library_or_after_nothing() -> None:
    wrong = HEAVY | {"numpy", "click", "rich", "pydantic", "jinja2", "psutil", "utils", "helpers", "misc", "common"}
    assert [name for name in modules() if name.split(".")[-1] in wrong] == []


def tracked() -> list[Path]:
    """Files that are or would be committed."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for line in done.stdout.splitlines() if (path := ROOT / line).is_file()]


def test_no_committed_file_names_a_machine_or_a_package_index() -> None:
    local = re.compile(r"(?<![\w.])/(?:work|root|opt|Users|home/\w+)/[\w.]")
    index = re.compile(r"pypi[.]org|pythonhosted[.]org|--(?:extra-)?index-url|download[.]pytorch[.]org|artifactory")
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if (local.search(line) or index.search(line)) and path != Path(__file__):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []
