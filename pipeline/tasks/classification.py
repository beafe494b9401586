"""Classification: top-1 and top-5 over logits. numpy only, so that a device can run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.evaluate import CHUNK, Subject, infer
from pipeline.gates.intervals import Pairs, paired_difference, wilson
from pipeline.tasks.groups import by_column, reliability

if TYPE_CHECKING:
    import torch

    from pipeline.data.source import Images
    from pipeline.distillers.teacher import Network
    from pipeline.models.checkpoint import ModelMeta
    from pipeline.recipe import LossTerm, Recipe, Teacher
    from pipeline.teacher_check import TeacherCheck
    from pipeline.training.train import TrainData

CONFIDENCE = 0.95
READING = 0.975  # one-sided, so that both bounds together are the 95 % interval that people read


class Classification:
    """The metric is top-1 accuracy; a drop is counted in points (`pt`)."""

    name = "classification"
    answers: Literal["classes", "pictures"] = "classes"
    metric = "top1"
    title = "top-1 accuracy"
    show = "fraction"
    unit = "pt"
    higher_is_better = True
    stores_answers = True
    smoke: Mapping[str, Any] = {"data": {"name": "digits", "image_size": 32}}

    @staticmethod
    def check(recipe: Recipe) -> None:
        if recipe.teacher.min_accuracy > 1:
            raise ValueError(
                f"teacher.min_accuracy: got {recipe.teacher.min_accuracy:g}; it must be at most 1: it is a share"
            )

    @staticmethod
    def alone(terms: Sequence[LossTerm]) -> tuple[LossTerm, ...]:
        """The labels alone, whatever the student learns from."""
        from pipeline.recipe import LossTerm

        return (LossTerm.model_validate({"loss": "cross_entropy", "weight": 1.0}),)

    @staticmethod
    def score(network: Network, data: TrainData, *, device: torch.device, dtype: torch.dtype) -> float:
        from pipeline.training.validation import top1

        return top1(network, data, device=device, dtype=dtype)

    @staticmethod
    def check_teacher(module: Any, meta: ModelMeta, images: Images, indices: np.ndarray, part: Teacher) -> TeacherCheck:
        from pipeline.teacher_check import diagnose, sample

        chosen = sample(images.labels, indices)
        return diagnose(
            module,
            images.load(chosen),
            images.labels[chosen],
            mean=meta.mean,
            std=meta.std,
            min_accuracy=part.min_accuracy,
            class_names=meta.class_names,
            trained_here=part.trained,
        )

    @staticmethod
    def samples(images: Images, indices: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(indices), CHUNK):
            chunk = indices[start : start + CHUNK]
            yield images.load(chunk), images.labels[chunk]

    @staticmethod
    def answer(subject: Subject, inputs: np.ndarray) -> np.ndarray:
        return infer(subject.runner, subject.preprocess(inputs))

    @staticmethod
    def outcomes(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Per-sample results of logits (N, C): `prediction` and `label` int32, `correct` and `top5` bool, `confidence`
        float32.

        A row with a value that is not finite counts as wrong (prediction -1): it must never win by accident.
        """
        logits = np.asarray(logits, dtype=np.float32).reshape(len(labels), -1)
        finite = np.asarray(np.isfinite(logits).all(axis=1))
        safe = np.where(finite[:, None], logits, 0.0)
        prediction = np.where(finite, safe.argmax(axis=1), -1).astype(np.int32)
        k = min(5, safe.shape[1])
        best = np.argpartition(-safe, k - 1, axis=1)[:, :k]
        shifted = np.exp(safe - safe.max(axis=1, keepdims=True))
        return {
            "prediction": prediction,
            "correct": prediction == labels,
            "top5": (best == labels[:, None]).any(axis=1) & finite,
            "confidence": (shifted.max(axis=1) / shifted.sum(axis=1)).astype(np.float32),
            "label": np.asarray(labels).astype(np.int32),
        }

    @staticmethod
    def summary(outcomes: dict[str, np.ndarray]) -> dict[str, Any]:
        """The report's `accuracy` entry: value, n, a 95 % Wilson interval for reading, and top-5."""
        correct = outcomes["correct"]
        n = len(correct)
        low, high = wilson(int(correct.sum()), n, confidence=CONFIDENCE)
        return {
            "metric": "top1",
            "value": float(correct.mean()),
            "n": n,
            "ci95": [float(low), float(high)],
            "top5": float(outcomes["top5"].mean()),
            "reliability": reliability(outcomes),
        }

    @staticmethod
    def pair(subject: dict[str, np.ndarray], against: dict[str, np.ndarray]) -> dict[str, Any]:
        """Counts for a paired test: both right, only one of them right, neither, and equal predictions; `by` has them
        of each class and slice, where the outcomes tell (see `pipeline.tasks.groups`)."""
        a, b = subject["correct"], against["correct"]
        by = by_column(subject, against)
        return ({"by": by} if by else {}) | {
            "n": len(a),
            "both": int((a & b).sum()),
            "only_subject": int((a & ~b).sum()),
            "only_against": int((~a & b).sum()),
            "neither": int((~a & ~b).sum()),
            "agree": int((subject["prediction"] == against["prediction"]).sum()),
        }

    @classmethod
    def comparisons(cls, subject: dict[str, np.ndarray], against: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        return [{"kind": "accuracy", **cls.pair(subject, against)}]

    @staticmethod
    def gain(row: Mapping[str, Any]) -> tuple[float, float, float]:
        """In points, with the interval of a paired difference of shares."""
        counts = Pairs(**{key: row[key] for key in ("both", "only_subject", "only_against", "neither")})
        drop = paired_difference(counts, READING)
        return -100 * drop.value, -100 * drop.upper, -100 * drop.lower

    @staticmethod
    def metadata(meta: ModelMeta) -> dict[str, str]:
        return {}

    @staticmethod
    def figures(
        subjects: Mapping[str, Subject], images: Images, picks: Sequence[tuple[int, str]]
    ) -> list[dict[str, Any]]:
        return []
