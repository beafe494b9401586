"""The worked example of pipeline/tasks/README.md does what it says: a new dense task by one file, rows and a recipe."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.chain import stages
from pipeline.recipe_file import load_recipe
from pipeline.store import Store
from pipeline.tasks import TASKS, task_of

README = Path(__file__).parent.parent / "pipeline" / "tasks" / "README.md"
FILES = {"task": "readme_task", "data": "readme_data", "network": "my_networks"}


def blocks() -> dict[str, str]:
    found = re.findall(r"```(?:python|toml) (\w+)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert {name for name, _ in found} == {*FILES, "recipe"}
    return dict(found)


def test_the_example_goes_from_its_recipe_to_a_checked_teacher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipeline import data

    for name, module in FILES.items():
        (tmp_path / f"{module}.py").write_text(blocks()[name])
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TASKS, "foreground", "readme_task:Foreground")
    monkeypatch.setitem(data.SOURCES, "drawn-discs", "readme_data:open_source")
    monkeypatch.setitem(data.SERVES, "drawn-discs", ("foreground",))
    (tmp_path / "foreground.toml").write_text(blocks()["recipe"])
    recipe = load_recipe(tmp_path / "foreground.toml")
    assert load_recipe(tmp_path / "foreground.toml", smoke=True).data.name == "drawn-discs"
    said: list[str] = []
    chain = {stage.name: stage for stage in stages(recipe)}
    Store(tmp_path / "out", recipe.name).run(
        [chain[name] for name in ("data", "teacher", "teacher-check", "table", "distill")], said.append
    )
    assert any("pictures of 32x32x1 for patches of 32x32x3; 96 train, 12 validation, 16 test" in line for line in said)
    assert any("teacher: IoU" in line and "(everything has" in line and "fit to teach" in line for line in said)
    task = task_of("foreground")
    perfect = np.where(np.eye(4)[..., None] > 0, 1.0, -1.0)
    found = task.outcomes([perfect, np.full((4, 4, 1), np.nan)], [np.eye(4, dtype=np.uint8)[..., None] * 255] * 2)
    assert found["iou"].tolist() == [1.0, 0.0]


def test_every_task_and_member_named_there_exists() -> None:
    text = README.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == set(TASKS)
    for name in TASKS:
        task = task_of(name)
        assert task.name == name and task.smoke and task.answers in ("classes", "pictures")
    named = re.findall(r"^- `(\w+)`", text, re.MULTILINE)
    assert named and all(hasattr(task_of("edges"), name) for name in named)
