"""What is judged: the trained networks on torch, and every artifact on every runtime that runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError, nearest
from pipeline.evaluate import Subject
from pipeline.recipe import Recipe
from pipeline.stages import distill, export, quantize, teacher
from pipeline.stages.export import preprocessing_of

TORCH = "torch"
CLIMBED = ("ladder", "qat")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One subject of the report: `name` is the role for torch (with its number for a generation) and ARTIFACT@RUNTIME
    otherwise."""

    name: str
    role: str
    stage: str
    format: str
    precision: str
    runtime: str
    path: Path
    parity: dict[str, Any] | None = None


def climbed(recipe: Recipe) -> tuple[str, ...]:
    """The stages of the precision ladder, whose artifacts are judged with all others; none where nobody asks for it."""
    if not recipe.quantize or not recipe.quantize.rungs:
        return ()
    return CLIMBED if "qat" in recipe.quantize.rungs else CLIMBED[:1]


def runtimes(recipe: Recipe) -> tuple[str, ...]:
    """Runtimes of files: all that run here for `auto`; one that is named but missing is refused."""
    from exporters import RUNTIMES, unavailable

    wanted = recipe.profile.runtimes
    if wanted == "auto":
        return tuple(name for name in RUNTIMES if name != TORCH and unavailable(name, recipe.profile.device) is None)
    for name in wanted:
        if name not in RUNTIMES:
            raise RecipeError(f"profile.runtimes: unknown runtime {name!r}{nearest(name, list(RUNTIMES))}")
        reason = unavailable(name, recipe.profile.device)
        if reason:
            raise RecipeError(f"profile.runtimes: {name} cannot run here: {reason}")
    return tuple(name for name in wanted if name != TORCH)


def judged(recipe: Recipe, inputs: Mapping[str, Path]) -> list[Judged]:
    """All subjects, teacher first, in the order of the ledger."""
    trained = [("teacher", teacher.NAME, teacher.NAME), ("student", "student", distill.NAME)]
    if distill.CONTROL in inputs:
        trained.insert(1, ("control", "control", distill.CONTROL))
    trained[1:1] = [("generation", name, name) for name in distill.generations(recipe)]
    subjects = [
        Judged(
            name=name,
            role=role,
            stage=stage,
            format=TORCH,
            precision="fp32",
            runtime=TORCH,
            path=inputs[stage] / (teacher.WEIGHTS if role == "teacher" else distill.WEIGHTS),
        )
        for role, name, stage in trained
    ]
    available = runtimes(recipe)
    for stage in (export.NAME, quantize.NAME, *CLIMBED):
        if stage not in inputs:
            continue
        index = json.loads((inputs[stage] / export.INDEX).read_text())
        for name, entry in index.items():
            for runtime in available:
                if not runs_well(name, runtime, available):
                    continue
                subjects.append(
                    Judged(
                        name=f"{name}@{runtime}",
                        role="teacher" if name == "teacher" else "artifact",
                        stage=stage,
                        format="onnx",
                        precision=entry["artifact"]["precision"],
                        runtime=runtime,
                        path=inputs[stage] / f"{name}.onnx",
                        parity=entry["parity"],
                    )
                )
    return subjects


def runs_well(artifact: str, runtime: str, available: tuple[str, ...]) -> bool:
    """The portable int8 form is for TensorRT and OpenVINO: on ONNX Runtime's CPU provider it has no int8 kernels (it
    is slower than fp32), so it is judged there only when nothing else can run it."""
    portable = artifact.startswith("onnx-int8") and not artifact.startswith("onnx-int8-cpu")
    return not (portable and runtime == "onnxruntime" and len(available) > 1)


@contextmanager
def opened(subjects: list[Judged], recipe: Recipe, *, threads: int, batch: int = 0) -> Iterator[dict[str, Subject]]:
    """Open runners of all subjects with the same number of threads; `batch` 0 leaves it to the subject."""
    with ExitStack() as stack:
        yield {
            subject.name: stack.enter_context(open_subject(subject, recipe, threads=threads, batch=batch))
            for subject in subjects
        }


@contextmanager
def open_subject(subject: Judged, recipe: Recipe, *, threads: int, batch: int) -> Iterator[Subject]:
    from exporters import open_runner
    from exporters.artifact import Preprocessing

    device = recipe.profile.device
    if subject.runtime == TORCH:
        from exporters.run_torch import TorchRunner
        from pipeline.models.checkpoint import load_checkpoint

        module, meta = load_checkpoint(subject.path)
        shape = (batch or "batch", *meta.input_size)
        with TorchRunner(module, threads=threads, device=device, input_shape=shape) as runner:
            yield Subject(runner=runner, preprocess=preprocessing_of(meta).apply)
        return
    preprocessing = Preprocessing.of_file(subject.path)
    shapes = (batch or 1, *preprocessing.input_size) if recipe.export[0].dynamic_batch else None
    with open_runner(subject.runtime, subject.path, threads=threads, device=device, shapes=shapes) as runner:
        yield Subject(runner=runner, preprocess=preprocessing.apply)


def load_module(checkpoint: str) -> Any:
    """The network of a checkpoint, for the fresh process that measures memory and the first call."""
    from pipeline.models.checkpoint import load_checkpoint

    return load_checkpoint(Path(checkpoint))[0]
