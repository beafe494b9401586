"""What all dense tasks share: pictures as answers, images of any size in tiles, paired differences image by image.

A task of this kind derives from `Dense` and states its metric (`outcomes`), what it writes (`postprocess`) and what a
trivial answer would be (`baseline`); README.md in this folder shows one. numpy only at import.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.evaluate import Subject, infer
from pipeline.tiles import tiled

if TYPE_CHECKING:
    import torch

    from pipeline.distillers.teacher import Network
    from pipeline.models.checkpoint import ModelMeta
    from pipeline.picture_check import PictureCheck
    from pipeline.recipe import Augment, LossTerm, Recipe, Teacher
    from pipeline.training.train import TrainData

READING = 0.975  # one-sided, so that both bounds together are the 95 % interval that people read
POINTS = 100.0  # a difference of fractions in points
# Keys of [augment] that may differ from their default: of all dense tasks, and of those that say so.
GEOMETRY = ("seed", "flip", "dihedral")
OF_PIXELS = ("brightness", "contrast", "saturation")


class Dense:
    """A task whose answers are pictures; `pipeline.tasks.protocol` says what each member means to the chain.

    metrics: every outcome that is one number an image and is compared, with the unit of a difference. overlap: input
    pixels that neighbouring tiles share. objective: what a network learns alone in a recipe that names no term without
    a teacher. augments: keys of [augment] that make sense. score_on: validation in training looks at `whole` images, or
    at the `centre` of each, which costs less. baseline_name: `baseline` for people.
    """

    name: str
    metric: str
    title: str
    show: str = ""
    unit: str = ""
    metrics: Mapping[str, str]
    answers: Literal["classes", "pictures"] = "pictures"
    higher_is_better = True
    stores_answers = False
    overlap = 16
    objective: Sequence[Mapping[str, Any]] = ()
    augments: Sequence[str] = ("flip", "dihedral")
    score_on: Literal["whole", "centre"] = "whole"
    baseline_name = "the trivial answer"
    smoke: Mapping[str, Any] = {}

    # what a task writes ----------------------------------------------------------------------------------------------
    @classmethod
    def outcomes(cls, outputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Of raw outputs float32 (sH, sW, C') and targets uint8 (sH, sW, C' or more): arrays, first axis the images.

        An output with a value that is not finite must count as the worst there is.
        """
        raise NotImplementedError

    @classmethod
    def postprocess(cls, output: np.ndarray) -> np.ndarray:
        """A raw output float32 (sH, sW, C') as the picture that people see: uint8 (sH, sW, C')."""
        raise NotImplementedError

    @classmethod
    def baseline(cls, image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """What costs nothing: a raw output float32 of `shape` (sH, sW, C') for an image uint8 (H, W, C)."""
        raise NotImplementedError

    # the recipe ------------------------------------------------------------------------------------------------------
    @classmethod
    def check(cls, recipe: Recipe) -> None:
        from pipeline.recipe_modes import chain

        if recipe.data.unlabelled:
            raise ValueError(
                f"data.unlabelled: {cls.name!r} has no images without targets; leave it out, or add them to the data"
            )
        if recipe.data.image_size:
            raise ValueError(f"data.image_size: {cls.name!r} never resizes; give data.patch, the side of what it sees")
        if recipe.teacher.trained:
            cls._check_augment(recipe.teacher.train.augment, "teacher.train.augment")
        for place, _, distill in chain(recipe):
            where = "distill" if place == "student" else f"{place}.distill"
            cls._check_augment(distill.augment, f"{where}.augment")
            if distill.mode == "self":
                raise ValueError(f"{where}.mode: exits are classifiers, and {cls.name!r} has none; take mode 'offline'")
            if distill.teacher_outputs == "table" or distill.table:
                key = "table" if distill.table else "teacher_outputs"
                raise ValueError(
                    f"{where}.{key}: pictures are too large for a table, so the teacher is asked at every step; "
                    f"leave {key} out"
                )

    @classmethod
    def _check_augment(cls, augment: Augment, where: str) -> None:
        for key, field in type(augment).model_fields.items():
            allowed = key in ("seed", "mix_probability", *cls.augments)
            if not allowed and getattr(augment, key) != field.default:
                raise ValueError(
                    f"{where}.{key}: the target of {cls.name!r} is a picture, which would not fit any more; "
                    f"take {' or '.join(cls.augments)}"
                )

    # training --------------------------------------------------------------------------------------------------------
    @classmethod
    def alone(cls, terms: Sequence[LossTerm]) -> tuple[LossTerm, ...]:
        """The recipe's own terms that look at no teacher; where there is none, the task's `objective`."""
        from pipeline.losses import NEEDS_TEACHER
        from pipeline.recipe import LossTerm

        own = tuple(term for term in terms if term.loss not in NEEDS_TEACHER and term.weight > 0)
        return own or tuple(LossTerm.model_validate(dict(term)) for term in cls.objective)

    @classmethod
    def scores(cls, outputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
        """The metric alone, float64 (N,): what validation in training looks at, for tasks with dear outcomes."""
        return np.asarray(cls.outcomes(outputs, targets)[cls.metric], np.float64)

    @classmethod
    def score(cls, network: Network, data: TrainData, *, device: torch.device, dtype: torch.dtype) -> float:
        from pipeline.training.validation import picture_score

        return picture_score(cls, network, data, device=device, dtype=dtype)

    @classmethod
    def check_teacher(
        cls, module: Any, meta: ModelMeta, images: Any, indices: np.ndarray, part: Teacher
    ) -> PictureCheck:
        from pipeline.picture_check import diagnose

        return diagnose(cls, module, meta, images, indices, min_accuracy=part.min_accuracy)

    # judging ---------------------------------------------------------------------------------------------------------
    @staticmethod
    def samples(images: Any, indices: np.ndarray) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        """One image at a time: they have any size."""
        for image, target in images.pairs(indices):
            yield [image], [target]

    @classmethod
    def answer(cls, subject: Subject, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Raw outputs float32 (sH, sW, C'), made of tiles of the subject's own input size."""
        _, _, height, width = subject.runner.inputs[0].shape

        def run(tiles: np.ndarray) -> np.ndarray:
            return infer(subject.runner, subject.preprocess(tiles))

        return [tiled(run, image, tile=(height, width), overlap=cls.overlap) for image in inputs]

    @classmethod
    def summary(cls, outcomes: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The mean of every metric over the images, the interval of the task's own, and the moments of each."""
        found = {name: moments(outcomes[name]) for name in cls.metrics}
        own = found[cls.metric]
        return {
            "metric": cls.metric,
            "value": own["mean"],
            "n": own["n"],
            "ci95": list(interval_of(own)),
            **{name: part["mean"] for name, part in found.items() if name != cls.metric},
            "moments": {
                name: part | {"unit": {"pt": "fraction"}.get(cls.metrics[name], cls.metrics[name])}
                for name, part in found.items()
            },
        }

    @classmethod
    def pair(cls, subject: Mapping[str, np.ndarray], against: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return cls.difference(cls.metric, subject, against)

    @classmethod
    def difference(
        cls, metric: str, subject: Mapping[str, np.ndarray], against: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Moments of the per-image differences subject - against, in the unit of a difference."""
        unit = cls.metrics[metric]
        factor = POINTS if unit == "pt" else 1.0
        gap = np.asarray(subject[metric], np.float64) - np.asarray(against[metric], np.float64)
        return {"metric": metric, "unit": unit, **moments(factor * gap)}

    @classmethod
    def comparisons(cls, subject: Mapping[str, np.ndarray], against: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        order = (cls.metric, *(name for name in cls.metrics if name != cls.metric))
        return [{"kind": "metric", **cls.difference(name, subject, against)} for name in order]

    @classmethod
    def gain(cls, row: Mapping[str, Any]) -> tuple[float, float, float]:
        return row["mean"], *interval_of(row)

    # files and pages -------------------------------------------------------------------------------------------------
    @classmethod
    def metadata(cls, meta: ModelMeta) -> dict[str, str]:
        return {"task": cls.name, "overlap": str(cls.overlap), "output_shape": "x".join(map(str, meta.output_shape))}

    @classmethod
    def figures(
        cls, subjects: Mapping[str, Subject], images: Any, picks: Sequence[tuple[int, str]]
    ) -> list[dict[str, Any]]:
        from pipeline.reports.pictures import figure

        found = []
        for index, reason in picks:
            ((image, target),) = images.pairs(np.array([index]))
            answers = {name: cls.postprocess(cls.answer(subject, [image])[0]) for name, subject in subjects.items()}
            channels = min((answer.shape[2] for answer in answers.values()), default=target.shape[2])
            shown = cls.target_picture(target)[..., :channels]
            found.append({"index": int(index), "reason": reason, **figure(image, shown, answers)})
        return found

    @classmethod
    def target_picture(cls, target: np.ndarray) -> np.ndarray:
        """A target uint8 (sH, sW, C' or more) as people see it; of its channels those of `postprocess` are shown."""
        return target


def moments(values: np.ndarray) -> dict[str, Any]:
    """n, mean, sd (n - 1; 0 for one value) and skewness (third standardized moment with population moments)."""
    values = np.asarray(values, np.float64)
    n = len(values)
    mean = float(values.mean())
    centred = values - mean
    spread = float(np.mean(centred**2))
    skewness = float(np.mean(centred**3)) / spread**1.5 if spread > 0 else 0.0
    return {
        "n": n,
        "mean": mean,
        "sd": math.sqrt(spread * n / (n - 1)) if n > 1 else 0.0,
        "skewness": skewness,
    }


def interval_of(found: Mapping[str, Any]) -> tuple[float, float]:
    """The two-sided 95 % interval of a mean, of what `moments` gives for two values or more."""
    from pipeline.gates.intervals_mean import mean_bounds, moments_of

    bounds = mean_bounds(moments_of(found), READING)
    return bounds.lower, bounds.upper
