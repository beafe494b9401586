"""Who teaches whom, and until when: what a recipe refuses, with which words, and what generations make of [distill]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.recipe_file import check_files, load_recipe, validate
from pipeline.stages import distill, teacher
from pipeline.stages.lesson import Lesson, lessons

R20, R8, HALF = "cifar-resnet20", "mlperf-resnet8", "pruned:cifar-resnet20?macs=0.5"
CE, KD, DKD = ({"loss": name, "weight": 1.0} for name in ("cross_entropy", "kd", "dkd"))
PEERS = {"mode": "online", "peers": [{"model": R8}], "losses": [CE, KD]}
EXITS = {"mode": "self", "exits": ["layer1"], "losses": [CE, KD]}


def values(**changes: Any) -> dict[str, Any]:
    tables = {"name": "mine", "data": {"name": "digits"}, "teacher": {"model": R20}, "student": {"model": R8}}
    return tables | changes


def made(**changes: Any) -> Recipe:
    return validate(values(**changes), "mine.toml")


def refusal(**changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        made(**changes)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value).removeprefix("mine.toml: ")


def of_distill(**changes: Any) -> str:
    return refusal(distill=changes).removeprefix("distill: ")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mode": "online"}, "mode = 'online' needs the other students: peers = [{ model = 'cifar-resnet20' }]"),
    ({"mode": "self"}, "mode = 'self' needs module paths, after each of which an exit is put: exits = ['layer1']"),
    (
        {"peers": [{"model": R8}]},
        "peers are for mode = 'online', and mode is 'offline'; change mode or leave peers out",
    ),
    (PEERS | {"exits": ["a"]}, "exits are for mode = 'self', and mode is 'online'; change mode or leave exits out"),
    (EXITS | {"exits": ["a", "b", "a"]}, "exits: 'a' is given twice; leave one out"),
    (
        PEERS | {"peers": [{"model": R8, "weights": "teacher"}]},
        "peers.0: weights = 'teacher' is for the student; name a file or leave them out",
    ),
    (PEERS | {"losses": [CE]}, "losses: mode = 'online' without a term that teaches; add one such as kd"),
    (EXITS | {"losses": [KD]}, "losses: mode = 'self' needs a term on the labels, such as cross_entropy"),
    (
        EXITS | {"teacher_outputs": "table"},
        "teacher_outputs: with mode = 'self' no teacher is asked, so there is no table; leave teacher_outputs out",
    ),
    (
        {"teacher_outputs": "live", "table": "elsewhere"},
        "table is not read with teacher_outputs = 'live'; leave one of them out",
    ),
    (
        {"epochs": 9, "losses": [KD | {"until_epoch": 10}, CE]},
        "losses.0: until_epoch = 10 is beyond epochs = 9; leave it out for a term that never ends",
    ),
    (
        {"losses": [CE, KD | {"until_epoch": 4, "warmup_epochs": 5.5}]},
        "losses.1: warmup_epochs = 5.5 is beyond until_epoch = 4; the term would end before it has its whole weight",
    ),
    (
        {"epochs": 9, "losses": [KD | {"until_epoch": 4}]},
        (
            "losses: every term ends before the last of epochs = 9; let one go on that needs no teacher, "
            "such as { loss = 'cross_entropy', weight = 1.0 }"
        ),
    ),
    (
        {"epochs": 9, "losses": [KD, CE | {"until_epoch": 8}], "end_on_plateau": 2},
        (
            "losses: every term ends before the last of epochs = 9; let one go on that needs no teacher, "
            "such as { loss = 'cross_entropy', weight = 1.0 }"
        ),
    ),
    (
        {"losses": [CE, DKD], "augment": {"cutmix": 1.0}},
        (
            "losses.1: loss 'dkd' needs one true class an image; leave augment.mixup and augment.cutmix out, or take a "
            "loss that does without, such as kd"
        ),
    ),
]


@pytest.mark.parametrize(("table", "line"), REFUSED, ids=range(len(REFUSED)))
def test_a_lesson_that_cannot_be_is_refused(table: dict[str, Any], line: str) -> None:
    assert of_distill(**table) == line


@pytest.mark.parametrize(
    "table",
    [
        PEERS,
        EXITS,
        {"epochs": 9, "losses": [KD | {"until_epoch": 9, "warmup_epochs": 9}]},
        {"losses": [KD | {"until_epoch": 3}, CE], "end_on_plateau": 2},
        {"losses": [KD | {"temperature": 1.0}], "augment": {"mixup": 1.0, "cutmix": 1.0}},
        {"losses": [DKD, CE], "augment": {"mixup": 1.0, "mix_probability": 0.0}},
        {"losses": [DKD | {"weight": 0.0}, CE], "augment": {"mixup": 1.0}},
    ],
)
def test_a_lesson_that_can_be_is_accepted(table: dict[str, Any]) -> None:
    assert made(distill=table)


def test_images_without_labels_need_losses_that_do_without() -> None:
    line = (
        "{}.losses.0: loss 'dkd' needs the true class of every image; leave data.unlabelled out, or take a loss that "
        "does without, such as kd"
    )
    data = {"name": "digits", "unlabelled": "photos"}
    assert refusal(data=data, distill={"losses": [DKD, CE]}) == line.format("distill")
    assert refusal(data=data, generation=[{"model": R8, "distill": {"losses": [DKD]}}]) == line.format(
        "generation.0.distill"
    )
    assert made(data=data, distill={"losses": [KD]})


def test_generations_that_teach_nobody_are_refused() -> None:
    first = {"model": R20}
    assert refusal(generation=[first], distill=PEERS) == (
        "distill.mode = 'online' asks nobody outside, so generation.0 would teach nobody; set distill.mode = "
        "'offline' or leave generation.0 out"
    )
    second = {"model": R8, "distill": EXITS}
    assert refusal(generation=[first, second]) == (
        "generation.1.distill.mode = 'self' asks nobody outside, so generation.0 would teach nobody; set "
        "generation.1.distill.mode = 'offline' or leave generation.0 out"
    )
    assert refusal(teacher={"model": R20, "others": [{"model": R8}]}, distill=EXITS) == (
        "distill.mode = 'self' asks nobody outside, so teacher.others would teach nobody; leave them out"
    )
    assert [lesson.distill.mode for lesson in lessons(made(generation=[second]))] == ["self", "offline"]


@pytest.mark.parametrize(
    ("generation", "line"),
    [
        ({"model": R8, "distill": {"epoch": 3}}, "generation.0.distill: unknown key 'epoch'; did you mean 'epochs'?"),
        (
            {"model": R8, "distill": {"augment": {"mixup": -1}}},
            "generation.0.distill.augment.mixup: got -1; it must be at least 0",
        ),
        (
            {"model": R8, "distill": {"losses": [KD | {"until_epoch": 99}]}},
            (
                "generation.0.distill: losses.0: until_epoch = 99 is beyond epochs = 30; leave it out for a term "
                "that never ends"
            ),
        ),
        (
            {"model": R8, "distill": {"repeats": 3}},
            "generation.0.distill: 'repeats' is for the student alone; leave it out here",
        ),
        (
            {"model": "mlperf-resnet9"},
            "generation.0.model: unknown model 'mlperf-resnet9'; did you mean 'mlperf-resnet8'?",
        ),
    ],
)
def test_a_mistake_in_a_generation_is_one_line(generation: dict[str, Any], line: str) -> None:
    assert refusal(generation=[generation]) == line


def test_a_generation_lays_its_own_values_over_distill_table_by_table() -> None:
    recipe = made(
        distill={"epochs": 20, "lr": 0.2, "losses": [KD, CE], "augment": {"flip": True, "mixup": 0.5}},
        generation=[{"model": R20, "distill": {"epochs": 5, "augment": {"mixup": 0.1}}}, {"model": R20}],
    )
    first, second, last = lessons(recipe)
    assert (first.distill.epochs, first.distill.lr, first.distill.losses) == (5, 0.2, recipe.distill.losses)
    assert (first.distill.augment.flip, first.distill.augment.mixup) == (True, 0.1)
    assert second.distill == last.distill == recipe.distill
    assert [(lesson.name, lesson.teachers, lesson.teacher_model) for lesson in (first, second, last)] == [
        ("generation1", ("teacher",), R20),
        ("generation2", ("generation1",), R20),
        ("distill", ("generation2",), R20),
    ]


def test_set_reaches_a_generation_and_is_named_where_it_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "mine"\ndata.name = "digits"\nteacher.model = "{R20}"\nstudent.model = "{R8}"\n'
        f'[[generation]]\nmodel = "{R8}"\n'
    )
    assert lessons(load_recipe(path, ["generation.0.distill.epochs=3"]))[0].distill.epochs == 3
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["generation.0.distill.epochs=x"])
    assert str(caught.value) == "--set: generation.0.distill.epochs: got 'x'; expected a whole number"


@pytest.mark.parametrize(
    ("teacher_model", "student_model", "fits"),
    [(R20, R20, True), (R20, HALF, True), (HALF, HALF, True), (R20, R8, False), (HALF, R20, False)],
)
def test_a_student_that_starts_from_its_teacher_is_of_the_same_network(
    teacher_model: str, student_model: str, fits: bool
) -> None:
    tables = {"teacher": {"model": teacher_model}, "student": {"model": student_model, "weights": "teacher"}}
    if fits:
        assert lessons(made(**tables))[0].student.weights == "teacher"
        check_files(made(**tables))
        return
    assert refusal(**tables) == (
        f"student.weights = 'teacher': teacher is {teacher_model!r}, whose weights do not fit {student_model!r}; take "
        f"model = {teacher_model!r}, or 'pruned:' before it, or leave weights out"
    )


def test_options_in_another_order_name_the_same_network() -> None:
    assert made(
        teacher={"model": "cifar-resnet20?width=0.5&shortcut=A"},
        student={"model": "pruned:cifar-resnet20?shortcut=A&macs=0.5&width=0.5", "weights": "teacher"},
    )


def test_a_generation_starts_from_the_one_before_it() -> None:
    steps = [{"model": R8}, {"model": "pruned:mlperf-resnet8?macs=0.5", "weights": "teacher"}]
    assert made(generation=steps)
    assert refusal(generation=steps[1:]).startswith("generation.0.weights = 'teacher': teacher is 'cifar-resnet20', ")


def test_every_file_that_is_not_there_is_named() -> None:
    recipe = made(
        teacher={"model": R20, "weights": "a.pt", "others": [{"model": R8, "weights": "b.pt"}]},
        student={"model": R20, "weights": "teacher"},
        distill={},
        generation=[{"model": R20, "weights": "c.pt", "distill": {}}],
    )
    with pytest.raises(RecipeError) as caught:
        check_files(recipe)
    named = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert named == ["teacher.weights", "teacher.others.0.weights", "generation.0.weights"]
    with pytest.raises(RecipeError, match=r"^distill\.peers\.0\.weights: no such file 'd\.pt'"):
        check_files(made(distill=PEERS | {"peers": [{"model": R8, "weights": "d.pt"}]}))


def test_smoke_shrinks_every_network_and_keeps_every_term(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        f"""
name = "mine"
data.name = "digits"
student.model = "{R8}"
[teacher]
model = "{R20}"
[[teacher.others]]
model = "{R8}"
weights = "gone.pt"
[[generation]]
model = "{R8}"
weights = "gone.pt"
distill = {{ epochs = 9, losses = [{{ loss = "kd", weight = 1.0, warmup_epochs = 3, until_epoch = 9 }}] }}
[distill]
epochs = 40
losses = [{{ loss = "kd", weight = 1.0, until_epoch = 30 }}, {{ loss = "cross_entropy", weight = 1.0 }}]
"""
    )
    small = load_recipe(path, smoke=True)
    check_files(small)
    assert [lesson.distill.epochs for lesson in lessons(small)] == [1, 1]
    terms = [term for lesson in lessons(small) for term in lesson.distill.losses]
    assert [term.loss for term in terms] == ["kd", "kd", "cross_entropy"]
    assert not any(term.until_epoch or term.warmup_epochs for term in terms)
    load_recipe(path)


def stages(recipe: Recipe) -> dict[str, Any]:
    return {stage.name: stage for stage in (*teacher.stages(recipe), *distill.stages(recipe))}


def test_networks_of_one_kind_are_drawn_from_seeds_of_their_own() -> None:
    recipe = made(
        teacher={"model": R8, "others": [{"model": R8}, {"model": R8}]}, generation=[{"model": R8}, {"model": R8}]
    )
    found = stages(recipe)
    names = ("teacher", "teacher2", "teacher3", "generation1", "generation2")
    assert len({found[name].config["seed"] for name in names}) == 5
    assert found["distill"].config["seed"] == found["control"].config["seed"] == recipe.seed == 0


def test_lessons_without_an_outside_teacher_need_none() -> None:
    for table in (PEERS, EXITS):
        found = stages(made(distill=table))
        assert found["distill"].needs == found["control"].needs == ("data",), "the teacher is the gate's baseline"
        assert not any(name.startswith("table") for name in found)
    assert stages(made(distill=PEERS))["distill"].config["distill"]["peers"] == [{"model": R8, "weights": ""}]
    assert "peers" not in stages(made(distill=PEERS))["control"].config["distill"]


def test_a_lesson_knows_whether_it_is_taught() -> None:
    kinds = [({}, True), ({"losses": [CE]}, False), (PEERS, False), (EXITS, False)]
    for table, taught in kinds:
        (lesson,) = lessons(made(distill=table))
        assert isinstance(lesson, Lesson) and lesson.taught == taught
