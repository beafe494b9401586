"""The quantize stage and its table of the recipe: options reach the files, the ranking reaches artifacts.json."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from exporter_nets import file

from exporters.artifact import ExportError, read_metadata
from exporters.calibration_samples import likeness, refuse_noise
from pipeline.recipe import RUNGS, Quantize
from pipeline.stages import quantize


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(**options) -> the index and what was said; the net and its images are small ones of the exporters' tests."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "onnx-fp32.onnx").write_bytes(file("fp32").read_bytes())
    drawn = np.random.default_rng(0).integers(0, 256, (40, 17, 16, 3))
    images = ((drawn[:, 1:] + drawn[:, :-1]) // 2).astype(np.uint8)  # neighbours are alike, as in images
    train = SimpleNamespace(load=lambda chosen: images[chosen])
    data = SimpleNamespace(
        calibration=np.arange(8),
        validation=np.arange(8, 40),
        source=SimpleNamespace(train=train),
        validation_images=train,
    )
    monkeypatch.setattr(quantize, "prepared", lambda recipe, folder: data)

    def call(**options):
        recipe = SimpleNamespace(quantize=Quantize(**options), export=[SimpleNamespace(batch=2)])
        lines: list[str] = []
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        context = SimpleNamespace(
            folder=folder, inputs={"data": tmp_path, "export": tmp_path / "export"}, say=lines.append
        )
        quantize.run(recipe, context)  # type: ignore[arg-type]
        return json.loads((folder / "artifacts.json").read_text()), lines, folder

    return call


def test_the_plain_stage_states_its_memory_and_ranks_nothing(run):
    index, lines, _ = run()
    assert list(index) == ["onnx-int8", "onnx-int8-cpu"]
    assert all(sorted(entry) == ["artifact", "parity"] for entry in index.values())
    assert [line.split(", ")[0] for line in lines] == ["quantize: onnx-int8"] * 2 + ["quantize: onnx-int8-cpu"] * 2
    assert "calibration: minmax on 8 samples" in lines[0] and "0 bytes of histograms" in lines[0]


def test_every_option_reaches_the_file(run):
    _, lines, folder = run(
        forms=["cpu"],
        method="percentile",
        percentile=99.5,
        equalize=True,
        bias_correction=True,
        keep_fp32=["fc"],
        reduce_range=True,
    )
    found = read_metadata(folder / "onnx-int8-cpu.onnx")
    assert found["calibration_method"] == "percentile 99.5"
    assert (found["equalized_pairs"], found["corrected_biases"], found["kept_fp32"]) == ("2", "6", "node_linear")
    assert "quantize: onnx-int8-cpu, bias correction: 6 layers" in lines


def test_the_ranking_is_recorded_and_its_worst_three_are_said(run):
    index, lines, _ = run(forms=["portable"], sensitivity=True)
    found = index["onnx-int8"]["sensitivity"]
    assert found["samples"] == 8 and found["all_db"] > 20
    assert len(found["layers"]) == 9
    noise = [layer["alone_db"] for layer in found["layers"]]
    assert noise == sorted(noise)
    worst = ", ".join(f"{layer['layer'] or layer['node']} {layer['alone_db']:.0f} dB" for layer in found["layers"][:3])
    assert lines[-1] == f"quantize: onnx-int8, most sensitive layers, each quantized alone: {worst}"


def test_forms_of_nncf_are_ir_beside_the_onnx_forms(run):
    pytest.importorskip("nncf", reason="nncf is not installed; pip install 'edgestill[nncf]'")
    index, lines, folder = run(forms=["cpu", "nncf", "nncf-mixed"])
    assert list(index) == ["onnx-int8-cpu", "openvino-int8-nncf", "openvino-int8-nncf-mixed"]
    for form, name in quantize.NNCF.items():
        assert index[name]["artifact"]["kind"] == "openvino" and index[name]["parity"]["sqnr_db"] > 20
        assert read_metadata(folder / f"{name}.xml")["form"] == form
        (line,) = (line for line in lines if line.startswith(f"quantize: {name}, nncf: min-max on 8 samples; memory: "))
        assert line.endswith(", which it does not tell")


def test_without_nncf_its_forms_are_left_out_and_said(run, monkeypatch):
    from exporters.to_openvino import NncfExporter

    monkeypatch.setattr(NncfExporter, "unavailable", lambda self: "nncf is not installed")
    index, lines, _ = run(forms=["cpu", "nncf-mixed"])
    assert list(index) == ["onnx-int8-cpu"]
    assert lines[-1] == "quantize: openvino-int8-nncf-mixed is left out: nncf is not installed"


@pytest.mark.parametrize("percentile", [0, 49.9, 100.1, "many"])
def test_a_percentile_is_a_share_that_keeps_most(percentile):
    with pytest.raises(ValueError, match="percentile"):
        Quantize(method="percentile", percentile=percentile)


def test_an_option_without_effect_is_refused():
    with pytest.raises(ValueError) as error:
        Quantize(method="entropy", percentile=99)
    assert 'percentile = 99 has no effect with method = "entropy"; write method = "percentile"' in str(error.value)
    assert Quantize.model_validate(Quantize().model_dump()) == Quantize()


def test_noise_is_refused_as_calibration_images(run, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    train = SimpleNamespace(load=lambda chosen: noise[chosen])
    data = SimpleNamespace(
        calibration=np.arange(8),
        validation=np.arange(8, 40),
        source=SimpleNamespace(train=train),
        validation_images=train,
    )
    monkeypatch.setattr(quantize, "prepared", lambda recipe, folder: data)
    with pytest.raises(ExportError) as error:
        run()
    assert str(error.value) == (
        "quantize: the calibration samples look like noise: neighbouring pixels correlate by 0.00, those of images by "
        "far more than 0.1; give real images, preprocessed as in training"
    )


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.indices((8, 8)).sum(0)[None, None] * np.ones((4, 3, 1, 1)), 0.8),  # a ramp
        (np.random.default_rng(0).normal(size=(8, 3, 16, 16)), 0.0),
        (np.ones((4, 1, 8, 8)), None),
        (np.ones((4, 1, 2, 8)), None),
    ],
)
def test_likeness_of_neighbours(images, expected):
    found = likeness(images)
    assert found is None if expected is None else found == pytest.approx(expected, abs=0.12)


def test_few_values_and_other_inputs_than_images_say_nothing():
    refuse_noise([np.random.default_rng(0).normal(size=(1, 3, 8, 8))], where="x")
    refuse_noise([np.random.default_rng(0).normal(size=(64, 100))], where="x")
    refuse_noise([], where="x")


def test_the_ladder_leaves_the_plain_stage_as_it_was():
    plain, climbing = (
        quantize.stage(SimpleNamespace(quantize=Quantize(**options))).config  # type: ignore[arg-type]
        for options in ({}, {"ladder": True, "ladder_stop": False, "qat": {"epochs": 2}})
    )
    assert plain == climbing and not {"ladder", "ladder_stop", "qat"} & set(plain["quantize"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ladder": []}, "ladder names no rung; write ladder = true, or some of calibration, samples, equalize"),
        ({"qat": {"epochs": 2}}, "qat has no effect without its rung; write ladder = true"),
        ({"ladder": ["samples"], "qat": {"lr": 0.1}}, "qat has no effect without its rung; write ladder = true"),
    ],
)
def test_a_ladder_that_climbs_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Quantize(**options)


def test_rungs_are_climbed_from_cheap_to_dear_however_they_are_listed():
    assert Quantize(ladder=("qat", "samples")).rungs == ("samples", "qat")
    assert Quantize(ladder=True).rungs == RUNGS and Quantize().rungs == ()
