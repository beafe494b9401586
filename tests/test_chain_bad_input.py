"""Bad input through the real command line: one clear line each, the right exit code, and nothing lost."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cli_runner import brightness_net, cli
from onnx import TensorProto, helper
from PIL import Image
from two_stages import flip_bit

from pipeline import manifest
from pipeline.models import build

RECIPE = """
name = "mine"
data = { name = "digits" }
teacher = { model = "mlperf-resnet8", train = { epochs = 1, batch_size = 64, lr = 0.05 } }
student = { model = "mlperf-resnet8" }
distill = { epochs = 1 }
quantize = { samples = 16, forms = ["cpu"] }
profile = { runtimes = ["onnxruntime"], min_seconds = 0.05 }
"""
PHOTOS = ("data.name=imagefolder", "data.root=photos", "data.image_size=16")
ARRAYS = ("data.name=arrays", "data.root=x.npz")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of one's own with the recipe in it, and one thread."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(RECIPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def run(*settings: str, out: str = "store") -> list[str]:
    return ["run", "mine.toml", "--out", out, *(word for text in settings for word in ("--set", text))]


def refused(args: list[str], code: int = 1) -> tuple[str, list[str]]:
    """The error of a command line that must end in one line with `code`, and what was said before it."""
    result = cli(*args)
    *said, last = result.err.splitlines()
    assert result.code == code and result.out == "", result.err
    assert last.startswith("error: ") and not any(line.startswith("error: ") for line in said), result.err
    return last.removeprefix("error: "), said


def state(model: str, classes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build(model, num_classes=classes, in_channels=1).state_dict()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["run", "digist"], "no such recipe 'digist'; did you mean 'digits'?"),
        (["run", "my/own.toml"], "my/own.toml: no such recipe file; write one with 'edgestill init my/own.toml'"),
        (run("distil.epochs=3"), "--set: unknown key 'distil'; did you mean 'distill'?"),
        (run("distill.epoch=3"), "--set: distill: unknown key 'epoch'; did you mean 'epochs'?"),
        (run("distill.epochs=ten"), "--set: distill.epochs: got 'ten'; expected a whole number"),
        (run("distill.epochs=1.5"), "--set: distill.epochs: got 1.5; expected a whole number"),
        (run("teacher.model=mlperf-resnet"),
         "--set: teacher.model: unknown model 'mlperf-resnet'; did you mean 'mlperf-resnet8'?"),
        (run("student.model=torchvision:resnet81"),
         "--set: student.model: torchvision has no classifier 'resnet81'; did you mean 'resnet18'?"),
        (run("student.model=nowhere.nets:build"),
         ("--set: student.model: model 'nowhere.nets:build': no module 'nowhere.nets'; "
          "install it or put its folder on PYTHONPATH")),
        (run("data.name=cifar11"), "--set: data.name: unknown data set 'cifar11'; did you mean 'cifar10'?"),
        (run("profile.runtimes=openvin"),
         "--set: profile.runtimes: unknown runtime 'openvin'; did you mean 'openvino'?"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_before_anything_is_made(args: list[str], line: str) -> None:
    assert refused(args, code=2) == (line, [])
    assert [path.name for path in Path().iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        ("samples", "sample", "mine.toml: quantize: unknown key 'sample'; did you mean 'samples'?"),
        ("samples = 16", "samples = '16'", "mine.toml: quantize.samples: got '16'; expected a whole number"),
    ],
)
def test_a_mistake_in_the_file_is_said_with_the_file(right: str, wrong: str, line: str) -> None:
    Path("mine.toml").write_text(RECIPE.replace(right, wrong))
    assert refused(run(), code=2) == (line, [])


def photos(*names: str) -> None:
    for place, name in enumerate(names):
        path = Path("photos") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(place).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path) if path.suffix == ".png" else path.write_bytes(b"words")


def arrays(train: np.ndarray, test: np.ndarray, **more: np.ndarray) -> None:
    images = np.random.default_rng(0).integers(0, 256, (len(train), 8, 8), dtype=np.uint8)
    np.savez("x.npz", x_train=images, y_train=train, x_test=images, y_test=test, **more)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], "data.root: no folder 'photos'; give the folder that holds the class folders"),
        (["a.png"], "data.root: 'photos' has no class folders; put the images of each class in a folder of its own"),
        (["cat/a.txt", "dog/b.txt"],
         "data.root: no images under 'photos'; its class folders hold no .jpg, .jpeg, .png, .webp, .bmp file"),
        (["cat/a.png", "dog/b.txt"],
         "data.root: class folder 'photos/dog' holds no .jpg, .jpeg, .png, .webp, .bmp file; fill or remove it"),
        (["cat/a.png", "cat/b.png"],
         "data.root: 'photos' has one class only ('cat'); a classifier needs two or more"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_data_set(names: list[str], line: str) -> None:
    photos(*names)
    assert refused(run(*PHOTOS)) == (line, ["data: building (never built)"])
    assert [path.name for path in Path("store/mine").iterdir()] == [".lock"], "an empty folder was left"


def test_unreadable_images_are_all_named_at_once() -> None:
    photos("cat/a.png", "cat/b.png", "cat/c.jpg", "dog/a.png", "dog/b.png")
    Path("photos/dog/d.png").touch()
    result = cli(*run(*PHOTOS))
    assert result.code == 1
    assert result.err.splitlines()[1:] == [
        "error: data.root: 2 of 6 images cannot be used; mend or remove them:",
        "error:   photos/cat/c.jpg: not a readable JPEG, PNG, WEBP, BMP image",
        "error:   photos/dog/d.png: empty file",
    ]


def test_arrays_and_downloads_that_are_not_there_or_have_one_class() -> None:
    line = "data.root: no file 'x.npz'; give the .npz file that holds x_train, y_train, x_test, y_test"
    assert refused(run(*ARRAYS))[0] == line
    arrays(np.zeros(20, int), np.zeros(20, int))
    assert refused(run(*ARRAYS))[0] == "x.npz: train: one class only ('0'); a classifier needs two or more"
    assert refused(run("data.name=cifar10", "data.root=sets"))[0] == (
        "data.root: no cifar10 in 'sets' (looked for 'sets/cifar-10-batches-py'); add --set data.download=true, or "
        "point data.root at the folder that holds it"
    )


def test_numbers_of_classes_that_differ() -> None:
    labels = np.arange(24)
    arrays(labels % 3, labels % 4)
    assert refused(run(*ARRAYS))[0] == "x.npz: test: label 3, but there are 3 classes (0 to 2)"
    arrays(labels % 3, labels % 3, class_names=np.array(["cat", "dog"]))
    assert refused(run(*ARRAYS))[0] == "x.npz: train: label 2, but there are 2 classes (0 to 1)"
    torch.save(state("mlperf-resnet8", 100), "hundred.pt")
    for part in ("teacher", "student"):
        assert refused(run(f"{part}.weights=hundred.pt"))[0] == (
            f"{part}.weights: hundred.pt: head 'linear' has 100 classes, data has 10; "
            "give weights trained on these 10 classes"
        )


def test_too_few_calibration_samples() -> None:
    assert refused(run("quantize.samples=1000"))[0] == (
        "quantize.samples = 1000: only 969 of 969 training images are distinct and not in the test split; "
        "set quantize.samples to 969 or less, or give more images"
    )


class Malicious:
    """What unpickling it would do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_weights_that_do_not_belong_here_are_refused_before_training(part: str) -> None:
    torch.save(state("cifar-resnet20", 10), "other.pt")
    torch.save({"linear.weight": Malicious()}, "evil.pt")
    Path("cut.safetensors").write_bytes(b"\x99" * 64)
    line, said = refused(run(f"{part}.weights=other.pt"))
    assert re.fullmatch(
        rf"{part}\.weights: other\.pt: weights of another architecture: 8 of 49 tensors fit; missing conv1\.bias, .* "
        r"and 36 more; unexpected layer1\.0\.conv1\.weight, .* and 115 more; check the model's name and its \?options",
        line,
    )
    assert said[-1] == "teacher: building (never built)", "the student is looked at before the teacher is trained"
    line, _ = refused(run(f"{part}.weights=evil.pt"))
    assert line == (
        f"{part}.weights: evil.pt: holds code or objects (posix.mkdir), which could run anything; refused; "
        "re-save its state_dict with safetensors"
    )
    assert not Path("pwned").exists()
    line, _ = refused(run(f"{part}.weights=cut.safetensors"))
    assert line.startswith(f"{part}.weights: cut.safetensors: corrupted or truncated (")
    line, said = refused(run(f"{part}.weights=gone.pt"), code=2)
    assert (line, said) == (
        f"{part}.weights: no such file 'gone.pt' (looked in {Path.cwd()}); give another with --set {part}.weights=FILE",
        [],
    )


