"""A dense task from recipe to verdict, as the chain takes any: pictures for answers, tiles for large images."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_dense
from cli_runner import cli
from PIL import Image

import pipeline
from pipeline.errors import UserError
from pipeline.gates.intervals_mean import moments_of
from pipeline.models.checkpoint import load_checkpoint
from pipeline.recipe_file import load_recipe
from pipeline.reports.report import schema
from pipeline.tasks import TASKS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        toy_dense.register(patch)
        yield patch


@pytest.fixture(scope="module")
def run(patched: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("toy")
    return folder / "toy", pipeline.run(toy_dense.recipe_file(folder), out=folder, say=lambda line: None)


def test_it_goes_from_recipe_to_verdict(run: tuple[Path, dict[str, Any]]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    _, report = run
    jsonschema.validate(report, schema())
    assert report["verdict"] == "released" and report["task"]["metric"] == "psnr"
    assert report["data"]["target_shape"] == [24, 24, 3] and report["data"]["calibration"]["disjoint"]
    subjects = {row["name"]: row for row in report["subjects"]}
    assert subjects.keys() >= {"teacher", "control", "student", "teacher@onnxruntime", "onnx-int8@onnxruntime"}
    for row in subjects.values():
        accuracy = row["accuracy"]
        low, high = accuracy["ci95"]
        assert accuracy["metric"] == "psnr" and accuracy["n"] == 14 and low < accuracy["value"] < high
        assert 0 <= accuracy["near"] <= 1 and accuracy["moments"]["psnr"]["unit"] == "dB"
        assert row["agreement"] is None and (row["parity"] or {"top1_flips": None})["top1_flips"] is None
    assert subjects["teacher"]["accuracy"]["value"] > subjects["student"]["accuracy"]["value"] + 0.5
    assert report["distillation"]["unit"] == "dB" and report["distillation"]["gain_pt"] is None
    assert re.match(r"distillation .*: [+-]\d\.\d{3} dB against the control", report["distillation"]["sentence"])


def test_comparisons_are_moments_of_the_recorded_outcomes(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    rows = [row for row in report["comparisons"] if row["kind"] == "metric"]
    assert {(row["metric"], row["unit"]) for row in rows} == {("psnr", "dB"), ("near", "pt")}
    row = next(row for row in rows if (row["subject"], row["against"]) == ("student", "teacher"))
    held = {subject["name"]: np.load(folder / subject["stored"]["outcomes"]["path"]) for subject in report["subjects"]}
    gap = held["student"]["test_psnr"] - held["teacher"]["test_psnr"]
    assert row["n"] == len(gap) == 14 and row["mean"] == pytest.approx(gap.mean())
    assert row["sd"] == pytest.approx(gap.std(ddof=1))
    assert moments_of(row).skewness == pytest.approx(np.mean((gap - gap.mean()) ** 3) / gap.std() ** 3)


def test_the_report_shows_the_metric_and_pictures(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "PSNR, dB" in page and "top-1" not in page + text and "| subject | PSNR |" in text
    assert "Accuracy" not in page and len(page) < 1_000_000
    assert len({picture["index"] for picture in report["pictures"]}) == len(report["pictures"]) == 3
    for picture in report["pictures"]:
        assert list(picture["answers"])[:2] == ["teacher", "student"] and "int8" in list(picture["answers"])[2]
        shown = Image.open(io.BytesIO(base64.b64decode(picture["target"])))
        assert list(shown.size) == picture["box"][:1:-1] and picture["size"] == [38, 26]
    assert page.count("data:image/png;base64,") == sum(2 + 2 * len(p["answers"]) for p in report["pictures"])


def test_verify_judges_it_again(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    found = cli("verify", folder, "--json")
    assert found.code == 0 and found.json["whole"] and found.json["verdict"] == "released", found.json["changes"]
    assert found.json["samples"] == 3 * len(report["subjects"]) - 2  # the control's speed is not measured


def test_a_second_run_is_fresh(run: tuple[Path, dict[str, Any]]) -> None:
    folder, report = run
    said: list[str] = []
    assert pipeline.run(folder.parent / "toy.toml", out=folder.parent, say=said.append) == report
    assert said and all(line.endswith(": fresh") for line in said)


def test_predict_writes_what_the_network_answers(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = run
    inputs = {"a.png": (60, 46), "sub/b.png": (16, 60)}  # larger, and on one side smaller than a tile
    for number, (name, (height, width)) in enumerate(inputs.items()):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(toy_dense.pair(number, height, width, 7)[0]).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    said = cli("predict", folder, tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert said.code == 1 and "broken.png" in said.err
    assert [entry["answer_size"] for entry in said.json["pictures"]] == [[60, 46], [16, 60]]
    module, meta = load_checkpoint(next(folder.glob("distill-*")) / "student.safetensors")
    assert meta.output_shape == (3, 24, 24) and meta.class_names == ()
    raw = toy_dense.pair(0, 60, 46, 7)[0]
    with torch.inference_mode():
        whole = module(torch.from_numpy(raw.astype(np.float32) / 255).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    with Image.open(tmp_path / "out" / "a.png") as image, Image.open(tmp_path / "out" / "sub" / "b.png") as other:
        got, small = np.asarray(image), other.size
    # The network looks two pixels far, the tiles overlap by four and drop one: at seams the fade is not exact.
    assert np.abs(got.astype(int) - toy_dense.Toy.postprocess(whole.numpy())).mean() < 0.5
    assert small == (60, 16)
    assert "--out" in cli("predict", folder, tmp_path / "in").err
    assert "--csv" in cli("predict", folder, tmp_path / "in", "--out", tmp_path, "--csv", tmp_path / "c.csv").err


def test_a_bundle_of_pictures_is_refused_with_what_to_do(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    said = cli("bundle", run[0], "--out", tmp_path / "toy.zip")
    assert said.code == 1 and re.fullmatch(r"error: .*pictures, which bundles do not carry yet; .*\n", said.err)


def test_smoke_takes_the_tasks_own_data(patched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = load_recipe(toy_dense.recipe_file(tmp_path), smoke=True)
    assert (recipe.name, recipe.data.name, recipe.data.image_size) == ("toy-smoke", "toy", 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("data.name=digits", "data.name: 'digits' serves 'classification', and the task is 'toy'; take 'toy'"),
        ("data.image_size=32", "data.image_size: 'toy' never resizes; give data.patch, the side of what it sees"),
        ("data.unlabelled=x", "data.unlabelled: 'toy' has no images without targets; leave it out, or add them"),
        (
            "distill.losses.0.loss=cross_entropy",
            "distill.losses.0: loss 'cross_entropy' compares classes, and the task",
        ),
        ("distill.losses.1.loss=kd", "distill.losses.1: loss 'kd' compares classes, and the task 'toy' gives pictures"),
        ("distill.augment.mixup=0.2", "distill.augment.mixup: the target of 'toy' is a picture, which would not fit"),
        ("distill.augment.cutmix=1.0", "distill.augment.cutmix: the target of 'toy' is a picture"),
        ("distill.augment.pad_crop=2", "distill.augment.pad_crop: the target of 'toy' is a picture"),
        ("teacher.train.augment.cutout=2", "teacher.train.augment.cutout: the target of 'toy' is a picture"),
        ("distill.teacher_outputs=table", "distill.teacher_outputs: pictures are too large for a table"),
        ("task=classification", "data.name: 'toy' serves 'toy', and the task is 'classification'; take 'arrays' or"),
        ("task=depth", "unknown task 'depth'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_recipe(
    patched: pytest.MonkeyPatch, tmp_path: Path, change: str, text: str
) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(toy_dense.recipe_file(tmp_path), [change])
    assert text in str(error.value) and "\n" not in str(error.value)


def test_a_loss_of_pictures_is_refused_for_classes(patched: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"distill\.losses\.1: loss 'toy_l1' compares pictures, and the task"):
        load_recipe("digits", ["distill.losses.1.loss=toy_l1"])
    with pytest.raises(UserError, match=r"teacher\.min_accuracy: got 28; it must be at most 1: it is a share"):
        load_recipe("digits", ["teacher.min_accuracy=28.0"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            ["teacher.train.lr=1e-9"],
            r"teacher: PSNR \S+ dB on 12 validation images cannot be told from a trivial answer",
        ),
        (["teacher.min_accuracy=30.0"], r"teacher: PSNR \S+ dB on 12 validation images is below min_accuracy = 30"),
    ],
)
def test_a_teacher_that_teaches_nothing_is_refused_before_any_student(
    patched: pytest.MonkeyPatch, tmp_path: Path, changes: list[str], text: str
) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match=text):
        pipeline.run(toy_dense.recipe_file(tmp_path), overrides=changes, out=tmp_path, say=said.append)
    assert not [line for line in said if line.startswith(("distill", "export"))]


def test_a_network_of_the_wrong_scale_is_refused_before_the_teachers_hours(
    patched: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        pipeline.run(
            toy_dense.recipe_file(tmp_path), overrides=["student.model=toy_dense:same_size"], out=tmp_path,
            say=lambda line: None,
        )  # fmt: skip
    assert "answers an image of 3x12x12 with (3, 12, 12); expected a picture (3, 24, 24)" in str(error.value)


def test_a_control_depends_on_its_own_terms_alone(patched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipeline.chain import stages

    def configs(*changes: str) -> dict[str, Any]:
        recipe = load_recipe(toy_dense.recipe_file(tmp_path), changes)
        return {stage.name: json.loads(json.dumps(stage.config)) for stage in stages(recipe)}

    before, other = configs(), configs("distill.losses.1.weight=0.5")
    assert before["control"] == other["control"] and before["distill"] != other["distill"]
    assert [term["loss"] for term in before["control"]["objective"]] == ["toy_l1"] == [
        term["loss"] for term in before["teacher"]["objective"]
    ]  # fmt: skip
    assert before["control"] != configs("distill.losses.0.weight=0.5")["control"]
    assert before["table"] == configs("distill.epochs=9")["table"], "a live teacher has nothing to store"


def test_no_stage_names_a_task() -> None:
    """If the chain has to know which task runs, redesign the chain."""
    folders = ("stages", "distillers", "training", "reports")
    places = [path for folder in folders for path in (ROOT / "pipeline" / folder).glob("*.py")]
    places += [ROOT / "pipeline" / f"{name}.py" for name in ("chain", "evaluate", "progress", "gates/selection")]
    places.remove(ROOT / "pipeline" / "reports" / "task_words.py")  # the words of reports that name no task
    assert len(places) > 50
    names = re.compile(
        "|".join(rf"[\"']{name}[\"']|tasks\.{name.replace('-', '_')}\b" for name in TASKS if name != "toy")
    )
    assert [path.name for path in places if names.search(path.read_text(encoding="utf-8"))] == []


def test_a_teacher_fed_on_the_wrong_scale_is_told_so(patched: pytest.MonkeyPatch) -> None:
    """Its weights want [-1, 1], and it is fed [0, 1]: the check says which mean and std to set."""
    from pipeline.models.checkpoint import ModelMeta
    from pipeline.picture_check import diagnose
    from pipeline.recipe import Data

    class Wants(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(images + 1, scale_factor=2)  # (x - 0.5) / 0.5 + 1 = 2 x

    module = Wants()
    source = toy_dense.open_source(Data.model_construct(name="toy"))
    meta = ModelMeta(
        model="m", num_classes=3, class_names=(), input_size=(3, 12, 12), mean=(0.0,) * 3, std=(1.0,) * 3,
        output_shape=(3, 24, 24),
    )  # fmt: skip
    indices = np.arange(12)
    found = diagnose(toy_dense.Toy, module, meta, source.validation, indices, min_accuracy=0.0)
    assert len(found.problems) == 1 and "it looks fed on the wrong scale: with [-1, 1] it has" in found.problems[0]
    assert "set teacher.mean = [0.5, 0.5, 0.5] and teacher.std = [0.5, 0.5, 0.5]" in found.problems[0]
    right = diagnose(
        toy_dense.Toy, module, ModelMeta(**(vars(meta) | {"mean": (0.5,) * 3, "std": (0.5,) * 3})),
        source.validation, indices, min_accuracy=0.0,
    )  # fmt: skip
    assert not right.problems and right.accuracy > right.chance + 5
    torch.nn.init.constant_(broken := torch.nn.Conv2d(3, 12, 1).weight, float("nan"))
    module.forward = lambda images: torch.nn.functional.pixel_shuffle(torch.nn.functional.conv2d(images, broken), 2)  # type: ignore[method-assign]
    damaged = diagnose(toy_dense.Toy, module, meta, source.validation, indices, min_accuracy=0.0)
    assert damaged.problems[0] == "NaN or infinite outputs for 12 of 12 images; its weights are damaged"


def test_ranks_share_the_validation_images_and_score_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from pipeline.distillers.teacher import Network
    from pipeline.recipe import Data

    images = toy_dense.open_source(Data.model_construct(name="toy")).validation
    data: Any = SimpleNamespace(validation_images=images, validation=np.arange(11))
    network = Network(module=toy_dense.network(), mean=(0.0,) * 3, std=(1.0,) * 3)

    def scored(rank: int, world: int) -> float:
        ranks = SimpleNamespace(rank=rank, world=world, mean=lambda mine: mine)
        monkeypatch.setattr("pipeline.training.validation.current", lambda: ranks)
        return toy_dense.Toy.score(network, data, device=torch.device("cpu"), dtype=torch.float32)

    assert np.mean([scored(0, 2), scored(1, 2)]) == pytest.approx(scored(0, 1), rel=1e-9)
