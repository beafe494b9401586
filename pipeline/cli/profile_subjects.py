"""What `edgestill profile` is given, as runners not opened yet: ONNX files, models, checkpoints and engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.cli.arguments import InputShape, Subject, file_shapes, module_of, one_shape, subject_of
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import nn

    from exporters.base import Runner


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One subject on one runtime, not opened yet. `request` asks a fresh process for its memory and first call."""

    name: str
    subject: Subject
    runtime: str
    runner: Runner
    request: dict[str, Any]


def device_of(texts: Sequence[str]) -> str:
    """Where subjects run when no --device is given: an engine runs on a GPU only, and the others go where it goes."""
    return "cuda:0" if any(subject_of(text).kind == "engine" for text in texts) else "cpu"


def candidates_of(
    text: str,
    inputs: tuple[InputShape, ...],
    classes: int | None,
    runtimes: tuple[str, ...],
    *,
    device: str,
    threads: int,
) -> list[Candidate]:
    """A subject on each runtime that is asked for and installed. Raises `UserError` when there is none."""
    from exporters import RUNTIMES, open_runner, unavailable

    subject = subject_of(text)
    if subject.kind == "engine":
        _needs_gpu(subject, device)
    elif subject.kind != "onnx":
        runtime = subject.runtime or "torch"
        if not reads_modules(runtime):
            raise UserError(f"{text}: {runtime} runs ONNX files; export it, or leave out @{runtime}")
        return [_on_torch(subject, inputs, classes, runtime=runtime, device=device, threads=threads)]
    for name in runtimes:
        if name not in RUNTIMES:
            raise UserError(f"--runtime: unknown runtime {name!r}{nearest(name, list(RUNTIMES))}")
    wanted = (subject.runtime,) if subject.runtime else runtimes
    chosen = wanted or tuple(name for name in RUNTIMES if not reads_modules(name) and not unavailable(name, device))
    if not chosen:
        extra = "ort-gpu" if device.startswith("cuda") else "ort"
        raise UserError(f"{text}: no runtime runs on {device} here; pip install 'edgestill[{extra}]'")
    shapes = file_shapes(inputs, subject)
    made = []
    for runtime in chosen:
        request: dict[str, Any] = {"runtime": runtime, "path": str(subject.path), "threads": threads, "device": device}
        if shapes:
            request["shape"] = {name: list(sizes) for name, sizes in shapes.items()}
        made.append(
            Candidate(
                name=f"{subject.path}@{runtime}",
                subject=subject,
                runtime=runtime,
                runner=open_runner(runtime, subject.path, threads=threads, device=device, shapes=shapes),
                request=request,
            )
        )
    return made


def reads_modules(runtime: str) -> bool:
    """Whether a runtime takes torch modules, and no files."""
    from exporters import MODULE_RUNTIMES

    return runtime in MODULE_RUNTIMES


def _needs_gpu(subject: Subject, device: str) -> None:
    """Refuse an engine where no GPU can run it; what else is in the way (no TensorRT) its runner says."""
    from exporters import unavailable
    from exporters.cuda_driver import device_count

    if not device_count():
        raise UserError(
            f"{subject.path}: an engine runs on an NVIDIA GPU, and none is seen here; profile it on its device, or "
            "here the .onnx file that it was made from"
        )
    if reason := unavailable(subject.runtime, device):
        raise UserError(f"{subject.path}: {reason}")


def _on_torch(
    subject: Subject,
    inputs: tuple[InputShape, ...],
    classes: int | None,
    *,
    runtime: str,
    device: str,
    threads: int,
) -> Candidate:
    from exporters import RUNTIMES, unavailable
    from pipeline.registry import load

    if reason := unavailable(runtime, device):
        raise UserError(f"{subject.text}: {runtime} cannot run it here: {reason}")
    module, shape = module_of(subject, one_shape(inputs, subject), classes)
    name = str(subject.path) if subject.kind == "checkpoint" else subject.text
    return Candidate(
        name=f"{name}@{runtime}",
        subject=subject,
        runtime=runtime,
        runner=load(RUNTIMES[runtime])(module, threads=threads, input_shape=shape, device=device),
        request={
            "runtime": runtime,
            "builder": "pipeline.cli.profile_subjects:build_again",
            "args": {"text": subject.text, "shape": list(shape), "classes": classes},
            "shape": list(shape),
            "threads": threads,
            "device": device,
        },
    )


def build_again(text: str, shape: list[int], classes: int | None) -> nn.Module:
    """The module of a subject, in the fresh process that measures its memory."""
    return module_of(subject_of(text), tuple(shape), classes)[0]
