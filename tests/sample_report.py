"""A realistic report, built and not dumped: a CIFAR-10 run whose int8 artifact is judged against its teacher."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.gates.intervals import wilson

N = 10_000
TEACHER_BLOCKS, STUDENT = 30, "student"
CHOSEN = "onnx-int8@openvino"

# name, role, stage, format, precision, runtime, accuracy, size, p50_ms, peak memory; accuracies nest sample by sample
_ROWS: tuple[tuple[Any, ...], ...] = (
    ("teacher", "teacher", "teacher", "torch", "fp32", "torch", 0.9330, 3_467_000, 6.42, 412_000_000),
    ("teacher@onnxruntime", "teacher", "export", "onnx", "fp32", "onnxruntime", 0.9330, 3_431_000, 4.87, 141_000_000),
    ("teacher@openvino", "teacher", "export", "onnx", "fp32", "openvino", 0.9330, 3_431_000, 3.61, 188_000_000),
    ("control", "control", "distill", "torch", "fp32", "torch", 0.8704, 331_000, 1.21, 397_000_000),
    ("student", "student", "distill", "torch", "fp32", "torch", 0.8871, 331_000, 1.19, 397_000_000),
    ("onnx-fp32@onnxruntime", "artifact", "export", "onnx", "fp32", "onnxruntime", 0.8871, 318_000, 0.482, 96_000_000),
    ("onnx-fp32@openvino", "artifact", "export", "onnx", "fp32", "openvino", 0.8871, 318_000, 0.341, 143_000_000),
    ("onnx-fp16@onnxruntime", "artifact", "export", "onnx", "fp16", "onnxruntime", 0.8870, 164_000, 0.497, 96_000_000),
    ("onnx-fp16@openvino", "artifact", "export", "onnx", "fp16", "openvino", 0.8870, 164_000, 0.339, 143_000_000),
    (
        "onnx-int8-cpu@onnxruntime",
        "artifact",
        "quantize",
        "onnx",
        "int8",
        "onnxruntime",
        0.8852,
        109_000,
        0.271,
        95_000_000,
    ),
    ("onnx-int8@openvino", "artifact", "quantize", "onnx", "int8", "openvino", 0.8860, 109_000, 0.158, 141_000_000),
)


def sample_report(*, latency: bool = True, chosen: str | None = CHOSEN) -> dict[str, Any]:
    """The report of one run, not yet judged: `gates` is empty and `verdict` undecided. Fresh objects at every call."""
    rng = np.random.default_rng(7)
    answers = _answers(rng)
    blocks = {row[0]: _block_medians(row[8], rng) for row in _ROWS}
    subjects = [_subject(row, answers, blocks, latency) for row in _ROWS]
    comparisons = [_accuracy(answers, row[0], "teacher") for row in _ROWS[1:]]
    comparisons += [_accuracy(answers, row[0], STUDENT) for row in _ROWS[5:]] + [_accuracy(answers, STUDENT, "control")]
    if latency:
        comparisons += [
            _latency(blocks, row[0], "teacher" if row[5] == "torch" else f"teacher@{row[5]}") for row in _ROWS[3:]
        ]
    return {
        "schema_version": 1,
        "recipe": _recipe(),
        "environment": {
            "python": "3.11.9",
            "system": "Linux-6.1-x86_64",
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "memory_bytes": 8_200_000_000,
            "devices": [],
            "source": {"commit": "0123abcd" * 5, "dirty": True},
            "packages": {"torch": "2.9.0", "onnx": "1.19.0", "onnxruntime": "1.23.0", "openvino": "2025.3.0"},
        },
        "data": {
            "name": "cifar10",
            "fingerprint": "5f2c" * 16,
            "class_names": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
            "sizes": {"train": 45_000, "validation": 5_000, "test": N},
            "image_shape": [32, 32, 3],
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.247, 0.2435, 0.2616],
            "duplicates": {"train_test": 0},
            "calibration": {"n": 256, "disjoint": True, "sha256": "ab" * 32},
        },
        "subjects": subjects,
        "comparisons": comparisons,
        "distillation": {
            "helped": True,
            "student": 0.8871,
            "control": 0.8704,
            "gain_pt": 1.67,
            "ci": [1.02, 2.31],
            "repeats": [{"seed": 0, "student": 0.8871, "control": 0.8704}],
            "sentence": "Distillation helped: +1.67 pt over the same student, budget and seed without a teacher.",
        },
        "selection": {
            "chosen": chosen,
            "order": ["onnx-int8@openvino", "onnx-int8-cpu@onnxruntime", "onnx-fp16@openvino"],
            "reason": "the fastest artifact that keeps every limit on the validation split"
            if chosen
            else "no artifact keeps every limit on the validation split",
        },
        "gates": [],
        "verdict": "undecided",
        "stages": {
            name: {"seconds": seconds, "peak_rss_bytes": 900_000_000, "fresh": fresh}
            for name, seconds, fresh in (
                ("data", 8.1, True),
                ("teacher", 31.0, True),
                ("distill", 2412.0, False),
                ("export", 6.2, False),
                ("quantize", 9.7, False),
                ("profile", 104.0, False),
            )
        },
        "command": "edgestill run cifar10 --set data.root=data",
        "created": "2026-03-01T12:00:00+00:00",
    }


def _recipe() -> dict[str, Any]:
    return {
        "name": "cifar10",
        "description": "ResNet-56 to MLPerf Tiny's ResNet-8",
        "seed": 0,
        "data": {"name": "cifar10"},
        "teacher": {"model": "cifar-resnet56?shortcut=A"},
        "student": {"model": "mlperf-resnet8"},
        "distill": {"epochs": 60, "losses": [{"loss": "kd", "weight": 0.9}, {"loss": "cross_entropy", "weight": 0.1}]},
        "profile": {"device": "cpu", "threads": 1, "batch": 1},
        "gate": [
            {"metric": "accuracy", "min": 0.87},
            {"metric": "accuracy_drop", "against": "teacher", "max": "6pt"},
            {"metric": "accuracy_drop", "against": "student", "max": "0.5pt"},
            {"metric": "speedup_p50", "against": "teacher", "min": 8.0},
            {"metric": "latency_p90_ms", "max": 1.0},
            {"metric": "size_bytes", "max": 200_000},
        ],
    }


def _answers(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Top-1 answers, shape (N,), with exactly the stated accuracy: label 0 is right; forms of one network agree."""
    answers: dict[str, np.ndarray] = {}
    base = {"teacher": rng.permutation(N), "control": rng.permutation(N), "student": rng.permutation(N)}
    hard = rng.permutation(N)
    for name, role, _, _, precision, _, accuracy, *_ in _ROWS:
        key = role if role in base else "student"
        # a network errs on hard images above all: its own order of difficulty is a blend of a shared one and its own
        order = np.argsort(hard + 0.35 * base[key] + (rng.normal(0, 25, N) if precision == "int8" else 0))
        answers[name] = np.where(np.arange(N) < round(accuracy * N), 0, 1)[np.argsort(order)]
    return answers


