"""Losses by name. One paper a file; `functional.py` is the public face. Add a loss: one file and one row here.

A row names the function and its keyword options with their defaults (a test holds them equal to the signature), so that
a recipe is checked without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A row of the table.

    where: "module:name" of a function, or of an nn.Module class with parameters of its own (`module`), whose
        constructor takes, by keyword, student_shapes and teacher_shapes (lists of shapes without the batch), samples
        (size of the training set), num_classes and its options.
    options: the recipe's keywords with their defaults. A default "" stands for a file, which has to be named.
    taps: what it takes from inside the networks: "map" (one NCHW map or a (B, D) tensor), "maps" (a list of NCHW maps),
        "embedding" (B, D; a map is average-pooled), or "" for logits alone.
    taught: it looks at the teacher. matched: student features must have the teacher's shapes, so an adapter may be
        made. labels: it needs one true class an image, neither mixed labels nor unlabelled images. relation: its value
        depends on the batch as a whole, so training on several ranks gathers its tensors first.
    answers: what the networks give: "classes" (logits (B, classes), the target is a label), "pictures" (B, C, H, W, the
        target too), or "both" for a loss that looks at features alone.
    """

    where: str
    options: Mapping[str, float | str] = field(default_factory=dict)
    taps: Literal["", "map", "maps", "embedding"] = ""
    taught: bool = True
    matched: bool = False
    labels: bool = False
    relation: bool = False
    module: bool = False
    answers: Literal["classes", "pictures", "both"] = "classes"


ROWS: dict[str, Loss] = {
    "attention_transfer": Loss(
        where="pipeline.losses.attention_transfer:attention_transfer", taps="maps", answers="both"
    ),
    "binary_cross_entropy": Loss(
        where="pipeline.losses.binary_cross_entropy:binary_cross_entropy",
        options={"pos_weight": 10.0},
        taught=False,
        answers="pictures",
    ),
    "crd": Loss(
        where="pipeline.losses.crd:CRD",
        options={"dimensions": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5},
        taps="embedding",
        labels=True,
        relation=True,  # by its banks, and by the Z of its first batch
        module=True,
    ),
    "cross_entropy": Loss(
        where="pipeline.losses.cross_entropy:cross_entropy", options={"label_smoothing": 0.0}, taught=False
    ),
    "dist": Loss(
        where="pipeline.losses.dist:dist", options={"beta": 1.0, "gamma": 1.0, "temperature": 1.0}, relation=True
    ),
    "dkd": Loss(where="pipeline.losses.dkd:dkd", options={"alpha": 1.0, "beta": 8.0, "temperature": 4.0}, labels=True),
    "hierarchical_context": Loss(
        where="pipeline.losses.hierarchical_context:hierarchical_context", taps="maps", matched=True, answers="both"
    ),
    "hint": Loss(where="pipeline.losses.hint:hint", taps="map", matched=True, answers="both"),
    "kd": Loss(where="pipeline.losses.kd:kd", options={"temperature": 4.0}),
    "kd_standardized": Loss(where="pipeline.losses.kd_standardized:kd_standardized", options={"temperature": 2.0}),
    "l1": Loss(where="pipeline.losses.l1:l1", taught=False, answers="pictures"),
    "output_l1": Loss(where="pipeline.losses.output_l1:output_l1", answers="pictures"),
    "perceptual": Loss(
        where="pipeline.losses.perceptual:perceptual",
        options={"weights": "", "layer": 34},
        taught=False,
        answers="pictures",
    ),
    "pkt": Loss(where="pipeline.losses.pkt:pkt", taps="embedding", relation=True, answers="both"),
    "review_kd": Loss(where="pipeline.losses.review_kd:ReviewKD", taps="maps", module=True, answers="both"),
    "rkd": Loss(
        where="pipeline.losses.rkd:rkd",
        options={"distance_weight": 25.0, "angle_weight": 50.0},
        taps="embedding",
        relation=True,
        answers="both",
    ),
    "sigmoid_mse": Loss(where="pipeline.losses.sigmoid_mse:sigmoid_mse", answers="pictures"),
    "similarity_preserving": Loss(
        where="pipeline.losses.similarity_preserving:similarity_preserving", taps="map", relation=True, answers="both"
    ),
}

LOSSES = {name: row.where for name, row in ROWS.items()}
OPTIONS = {name: row.options for name, row in ROWS.items()}
TAPS = {name: row.taps for name, row in ROWS.items() if row.taps}
NEEDS_TEACHER = frozenset(name for name, row in ROWS.items() if row.taught)
NEEDS_LABELS = frozenset(name for name, row in ROWS.items() if row.labels)
RELATION = frozenset(name for name, row in ROWS.items() if row.relation)
MATCHED = frozenset(name for name, row in ROWS.items() if row.matched)
ANSWERS = {name: row.answers for name, row in ROWS.items()}
MODULES = frozenset(name for name, row in ROWS.items() if row.module)

Range = tuple[Callable[[Any], bool], str]
POSITIVE: Range = (lambda value: 0 < value < float("inf"), "must be above 0 and finite")
NOT_NEGATIVE: Range = (lambda value: 0 <= value < float("inf"), "must be finite and not negative")
AT_LEAST_ONE: Range = (lambda value: value >= 1, "must be at least 1")
RANGES: dict[str, Range] = {
    "alpha": NOT_NEGATIVE,
    "angle_weight": NOT_NEGATIVE,
    "beta": NOT_NEGATIVE,
    "dimensions": AT_LEAST_ONE,
    "distance_weight": NOT_NEGATIVE,
    "gamma": NOT_NEGATIVE,
    "layer": (lambda value: 0 <= value <= 35, "must be from 0 to 35"),
    "label_smoothing": (lambda value: 0 <= value < 1, "must be in [0, 1)"),
    "momentum": (lambda value: 0 <= value < 1, "must be in [0, 1)"),
    "negatives": AT_LEAST_ONE,
    "pos_weight": POSITIVE,
    "temperature": POSITIVE,
}


def check_term(name: str, options: dict[str, Any]) -> None:
    """Refuse an unknown loss or option, or a value out of range, with one line; imports nothing heavy."""
    from pipeline.errors import nearest

    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}{nearest(name, list(LOSSES))}")
    for key, default in OPTIONS[name].items():
        if default == "" and not options.get(key):
            raise ValueError(f"loss {name!r}: {key} is missing; write {key} = 'FILE', a .safetensors, .pt or .pth file")
    for key, value in options.items():
        if key not in OPTIONS[name]:
            known = nearest(key, list(OPTIONS[name])) if OPTIONS[name] else "; it has none"
            raise ValueError(f"loss {name!r} has no option {key!r}{known}")
        if OPTIONS[name][key] == "":
            if not isinstance(value, str):
                raise ValueError(f"loss {name!r}: {key} = {value!r}; expected the name of a file")
            continue
        whole = isinstance(OPTIONS[name][key], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ValueError(f"loss {name!r}: {key} = {value!r}; expected a {'whole ' if whole else ''}number")
        inside, must = RANGES[key]
        if not inside(value):
            raise ValueError(f"loss {name!r}: {key} = {value:g} {must}")


def files(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a term reads: what it learns depends on their content."""
    return tuple(str(options[key]) for key, default in OPTIONS[name].items() if default == "" and key in options)
