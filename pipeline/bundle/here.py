"""What of a bundle runs on this machine, and on which device of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundle.contents import Bundle
from pipeline.bundle.layout import FORMAT
from pipeline.bundle.models import refuse_outside_data
from pipeline.errors import RecipeError, UserError
from pipeline.recipe import Profile, Recipe
from pipeline.stages.data import Prepared
from pipeline.stages.subjects import Judged, open_subject, runs_well, runtimes

CPU, GPU = "cpu", "cuda:0"
INSTALL = {CPU: "'edgestill[ort]' or 'edgestill[openvino]'", GPU: "'edgestill[tensorrt]' or 'edgestill[ort-gpu]'"}
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """What runs here, and why the rest does not (name -> subject and reason)."""

    running: list[Judged]
    left_out: dict[str, tuple[Judged, str]]


def device_here(asked: Profile) -> tuple[str, str]:
    """Where to measure when nobody names a device, and why: the GPU where there is one and a runtime for it.

    `asked` is the recipe's [profile] with the options given. Its device is a GPU only where somebody chose it; its
    default, the cpu, says where the host measured, and nothing of the machine that the bundle was made for.
    """
    from exporters import GPU_ONLY, unavailable
    from exporters.cuda_driver import device_count

    if asked.device != CPU:
        return asked.device, "as the recipe says"
    named = () if asked.runtimes == "auto" else asked.runtimes
    wanted = [name for name in GPU_ONLY if not named or name in named]
    if not wanted:
        return CPU, f"where {', '.join(named)} runs"
    if not device_count():
        return CPU, "no NVIDIA GPU is seen here"
    usable = [name for name in wanted if unavailable(name, GPU) is None]
    if usable:
        return GPU, f"a GPU that {', '.join(usable)} runs on; --device cpu measures the cpu"
    return CPU, f"NOT the GPU that is here: no runtime for it; {gpu_runtime()}"


def gpu_runtime(root: Path = Path("/")) -> str:
    """How the GPU of this machine gets a runtime."""
    from exporters import SERVED
    from exporters.cuda_driver import capability
    from profiles import jetson

    if jetson.model(root) is not None:
        return "TensorRT comes with JetPack: make the virtual environment with --system-site-packages"
    extra = "tensorrt-rtx" if capability(0) in SERVED["tensorrt-rtx"] else "tensorrt"
    return f"pip install 'edgestill[{extra}]', or 'edgestill[ort-gpu]' in the place of onnxruntime"


def subjects_of(bundle: Bundle, recipe: Recipe, data: Prepared, say: Say) -> Subjects:
    """Every model of the bundle on every runtime that runs here; what does not load is left out, with its reason.

    Raises UserError, one line, when no runtime runs on the device, or none loads an artifact.
    """
    from exporters import ExportError, unavailable

    device = recipe.profile.device
    try:
        available = runtimes(recipe)
    except RecipeError as error:
        raise UserError(str(error).replace("profile.runtimes", "--runtime")) from None
    if not available:
        other = f", or measure the cpu with --device {CPU}" if device != CPU else ""
        raise UserError(
            f"{bundle.path}: no runtime runs on {device} here; pip install {INSTALL[CPU if device == CPU else GPU]}"
            f"{other} ('edgestill doctor' says what this machine can run)"
        )
    for name, why in bundle.manifest.left_out.items():
        say(f"note: {name} is not in the bundle: {why}")
    found = Subjects(running=[], left_out={})
    for subject in subjects_on(bundle, available):
        try:
            if subject.runtime not in available:
                raise ExportError(unavailable(subject.runtime, device) or "--runtime names others")
            with open_subject(subject, recipe, threads=recipe.profile.threads, batch=0) as opened_one:
                opened_one.preprocess(data.source.test.load(data.test[:1]))
        except ExportError as error:
            why = str(error).replace(f"{bundle.folder}/", "")
            found.left_out[subject.name] = subject, why
            say(f"note: {subject.name} is left out: {why}")
        else:
            found.running.append(subject)
    if not any(subject.role == "artifact" for subject in found.running):
        reasons = "; ".join(why for _, why in found.left_out.values())
        raise UserError(f"{bundle.path}: no artifact of it runs on {device} here: {reasons}"[:400])
    return found


def subjects_on(bundle: Bundle, available: tuple[str, ...]) -> Iterator[Judged]:
    """Every model on every runtime that should run it, the teacher first; OpenVINO's own files on OpenVINO, whether it
    is there or not. Raises UserError for an ONNX file with weights in another file."""
    counted = bundle.manifest.counted()
    models = sorted(bundle.manifest.models.items(), key=lambda item: (item[1].role != "teacher", item[0]))
    for name, model in models:
        path = bundle.folder / model.file
        if model.format == FORMAT:
            refuse_outside_data(path, f"{bundle.path}: {model.file}")
            on = [runtime for runtime in available if runs_well(name, runtime, available)]
        else:
            on = [model.format]  # whose weights are the .bin beside it, which the manifest hashes
        for runtime in on:
            yield Judged(
                name=f"{name}@{runtime}",
                role=model.role,
                stage=model.stage,
                format=model.format,
                precision=model.precision,
                runtime=runtime,
                path=path,
                counted=None if model.format == FORMAT or counted is None else bundle.folder / counted,
            )
