"""Teaching that ends, several teachers, frozen parts, the head's own rate, and how hard each term pulls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_parts import CLASSES, SIZE, assert_resumes, batch, config, images, network, run, term

from pipeline.data.view import View
from pipeline.distillers.offline import Offline, offline, waited_longest
from pipeline.distillers.teacher import LOGITS, AveragedTeachers, LiveTeacher
from pipeline.errors import RecipeError, UserError
from pipeline.progress import TrainingDisplay, percent, shares
from pipeline.recipe import Distill, LossTerm
from pipeline.training.optimizer import EIGHT_BIT, gradient_norms, make_optimizer
from pipeline.training.train import train

CE, KD = term("cross_entropy"), term("kd")
CPU = torch.device("cpu")


def live(seed: int = 9, **more: Any) -> LiveTeacher:
    return LiveTeacher(network(seed), dtype=torch.float32, device=CPU, **more)


class Counted:
    """A teacher that counts how often it is asked."""

    def __init__(self) -> None:
        self.teacher, self.calls = live(), 0

    def __call__(self, view: View) -> dict[str, torch.Tensor]:
        self.calls += 1
        return self.teacher(view)


def student(*terms: LossTerm, end_on_plateau: int = 0) -> Offline:
    return offline(network(), terms, end_on_plateau=end_on_plateau)


def test_a_term_ends_at_its_epoch_and_the_teacher_is_asked_no_more(tmp_path: Path) -> None:
    teacher = Counted()
    _, result = run(tmp_path, lambda: student(CE, term("kd", until_epoch=2)), config(), teacher=teacher)
    assert [set(row["terms"]) for row in result.curve] == [{"cross_entropy", "kd"}] * 2 + [{"cross_entropy"}]
    assert teacher.calls == 10, "five steps in each of two epochs"


def test_one_of_two_terms_ends(tmp_path: Path) -> None:
    teacher = Counted()
    terms = (term("kd", until_epoch=1), term("kd_standardized"))
    _, result = run(tmp_path, lambda: student(*terms), config(), teacher=teacher)
    assert [set(row["terms"]) for row in result.curve] == [{"kd", "kd_standardized"}, *[{"kd_standardized"}] * 2]
    assert teacher.calls == 15


def test_all_teaching_ends_on_a_plateau_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([0.5, 0.6, 0.6, 0.5, 0.9, 0.95])
    monkeypatch.setattr("pipeline.training.train.validation_accuracy", lambda *a, **k: next(given))
    teacher = Counted()
    _, result = run(tmp_path, lambda: student(CE, KD, end_on_plateau=2), config(epochs=6), teacher=teacher)
    assert ["kd" in row["terms"] for row in result.curve] == [True] * 4 + [False] * 2
    assert teacher.calls == 20


@pytest.mark.parametrize(
    ("accuracies", "waited"), [([], 0), ([0.1], 0), ([0.1, 0.1], 1), ([0.3, 0.2, 0.1, 0.4, 0.3], 2), ([0.1, 0.2], 0)]
)
def test_the_longest_wait(accuracies: list[float], waited: int) -> None:
    assert waited_longest(accuracies) == waited


def test_teaching_that_ended_stays_ended_when_a_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_resumes(
        monkeypatch,
        tmp_path,
        lambda: student(CE, term("kd", until_epoch=1, warmup_epochs=1.0)),
        config(),
        teacher=live(),
    )


def test_a_warm_up_raises_the_weight_line_by_line() -> None:
    learner = student(CE, term("kd", 2.0, warmup_epochs=4.0))
    pixels, tensors = batch()
    tensors["teacher_logits"] = torch.randn(8, CLASSES)
    found = [learner(pixels, tensors, epoch=epoch, taught=True) for epoch in range(6)]
    ratios = [float(weighted["kd"].detach() / values["kd"]) for weighted, values in found]
    assert ratios == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0, 0.5)])
def test_several_teachers_are_one_with_the_mean_of_their_logits(weights: tuple[float, ...]) -> None:
    teachers = [live(seed, taps=("0",) if seed == 0 else ()) for seed in range(len(weights))]
    pixels, _ = batch()
    view = View(images=pixels, sample_ids=np.arange(8), epoch=0)
    each = [teacher(view) for teacher in teachers]
    mean = AveragedTeachers(teachers, weights)(view)
    wanted = sum(weight * answer[LOGITS] for weight, answer in zip(weights, each, strict=True)) / sum(weights)
    torch.testing.assert_close(mean[LOGITS], wanted)
    assert mean.keys() == {LOGITS, "0"} and torch.equal(mean["0"], each[0]["0"]), "features are the first one's"
    assert not any(value.requires_grad or value.is_inference() for value in mean.values())


def test_a_frozen_part_does_not_move_and_its_statistics_neither(tmp_path: Path) -> None:
    before = network().module.state_dict()
    state, _ = run(tmp_path, lambda: student(CE), config(freeze=["0", "1"], weight_decay=0.1))
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], state[name])}
    assert moved == {"5"}
    assert state["1.num_batches_tracked"] == 0


def test_resuming_with_a_frozen_part_and_a_rate_for_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(freeze=["0", "1"], head_lr=0.2, optimizer="adamw", lr=0.01)
    assert_resumes(monkeypatch, tmp_path, lambda: student(CE), settings)


@pytest.mark.parametrize(
    ("paths", "line"),
    [
        (["layer1"], "freeze: the network has no 'layer1'; it begins with 0, 1, 2, 3, 4, 5"),
        (["0", "1", "5"], "freeze: 0, 1, 5 leave nothing to train; freeze fewer"),
    ],
)
def test_what_cannot_be_frozen(tmp_path: Path, paths: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, lambda: student(CE), config(freeze=paths))
    assert str(caught.value) == line


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_head_has_a_rate_of_its_own(name: str) -> None:
    terms = (CE, term("hint", student="0", teacher="0"))
    learner = offline(network(), terms, teacher=network(1, width=6).module, input_size=SIZE)
    settings = config(optimizer=name, lr=0.01, head_lr=0.05, weight_decay=0.1)
    optimizer = make_optimizer(learner, settings)
    found = {id(p): (g["factor"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    names = {key: found.pop(id(p)) for key, p in learner.named_parameters()}
    assert not found
    assert names.pop("student.5.weight") == (5.0, 0.1) and names.pop("student.5.bias") == (5.0, 0.0)
    assert {factor for factor, _ in names.values()} == {1.0}, "adapters take lr"
    decayed = {key for key, (_, decay) in names.items() if decay}
    assert decayed == {"student.0.weight", "objective.adapters.hint.0.convolution.weight"}


def test_a_step_of_the_head_is_as_much_longer_as_its_rate(tmp_path: Path) -> None:
    plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "schedule": "constant", "epochs": 1}
    before = network().module.state_dict()
    moved = []
    for place, changes in enumerate(({}, {"head_lr": 0.005})):
        learner = student(CE)
        data = images()
        one = type(data)(images=data.images, train=data.train[:8], validation=data.validation, num_classes=CLASSES)
        train(
            learner, config(**plain | changes, lr=0.001), one, folder=tmp_path / str(place), key="k", seed=7,
            say=lambda line: None, label="distill", device=CPU,
        )  # fmt: skip
        after = learner.student.state_dict()
        moved.append({name: after[name] - before[name] for name in ("0.weight", "5.weight")})
    torch.testing.assert_close(moved[1]["0.weight"], moved[0]["0.weight"])
    torch.testing.assert_close(moved[1]["5.weight"], 5 * moved[0]["5.weight"], rtol=1e-3, atol=1e-7)


def test_a_network_without_a_classifier_has_no_head() -> None:
    part = network()
    part.module[5] = nn.Identity()  # pyright: ignore[reportIndexIssue]
    with pytest.raises(UserError, match=r"^head_lr: the network has no linear layer that could be its classifier; "):
        make_optimizer(Offline(part, offline(network(), (CE,)).objective), config(head_lr=0.1))


def runs_bitsandbytes() -> bool:
    """Asked of the library itself, so that a mistake of ours is no reason to skip."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.ones_like(weight)
    try:
        bitsandbytes.optim.Adam8bit([weight]).step()
    except (RuntimeError, NotImplementedError, AttributeError, OSError):
        return False
    return True


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_optimizers_with_states_of_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if not runs_bitsandbytes():
        pytest.skip("bitsandbytes has no kernels for this machine")

    def wide() -> Offline:
        return offline(network(width=64), (CE,))  # 12,288 weights in the classifier: more than are kept in 32 bits

    settings = config(optimizer=name, lr=0.001, weight_decay=0.01)
    optimizer = make_optimizer(wide(), settings)
    assert_resumes(monkeypatch, tmp_path, wide, settings)
    _, eight = run(tmp_path / "eight", wide, settings)
    _, whole = run(tmp_path / "whole", wide, config(**settings.model_dump(mode="json") | {"optimizer": "adamw"}))
    losses = [row["train_loss"] for row in eight.curve], [row["train_loss"] for row in whole.curve]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_a_library_without_kernels_is_said_before_training(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise NotImplementedError("no kernel for this device\nand a stack")

    monkeypatch.setattr(bitsandbytes.optim, EIGHT_BIT[name], Broken)
    with pytest.raises(UserError) as caught:
        make_optimizer(student(CE), config(optimizer=name))
    assert str(caught.value) == (
        f"optimizer = '{name}': bitsandbytes does not run on cpu here (no kernel for this device); pip install -U "
        f"bitsandbytes, or set optimizer = '{name.removesuffix('8bit')}'"
    )


def test_gradient_norms_are_those_of_each_term_alone() -> None:
    module = nn.Linear(3, 2, bias=False)
    inputs = torch.tensor([[1.0, 2.0, 2.0]])
    terms = {"first": module(inputs)[0, 0], "second": 4 * module(inputs)[0, 1], "elsewhere": torch.ones(1).sum()}
    assert gradient_norms(module, terms) == pytest.approx({"first": 3.0, "second": 12.0})
    assert module.weight.grad is None


def test_shares_of_the_gradient() -> None:
    assert shares({"kd": 3.0, "cross_entropy": 1.0}) == {"kd": 0.75, "cross_entropy": 0.25}
    assert (
        shares({"kd": 3.0}) == shares({}) == shares({"a": 0.0, "b": 0.0}) == shares({"a": 1.0, "b": float("nan")}) == {}
    )
    shown = [percent(value) for value in (1.0, 0.97, 0.0951, 0.00994, 0.004, 0.0004, 0.0)]
    assert shown == ["100 %", "97 %", "10 %", "1.0 %", "0.4 %", "<0.1 %", "<0.1 %"]


def row(epoch: int, norms: dict[str, float]) -> dict[str, Any]:
    figures = {"val_accuracy": 0.5, "images_per_s": 1000.0, "data_wait": 0.01, "gradient_norms": norms}
    return {"epoch": epoch, "terms": {"kd": 2.0, "hint": 0.5}} | figures


def test_the_line_of_an_epoch_and_one_warning_for_a_drowned_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.progress.interactive", lambda: False)
    said: list[str] = []
    display = TrainingDisplay("distill", epochs=9, samples=1, done=0, say=said.append, settled=2.0)
    for epoch, norms in enumerate(({"kd": 0.996, "hint": 0.004},) * 3 + ({},), 1):
        display.epoch(row(epoch, norms), left_s=61.0)
    tail = "validation 50.00%  1,000 images/s  data wait 1%  1:01 left"
    assert said == [
        f"distill: epoch 1/9  kd 2.0000  hint 0.5000  gradient kd 100 %, hint 0.4 %  {tail}",  # it still warms up
        f"distill: epoch 2/9  kd 2.0000  hint 0.5000  gradient kd 100 %, hint 0.4 %  {tail}",
        "distill: hint's gradient is 0.4 % of the objective's: raise its weight or leave it out",
        f"distill: epoch 3/9  kd 2.0000  hint 0.5000  gradient kd 100 %, hint 0.4 %  {tail}",
        f"distill: epoch 4/9  kd 2.0000  hint 0.5000  {tail}",
    ]


def test_a_run_says_the_shares_and_warns(tmp_path: Path) -> None:
    said: list[str] = []
    terms = (term("cross_entropy", 1000.0), term("kd", 0.01))
    settings = Distill.model_validate(config().model_dump(mode="json") | {"losses": list(terms)})
    run(tmp_path, lambda: student(*terms), settings, teacher=live(), say=said.append)
    assert "  gradient cross_entropy 100 %, kd <0.1 %  " in said[0]
    assert [line for line in said if "raise" in line] == [
        "distill: kd's gradient is <0.1 % of the objective's: raise its weight or leave it out"
    ]


def test_an_adapter_is_not_shipped(tmp_path: Path) -> None:
    terms = (CE, term("hint", student="0", teacher="0"))
    teacher = network(1, width=6)

    def make() -> Offline:
        return offline(network(), terms, teacher=teacher.module, input_size=SIZE)

    answers = LiveTeacher(teacher, dtype=torch.float32, device=CPU, taps=("0",))
    state, _ = run(tmp_path, make, config(), teacher=answers)
    assert state.keys() == network().module.state_dict().keys()
    with pytest.raises(RecipeError):
        offline(
            network(),
            (term("hint", student="0", teacher="0", adapter="none"),),
            teacher=teacher.module,
            input_size=SIZE,
        )