def _block_medians(p50_ms: float, rng: np.random.Generator) -> list[float]:
    return [round(p50_ms * math.exp(x), 6) for x in rng.normal(0, 0.012, TEACHER_BLOCKS)]


def _subject(row: tuple[Any, ...], answers: dict[str, Any], blocks: dict[str, Any], latency: bool) -> dict[str, Any]:
    name, role, stage, form, precision, runtime, accuracy, size, p50, memory = row
    big = role == "teacher"
    n = 2400
    entries = [
        {
            "kind": kind,
            "batch": 1,
            "threads": 1,
            "n": n,
            "p50_ms": p50 * k,
            "p90_ms": p50 * k * 1.05,
            "p99_ms": p50 * k * 1.19,
            "p90_bound_ms": p50 * k * 1.058,
            "mean_ms": p50 * k * 1.02,
            "contaminated_blocks": 1,
            "blocks": TEACHER_BLOCKS,
        }
        for kind, k in (("device", 1.0), ("end_to_end", 1.04))
    ]
    subject: dict[str, Any] = {
        "name": name,
        "role": role,
        "stage": stage,
        "format": form,
        "precision": precision,
        "runtime": runtime,
        "path": f"{stage}/{name.split('@', maxsplit=1)[0]}.{'onnx' if form == 'onnx' else 'safetensors'}",
        "sha256": f"{len(name):02x}" * 32,
        "size_bytes": size,
        "params": 853_018 if big else 78_186,
        "macs": 125_485_706 if big else 12_501_632,
        "flops": 250_971_412 if big else 25_003_264,
        "uncounted": {"relu": 55 if big else 7},
        "accuracy": {
            "metric": "top1",
            "value": float((answers[name] == 0).mean()),
            "n": N,
            "ci95": list(wilson(round(accuracy * N), N)),
            "top5": 0.9971,
            "validation": accuracy + 0.003,
        },
        "agreement": None if name == "teacher" else float((answers[name] == answers["teacher"]).mean()),
        "latency": entries if latency else [],
        "throughput_per_s": 1000 / (p50 * 1.02) if latency else None,
        "peak_memory_bytes": memory,
        "energy_j": None,
        "missing": {"energy_j": "no power sensor"} | ({} if latency else {"latency": "profiling was interrupted"}),
        "parity": None
        if form == "torch"
        else {
            "against": "student",
            "max_abs": 0.41 if precision == "int8" else 2e-6,
            "cosine": 0.9993,
            "sqnr_db": 27.4 if precision == "int8" else 120.0,
            "top1_flips": 3 if precision == "int8" else 0,
            "n": 256,
        },
        "stored": {"outcomes": "cd" * 32},
    }
    if role in ("student", "control"):
        subject["training"] = _training(accuracy, distilled=role == "student")
    return subject


