"""list, doctor and init: what there is, what works here, and a first recipe."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from cli_runner import cli

from exporters import RUNTIMES
from pipeline.cli.catalogue import KINDS
from pipeline.cli.doctor import INT8_FLAGS, warnings
from pipeline.recipe_file import load_recipe


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As on a machine without these packages."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in names else real(name, *a))


def test_list_shows_every_table() -> None:
    found = cli("list", "--json").json
    assert list(found) == list(KINDS)
    names = {kind: [row["name"] for row in rows] for kind, rows in found.items()}
    assert {"kd", "cross_entropy"} <= set(names["losses"])
    assert {"mlperf-resnet8", "torchvision:NAME", "my_pkg.my_module:build"} <= set(names["models"])
    assert {"digits", "imagefolder"} <= set(names["datasets"]) and "digits" in names["recipes"]
    assert names["runtimes"] == list(RUNTIMES)
    assert {"cpu", "laptop-gpu", "jetson-orin-nano", "jetson-agx-orin", "jetson-thor"} <= set(names["devices"])
    text = cli("list").out
    assert all(name in text for rows in names.values() for name in rows) and text.splitlines()[-1].startswith("next: ")


def test_list_says_why_something_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "torch", "sklearn", "openvino")
    found = cli("list", "--json").json
    reason = {kind: {row["name"]: row["unavailable"] for row in rows} for kind, rows in found.items()}
    assert reason["losses"]["kd"] == "torch is not installed; pip install 'edgestill[train]'"
    assert reason["datasets"]["digits"] == "sklearn is not installed; pip install 'edgestill[train]'"
    assert reason["datasets"]["arrays"] is None
    assert reason["exporters"]["onnx"] == "torch is not installed; pip install 'edgestill[train]'"
    assert reason["runtimes"]["openvino"] == "openvino is not installed; pip install 'edgestill[openvino]'"
    assert cli("list", "runtimes").out.splitlines()[-1] == "next: edgestill doctor"


def test_doctor_names_the_one_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "torch", "onnxruntime", "openvino")
    found = cli("doctor", "--json").json
    broken = {row["ability"]: row["unavailable"] for row in found["abilities"] if row["unavailable"]}
    assert broken["train and distil"] == "torch not installed; pip install 'edgestill[train]'"
    assert broken["run on ONNX Runtime"] == "onnxruntime not installed; pip install 'edgestill[ort]'"
    assert "judge and report" not in broken
    assert cli("doctor").out.splitlines()[-1] == "next: pip install 'edgestill[train,openvino]'"


def test_doctor_warns_of_what_will_disappoint() -> None:
    machine = {"flags": [], "on_ac_power": False, "governor": "powersave", "load_1min": 3.0}
    found = "\n".join(warnings(machine))
    assert "no 8-bit dot products" in found and "on battery" in found
    assert "governor is powersave" in found and "load 3.0" in found
    machine = {"flags": [INT8_FLAGS[0]], "on_ac_power": None, "governor": None, "load_1min": 0.0}
    assert [line for line in warnings(machine) if "disk" not in line and "onnxruntime" not in line] == []


def test_init_writes_a_recipe_that_loads_and_refuses_to_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = cli("init", "cats & dogs.toml", "--images", 'my "photos"', "--weights", "cats.pt", "--image-size", "96")
    assert made.code == 0 and made.out.splitlines()[-1] == "next: edgestill plan 'cats & dogs.toml'"
    recipe = load_recipe("cats & dogs.toml")
    assert recipe.name == "cats---dogs" and recipe.data.root == 'my "photos"' and recipe.data.image_size == 96
    assert recipe.teacher.weights == "cats.pt" and len(recipe.gate) == 2
    assert load_recipe("cats & dogs.toml", smoke=True).data.name == "digits"
    before = Path("cats & dogs.toml").read_bytes()
    again = cli("init", "cats & dogs.toml")
    assert again.code == 2 and Path("cats & dogs.toml").read_bytes() == before
    assert again.err == "error: cats & dogs.toml: exists and is left as it is; give another name or remove it\n"


def test_init_without_arguments_writes_recipe_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init").out.splitlines()[0] == "wrote recipe.toml"
    assert load_recipe("recipe.toml").name == "recipe"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["recipe.yaml"], "recipe.yaml: a recipe is a .toml file; write 'edgestill init recipe.yaml.toml'"),
        (["no/recipe.toml"], "no/recipe.toml: no folder 'no'; make it first"),
        (["r.toml", "--teacher", "cifar-resnet21"],
         "r.toml: teacher.model: unknown model 'cifar-resnet21'; did you mean 'cifar-resnet20'?"),
    ],
)  # fmt: skip
def test_init_writes_nothing_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("init", *args)
    assert result.code == 2 and result.err.startswith(f"error: {line[:60]}") and not list(tmp_path.iterdir())
