"""Task metrics of any runner, per sample, so that every two subjects can be paired. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.source import Images

CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An open runner with its preprocessing: uint8 (B, H, W, C) to the float32 that the runner's input takes."""

    runner: Any
    preprocess: Callable[[np.ndarray], np.ndarray]


def evaluate(
    subjects: Mapping[str, Subject],
    images: Images,
    indices: np.ndarray,
    task: Any,
    *,
    on_chunk: Callable[[int], None] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Outcomes of every subject on the same samples: images are decoded once and shown to all of them.

    `on_chunk(n)` is called after every n images. Memory is bounded by one chunk of images and the outcomes.
    """
    parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in subjects}
    for inputs, targets in task.samples(images, indices):
        for name, subject in subjects.items():
            parts[name].append(task.outcomes(task.answer(subject, inputs), targets))
        if on_chunk:
            on_chunk(len(inputs))
    return {
        name: {key: np.concatenate([part[key] for part in rows]) for key in rows[0]} for name, rows in parts.items()
    }


def infer(runner: Any, inputs: np.ndarray) -> np.ndarray:
    """First output for inputs (N, ...), fed at the runner's own batch; the last batch is padded and cut again."""
    spec = runner.inputs[0]
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else len(inputs)
    output = runner.outputs[0].name
    results = []
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        missing = batch - len(part)
        if missing:
            part = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
        results.append(runner({spec.name: part})[output][: batch - missing])
    return np.concatenate(results)