def _training(accuracy: float, *, distilled: bool, epochs: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(11 + distilled)
    curve = []
    for epoch in range(epochs):
        t = (epoch + 1) / epochs
        loss = (2.6 if distilled else 2.1) * math.exp(-3.2 * t) + 0.42 - 0.1 * t
        terms = {"kd": 1.4 * loss, "cross_entropy": 0.8 * loss} if distilled else {"cross_entropy": loss}
        noise = float(rng.normal(0, 0.012 * (1.02 - t)))
        reached = accuracy + 0.003 - 0.46 * math.exp(-5.5 * t) * (1 - t) - 0.05 * (1 - t) + noise
        curve.append(
            {
                "epoch": epoch,
                "lr": 0.05 * (1 + math.cos(math.pi * t)),
                "train_loss": loss,
                "terms": terms,
                "val_accuracy": reached,
                "seconds": 39.5,
            }
        )
    return {
        "epochs": epochs,
        "s_per_epoch": 39.5,
        "total_s": 2370.0,
        "teacher_share": 0.31 if distilled else 0.0,
        "best_epoch": epochs - 2,
        "curve": curve,
    }


def _accuracy(answers: dict[str, Any], subject: str, against: str) -> dict[str, Any]:
    a, b = answers[subject], answers[against]
    return {
        "kind": "accuracy",
        "subject": subject,
        "against": against,
        "split": "test",
        "n": N,
        "both": int(((a == 0) & (b == 0)).sum()),
        "only_subject": int(((a == 0) & (b != 0)).sum()),
        "only_against": int(((a != 0) & (b == 0)).sum()),
        "neither": int(((a != 0) & (b != 0)).sum()),
        "agree": int((a == b).sum()),
    }


def _latency(blocks: dict[str, Any], subject: str, against: str) -> dict[str, Any]:
    ratio = float(np.median(blocks[against]) / np.median(blocks[subject]))
    return {
        "kind": "latency",
        "latency_kind": "device",
        "subject": subject,
        "against": against,
        "batch": 1,
        "threads": 1,
        "blocks_ms": {"subject": blocks[subject], "against": blocks[against]},
        "ratio": ratio,
        "ratio_lower": ratio * 0.985,
        "ratio_upper": ratio * 1.016,
        "confidence": 0.99,
    }
