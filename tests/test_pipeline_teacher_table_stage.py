"""The stage `table`: built once, read by every later student, refused when it is another's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.chain import stages
from pipeline.errors import RecipeError, UserError
from pipeline.recipe import Recipe
from pipeline.stages import table
from pipeline.stages.data import prepared
from pipeline.stages.lesson import check_disk, lessons
from pipeline.store import Store
from tests.table_parts import REPLAY, filled, key

KD = {"loss": "kd", "weight": 1.0}
RKD = {"loss": "rkd", "weight": 1.0, "student": "layer3", "teacher": "layer3"}
HINT = {"loss": "hint", "weight": 1.0, "student": "layer2", "teacher": "layer2"}


def recipe(seed=0, train=None, **distill):
    """A teacher of a few thousand weights on 8x8 digits."""
    settings = {"epochs": 3, "batch_size": 256, "teacher_outputs": "table", "control": False, "losses": [KD], **distill}
    settings.setdefault("augment", {"seed": 5, "pad_crop": 1, "flip": True})
    return Recipe.model_validate(
        {
            "name": "tiny",
            "seed": seed,
            "data": {"name": "digits"},
            "teacher": {"model": "cifar-resnet20?width=0.5", "train": train or {"epochs": 1}, "check": "warn"},
            "student": {"model": "cifar-resnet20?width=0.25"},
            "distill": settings,
        }
    )


class Run:
    def __init__(self, out):
        self.out, self.said = out, []

    def __call__(self, wanted, only="distill"):
        """The folders of the finished stages; what was said is kept in `said`."""
        self.said.clear()
        self.store = Store(self.out, wanted.name)
        return self.store.run(stages(wanted), self.said.append, only=[only])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("artifacts"))
    run(recipe(), only="table")
    return run


def rebuilt(run, wanted):
    run(wanted, only="table")
    return not run.store.fresh["table"]


def test_the_student_reads_the_table_and_another_loss_or_student_finds_it_fresh(run):
    folders = run(recipe())
    assert "distill: the teacher's answers are read from a replay table" in run.said
    assert run.store.fresh["table"]
    header = json.loads((folders["table"] / "header.json").read_text())
    assert header["slices"] == 3 and header["outputs"] == {"logits": 10} and 0 <= header["teacher_accuracy"] <= 1
    for change in (
        {"losses": [{"loss": "dkd", "weight": 1.0}]},
        {"losses": [KD | {"temperature": 2.0}]},
        {"lr": 0.01, "batch_size": 128},
        {"repeats": 3},
    ):
        assert not rebuilt(run, recipe(**change)), change


def test_what_the_answers_depend_on_builds_another_table(run):
    assert rebuilt(run, recipe(epochs=2))
    assert rebuilt(run, recipe(precision="bf16"))
    for augment in ({"seed": 6, "pad_crop": 1, "flip": True}, {"seed": 5, "pad_crop": 1}, {"seed": 5, "mixup": 1.0}):
        assert rebuilt(run, recipe(augment=augment)), augment


def test_another_teacher_has_another_table_and_that_of_the_first_is_refused(run, tmp_path):
    first = run(recipe(), only="table")["table"]
    taught = {"epochs": 1, "lr": 0.02}
    assert rebuilt(run, recipe(train=taught)), "the same network, trained otherwise"
    with pytest.raises(UserError) as error:
        run(recipe(train=taught, table=str(first)), only="table")
    there, here = (
        json.loads((folder / "header.json").read_text())["key"]["teacher"][:12]
        for folder in (first, run(recipe(train=taught), only="table")["table"])
    )
    assert str(error.value) == (
        f"table: {first} is another table: teacher (sha256 of its weights): {there}\u2026 there, {here}\u2026 here; "
        "give the table of this teacher, data and augmentation, or leave table empty to build one"
    )


def test_neither_epochs_nor_the_seed_of_the_views_change_a_finite_table(run):
    folders = run(recipe(augment={"seed": 5, "flip": True}))
    assert "distill: the teacher's answers are read from a finite table" in run.said
    assert json.loads((folders["table"] / "header.json").read_text())["slices"] == 2
    assert not rebuilt(run, recipe(augment={"seed": 6, "flip": True}, epochs=7))


def test_embeddings_are_stored_pooled_and_maps_make_the_teacher_answer_live(run):
    folders = run(recipe(losses=[KD, RKD]))
    assert json.loads((folders["table"] / "header.json").read_text())["outputs"] == {"logits": 10, "layer3": 32}
    folders = run(recipe(losses=[KD, HINT], teacher_outputs="auto"))
    assert "table: live: a table holds no feature maps (layer2)" in run.said
    assert {path.name for path in folders["table"].iterdir()} == {"form.json", "decision.json", "manifest.json"}
    with pytest.raises(RecipeError) as error:
        stages(recipe(losses=[HINT]))
    assert str(error.value) == (
        "distill.teacher_outputs: a table holds no feature maps, and distill compares those of layer2; set "
        "teacher_outputs = 'live' or 'auto', and no table"
    )


def test_a_table_from_elsewhere_is_read_where_it_lies(run, tmp_path):
    made = run(recipe(), only="table")["table"]
    elsewhere = tmp_path / "made elsewhere"
    shutil.copytree(made, elsewhere)
    folders = run(recipe(table=str(elsewhere), teacher_outputs="auto", epochs=2))
    assert f"table: replay table made elsewhere: {elsewhere}" in run.said
    assert not list(folders["table"].glob("*.f16"))
    assert "distill: the teacher's answers are read from a replay table" in run.said
    with pytest.raises(UserError) as error:
        run(recipe(table=str(elsewhere), augment={"seed": 6, "pad_crop": 1, "flip": True}))
    assert str(error.value) == (
        f"table: {elsewhere} is another table: augment.seed: 5 there, 6 here; give the table of this teacher, data and "
        "augmentation, or leave table empty to build one"
    )
    shard = elsewhere / "shard-00001.f16"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError) as error:
        run(recipe(table=str(elsewhere), lr=0.01))
    assert str(error.value) == (
        f"table: {shard} is cut short (100 of 19,380 bytes); copy the table again, or delete the folder to have it "
        "built anew"
    )


def test_a_disk_too_small_is_said_before_anything_is_computed(run, monkeypatch):
    from pipeline.teacher_table import build

    monkeypatch.setattr(build.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 10**6))
    with pytest.raises(UserError) as error:
        run(recipe(augment={"seed": 50}, epochs=1000, teacher_outputs="table"), only="table")
    text = str(error.value)
    assert "needs 67.1 MB for 1 x 969 x 10 values, 1.0 MB are free; free some, set" in text


def test_a_disk_too_small_is_said_before_the_teacher_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 80 * 10**6))
    fresh, wanted = Run(tmp_path), recipe(augment={"seed": 50, "cutout": 2}, epochs=1000)
    with pytest.raises(UserError) as error:
        fresh(wanted)
    assert str(error.value) == (
        f"table: {tmp_path / 'tiny'} needs at least 86.9 MB for the teacher's answers to 969 images, 80.0 MB are free; "
        "free some, set teacher_outputs = 'live', or train fewer epochs"
    )
    assert [path.name.partition("-")[0] for path in (tmp_path / "tiny").iterdir() if path.is_dir()] == ["data"]
    held = tmp_path / "tiny" / "table-0123456789ab"
    held.mkdir()
    (held / "shard-00000.f16").write_bytes(b"0" * 10**7)  # of a table that is there, or in the making
    data = prepared(wanted, next((tmp_path / "tiny").glob("data-*")))
    check_disk(wanted, data, held)
    for change in ({"teacher_outputs": "auto"}, {"teacher_outputs": "live"}, {"epochs": 10}):
        check_disk(
            recipe(augment={"seed": 50, "cutout": 2}, **{"epochs": 1000, **change}), data, tmp_path / "tiny" / "x"
        )


def test_auto_decides_from_what_was_measured_and_stands_by_it(run, monkeypatch):
    from pipeline.teacher_table import costs

    wanted = recipe(augment={"seed": 77}, teacher_outputs="auto")
    measured = costs.Costs(teacher_s=1e-6, student_s=1.0, width=10)
    monkeypatch.setattr(costs, "measure", lambda *args, **kwargs: measured)
    folders = run(wanted)
    assert "table: live: the teacher takes 0% of a step, less than a table would save" in run.said
    assert json.loads((folders["table"] / "form.json").read_text()) == {"form": "live"}
    assert not any("read from" in line for line in run.said)


def test_readers_that_a_sweep_knows_of_are_weighed(run, monkeypatch):
    from pipeline.teacher_table import build, costs

    monkeypatch.setattr(costs, "measure", lambda *a, **k: costs.Costs(teacher_s=1.0, student_s=1.0, width=10))
    free = 5 * 3 * 969 * 10 * 2  # one reader may take a tenth of it, several nearly all
    monkeypatch.setattr(table.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, free))
    monkeypatch.setattr(build, "check_space", lambda *args: None)
    made = {}
    for seed, readers in ((91, None), (92, {"table": 4})):
        wanted = recipe(augment={"seed": seed, "cutout": 2}, teacher_outputs="auto")
        run.said.clear()
        store = Store(run.out, wanted.name)
        store.run(stages(wanted, readers=readers), run.said.append, only=["table"])
        made[seed] = next(line for line in run.said if "the teacher takes" in line or "would take" in line)
    size, space = "58.1 kB", "290.7 kB"
    assert made == {
        91: f"table: live: a replay table of 3 epochs, {size} would take more than 10% of {space} free",
        92: f"table: replay table of 3 epochs, {size}: the teacher takes 50% of a step; filling it costs 25% of a live "
        "teacher's work in 4 runs",
    }


def test_costs_are_measured_on_the_real_networks(run):
    folders = run(recipe(augment={"seed": 78}, epochs=1, teacher_outputs="auto"), only="table")
    found = json.loads((folders["table"] / "decision.json").read_text())
    assert "the teacher takes" in found["reason"]


def test_a_killed_build_goes_on_in_its_folder(tmp_path):
    script = Path(__file__).with_name("table_kill.py")
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run([sys.executable, script, folder], check=False, timeout=120)
    assert done.returncode == -9 and list(folder.glob("*.partial"))
    for target in (folder, whole):
        filled(target, key(REPLAY), slices=20)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_only_lessons_with_a_teacher_have_a_table():
    names = [stage.name for stage in stages(recipe())]
    assert names.index("teacher-check") < names.index("table") < names.index("distill")
    assert "table" not in [stage.name for stage in stages(recipe(teacher_outputs="live"))]
    alone = recipe(losses=[{"loss": "cross_entropy", "weight": 1.0}])
    assert "table" not in [stage.name for stage in stages(alone)]
    assert table.stage_name(lessons(recipe())[0]) == "table"
