"""What a task is to the chain, which knows no more of it than this: no stage asks which task runs.

A task is a stateless class (its members are class attributes, static and class methods), imported late by its name in
`TASKS`. Its module imports numpy only: on a device a task judges and predicts without torch; what needs torch imports
it inside its method.

Shapes and types. `inputs` are uint8: one array (B, H, W, C) for classes, a list of (H, W, C) of any size for pictures.
`outputs` are float32, what the network gives: (B, classes) logits, or a list of (s*H, s*W, C'). `targets` are labels
int64 (B,), or a list of pictures uint8 (s*H, s*W, C' or more). Outcomes are arrays whose first axis is the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from pipeline.data.source import Images
    from pipeline.distillers.teacher import Network
    from pipeline.evaluate import Subject
    from pipeline.models.checkpoint import ModelMeta
    from pipeline.recipe import LossTerm, Recipe, Teacher
    from pipeline.training.train import TrainData

Outcomes = dict[str, np.ndarray]


class Finding(Protocol):
    """What the check of a teacher found: its score on `n` images, what a trivial answer scores, and what is wrong."""

    @property
    def accuracy(self) -> float: ...
    @property
    def chance(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def problems(self) -> Sequence[str]: ...
    @property
    def sentence(self) -> str:
        """The score for people: `97.10% top-1 on 269 validation images`."""
        ...

    def refuse(self) -> None:
        """Raise `UserError`, one line, if there is any problem."""
        ...


class Task(Protocol):
    """A row of `TASKS`.

    answers: "classes" or "pictures": what losses, data and tables must be made for. metric: the key of the value in
    outcomes and of `accuracy.metric` in the report; title: the same for people. show: the unit of a value ("fraction",
    "dB" or ""); unit: that of a difference ("pt", "dB" or ""). stores_answers: whether a teacher's answers may be kept
    in a table. smoke: what --smoke lays over a recipe: data that is there at once.
    """

    name: str
    answers: Literal["classes", "pictures"]
    metric: str
    title: str
    show: str
    unit: str
    higher_is_better: bool
    stores_answers: bool
    smoke: Mapping[str, Any]

    # the recipe ------------------------------------------------------------------------------------------------------
    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse what this task cannot do. Raises ValueError with one line that begins with the key."""
        ...

    # training --------------------------------------------------------------------------------------------------------
    @classmethod
    def alone(cls, terms: Sequence[LossTerm]) -> tuple[LossTerm, ...]:
        """The objective of a teacher, or of a control, in a recipe whose [distill] has these terms."""
        ...

    @classmethod
    def score(cls, network: Network, data: TrainData, *, device: torch.device, dtype: torch.dtype) -> float:
        """The metric on the validation images during training, the same on all ranks; higher is better."""
        ...

    @classmethod
    def check_teacher(cls, module: Any, meta: ModelMeta, images: Images, indices: np.ndarray, part: Teacher) -> Finding:
        """Is it worth learning from? Asked on validation images, before anything is learned."""
        ...

    # judging: numpy only ---------------------------------------------------------------------------------------------
    @classmethod
    def samples(cls, images: Images, indices: np.ndarray) -> Iterator[tuple[Any, Any]]:
        """(inputs, targets) of all indices in their order, a part that fits into memory at a time."""
        ...

    @classmethod
    def answer(cls, subject: Subject, inputs: Any) -> Any:
        """The outputs of an open subject, whatever its batch and its input size."""
        ...

    @classmethod
    def outcomes(cls, outputs: Any, targets: Any) -> Outcomes:
        """Results an image. What is not finite in an output must count as wrong."""
        ...

    @classmethod
    def summary(cls, outcomes: Outcomes) -> dict[str, Any]:
        """The report's `accuracy` entry: metric, value, n, ci95 (95 %, for reading), and further figures."""
        ...

    @classmethod
    def pair(cls, subject: Outcomes, against: Outcomes) -> dict[str, Any]:
        """What a paired test needs of two subjects on the same images, in the task's own metric."""
        ...

    @classmethod
    def comparisons(cls, subject: Outcomes, against: Outcomes) -> list[dict[str, Any]]:
        """Rows of the report's `comparisons`, each with its `kind`; the first is that of the task's own metric."""
        ...

    @classmethod
    def gain(cls, row: Mapping[str, Any]) -> tuple[float, float, float]:
        """Of such a row: the difference in the task's unit, positive where the subject is better, and its 95 %
        interval."""
        ...

    # files and pages -------------------------------------------------------------------------------------------------
    @classmethod
    def metadata(cls, meta: ModelMeta) -> dict[str, str]:
        """What an exported file says beside its preprocessing, so that it can be run without the recipe."""
        ...

    @classmethod
    def figures(cls, subjects: Mapping[str, Subject], images: Images, picks: Sequence[Pick]) -> list[dict[str, Any]]:
        """The report's `pictures`: what these subjects made of a few images. Empty where answers are no pictures."""
        ...


Pick = tuple[int, str]  # the number of a test image, and why it is shown
