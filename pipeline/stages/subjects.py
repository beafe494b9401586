"""What is judged: the trained networks on torch, and every artifact on every runtime that runs it."""

from __future__ import annotations

import dataclasses
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

TORCH, COMPILE = "torch", "torch-compile"
# Forms for NVIDIA's runtimes: they are judged there, and on ONNX Runtime's CPU provider only where none of those runs.
NVIDIA_FORMS = ("onnx-int8-gpu", "onnx-int8-trt86")
COMPILED_BATCH = 64
NVIDIA = ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-cuda")
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
    counted: Path | None = None  # what is counted in the place of a file whose operations cannot be


def climbed(recipe: Recipe) -> tuple[str, ...]:
    """The stages of the precision ladder, whose artifacts are judged with all others; none where nobody asks for it."""
    if not recipe.quantize or not recipe.quantize.rungs:
        return ()
    return CLIMBED if "qat" in recipe.quantize.rungs else CLIMBED[:1]


def runtimes(recipe: Recipe) -> tuple[str, ...]:
    """Runtimes of files: all that run here for `auto`; one that is named but missing is refused."""
    from exporters import MODULE_RUNTIMES, RUNTIMES, unavailable

    wanted = recipe.profile.runtimes
    if wanted == "auto":
        files = [name for name in RUNTIMES if name not in MODULE_RUNTIMES]
        return tuple(name for name in files if unavailable(name, recipe.profile.device) is None)
    for name in wanted:
        if name not in RUNTIMES:
            raise RecipeError(f"profile.runtimes: unknown runtime {name!r}{nearest(name, list(RUNTIMES))}")
        reason = unavailable(name, recipe.profile.device)
        if reason:
            raise RecipeError(f"profile.runtimes: {name} cannot run here: {reason}")
    return tuple(name for name in wanted if name not in MODULE_RUNTIMES)


def compiled(recipe: Recipe) -> bool:
    """Whether teacher and student are measured by torch.compile too: only where it is named, since compiling them costs
    more than all else that `auto` races."""
    return COMPILE in recipe.profile.runtimes


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
    if compiled(recipe):
        subjects += [
            dataclasses.replace(subject, name=f"{subject.name}@{COMPILE}", runtime=COMPILE)
            for subject in subjects
            if subject.name in ("teacher", "student")
        ]
    available = runtimes(recipe)
    for stage in (export.NAME, quantize.NAME, *CLIMBED):
        if stage not in inputs:
            continue
        index = json.loads((inputs[stage] / export.INDEX).read_text())
        for name, entry in index.items():
            kind, file = entry["artifact"]["kind"], entry["artifact"]["path"]
            for runtime in available if kind != TORCH else (TORCH,):
                if not runs_well(name, runtime, available):
                    continue
                subjects.append(
                    Judged(
                        name=f"{name}@{runtime}",
                        role="teacher" if name == "teacher" else "artifact",
                        stage=stage,
                        format=kind,
                        precision=entry["artifact"]["precision"],
                        runtime=runtime,
                        path=inputs[stage] / file,
                        parity=entry["parity"],
                        counted=None if kind == "onnx" else inputs[export.NAME] / "onnx-fp32.onnx",
                    )
                )
    return subjects


def runs_well(artifact: str, runtime: str, available: tuple[str, ...]) -> bool:
    """The portable int8 form is for TensorRT and OpenVINO: on ONNX Runtime's CPU provider it has no int8 kernels (it
    is slower than fp32), so it is judged there only when nothing else can run it. OpenVINO's own files run there alone,
    those for NVIDIA's runtimes on these and else, for their accuracy and so that a bundle has them, on one runtime."""
    if artifact.startswith("openvino"):
        return runtime == "openvino"
    if artifact.startswith(NVIDIA_FORMS):
        at_home = [name for name in available if name in NVIDIA]
        return runtime in (at_home or ([name for name in available if name == "onnxruntime"] or list(available))[:1])
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
    from exporters import MODULE_RUNTIMES, RUNTIMES, open_runner
    from exporters.artifact import Preprocessing
    from pipeline.registry import load

    device = recipe.profile.device
    if subject.runtime in MODULE_RUNTIMES:
        from pipeline.models.checkpoint import load_checkpoint

        module, meta = load_checkpoint(subject.path)
        # What is compiled is compiled for one shape; an eager module takes batches of any size.
        usual = COMPILED_BATCH if subject.runtime == COMPILE else "batch"
        settings = {"threads": threads, "device": device, "input_shape": (batch or usual, *meta.input_size)}
        runner_of = load(RUNTIMES[subject.runtime])
        with runner_of(module, precision=subject.precision, **settings) as runner:
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
