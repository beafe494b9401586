"""The weighted sum of a recipe's loss terms, with what they need of their own: adapters, banks, fusion modules."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.distillers.adapters import make_adapter
from pipeline.distillers.taps import Shape, pooled
from pipeline.errors import RecipeError
from pipeline.losses import LOSSES, MATCHED, MODULES, NEEDS_TEACHER, RELATION, TAPS
from pipeline.registry import resolve

if TYPE_CHECKING:
    from pipeline.recipe import LossTerm

Tensors = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Term:
    """A loss as it is called: `names` are the tensors that its positional parameters ask for."""

    label: str
    term: LossTerm
    taught: bool
    function: Callable[..., torch.Tensor]
    names: tuple[str, ...]
    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()

    def weight(self, epoch: int, *, taught: bool) -> float:
        """Of this epoch (0-based): grows linearly over `warmup_epochs`, 0 once the term or all teaching has ended."""
        if (self.taught and not taught) or (self.term.until_epoch and epoch >= self.term.until_epoch):
            return 0.0
        warmup = self.term.warmup_epochs
        return self.term.weight * (min(1.0, (epoch + 1) / warmup) if warmup else 1.0)


class Objective(nn.Module):
    """Call with named tensors; gives the weighted terms, whose sum is to be minimised, and each term's own value.

    A loss takes the tensors that its signature names (student_logits, teacher_logits, target, sample_ids), so a new
    kind of loss needs no change here; `student_feature`, `student_features` and `student_embedding` are made of the
    features under its `student` paths, found as "student:PATH", and likewise for the teacher.

    whole: set where several processes train together; gives their rows to each of the losses `of_whole_batch`.
    """

    def __init__(
        self,
        terms: Sequence[LossTerm],
        *,
        student_shapes: Mapping[str, Shape] | None = None,
        teacher_shapes: Mapping[str, Shape] | None = None,
        samples: int = 0,
        num_classes: int = 0,
    ) -> None:
        """Shapes a sample of every tapped feature (`taps.shapes_of`); `samples` of the training set, for banks."""
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.own = nn.ModuleDict()
        self.terms: list[Term] = []
        self.of_whole_batch = RELATION
        self.whole: Callable[[Any], Any] | None = None
        active = [term for term in terms if term.weight > 0]
        for index, term in enumerate(active):
            label = f"{term.loss}-{index}" if sum(other.loss == term.loss for other in active) > 1 else term.loss
            student, teacher = paths_of(term.student), paths_of(term.teacher)
            function = resolve(LOSSES, term.loss, what="losses")
            tapped_here = term.loss in TAPS
            of_student = [(student_shapes or {})[path] for path in student if tapped_here]
            of_teacher = [(teacher_shapes or {})[path] for path in teacher if tapped_here]
            if term.loss in MODULES:
                function = function(
                    student_shapes=of_student,
                    teacher_shapes=of_teacher,
                    samples=samples,
                    num_classes=num_classes,
                    **term.options,
                )
                self.own[label] = function
            elif term.loss in MATCHED:
                self.adapters[label] = nn.ModuleList(
                    make_adapter(*pair, allowed=term.adapter == "auto", where=f"distill.losses: loss {label!r}")
                    for pair in zip(of_student, of_teacher, strict=True)
                )
            asked = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
            self.terms.append(
                Term(
                    label=label,
                    term=term,
                    taught=term.loss in NEEDS_TEACHER,
                    function=function if term.loss in MODULES else functools.partial(function, **term.options),
                    names=tuple(name for name, p in asked.items() if p.kind is not p.KEYWORD_ONLY),
                    student=student,
                    teacher=teacher,
                )
            )

    def taught(self, epoch: int) -> bool:
        """Whether any term of this epoch looks at a teacher."""
        return any(term.taught and term.weight(epoch, taught=True) > 0 for term in self.terms)

    def forward(
        self, tensors: Tensors, *, epoch: int = 0, taught: bool = True
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """(label -> weighted term, differentiable; label -> detached value before its weight)."""
        weighted: dict[str, torch.Tensor] = {}
        values: dict[str, torch.Tensor] = {}
        for term in self.terms:
            weight = term.weight(epoch, taught=taught)
            if weight == 0:
                continue
            arguments = [self._argument(term, name, tensors) for name in term.names]
            if self.whole is not None and term.term.loss in self.of_whole_batch:
                arguments = [self.whole(argument) for argument in arguments]
            value = term.function(*arguments)
            weighted[term.label] = weight * value
            values[term.label] = value.detach()
        assert weighted, "a recipe has at least one term that never ends"
        return weighted, values

    def _argument(self, term: Term, name: str, tensors: Tensors) -> Any:
        side, _, kind = name.partition("_")
        if kind not in ("feature", "features", "embedding"):
            return tensors[name]
        features = [tensors[f"{side}:{path}"] for path in (term.student if side == "student" else term.teacher)]
        if side == "student" and term.label in self.adapters:
            adapters: Any = self.adapters[term.label]
            features = [adapter(feature.float()) for adapter, feature in zip(adapters, features, strict=True)]
        if kind == "features":
            return features
        return pooled(features[0]) if kind == "embedding" else features[0]


def paths_of(value: str | Sequence[str]) -> tuple[str, ...]:
    """The module paths of a term: one, several or none."""
    return ((value,) if value else ()) if isinstance(value, str) else tuple(value)


def tapped(terms: Sequence[LossTerm], side: str) -> tuple[str, ...]:
    """All paths that the terms read of `side` ("student" or "teacher"), each once.

    Raises `RecipeError` for a feature loss without paths, or with another number of them on either side.
    """
    found: dict[str, None] = {}
    for term in terms:
        if term.loss not in TAPS or term.weight <= 0:
            continue
        student, teacher = paths_of(term.student), paths_of(term.teacher)
        where = f"distill.losses: loss {term.loss!r}"
        if not student or not teacher:
            raise RecipeError(
                f"{where} compares features; give student = 'MODULE.PATH' and teacher = 'MODULE.PATH' "
                "(edgestill inspect MODEL --modules lists them)"
            )
        if len(student) != len(teacher):
            raise RecipeError(
                f"{where}: {len(student)} paths in the student and {len(teacher)} in the teacher; pair them"
            )
        if TAPS[term.loss] != "maps" and len(student) > 1:
            raise RecipeError(f"{where} takes one path on each side, got {len(student)}; write one term for each")
        found |= dict.fromkeys(student if side == "student" else teacher)
    return tuple(found)
