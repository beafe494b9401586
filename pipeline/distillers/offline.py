"""One student under a fixed teacher, or under none: the usual way, and that of teachers and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.distillers.learner import Learner, Losses, named_outputs
from pipeline.distillers.objective import Objective, tapped
from pipeline.distillers.taps import Shape, Taps, shapes_of
from pipeline.distillers.teacher import LOGITS, Network

if TYPE_CHECKING:
    from pipeline.recipe import LossTerm


class Offline(Learner):
    """`end_on_plateau`: all teaching ends after so many epochs without a better validation accuracy; 0: never."""

    def __init__(
        self, student: Network, objective: Objective, *, student_taps: Sequence[str] = (), end_on_plateau: int = 0
    ) -> None:
        super().__init__(student)
        self.objective = objective
        self.taps = Taps(self.student, student_taps)
        self.teacher_taps = tuple(dict.fromkeys(path for term in objective.terms for path in term.teacher))
        self.end_on_plateau = end_on_plateau

    def taught(self, epoch: int, accuracies: list[float]) -> bool:
        if not self.objective.taught(epoch):
            return False
        patience = self.end_on_plateau
        return not patience or waited_longest(accuracies) < patience

    def forward(self, images: torch.Tensor, tensors: Mapping[str, Any], *, epoch: int, taught: bool) -> Losses:
        outputs = {LOGITS: self.run(self.student, images, self.mean, self.std)} | self.taps.take()
        return self.objective(dict(tensors) | named_outputs(outputs, "student"), epoch=epoch, taught=taught)


def waited_longest(accuracies: Sequence[float]) -> int:
    """The longest row of epochs so far that were no better than the best before them: once ended, ended for good."""
    best, waited, longest = float("-inf"), 0, 0
    for accuracy in accuracies:
        waited = 0 if accuracy > best else waited + 1
        best, longest = max(best, accuracy), max(longest, waited)
    return longest


def offline(
    student: Network,
    terms: Sequence[LossTerm],
    *,
    teacher: nn.Module | None = None,
    input_size: Shape = (),
    samples: int = 0,
    num_classes: int = 0,
    end_on_plateau: int = 0,
) -> Offline:
    """The learner of these terms. Paths are checked, and shapes found by a dry run of both networks.

    Raises `RecipeError` with one line for paths that do not exist or features that cannot be compared.
    """
    taps = tapped(terms, "student")
    student_shapes: dict[str, Shape] = {}
    teacher_shapes: dict[str, Shape] = {}
    if taps:
        assert teacher is not None and input_size, "features are compared with a teacher's"
        student_shapes = shapes_of(student.module, taps, input_size, where="distill.losses: student")
        teacher_shapes = shapes_of(teacher, tapped(terms, "teacher"), input_size, where="distill.losses: teacher")
    objective = Objective(
        terms, student_shapes=student_shapes, teacher_shapes=teacher_shapes, samples=samples, num_classes=num_classes
    )
    learner = Offline(student, objective, student_taps=taps, end_on_plateau=end_on_plateau)
    if taps:
        learner.taps.dry_run(learner.student, input_size)
    return learner