def test_an_untrained_teacher_is_refused() -> None:
    torch.save(state("mlperf-resnet8", 10), "random.pt")
    line, said = refused(run("teacher.weights=random.pt"))
    assert re.fullmatch(
        r"teacher: \d+\.\d\d % top-1 on 109 validation images cannot be told from guessing \(chance is 10\.0 %\); "
        "train it longer, or give the weights that belong to this data",
        line,
    )
    assert said[-1] == "teacher-check: building (never built)"


def test_a_corrupted_artifact_is_said_and_built_again() -> None:
    command = run("teacher.min_accuracy=1.0")  # ends after the teacher, which is all that is needed here
    line, said = refused(command)
    assert re.fullmatch(r"teacher: .*min_accuracy.*", line), line
    (folder,) = Path("store/mine").glob("teacher-????????????")
    digest = manifest.read(folder)["digest"]
    assert refused(command)[1][:2] == ["data: fresh", "teacher: fresh"]
    flip_bit(folder / "teacher.safetensors")
    again, said = refused(command)
    assert said[:2] == ["data: fresh", "teacher: building (teacher.safetensors is corrupted (sha256 differs))"]
    assert again == line and manifest.verify(folder, manifest.read(folder)["fingerprint"])["digest"] == digest


def test_a_store_that_cannot_be_written() -> None:
    Path("file").touch()
    assert refused(run(out="file")) == (
        "file/mine: cannot be written (Not a directory); mend that or give another --out",
        [],
    )


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    if os.name != "posix" or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_finished_stages_are_kept() -> None:
    with small_disk(Path("store"), 200):
        line, _ = refused(run())
        assert re.fullmatch(
            r"store/mine/teacher-\w{12}\.partial/teacher\.safetensors: no space left \(needed about 3\d\d\.\d kB\); "
            "free some or give another --out; finished stages are kept",
            line,
        )
        rows = cli("plan", "mine.toml", "--out", "store", "--json").json
        assert [row["state"] for row in rows[:2]] == ["fresh", "missing"]


