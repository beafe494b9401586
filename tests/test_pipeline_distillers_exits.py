"""Exits: what each of them learns from, by hand; that none of it is shipped; and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_parts import CLASSES, SAMPLES, SIZE, assert_resumes, batch, config, mixed_batch, network, run, term

from pipeline.distillers.exits import Exit, Exits
from pipeline.distillers.teacher import Network
from pipeline.errors import RecipeError
from pipeline.losses import functional
from pipeline.recipe import LossTerm

BYOT = (term("cross_entropy", 0.7), term("kd", 0.3, temperature=3.0), term("hint", 0.03, student="0", teacher="2"))


def exits(terms: tuple[LossTerm, ...] = BYOT, *, paths: tuple[str, ...] = ("0", "2"), end_on_plateau: int = 0) -> Exits:
    return Exits(
        network(dropout=0.0), paths, terms,
        input_size=SIZE, num_classes=CLASSES, samples=SAMPLES, end_on_plateau=end_on_plateau,
    )  # fmt: skip


def test_it_is_the_papers_loss() -> None:
    learner = exits()
    images, tensors = batch()
    weighted, values = learner(images, tensors, epoch=0, taught=True)
    inputs = (images.float() / 255 - 0.5) / 0.25
    body = list(learner.student)  # pyright: ignore[reportArgumentType]
    first = body[0](inputs)
    second = body[2](body[1](first))
    deepest = body[5](body[4](second))
    target = tensors["target"]
    torch.testing.assert_close(weighted["cross_entropy"], F.cross_entropy(deepest, target))  # 0.7 + 0.3
    for path, feature, head in zip(("0", "2"), (first, second), learner.exits, strict=True):
        own = head(feature)
        labels, kd = F.cross_entropy(own, target), functional.kd(own, deepest.detach(), temperature=3.0)
        torch.testing.assert_close(weighted[f"{path}/cross_entropy"], 0.7 * labels)
        torch.testing.assert_close(weighted[f"{path}/kd"], 0.3 * kd)
        torch.testing.assert_close(values[f"{path}/kd"], kd.detach())
    torch.testing.assert_close(weighted["hint"], 0.03 * F.mse_loss(first, second.detach()))
    assert len(weighted) == 6


def test_mixed_images_teach_every_exit_by_their_mixed_labels(tmp_path: Path) -> None:
    learner = exits()
    images, tensors = mixed_batch()
    weighted, _ = learner(images, tensors, epoch=0, taught=True)
    body: nn.Sequential = learner.student  # pyright: ignore
    inputs = (images.float() / 255 - 0.5) / 0.25
    deepest, target = body(inputs).log_softmax(1), tensors["target"]
    torch.testing.assert_close(weighted["cross_entropy"], -(target * deepest).sum(1).mean())
    own = learner.exits[0](body[0](inputs)).log_softmax(1)
    torch.testing.assert_close(weighted["0/cross_entropy"], 0.7 * -(target * own).sum(1).mean())
    settings = config(augment={"seed": 3, "mixup": 1.0, "cutmix": 1.0})
    state, result = run(tmp_path, exits, settings)
    assert {"cross_entropy", "hint", "0/cross_entropy", "0/kd", "2/kd"} <= set(result.curve[-1]["terms"])
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_the_deepest_output_is_not_drawn_to_its_exits() -> None:
    learner = exits()
    weighted, _ = learner(*batch(), epoch=0, taught=True)
    (weighted["0/kd"] + weighted["2/kd"] + weighted["hint"]).backward()
    classifier: nn.Linear = learner.student[5]  # pyright: ignore
    assert classifier.weight.grad is None
    assert learner.student[0].weight.grad is not None, "what lies before an exit learns from it"  # pyright: ignore


@pytest.mark.parametrize(
    ("weights", "deepest"), [((0.7, 0.3), 1.0), ((0.1, 0.9), 1.0), ((1.0, 1.0), 2.0), ((1.0, 0.0), 1.0)]
)
def test_the_deepest_labels_weigh_what_an_exits_terms_do(weights: tuple[float, float], deepest: float) -> None:
    learner = exits((term("cross_entropy", weights[0]), term("kd", weights[1])))
    weighted, values = learner(*batch(), epoch=0, taught=True)
    torch.testing.assert_close(weighted["cross_entropy"].detach(), deepest * values["cross_entropy"])


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 1, 1), (7,)])
def test_an_exit_takes_maps_and_vectors(shape: tuple[int, ...]) -> None:
    assert Exit(shape, 5)(torch.randn(3, *shape)).shape == (3, 5)


def test_no_exit_is_shipped(tmp_path: Path) -> None:
    plain = network().module.state_dict()
    state, result = run(tmp_path, exits, config())
    assert state.keys() == plain.keys() and all(state[name].shape == plain[name].shape for name in plain)
    assert set(result.curve[0]["gradient_norms"]) == set(result.curve[0]["terms"]) and result.teacher_share is None
    reborn = network().module
    reborn.load_state_dict(state)
    assert not any(module._forward_hooks for module in reborn.modules())


def test_teaching_ends_and_labels_go_on() -> None:
    learner = exits((term("cross_entropy"), term("kd", until_epoch=1)))
    assert [learner.taught(epoch, []) for epoch in range(3)] == [True, False, False]
    weighted, _ = learner(*batch(), epoch=1, taught=False)
    assert set(weighted) == {"cross_entropy", "0/cross_entropy", "2/cross_entropy"}
    assert not exits(end_on_plateau=1).taught(2, [0.5, 0.4])


@pytest.mark.parametrize(
    ("paths", "line"),
    [
        (("convolution",), "distill.exits: the network has no module 'convolution'; its parts are 0, 1, 2, 3, 4, 5"),
        (("0.0",), "distill.exits: the network has no module '0.0'; its parts are 0, 1, 2, 3, 4, 5"),
    ],
)
def test_a_path_that_does_not_exist(paths: tuple[str, ...], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        exits(paths=paths)
    assert str(caught.value) == line


class Tokens(nn.Module):
    """(B, 64, 4) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.split = nn.Flatten(2)
        self.mix = nn.Linear(64, 4)
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.mix(self.split(images)).mean(1))


def test_a_part_behind_which_no_exit_can_be_put() -> None:
    part = Network(module=Tokens(), mean=(0.5,), std=(0.25,))
    with pytest.raises(RecipeError) as caught:
        Exits(part, ("mix",), BYOT[:2], input_size=SIZE, num_classes=CLASSES)
    assert str(caught.value) == "distill.exits: 'mix' gives 1x4; name a module that gives a map or a vector"


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "ema": 0.5}, {"optimizer": "adamw", "lr": 0.01}])
def test_interrupted_anywhere_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    def make() -> Exits:
        return Exits(network(), ("0", "2"), BYOT, input_size=SIZE, num_classes=CLASSES)

    assert_resumes(monkeypatch, tmp_path, make, config(**changes))
