"""Every way of distilling through the stages of the chain: what is built again, what is shipped, bad input."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from cli_runner import cli
from PIL import Image

import pipeline
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.checkpoint import load_checkpoint
from pipeline.recipe import Recipe
from pipeline.recipe_file import merge, validate
from pipeline.reports.report import schema
from pipeline.stages import data, distill, teacher
from pipeline.stages.lesson import STUDENT_WEIGHTS, TEACHER_WEIGHTS
from pipeline.store import Store

R8, HALF = "mlperf-resnet8", "cifar-resnet20?width=0.5"
CE, KD = ({"loss": name, "weight": 0.5} for name in ("cross_entropy", "kd"))
SHORT = {"epochs": 1, "batch_size": 64, "lr": 0.05}
VALUES: dict[str, Any] = {
    "name": "mine",
    "data": {"name": "digits"},
    "teacher": {"model": R8, "train": SHORT, "check": "warn"},
    "student": {"model": R8},
    "distill": SHORT | {"losses": [KD, CE], "teacher_outputs": "live", "control": False},
    "quantize": False,
    "profile": {"runtimes": ["onnxruntime"], "min_seconds": 0.05},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all, so that the teacher is trained once."""
    return tmp_path_factory.mktemp("modes")


def made(**changes: Any) -> Recipe:
    return validate(merge(VALUES, changes), "mine.toml")


class Trained:
    """The stages up to the student, run in `out`: their folders, and which of them were built."""

    def __init__(self, out: Path, **changes: Any) -> None:
        recipe = made(**changes)
        said: list[str] = []
        stages = (data.stage(recipe), *teacher.stages(recipe), *distill.stages(recipe))
        self.folders = Store(out, recipe.name).run(stages, said.append)
        self.built = [line.partition(":")[0] for line in said if ": building (" in line]
        self.said = said

    def curve(self, stage: str = "distill") -> list[dict[str, Any]]:
        return json.loads((self.folders[stage] / "training.json").read_text())["curve"]

    def network(self, stage: str = "distill") -> Any:
        file = TEACHER_WEIGHTS if stage.startswith("teacher") else STUDENT_WEIGHTS
        return load_checkpoint(self.folders[stage] / file)


def assert_plain(trained: Trained, model: str = R8) -> None:
    """What was saved is the named network and nothing else."""
    module, meta = trained.network()
    wanted = build(model, num_classes=10, in_channels=1, input_size=(1, 8, 8)).state_dict()
    found = module.state_dict()
    assert meta.model == model and found.keys() == wanted.keys()
    assert all(found[name].shape == wanted[name].shape for name in wanted)


