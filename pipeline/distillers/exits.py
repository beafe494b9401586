"""One network that teaches itself: Zhang, Song, Gao, Chen, Bao, Ma, "Be Your Own Teacher", 2019 (arXiv 1905.08094).

    L = labels(deepest) + sum over exits i of [labels(exit i) + teacher terms(exit i, deepest)] + feature terms

Exits are small classifiers behind the named modules; they are trained with the network and never leave training.

Conventions: the deepest output is detached where it teaches. It has no teacher itself, so what its logit terms would
weigh goes to its labels: with cross_entropy 0.7 and kd 0.3 every exit gets the paper's (1 - a) CE + a KL, a = 0.3, and
the deepest one CE (a = 0). A feature term counts once, between the modules of this one network that it names under
`student` and `teacher`, the latter detached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.distillers.learner import Learner, Losses, autocast, named_outputs
from pipeline.distillers.mutual import active
from pipeline.distillers.objective import Objective, tapped
from pipeline.distillers.offline import waited_longest
from pipeline.distillers.taps import Shape, Taps, shapes_of
from pipeline.distillers.teacher import LOGITS, Network
from pipeline.errors import RecipeError
from pipeline.losses import NEEDS_TEACHER, TAPS

if TYPE_CHECKING:
    from pipeline.recipe import LossTerm


class Exit(nn.Module):
    """A map (B, C, H, W), or a vector (B, D), to logits (B, num_classes): one 3x3 convolution of stride 2 to twice the
    channels, BatchNorm and ReLU for a map, then the mean over its places and a linear layer."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        width = shape[0]
        self.bottleneck: nn.Module = nn.Identity()
        if len(shape) == 3:
            width = 2 * shape[0]
            convolution = nn.Conv2d(shape[0], width, 3, stride=2, padding=1, bias=False)
            self.bottleneck = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
        self.linear = nn.Linear(width, num_classes)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        feature = self.bottleneck(feature)
        return self.linear(feature.mean((2, 3)) if feature.ndim == 4 else feature)


class Exits(Learner):
    """Terms of the deepest output and of features keep their names; an exit's are called `layer1/kd` and so on."""

    asks_teacher = False

    def __init__(
        self,
        student: Network,
        exits: Sequence[str],
        terms: Sequence[LossTerm],
        *,
        input_size: Shape,
        num_classes: int,
        samples: int = 0,
        end_on_plateau: int = 0,
    ) -> None:
        """`exits`: module paths of the student, one or more. Raises `RecipeError` with one line for paths that do not
        exist, for parts behind which no exit can be put, and for features that cannot be compared."""
        super().__init__(student)
        assert exits, "nobody to teach"
        self.paths = tuple(exits)
        self.end_on_plateau = end_on_plateau
        module = self.student
        shapes = shapes_of(module, exits, input_size, where="distill.exits")
        for path, shape in shapes.items():
            if len(shape) not in (1, 3):
                shown = "x".join(map(str, shape))
                raise RecipeError(f"distill.exits: {path!r} gives {shown}; name a module that gives a map or a vector")
        self.exits = nn.ModuleList(Exit(shapes[path], num_classes) for path in self.paths)
        inner = [term for term in terms if term.loss in TAPS]
        outer = [term for term in terms if term.loss not in TAPS]
        for side in ("student", "teacher"):
            paths = tapped(inner, side)
            shapes |= shapes_of(module, paths, input_size, where=f"distill.losses: {side}") if paths else {}
        self.deepest = Objective(without_teacher(outer))
        self.objectives = nn.ModuleList(Objective(outer) for _ in self.paths)
        self.features = Objective(
            inner, student_shapes=shapes, teacher_shapes=shapes, samples=samples, num_classes=num_classes
        )
        self.taps = Taps(module, tuple(shapes))
        self.taps.dry_run(module, input_size)

    def taught(self, epoch: int, accuracies: list[float]) -> bool:
        objectives: list[Any] = [self.objectives[0], self.features]
        if not any(objective.taught(epoch) for objective in objectives):
            return False
        return not self.end_on_plateau or waited_longest(accuracies) < self.end_on_plateau

    def forward(self, images: torch.Tensor, tensors: Mapping[str, Any], *, epoch: int, taught: bool) -> Losses:
        logits = self.run(self.student, images, self.mean, self.std)
        features = self.taps.take()
        answer = named_outputs({LOGITS: logits.detach().float()})
        found = [("", self.deepest, dict(tensors) | named_outputs({LOGITS: logits}, "student"))]
        for path, head, objective in zip(self.paths, self.exits, self.objectives, strict=True):
            with autocast(images.device, self.dtype):
                own = head(features[path])
            found.append(
                (f"{path}/", objective, dict(tensors) | answer | named_outputs({LOGITS: own}, "student"))  # pyright: ignore[reportArgumentType]
            )
        taught_by = named_outputs({path: feature.detach().float() for path, feature in features.items()})
        found.append(("", self.features, dict(tensors) | taught_by | named_outputs(features, "student")))
        weighted: dict[str, torch.Tensor] = {}
        values: dict[str, torch.Tensor] = {}
        for prefix, objective, seen in found:
            if not active(objective, epoch, taught=taught):
                continue
            for into, part in zip((weighted, values), objective(seen, epoch=epoch, taught=taught), strict=True):
                into.update({prefix + name: value for name, value in part.items()})
        return weighted, values


def without_teacher(terms: Sequence[LossTerm]) -> list[LossTerm]:
    """The terms on the labels, with weights raised so that they sum to what all terms weighed together."""
    labels = [term for term in terms if term.loss not in NEEDS_TEACHER]
    weight = sum(term.weight for term in labels)
    assert weight > 0, "the deepest output learns from labels"
    factor = sum(term.weight for term in terms) / weight
    return [term.model_copy(update={"weight": factor * term.weight}) for term in labels]
