"""Features by hooks are what the module made, whatever later layers write over them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from training_parts import CLASSES, SIZE, batch, term

from pipeline.chain import stages
from pipeline.data.view import View
from pipeline.distillers.offline import offline
from pipeline.distillers.taps import Taps
from pipeline.distillers.teacher import LiveTeacher, Network
from pipeline.recipe import Recipe

CPU = torch.device("cpu")


class InPlace(nn.Module):
    """As torchvision's blocks: a batch norm, whose output a ReLU, a sum and a dropout overwrite."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.9, inplace=True)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.relu(self.norm(self.conv(images)))
        second = self.norm2(self.conv2(first))
        second += first
        hidden = self.relu(second).mean((2, 3))
        return self.head(self.drop(hidden))


def in_place() -> Network:
    torch.manual_seed(4)
    return Network(module=InPlace(), mean=(0.5,), std=(0.25,))


def test_features_are_as_they_were_made_though_later_layers_overwrite_them() -> None:
    paths, teacher = ("norm", "norm2"), in_place()
    pixels, tensors = batch()
    wanted: dict[str, torch.Tensor] = {}
    handles = []
    for path in paths:
        module = teacher.module.get_submodule(path)
        handles.append(module.register_forward_hook(lambda _, __, out, at=path: wanted.update({at: out.clone()})))
    with torch.no_grad():
        teacher.module.eval()((pixels.float() / 255 - 0.5) / 0.25)
    for handle in handles:
        handle.remove()
    assert all(float(value.min()) < -0.5 for value in wanted.values()), "a ReLU would leave nothing below 0"
    answers = LiveTeacher(in_place(), dtype=torch.float32, device=CPU, taps=paths)(
        View(images=pixels, sample_ids=np.arange(8), epoch=0)
    )
    terms = (term("cross_entropy"), *(term("hint", student=path, teacher=path) for path in paths))
    learner = offline(in_place(), terms, teacher=teacher.module, input_size=SIZE).eval()
    assert learner.taps.copied == set(paths)
    for path in paths:
        torch.testing.assert_close(answers[path], wanted[path])
    tensors |= {f"teacher:{path}": answers[path] for path in paths}
    _, values = learner(pixels, tensors, epoch=0, taught=True)
    assert max(float(values[f"hint-{index}"]) for index in (1, 2)) < 1e-10, "equal networks have equal features"


def test_a_dropout_that_overwrites_in_training_alone_is_seen() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(144, CLASSES))
    taps, before = Taps(module, ("0", "1", "3")), torch.get_rng_state()
    taps.dry_run(module, SIZE)
    assert taps.copied == {"0", "1"}
    assert module[2].training and torch.equal(torch.get_rng_state(), before)


def test_what_overwritten_features_made_is_stale_and_nothing_else() -> None:
    rkd = {"loss": "rkd", "weight": 1.0, "student": "layer3", "teacher": "layer3"}
    kd = {"loss": "kd", "weight": 1.0}

    def versions(teacher: str, *losses: dict[str, object]) -> dict[str, int]:
        distill = {"epochs": 1, "batch_size": 8, "augment": {"seed": 1}, "losses": list(losses)}
        recipe = Recipe.model_validate(
            {
                "name": "tiny",
                "seed": 0,
                "data": {"name": "digits"},
                "teacher": {"model": teacher, "train": {"epochs": 1}},
                "student": {"model": "cifar-resnet20"},
                "distill": distill,
            }
        )
        return {stage.name: stage.version for stage in stages(recipe)}

    for teacher in ("cifar-resnet56", "pruned:cifar-resnet56?macs=0.5", "torchvision:resnet18"):
        assert versions(teacher, kd).items() >= {"table": 2, "distill": 2, "control": 2}.items(), teacher
    assert versions("cifar-resnet56", kd, rkd).items() >= {"table": 2, "distill": 2}.items()
    for teacher in ("torchvision:resnet18", "pruned:torchvision:resnet18?macs=0.5"):
        assert versions(teacher, kd, rkd).items() >= {"table": 3, "distill": 3, "control": 2}.items(), teacher