def parameters(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_mutual_learning(out: Path) -> None:
    online = {"mode": "online", "peers": [{"model": R8}, {"model": HALF}]}
    trained = Trained(out, distill=online)
    assert_plain(trained)
    (row,) = trained.curve()
    assert set(row["terms"]) == {f"{who}{loss}" for who in ("", "peer1/", "peer2/") for loss in ("kd", "cross_entropy")}
    assert set(row["gradient_norms"]) == {"kd", "cross_entropy"} and row["val_accuracy"] > 0.3
    again = Trained(out, distill=online | {"peers": [{"model": R8}]})
    assert again.built == ["distill"], "the teacher stands aside"


def drawn(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(build(HALF, num_classes=10, in_channels=1).state_dict(), path)


def test_a_peer_has_weights_of_its_own_or_from_a_file(out: Path, tmp_path: Path) -> None:
    drawn(tmp_path / "peer.pt", 1)
    online = {"mode": "online", "peers": [{"model": HALF, "weights": str(tmp_path / "peer.pt")}]}
    first = Trained(out, distill=online)
    assert Trained(out, distill=online).built == []
    drawn(tmp_path / "peer.pt", 2)
    again = Trained(out, distill=online)
    assert again.built == ["distill"] and again.curve()[0]["terms"] != first.curve()[0]["terms"]
    with pytest.raises(UserError) as caught:
        Trained(out, distill=online | {"peers": [{"model": R8, "weights": str(tmp_path / "peer.pt")}]})
    assert str(caught.value).startswith(f"distill.peers.0.weights: {tmp_path / 'peer.pt'}: weights of another ")


def test_exits(out: Path) -> None:
    hint = {"loss": "hint", "weight": 0.03, "student": "stack1", "teacher": "stack3"}
    trained = Trained(out, distill={"mode": "self", "exits": ["stack1", "stack2"], "losses": [CE, KD, hint]})
    assert_plain(trained)
    (row,) = trained.curve()
    exits = {f"{path}/{loss}" for path in ("stack1", "stack2") for loss in ("kd", "cross_entropy")}
    assert set(row["terms"]) == exits | {"cross_entropy", "hint"} and row["val_accuracy"] > 0.3


def test_several_teachers(out: Path) -> None:
    others = [{"model": R8, "weight": 3.0}]
    trained = Trained(out, teacher={"others": others})
    assert {"teacher2", "teacher2-check"} <= trained.folders.keys()
    first, second = (parameters(trained.network(name)[0]) for name in ("teacher", "teacher2"))
    assert not torch.allclose(first, second), "they were drawn from seeds of their own"
    assert Trained(out, teacher={"others": [{"model": R8, "weight": 1.0}]}).built == ["distill"]
    assert Trained(out, teacher={"others": others}).built == []


def test_a_second_teacher_that_does_not_fit_is_refused_before_the_first_is_trained(tmp_path: Path) -> None:
    drawn(tmp_path / "half.pt", 1)
    with pytest.raises(UserError) as caught:
        Trained(tmp_path, teacher={"others": [{"model": R8}, {"model": R8, "weights": str(tmp_path / "half.pt")}]})
    assert str(caught.value).startswith(f"teacher.others.1.weights: {tmp_path / 'half.pt'}: weights of another ")
    assert [path.name.partition("-")[0] for path in (tmp_path / "mine").iterdir() if path.is_dir()] == ["data"]


GENERATIONS = [{"model": R8}, {"model": HALF, "distill": {"losses": [{"loss": "dist", "weight": 1.0}, CE]}}]


def test_each_generation_teaches_the_next_and_a_change_goes_down_the_line(out: Path) -> None:
    trained = Trained(out, generation=GENERATIONS)
    assert trained.built[-3:] == ["generation1", "generation2", "distill"]
    assert set(trained.curve("generation1")[0]["terms"]) == {"kd", "cross_entropy"}
    assert set(trained.curve("generation2")[0]["terms"]) == {"dist", "cross_entropy"}
    assert trained.network("generation2")[1].model == HALF
    second = [GENERATIONS[0], merge(GENERATIONS[1], {"distill": {"lr": 0.04}})]
    assert Trained(out, generation=second).built == ["generation2", "distill"]
    first = [merge(GENERATIONS[0], {"distill": {"lr": 0.04}}), GENERATIONS[1]]
    assert Trained(out, generation=first).built == ["generation1", "generation2", "distill"]
    assert Trained(out, generation=GENERATIONS, distill={"lr": 0.06}).built == ["generation1", "generation2", "distill"]
    assert Trained(out, generation=GENERATIONS).built == []


def test_a_mistake_in_the_last_lesson_is_found_before_the_first_generation(out: Path) -> None:
    before = set((out / "mine").iterdir())
    with pytest.raises(UserError) as caught:
        Trained(out, generation=[{"model": R8, "distill": {"lr": 0.03}}], distill={"freeze": ["stak1"]})
    assert str(caught.value) == "generation.0.distill.freeze: the network has no 'stak1'; did you mean 'stack1'?"
    hint = {"loss": "hint", "weight": 1.0, "student": "stack9", "teacher": "stack3"}
    quiet = {"model": R8, "distill": {"lr": 0.03, "losses": [KD]}}
    with pytest.raises(UserError) as caught:
        Trained(out, generation=[quiet], distill={"losses": [CE, hint]})
    assert str(caught.value).startswith("distill.losses: student: the network has no module 'stack9'; did you mean ")
    assert set((out / "mine").iterdir()) == before


def test_a_pruned_student_starts_from_what_is_left_of_its_teacher(out: Path) -> None:
    model = "pruned:mlperf-resnet8?macs=0.5"
    slow = {"lr": 1e-6, "weight_decay": 0.0}
    trained = Trained(out, student={"model": model, "weights": "teacher"}, distill=slow)
    assert_plain(trained, model)
    module, _ = trained.network()
    kept = {tuple(row) for row in trained.network("teacher")[0].conv1.weight.flatten(1).round(decimals=3).tolist()}
    own = [tuple(row) for row in module.conv1.weight.flatten(1).round(decimals=3).tolist()]
    assert len(own) < len(kept) and set(own) <= kept, "channels of the teacher, some of them removed"
    assert Trained(out, student={"model": model}, distill=slow).built == ["distill"]


def test_frozen_layers_a_rate_for_the_head_and_8_bit_states(out: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = {"freeze": ["conv1", "bn1", "stack1"], "head_lr": 0.01, "lr": 0.001}
    trained = Trained(out, student={"weights": "teacher"}, distill=settings | {"optimizer": "adamw8bit"})
    before, after = (trained.network(stage)[0].state_dict() for stage in ("teacher", "distill"))
    still = {name.partition(".")[0] for name in before if torch.equal(before[name], after[name])}
    assert still >= {"conv1", "bn1", "stack1"} and "linear" not in still
    assert not torch.equal(before["stack3.conv1.weight"], after["stack3.conv1.weight"])


def test_early_stopped_distillation(out: Path) -> None:
    terms = [KD | {"until_epoch": 1, "warmup_epochs": 1.0}, CE]
    trained = Trained(out, distill={"epochs": 2, "losses": terms})
    assert [set(row["terms"]) for row in trained.curve()] == [{"kd", "cross_entropy"}, {"cross_entropy"}]


def photos(folder: Path, count: int, classes: tuple[str, ...]) -> Path:
    for number in range(count):
        path = folder / classes[number % len(classes)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number + 100 * len(classes)).integers(0, 128, (12, 12, 3), dtype=np.uint8)
        pixels[..., number % len(classes)] += 100
        Image.fromarray(pixels).save(path)
    return folder


def test_function_matching_on_a_folder_with_images_without_labels(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 48, ("cat", "dog"))
    more = photos(tmp_path / "more", 12, ("",))
    changes = functools.partial(
        Trained,
        tmp_path,
        data={"name": "imagefolder", "root": str(root), "image_size": 8, "unlabelled": str(more)},
        teacher={"model": R8, "train": {"batch_size": 8}},
    )
    matching = {"losses": [{"loss": "kd", "weight": 1.0, "temperature": 1.0}], "batch_size": 8}
    trained = changes(distill=matching | {"augment": {"flip": True, "mixup": 1.0, "cutmix": 1.0}, "control": True})
    assert [set(row["terms"]) for row in trained.curve()] == [{"kd"}]
    assert [set(row["terms"]) for row in trained.curve("control")] == [{"cross_entropy"}], "with soft labels"
    facts = json.loads((trained.folders["data"] / "data.json").read_text())
    assert facts["unlabelled"]["n"] == 12
    online = {"mode": "online", "peers": [{"model": R8}], "losses": [KD, CE]}
    assert changes(distill=matching | online).built == ["distill"]


@pytest.fixture(scope="module")
def released(out: Path) -> Mapping[str, Any]:
    gate = [{"metric": "accuracy_drop", "against": "teacher", "max": "90pt"}]
    recipe = made(name="whole", generation=GENERATIONS, gate=gate, distill={"teacher_outputs": "table"})
    return pipeline.run(recipe, out=out, say=lambda line: None)


@pytest.mark.slow
def test_generations_through_the_whole_chain_into_the_report(out: Path, released: Mapping[str, Any]) -> None:
    jsonschema.validate(released, schema())
    assert released["verdict"] == "released"
    rows = {row["name"]: row for row in released["subjects"]}
    trained = ["teacher", "generation1", "generation2", "student"]
    assert [name for name in rows if rows[name]["format"] == "torch"] == trained
    for name in trained:
        assert rows[name]["training"]["epochs"] == 1 and rows[name]["accuracy"]["n"] == 719
    assert [rows[name]["role"] for name in trained[1:3]] == ["generation"] * 2
    assert rows["generation2"]["macs"] != rows["generation1"]["macs"] == rows["student"]["macs"]
    page = (out / "whole" / "report.html").read_text()
    assert "<h3>Generation 1</h3>" in page and "generation2: 1 epochs" in page
    assert "| generation1 |" in (out / "whole" / "report.md").read_text()


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = f"""
name = "mine"
data = {{ name = "digits" }}
teacher = {{ model = "{R8}", train = {{ epochs = 1, batch_size = 64, lr = 0.05 }} }}
student = {{ model = "{R8}" }}
quantize = false
"""
    Path("mine.toml").write_text(recipe)
    unequal = "distill.losses: loss 'hint': features are 16x8x8 in the student and 64x2x2 in the teacher; "
    unequal += "set adapter = 'auto' or name modules of equal shape"
    wrong = {
        ("distill.mode=self", "distill.exits=['stack9']"): (
            "distill.exits: the network has no module 'stack9'; did you mean 'stack3'?"
        ),
        ("distill.losses=[{loss='hint', weight=1.0, student='stack1', teacher='stack3', adapter='none'}]",): unequal,
        ("distill.mode=online",): (
            "--set: distill: mode = 'online' needs the other students: peers = [{ model = 'cifar-resnet20' }]"
        ),
    }
    for settings, line in wrong.items():
        result = cli("run", "mine.toml", *(word for text in settings for word in ("--set", text)))
        assert result.code == 2, result.err
        assert result.err.splitlines()[-1] == f"error: {line}"
        assert "teacher: epoch" not in result.err, "before the teacher's hours"
