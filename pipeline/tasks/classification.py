"""Classification: top-1 and top-5 over logits. numpy only, so that a device can run it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.intervals import wilson

CONFIDENCE = 0.95


class Classification:
    """The metric is top-1 accuracy; a drop is counted in points (`pt`)."""

    name = "classification"
    metric = "top1"
    unit = "pt"

    @staticmethod
    def outcomes(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Per-sample results of logits (N, C): `prediction` int32, `correct` bool, `top5` bool, `confidence` float32.

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
        }

    @staticmethod
    def pair(subject: dict[str, np.ndarray], against: dict[str, np.ndarray]) -> dict[str, int]:
        """Counts for a paired test: both right, only one of them right, neither, and equal predictions."""
        a, b = subject["correct"], against["correct"]
        return {
            "n": len(a),
            "both": int((a & b).sum()),
            "only_subject": int((a & ~b).sum()),
            "only_against": int((~a & b).sum()),
            "neither": int((~a & ~b).sum()),
            "agree": int((subject["prediction"] == against["prediction"]).sum()),
        }
