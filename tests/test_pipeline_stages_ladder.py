"""The stages of the ladder: what survives a kill, how a lesson goes on, and a climb that ends before it begins."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from exporter_nets import batches, file
from test_pipeline_ladder import rung

from exporters.artifact import ExportError, read_metadata


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


def climb_of(folder, form, **quantize):
    """A climb whose rungs are files of the small net; on its bench fp32 holds, and every rung breaks a rule."""
    from pipeline.recipe import Quantize
    from pipeline.stages.ladder import Climb
    from pipeline.stages.quantize import NAMES

    (folder / "artifacts.json").write_text(f'{{"{NAMES[form]}": {{}}}}')
    (folder / "onnx-fp32.onnx").write_bytes(file("fp32").read_bytes())
    (folder / f"{NAMES[form]}.onnx").write_bytes(file(form).read_bytes())
    said: list[str] = []
    bench = SimpleNamespace(
        form=form,
        runtime="onnxruntime",
        baselines={"onnx-fp32@onnxruntime": None},
        standing_of=lambda subject: rung("fp32"),
        judge=lambda path: {key: rung("rung", "misses")[key] for key in ("state", "accuracy", "checks")},
        time=lambda paths: {label: {"p50_ms": 0.5} for label in paths},
    )
    context = SimpleNamespace(
        inputs=dict.fromkeys(("quantize", "export"), folder),
        resume_folder=folder,
        stage=SimpleNamespace(name="ladder"),
        say=said.append,
    )
    climb = Climb(
        recipe=SimpleNamespace(quantize=Quantize.model_validate(quantize), task="classification"),  # type: ignore[arg-type]
        data=SimpleNamespace(),  # type: ignore[arg-type]
        context=context,  # type: ignore[arg-type]
        bench=bench,  # type: ignore[arg-type]
    )
    climb.stream = lambda samples: batches()  # type: ignore[assignment,method-assign,return-value]
    return climb, bench, said


def test_a_climb_ends_at_once_where_fp32_breaks_the_rules_itself(tmp_path):
    climb, bench, said = climb_of(tmp_path, "cpu", ladder=True)
    bench.standing_of = lambda subject: rung("fp32", "misses")
    climb.run()
    assert [record["label"] for record in climb.records] == ["plain"] and not climb.trains
    assert climb.summary["sentence"] == "cpu: fp32 breaks the rules itself (fp32 misses), which no rung can mend"
    assert climb.shipped() == {} and len(said) == 1


@pytest.mark.parametrize("form", ["gpu", "trt86"])
def test_forms_for_gpus_are_climbed_rung_by_rung_and_what_was_done_survives_a_kill(tmp_path, form):
    rungs = ["calibration", "samples", "equalize", "bias-correction", "float-layers", "qat"]
    killed, _, _ = climb_of(tmp_path, form, ladder=rungs, samples=8)
    add = killed.add

    def interrupted(record):
        if record["label"] == "bias-correction":
            raise KeyboardInterrupt
        return add(record)

    killed.add = interrupted
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    climb, _, said = climb_of(tmp_path, form, ladder=rungs, samples=8)
    climb.run()
    labels = ["plain", "percentile", "entropy", "samples", "equalize", "bias-correction", "float-layers"]
    assert [(record["label"], record.get("left_out")) for record in climb.records] == [(each, None) for each in labels]
    taken = [line for line in said if "was done before the interruption" in line]
    assert taken == [
        f"ladder: {form}-{label} was done before the interruption, and is taken as it is" for label in labels[:-1]
    ]
    assert climb.trains and {layer["operator"] for layer in climb.sensitivity[form]["layers"]} == {
        "Conv",
        "Gemm",
        "Add",
    }
    found = read_metadata(tmp_path / f"{form}-bias-correction.onnx")
    assert found["form"] == form and found["corrected_biases"] == "7"
    assert climb.records[-1]["kept_fp32"] and climb.records[-1]["artifact"] == f"onnx-int8-{form}-float-layers"


def test_a_form_that_the_runtime_here_refuses_stays_as_it_is_and_the_reason_is_said(tmp_path):
    climb, bench, _ = climb_of(tmp_path, "gpu", ladder=True)

    def refuse(path):
        raise ExportError("opset 20 is too new for tensorrt 8.6.2")

    bench.judge, bench.runtime = refuse, "tensorrt"
    bench.baselines = {"onnx-fp32@tensorrt": None}
    climb.run()
    assert len(climb.records) == 1 and not climb.trains and climb.shipped() == {}
    assert climb.summary["sentence"] == (
        "gpu: tensorrt does not run it (opset 20 is too new for tensorrt 8.6.2), so it stays as it is"
    )


@pytest.mark.parametrize(
    ("form", "available", "runtime", "timed"),
    [
        ("gpu", ("onnxruntime", "openvino"), "onnxruntime", False),
        ("trt86", ("openvino",), "openvino", False),
        ("trt86", ("onnxruntime", "onnxruntime-cuda", "tensorrt"), "tensorrt", True),
        ("gpu", ("onnxruntime", "onnxruntime-cuda"), "onnxruntime-cuda", True),
        ("portable", ("onnxruntime", "openvino"), "openvino", True),
        ("cpu", ("openvino", "onnxruntime"), "onnxruntime", True),
        ("gpu", (), None, False),
    ],
)
def test_a_form_is_judged_where_it_is_at_home_and_timed_only_there(monkeypatch, form, available, runtime, timed):
    from pipeline.stages import rungs
    from pipeline.stages.quantize import NAMES
    from pipeline.stages.subjects import runs_well

    monkeypatch.setattr(rungs, "runtimes", lambda recipe: available)
    monkeypatch.setattr(rungs, "latencies", lambda subjects, recipe, data: pytest.fail("timed all the same"))
    found = rungs.home(form, None)  # type: ignore[arg-type]
    assert found == runtime and (found is None or runs_well(NAMES[form], found, available))
    fields: dict[str, Any] = dict.fromkeys(("recipe", "data", "baselines", "outcomes")) | {"stage": "ladder"}
    bench = rungs.Bench(form=form, runtime=str(found), **fields)
    assert bench.timed == timed
    if not timed:
        found = bench.time({"rung": file("fp32")})["rung"]
        assert found["p50_ms"] is None and found["missing"] == {"p50_ms": rungs.NOT_TIMED}


def test_what_the_ladder_does_not_climb_is_said_with_its_reason(tmp_path, monkeypatch):
    from pipeline.stages import ladder

    monkeypatch.setattr(ladder, "prepared", lambda recipe, folder: None)
    monkeypatch.setattr(ladder, "open_bench", lambda *args, **options: None)
    recipe = SimpleNamespace(quantize=SimpleNamespace(forms=("nncf", "gpu")))
    ladder.run(recipe, SimpleNamespace(inputs={"data": tmp_path}, folder=tmp_path))  # type: ignore[arg-type]
    assert {
        form: row["sentence"] for form, row in json.loads((tmp_path / "ladder.json").read_text())["forms"].items()
    } == {
        "nncf": "nncf: its quantizer, NNCF, takes no rung, so it stays as it is",
        "gpu": "gpu: profile.runtimes has none that runs files, so it stays as it is",
    }


def test_where_nothing_is_timed_the_fewest_layers_stay_in_float():
    from pipeline.stages.float_layers import _chosen

    judged = {nodes: rung("rung") | {"p50_ms": None, "against": {}} for nodes in (("a", "b"), ("c",), ("a", "b", "c"))}
    assert _chosen(judged, "holds") == ("c",)
    judged["a", "b"]["p50_ms"], judged["c",]["p50_ms"], judged["a", "b", "c"]["p50_ms"] = 0.4, 0.5, 0.6
    assert _chosen(judged, "holds") == ("a", "b")
