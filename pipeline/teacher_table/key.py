"""What a table of teacher outputs was made from: whoever asks for anything else must not be answered by it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.manifest import canonical, sha256_json
from pipeline.recipe import Augment

Form = Literal["finite", "replay"]
LOGITS = "logits"


@dataclass(frozen=True, kw_only=True)
class Key:
    """All that an answer depends on.

    form: slice k holds the answers to view number k of every image (`finite`) or to its view in epoch k (`replay`).
    teacher: sha256 of the checkpoint file; of several teachers, over all of them and their weights (`teachers_digest`).
    mean, std: the teacher's preprocessing, one value a channel. dtype: what it computes in (`bf16`).
    augment, augment_version: the views. data: the source's fingerprint; ids: `ids_digest` of the samples.
    image_shape: (H, W, C) before augmentation, since a fingerprint is of the data before it is resized.
    outputs: `logits` and module paths, whose features are stored pooled.
    """

    form: Form
    teacher: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    augment: Augment
    augment_version: int
    data: str
    ids: str
    image_shape: tuple[int, int, int]
    outputs: tuple[str, ...] = (LOGITS,)

    def identity(self) -> dict[str, Any]:
        """The key as JSON-able values, outputs aside: a table may hold more of them than are asked for.

        A finite table holds every view, so the seed that picks among them is left out of its key. What cannot change a
        view is left out too.
        """
        augment = self.augment.model_dump(mode="json")
        if self.form == "finite":
            del augment["seed"]
        if not (augment["mixup"] or augment["cutmix"]):
            del augment["mix_probability"]
        return canonical(
            {
                "form": self.form,
                "teacher": self.teacher,
                "mean": self.mean,
                "std": self.std,
                "dtype": self.dtype,
                "augment": augment,
                "augment_version": self.augment_version,
                "data": self.data,
                "ids": self.ids,
                "image_shape": self.image_shape,
            }
        )

    @property
    def hash(self) -> str:
        """64 hex digits, equal for equal keys on every machine."""
        return sha256_json({**self.identity(), "outputs": sorted(self.outputs)})


def ids_digest(ids: np.ndarray) -> str:
    """sha256 of sorted sample ids, int64 (N,)."""
    assert ids.ndim == 1 and (np.diff(ids) > 0).all(), "sample ids must be sorted, each once"
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").data).hexdigest()


def teachers_digest(digests: tuple[str, ...], weights: tuple[float, ...]) -> str:
    """One digest for averaged teachers: the only one's own, else over all digests and their shares."""
    assert len(digests) == len(weights) > 0, f"{len(digests)} teachers, {len(weights)} weights"
    if len(digests) == 1:
        return digests[0]
    total = sum(weights)
    return sha256_json([[digest, weight / total] for digest, weight in zip(digests, weights, strict=True)])


NAMES = {
    "form": "form",
    "teacher": "teacher (sha256 of its weights)",
    "mean": "mean of the teacher's preprocessing",
    "std": "std of the teacher's preprocessing",
    "dtype": "precision of the teacher",
    "augment_version": "version of the augmentation",
    "data": "data (fingerprint)",
    "ids": "choice of training images (sha256 of their ids)",
    "image_shape": "image shape",
}


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """Which fields of a stored identity are not as wanted, one short text each; empty when all agree."""
    if stored.get("form") != wanted["form"]:
        return (f"{NAMES['form']}: {_short(stored.get('form'))} there, {_short(wanted['form'])} here",)
    found = []
    for name, value in wanted.items():
        other = stored.get(name)
        if name == "augment":
            there = other if isinstance(other, dict) else {}
            found += [
                f"augment.{field}: {_short(there.get(field))} there, {_short(value.get(field))} here"
                for field in sorted(there.keys() | value.keys())
                if there.get(field) != value.get(field)
            ]
        elif other != value:
            found.append(f"{NAMES[name]}: {_short(other)} there, {_short(value)} here")
    return tuple(found)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
