"""Measurements under unequal conditions are not compared; targets, machine and sizes are read as they are."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from profiles.errors import ProfileError
from profiles.machine import machine, power_mode
from profiles.measure import Conditions, Measurement, comparable
from profiles.size import model_files, size_bytes
from profiles.targets import devices

CONDITIONS = Conditions(
    device="cpu", machine="m", batch=1, threads=2, input_shapes=((1, 3, 8, 8),), versions={"x": "1"}
)
A = Measurement(subject="a", metric="latency", unit="ns", kind="device", samples=np.ones(3), conditions=CONDITIONS)


def test_equal_conditions_compare_whatever_the_runtime():
    comparable(A, replace(A, subject="b", conditions=replace(CONDITIONS, versions={"y": "2"})))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"device": "cuda:0"}, "device cpu and cuda:0"),
        ({"machine": "n"}, "machine m and n"),
        ({"power_mode": "quiet on battery"}, "power mode unknown and quiet on battery"),
        ({"governor": "powersave"}, "governor unknown and powersave"),
        ({"batch": 8, "threads": 1}, "batch 1 and 8; threads 2 and 1"),
        ({"input_shapes": ((1, 3, 9, 9),)}, "input shape 1x3x8x8 and 1x3x9x9"),
    ],
)
def test_unequal_conditions_are_refused(change, told):
    other = replace(A, subject="b", conditions=replace(CONDITIONS, **change))
    with pytest.raises(ProfileError) as caught:
        comparable(A, other)
    assert str(caught.value) == f"a and b cannot be compared: {told}; measure both under the same conditions"


def test_other_metrics_are_refused():
    with pytest.raises(ProfileError, match="kind device and end_to_end; measure both"):
        comparable(A, replace(A, kind="end_to_end"))


def test_shipped_devices_load():
    found = devices()
    assert {"cpu", "jetson-agx-orin", "jetson-orin-nano", "jetson-thor", "laptop-gpu"} <= set(found)
    assert found["cpu"].runtimes == ("openvino", "onnxruntime", "torch")
    assert found["laptop-gpu"].device == "cuda:0"
    for target in found.values():
        assert set(target.record) <= machine().keys()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            'device = "cpu"',
            (
                "got keys device; needs description, device, precisions, runtimes and may have "
                "compute_capability, hints, power_modes, record, releases"
            ),
        ),
        ("device = ", "cannot be read (Invalid value (at end of document)); mend the file"),
        (
            'description = "d"\ndevice = "cpu"\nprecisions = []\nruntimes = "torch"',
            "runtimes: got 'torch'; expected a list of strings",
        ),
    ],
)
def test_bad_device_file_is_named(tmp_path, text, told):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        devices(tmp_path)
    assert str(caught.value) == f"{path}: {told}"


def test_machine_is_json_and_knows_its_processors():
    here = machine()
    assert json.loads(json.dumps(here)) == here
    assert here["processors"] >= 1
    assert here["memory_bytes"] > here["memory_available_bytes"] > 0


@pytest.mark.parametrize(
    ("profile", "mains", "told"),
    [
        (None, None, None),
        ("balanced", None, "balanced"),
        (None, False, "battery"),
        ("performance", True, "performance on mains"),
    ],
)
def test_power_mode(profile, mains, told):
    assert power_mode({"platform_profile": profile, "on_ac_power": mains}) == told


def test_size_counts_side_files(tmp_path):
    xml = tmp_path / "net.xml"
    xml.write_bytes(b"x" * 10)
    with pytest.raises(ProfileError) as caught:
        size_bytes(xml)
    missing = tmp_path / "net.bin"
    assert str(caught.value) == f"{missing}: no such file; net.xml cannot be opened without it"
    missing.write_bytes(b"y" * 100)
    assert size_bytes(str(xml)) == 110
    assert size_bytes(tmp_path) == 110


def test_size_counts_external_data_of_onnx(tmp_path):
    weight = onnx.numpy_helper.from_array(np.zeros(1000, np.float32), "w")
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1000])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["w"], ["y"])], "g", [], [value], [weight])
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph), path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert model_files(path) == (path, tmp_path / "net.data")
    assert size_bytes(path) == path.stat().st_size + 4000
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\xff" * 7)
    assert size_bytes(broken) == 7
    with pytest.raises(ProfileError, match="no such file"):
        size_bytes(tmp_path / "absent.onnx")
