"""The stages of the ladder: what survives a kill, how a lesson goes on, and a climb that ends before it begins."""

from types import SimpleNamespace
from typing import Any

import pytest
from test_pipeline_ladder import rung

MEASURED = ("state", "accuracy", "checks", "p50_ms")


def test_a_rung_is_taken_as_it_is_only_with_the_file_that_was_judged(tmp_path):
    from pipeline.stages.rungs import kept

    made: list[str] = []
    said: list[str] = []

    def work(path):
        made.append(path.name)
        path.write_bytes(b"model")
        return {"state": "holds"}

    first = kept(tmp_path, "cpu-entropy", work, said.append)
    assert kept(tmp_path, "cpu-entropy", work, said.append) == first and len(made) == 1
    assert said == ["cpu-entropy was done before the interruption, and is taken as it is"]
    (tmp_path / "cpu-entropy.onnx").write_bytes(b"half a mo")
    assert kept(tmp_path, "cpu-entropy", work, said.append) == first and len(made) == 2
    (tmp_path / "cpu-entropy.json").write_text('{"state": "hol')
    assert kept(tmp_path, "cpu-entropy", work, said.append) == first and len(made) == 3


def test_training_goes_on_without_what_had_ended_and_never_longer_than_the_table():
    from pipeline.recipe import Recipe
    from pipeline.stages.lesson import lessons
    from pipeline.stages.qat import retaught

    values: dict[str, Any] = {
        "name": "r",
        "data": {"name": "digits"},
        "teacher": {"model": "cifar-resnet20"},
        "student": {"model": "mlperf-resnet8"},
        "distill": {
            "epochs": 10,
            "lr": 0.1,
            "freeze": ["conv1"],
            "losses": [
                {"loss": "kd", "weight": 1.0, "temperature": 4.0, "warmup_epochs": 2.0},
                {"loss": "cross_entropy", "weight": 1.0, "until_epoch": 5.0},
            ],
        },
        "quantize": {"ladder": True},
    }
    recipe = Recipe.model_validate(values)
    found = retaught(lessons(recipe)[-1], recipe).distill
    assert [(term.loss, term.warmup_epochs) for term in found.losses] == [("kd", 0.0)]
    assert (found.epochs, found.lr, found.freeze, found.precision) == (3, pytest.approx(0.001), (), "fp32")
    values["quantize"] = {"ladder": ["qat"], "qat": {"epochs": 11}}
    with pytest.raises(ValueError, match=r"quantize.qat.epochs = 11 is beyond distill.epochs = 10"):
        Recipe.model_validate(values)


def test_a_climb_ends_at_once_where_fp32_breaks_the_rules_itself(tmp_path, monkeypatch):
    from pipeline.recipe import Quantize
    from pipeline.stages.ladder import Climb

    (tmp_path / "artifacts.json").write_text('{"onnx-int8-cpu": {}}')
    said: list[str] = []
    bench = SimpleNamespace(
        form="cpu",
        runtime="onnxruntime",
        baselines={"onnx-fp32@onnxruntime": None},
        standing_of=lambda subject: rung("fp32", "misses"),
    )
    stage = SimpleNamespace(name="ladder")
    inputs = dict.fromkeys(("quantize", "export"), tmp_path)
    context = SimpleNamespace(inputs=inputs, resume_folder=tmp_path, stage=stage, say=said.append)
    climb = Climb(
        recipe=SimpleNamespace(quantize=Quantize(ladder=True), task="classification"),  # type: ignore[arg-type]
        data=SimpleNamespace(),  # type: ignore[arg-type]
        context=context,  # type: ignore[arg-type]
        bench=bench,  # type: ignore[arg-type]
    )
    monkeypatch.setattr(climb, "measured", lambda path: {key: rung("plain", "misses")[key] for key in MEASURED})
    (tmp_path / "onnx-int8-cpu.onnx").write_bytes(b"model")
    climb.run()
    assert [record["label"] for record in climb.records] == ["plain"] and not climb.trains
    assert climb.summary["sentence"] == "cpu: fp32 breaks the rules itself (fp32 misses), which no rung can mend"
    assert climb.shipped() == {} and len(said) == 1
