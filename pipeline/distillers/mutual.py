"""Students that teach each other: deep mutual learning, Zhang, Xiang, Hospedales, Lu, 2018 (arXiv 1706.00384).

    L_k = (terms on the labels) + 1/(K-1) * sum over l != k of (terms with a teacher, l as the teacher of k)

With cross_entropy and kd at T = 1, both of weight 1, this is the paper's L_k = CE_k + 1/(K-1) * sum KL(p_l || p_k).

Conventions: who teaches is detached. All networks are run once a batch, on the same view, and updated at the same time;
the paper updates them in turn, with one more forward pass after each. A feature loss reads `student` in the student and
`teacher` in its peers, whoever of them is teaching. The student alone is validated, averaged and shipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.distillers.learner import Learner, Losses, named_outputs
from pipeline.distillers.objective import Objective, tapped
from pipeline.distillers.offline import waited_longest
from pipeline.distillers.taps import Shape, Taps, shapes_of
from pipeline.distillers.teacher import LOGITS, Network
from pipeline.losses import NEEDS_TEACHER, TAPS

if TYPE_CHECKING:
    from pipeline.recipe import LossTerm


class Mutual(Learner):
    """Terms of the student keep their names; those of peer 1 are called `peer1/kd` and so on."""

    asks_teacher = False

    def __init__(
        self,
        student: Network,
        peers: Sequence[Network],
        terms: Sequence[LossTerm],
        *,
        input_size: Shape = (),
        samples: int = 0,
        num_classes: int = 0,
        end_on_plateau: int = 0,
    ) -> None:
        """`peers`: one or more. Paths are checked, and shapes found by a dry run of every network that has some.

        Raises `RecipeError` with one line for paths that do not exist or features that cannot be compared.
        """
        super().__init__(student)
        assert peers, "nobody to learn from"
        self.peers = nn.ModuleList(peer.module for peer in peers)
        self.statistics = [(network.mean, network.std) for network in (student, *peers)]
        self.end_on_plateau = end_on_plateau
        of_student, of_peers = tapped(terms, "student"), tapped(terms, "teacher")
        assert input_size or not of_student, "features have a shape"
        shapes: list[dict[str, Shape]] = []
        self.taps: list[Taps] = []
        for index, module in enumerate(self.networks):
            paths = of_peers if index else of_student
            where = f"distill.losses: teacher, in peer {index}" if index else "distill.losses: student"
            shapes.append(shapes_of(module, paths, input_size, where=where) if paths else {})
            self.taps.append(Taps(module, paths))
            if paths:
                self.taps[-1].dry_run(module, input_size)
        self.labels = nn.ModuleList(
            Objective([term for term in terms if term.loss not in NEEDS_TEACHER]) for _ in self.networks
        )
        # Adapters and banks belong to one pair: peers of other shapes need others.
        self.pairs = nn.ModuleDict(
            {
                pair(pupil, tutor): Objective(
                    between(terms, pupil=pupil, tutor=tutor),
                    student_shapes=shapes[pupil],
                    teacher_shapes=shapes[tutor],
                    samples=samples,
                    num_classes=num_classes,
                )
                for pupil in range(len(shapes))
                for tutor in range(len(shapes))
                if pupil != tutor
            }
        )

    @property
    def networks(self) -> list[nn.Module]:
        return [self.student, *self.peers]

    def taught(self, epoch: int, accuracies: list[float]) -> bool:
        if not self._objective(0, 1).taught(epoch):
            return False
        return not self.end_on_plateau or waited_longest(accuracies) < self.end_on_plateau

    def forward(self, images: torch.Tensor, tensors: Mapping[str, Any], *, epoch: int, taught: bool) -> Losses:
        outputs = [
            {LOGITS: self.run(module, images, *self.statistics[index])} | self.taps[index].take()
            for index, module in enumerate(self.networks)
        ]
        answers = [{name: value.detach().float() for name, value in each.items()} for each in outputs]
        weighted: dict[str, torch.Tensor] = {}
        values: dict[str, torch.Tensor] = {}
        for pupil, seen in enumerate(outputs):
            prefix = f"peer{pupil}/" if pupil else ""
            own = dict(tensors) | named_outputs(seen, "student")
            labels: Any = self.labels[pupil]
            found = [(1.0, labels(own, epoch=epoch))] if active(labels, epoch, taught=taught) else []
            tutors = [tutor for tutor in range(len(outputs)) if tutor != pupil and taught]
            for tutor in tutors:
                objective = self._objective(pupil, tutor)
                found.append(
                    (1 / len(tutors), objective(own | named_outputs(answers[tutor]), epoch=epoch, taught=True))
                )
            for share, parts in found:
                for into, part in zip((weighted, values), parts, strict=True):
                    for name, value in part.items():
                        into[prefix + name] = into.get(prefix + name, 0.0) + share * value
        return weighted, values

    def _objective(self, pupil: int, tutor: int) -> Any:
        return self.pairs[pair(pupil, tutor)]


def pair(pupil: int, tutor: int) -> str:
    return f"{pupil}-from-{tutor}"


def between(terms: Sequence[LossTerm], *, pupil: int, tutor: int) -> list[LossTerm]:
    """The terms with a teacher as `pupil` learns them from `tutor` (0 is the student): `student` names parts of the
    pupil, `teacher` parts of the tutor."""
    found = []
    for term in terms:
        if term.loss not in NEEDS_TEACHER:
            continue
        paths = (term.student, term.teacher)
        change = {"student": paths[pupil > 0], "teacher": paths[tutor > 0]} if term.loss in TAPS else {}
        found.append(term.model_copy(update=change))
    return found


def active(objective: Objective, epoch: int, *, taught: bool) -> bool:
    """Whether any of its terms counts in this epoch."""
    return any(term.weight(epoch, taught=taught) > 0 for term in objective.terms)