def onnx_of_nobody() -> None:
    node = helper.make_node("Swizzle", ["x"], ["y"], name="head/swizzle", domain="acme")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("acme", 1)]
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=10), "c.onnx"
    )


def test_onnx_files_with_open_sizes_or_operators_of_nobody() -> None:
    brightness_net(Path("open.onnx"), batch="n")
    for command in (["inspect"], ["profile", "--seconds", "0.05"]):
        assert refused([*command, "open.onnx"])[0] == (
            "open.onnx: input input: float32[n, 3, 4, 4] has open sizes; give --input 1,3,224,224"
        )
    onnx_of_nobody()
    assert refused(["inspect", "c.onnx"])[0] == (
        "c.onnx: node 'head/swizzle' has the unsupported operator acme::Swizzle (opset 1); "
        "export the model with standard ONNX operators"
    )
    line, _ = refused(["profile", "c.onnx", "--seconds", "0.05"])
    assert re.fullmatch(r"c\.onnx: onnxruntime cannot load it \(.*acme:Swizzle.*\)", line)


def test_a_data_set_that_changes_between_two_runs_of_one_process_is_read_again() -> None:
    labels = np.arange(24)
    arrays(labels % 3, labels % 3)
    few = ("quantize.samples=100",)  # ends after the source was opened
    assert refused(run(*ARRAYS, *few))[0] == (
        "quantize.samples = 100: every training image stands in the test split too, so none is left to calibrate with; "
        "give training images of their own, or leave int8 out with quantize = false"
    )
    arrays(labels % 4, labels % 5)
    assert refused(run(*ARRAYS, *few))[0] == "x.npz: test: label 4, but there are 4 classes (0 to 3)"
