"""The five papers' recipes: networks and losses as published (errors corrected), whole tables, small smoke forms.

That the networks have the published counts is in tests/test_pipeline_paper_models.py; the smoke forms of the papers run
in tests/test_chain_recipes.py.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import pytest
import torch

from pipeline import chain
from pipeline.data import NEEDS_ROOT
from pipeline.gates.intervals import Pairs, paired_difference
from pipeline.gates.rules import parse_limit
from pipeline.losses import NEEDS_TEACHER
from pipeline.models import build, parse_name
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.torchvision_names import cached_weights, weights_url
from pipeline.recipe import Recipe
from pipeline.recipe_file import check_files, load_recipe, shipped
from pipeline.recipe_modes import networks
from pipeline.stage import Context
from pipeline.stages.lesson import lessons
from pipeline.sweeps.points import plan
from pipeline.sweeps.run import stage_keys
from profiles.flops import count_torch

PAPERS = sorted(name for name in shipped() if name.startswith("paper"))
DENSE = [name for name in PAPERS if load_recipe(name).task != "classification"]
NAMES = [name for name in PAPERS if name not in DENSE]
MOBILE, HALF = "torchvision:mobilenet_v2", "torchvision:mobilenet_v2?width_mult=0.5"
KD_CE = {
    "paper000": (0.5, 4.0, 0.5),  # l CE + (1 - l) KD, l = 0.5, at III.D's temperature
    "paper000-mended": (0.5, 4.0, 0.5),
    "paper001": (0.3, 3.0, 0.7),  # a CE + (1 - a) KD, a = 0.7; 9 = T^2, not the listing's 4 = T + 1
    "paper002": (0.5, 4.0, 0.5),  # the code's, not the text's KL alone
    "paper003": (0.9, 4.0, 0.1),  # a KD + (1 - a) CE, a = 0.9
    "paper003-strides": (0.9, 4.0, 0.1),
    "paper004": (1.0, 5.0, 0.0),  # KL alone
}
TEST_IMAGES = {"imagefolder": 2_600, "cifar10": 10_000, "cifar100": 10_000}  # 000's 2,600 are fewer than 002's 3,000


def points(name: str, *, smoke: bool = False) -> list[Recipe]:
    return [point.recipe for point in plan(name, smoke=smoke).points]


def test_every_paper_has_a_recipe() -> None:
    assert {name[: len("paper000")] for name in NAMES} == {f"paper00{i}" for i in range(5)}
    assert set(KD_CE) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_the_paper(name: str) -> None:
    terms = {term.loss: term for term in load_recipe(name).distill.losses}
    kd, temperature, ce = KD_CE[name]
    assert terms.pop("kd").model_dump()["weight"] == kd
    assert load_recipe(name).distill.losses[0].options == {"temperature": temperature}
    assert {loss: term.weight for loss, term in terms.items()} == ({"cross_entropy": ce} if ce else {})


@pytest.mark.parametrize("name", ["paper000", "paper000-mended"])
def test_000_is_trained_on_224_pixels_at_either_temperature(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.teacher.model, recipe.student.model) == ("torchvision:resnet34", "torchvision:resnet18")
    assert (recipe.data.name, recipe.data.image_size) == ("imagefolder", 224)
    assert recipe.teacher.mean == ()  # measured on the training split
    assert [point.distill.losses[0].options["temperature"] for point in points(name)] == [2.0, 4.0]


def test_000_mended_differs_by_warm_up_a_lower_rate_and_more_epochs() -> None:
    paper, mended = load_recipe("paper000"), load_recipe("paper000-mended")
    for old, new in ((paper.teacher.train, mended.teacher.train), (paper.distill, mended.distill)):
        assert (old.optimizer, old.lr, old.warmup_epochs, old.schedule) == ("adam", 0.01, 0.0, "step")
        assert (new.optimizer, new.lr, new.schedule) == ("adamw", 0.001, "cosine")
        assert new.warmup_epochs > 0 and new.epochs > old.epochs
    assert mended.distill.losses == paper.distill.losses


def test_000_may_start_from_published_weights_and_trains_them_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = "torchvision:mobilenet_v3_small"
    published = build(model).state_dict()
    path = cached_weights(weights_url(parse_name(model), "torchvision:DEFAULT"))
    path.parent.mkdir(parents=True)
    torch.save(published, path)
    still = ("teacher.train.lr=1e-8", "teacher.train.optimizer=sgd", "data.image_size=8")
    sets = (f"teacher.model={model}", "teacher.weights=torchvision:DEFAULT", "teacher.finetune=true", *still)
    recipe = load_recipe("paper000", sets, smoke=True)
    check_files(recipe)
    folders: dict[str, Path] = {}
    for stage in chain.stages(recipe)[:2]:
        folders[stage.name] = tmp_path / stage.name
        folders[stage.name].mkdir()
        stage.run(Context(stage=stage, folder=folders[stage.name], inputs=folders, say=lambda line: None))
    teacher = load_checkpoint(folders["teacher"] / "teacher.safetensors")[0].state_dict()
    assert (folders["teacher"] / "training.json").is_file()
    inner, head = "features.1.block.0.0.weight", "classifier.3.weight"
    torch.testing.assert_close(teacher[inner], published[inner], rtol=0, atol=1e-5)
    assert not torch.equal(teacher[inner], published[inner])
    assert teacher[head].shape[0] == 10 and published[head].shape[0] == 1000


def test_001_is_the_whole_matrix() -> None:
    families = ("vgg16-cifar", "cifar-resnet18", "densenet121-cifar")
    found = [(point.teacher.model, point.student.model) for point in points("paper001")]
    assert found == [(teacher, f"{student}?width=0.5") for teacher in families for student in families]


def test_002_is_every_depth_in_every_precision() -> None:
    recipe = load_recipe("paper002")
    assert (recipe.teacher.model, recipe.data.image_size) == ("scene-cnn?blocks=12", 150)
    assert recipe.distill.early_stopping == 3 and recipe.distill.epochs == 15
    found = Counter(
        (point.student.model, point.distill.precision, point.distill.optimizer) for point in points(recipe.name)
    )
    depths = [f"scene-cnn?blocks={blocks}" for blocks in (12, 10, 8, 6, 4)]
    kinds = [("fp32", "adam"), ("fp16", "adam"), ("fp32", "adam8bit")]
    assert found == Counter((depth, *kind) for kind in kinds for depth in depths)


@pytest.mark.parametrize(
    ("name", "middle", "small"),
    [("paper003", MOBILE, HALF), ("paper003-strides", "mobilenetv2-cifar", "mobilenetv2-cifar?width=0.5")],
)
def test_003_is_three_generations_and_each_step_of_them(name: str, middle: str, small: str) -> None:
    found = lessons(load_recipe(name))
    assert [(lesson.teacher_model, lesson.student.model) for lesson in found] == [
        ("cifar-resnet101", middle),
        (middle, small),
    ]
    assert all(lesson.taught and lesson.distill.epochs == 100 for lesson in found)
    steps = [[lesson.student.model for lesson in lessons(point)] for point in points(name)]
    assert steps == [[middle], [middle, small], [small]]


def test_004_is_function_matching_with_every_teacher_temperature_and_mixup() -> None:
    found = [
        (point.teacher.model, point.distill.losses[0].options["temperature"], point.distill.augment.mixup)
        for point in points("paper004")
    ]
    teachers = ("cifar-resnet44", "vgg11-bn-cifar", "mobilenetv2-cifar?width=0.75")
    assert found == [(teacher, t, mixup) for teacher in teachers for t in (2.0, 5.0, 10.0) for mixup in (0.0, 1.0)]
    assert {point.student.model for point in points("paper004")} == {"mobilenetv3-small-cifar"}
    assert all(len(point.distill.losses) == 1 for point in points("paper004"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper000", {"teacher": 1, "table": 1, "distill": 2, "control": 1}),
        ("paper001", {"teacher": 3, "table": 3, "distill": 9, "control": 3}),
        ("paper002", {"teacher": 1, "table": 2, "distill": 15, "control": 15}),  # fp32 and fp16 answers
        ("paper003", {"teacher": 1, "generation1": 1, "distill": 3, "control": 2}),
        ("paper004", {"teacher": 3, "table": 6, "distill": 18, "control": 2}),
    ],
)
def test_a_sweep_trains_nothing_twice(name: str, expected: dict[str, int]) -> None:
    keys: dict[str, set[str]] = {}
    for point in points(name):
        for stage, key in stage_keys(chain.stages(point)).items():
            keys.setdefault(stage, set()).add(key)
    assert {stage: len(keys[stage]) for stage in expected} == expected


@pytest.mark.parametrize("name", NAMES)
def test_gates_can_be_decided_at_the_test_size(name: str) -> None:
    """Where nothing is lost, ten of a hundred answers changed in either direction do not leave it open."""
    recipe = load_recipe(name)
    n = TEST_IMAGES[recipe.data.name]
    assert recipe.gate
    for rule in recipe.gate:
        if rule.metric == "accuracy_drop":
            bound = paired_difference(
                Pairs(both=0.6 * n, only_subject=0.05 * n, only_against=0.05 * n, neither=0.3 * n)
            )
            assert 100 * bound.upper < parse_limit(rule).value


@pytest.mark.parametrize("name", NAMES)
def test_smoke_forms_are_small(name: str) -> None:
    """No network of a smoke form, its sweep included, has more than 10 million multiply-accumulates an image."""
    for recipe in (load_recipe(name, smoke=True), *points(name, smoke=True)):
        side = recipe.data.image_size
        for _, model, _ in networks(recipe):
            assert macs(model, side) < 10e6, model


@pytest.mark.parametrize("name", DENSE)
def test_dense_recipes_teach_with_the_teachers_pictures_and_gate_the_tasks_own_metric(name: str) -> None:
    recipe = load_recipe(name)
    terms = {term.loss for term in recipe.distill.losses if term.weight > 0}
    assert terms & NEEDS_TEACHER and terms - NEEDS_TEACHER, "the control learns from the terms without a teacher"
    assert any(rule.metric.endswith("_drop") and rule.against == "teacher" for rule in recipe.gate)
    smoke = load_recipe(name, smoke=True)
    assert smoke.data.root == "" and smoke.data.name not in NEEDS_ROOT


@functools.cache
def macs(model: str, side: int) -> float:
    with torch.device("meta"):
        return count_torch(build(model, num_classes=10, in_channels=1), (1, 1, side, side)).macs


@pytest.mark.parametrize("name", PAPERS)
def test_headers_say_what_the_paper_got_wrong_and_what_a_run_costs(name: str) -> None:
    header = shipped()[name].read_text(encoding="utf-8").split("\nname =")[0]
    assert "\n# Cost" in header
    if "-" not in name:
        assert "# Published" in header and "# The paper's errors, corrected here:" in header
        assert header.count("\n#   - ") >= 3
