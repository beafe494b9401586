"""profile of a TensorRT engine: refused in one line where no GPU can run it, and run over the fakes where one can."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from cli_runner import brightness_net, cli
from cuda_fakes import FakeDriver
from exporter_nets import INPUT_SHAPE, file
from tensorrt_fakes import fake_trt

from exporters.cuda_driver import bus_id, device_count
from exporters.probe import cold_start
from exporters.tensorrt_api import edition_of
from exporters.tensorrt_options import BuildOptions
from exporters.to_tensorrt import build_engine
from profiles.memory import why_no_device_memory

QUICK = ("--seconds", "0.05", "--blocks", "2", "--no-energy")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU and a TensorRT 10.3 that are not there, and the path of an engine that they built."""
    fake = FakeDriver()
    monkeypatch.setattr("exporters.cuda_driver.load_driver", lambda: fake)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt("10.3.0"))
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "m.engine"
    build_engine(file("fp32"), path, edition=edition_of("tensorrt"), options=BuildOptions())
    return path


def test_an_engine_is_profiled_on_its_gpu(machine: Path) -> None:
    found = cli("profile", machine, *QUICK, "--no-memory", "--batches", "2,3", "--json").json
    assert found["conditions"]["device"] == "cuda:0"
    (row,) = found["subjects"]
    assert (row["name"], row["runtime"], row["device"], row["precision"]) == (
        f"{machine}@tensorrt",
        "tensorrt",
        "cuda:0",
        "fp32",
    )
    assert row["latency"][0]["n"] >= 64 and row["latency"][0]["p50_ms"] > 0 and row["latency"][0]["p99_9_ms"] is None
    assert row["size_bytes"] == machine.stat().st_size and row["versions"]["cuda_graph"] == "captured"
    assert [entry["why"] for entry in row["batches"]] == [None, f"the file's batch is fixed at {INPUT_SHAPE[0]}"]


def test_an_onnx_file_beside_an_engine_goes_to_the_gpu_too(machine: Path, tmp_path: Path) -> None:
    """OpenVINO, which runs on no NVIDIA GPU, is not tried; without another runtime that is said."""
    model = shutil.copy(file("fp32"), tmp_path / "m.onnx")
    found = cli("profile", machine, model, *QUICK, "--no-memory", "--json").json
    assert {row["name"] for row in found["subjects"]} >= {f"{machine}@tensorrt", f"{model}@tensorrt"}
    assert {row["runtime"] for row in found["subjects"]} <= {"tensorrt", "onnxruntime"}
    assert found["comparisons"][0]["against"] == f"{machine}@tensorrt"
    result = cli("profile", machine, "--device", "cpu", *QUICK)
    assert result.code == 1
    assert result.err == f"error: {machine}: tensorrt does not run on cpu; profile on cuda:0\n"


def test_the_layers_of_an_engine_are_told_by_tensorrt(machine: Path) -> None:
    (row,) = cli("profile", machine, *QUICK, "--no-memory", "--layers", "--json").json["subjects"]
    slowest = row["layers"]["layers"][0]
    assert (slowest["operator"], slowest["ms"], slowest["n"]) == ("CaskConvolution", 0.25, 50)
    assert row["layers"]["operators"][0]["operator"] == "CaskConvolution"


def test_sensors_ask_for_the_gpu_by_its_place_on_the_bus(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def looked_up(device: str, *, bus_id: str | None = None) -> str:
        asked.append((device, bus_id))
        return "none here"

    monkeypatch.setattr("profiles.thermal.open_gpu", looked_up)
    monkeypatch.setattr("profiles.power.open_gpu", looked_up)
    monkeypatch.setattr("profiles.power.jetson.model", lambda root: None)
    assert cli("profile", machine, "--seconds", "0.05", "--blocks", "2", "--no-memory", "--json").code == 0
    assert asked == [("cuda:0", "0000:01:00.0")] * 2
    assert [bus_id(index) for index in range(2)] == ["0000:01:00.0", None]


def test_device_memory_is_by_the_runtimes_own_counters(machine: Path) -> None:
    request = {"runtime": "tensorrt", "path": str(machine), "threads": 1, "device": "cuda:0"}
    found = json.loads(json.dumps(cold_start(request)))["device_memory"]
    tensors = found["tensors_bytes"]
    assert found == {
        "activations_bytes": 4096,
        "weights_bytes": None,
        "tensors_bytes": tensors,
        "total_bytes": 4096 + tensors,
    }
    assert why_no_device_memory("onnxruntime", "cpu") is None
    assert why_no_device_memory("onnxruntime", "cuda:0") == "onnxruntime does not count what it holds on cuda:0"


@pytest.mark.parametrize("suffix", [".engine", ".plan"])
def test_without_a_gpu_the_refusal_is_one_line(machine: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = machine.with_suffix(suffix)
    if path != machine:
        shutil.copy(machine, path)
        shutil.copy(f"{machine}.json", f"{path}.json")
    monkeypatch.undo()
    if device_count():
        pytest.skip("this machine has a GPU")
    result = cli("profile", path)
    assert result.code == 1
    assert result.err == (
        f"error: {path}: an engine runs on an NVIDIA GPU, and none is seen here; profile it on its device, or here "
        "the .onnx file that it was made from\n"
    )
    assert cli("inspect", path, "--json").json["edition"] == "tensorrt"  # which needs none


def test_engines_that_cannot_be_told_are_refused(tmp_path: Path, machine: Path) -> None:
    alone = shutil.copy(machine, tmp_path / "alone.engine")
    result = cli("profile", alone)
    assert result.code == 1 and f"{alone}: no alone.engine.json beside it" in result.err
    result = cli("profile", f"{machine}@tensorrt-rtx")
    assert result.err == (
        f"error: {machine}: built by tensorrt, which tensorrt-rtx cannot load; leave out @tensorrt-rtx\n"
    )
    shutil.copy(brightness_net(tmp_path / "other.onnx"), machine)
    result = cli("profile", machine)
    assert result.code == 1 and "the two do not belong together" in result.err and result.err.count("\n") <= 2
