"""A bundle where there is a GPU: which device is measured and why, and a record of TensorRT, over the fakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle_parts import small_bundle
from cli_runner import cli
from cuda_fakes import FakeDriver
from fake_sysfs import plant
from tensorrt_fakes import fake_trt

from pipeline.bundle.contents import read_manifest
from pipeline.bundle.here import device_here, gpu_runtime
from pipeline.recipe import Profile

QUICK = ("--seconds", "0.05", "--no-memory")


def asked(**settings: Any) -> Profile:
    return Profile.model_validate(settings)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDriver:
    """A GPU of compute capability 8.7 that is not there, and no runtime for it, whatever is installed here."""
    fake = FakeDriver()
    monkeypatch.setattr("exporters.cuda_driver.load_driver", lambda: fake)
    monkeypatch.setattr("exporters._not_the_gpu_edition", lambda runtime: f"{runtime} is not installed")
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    return fake


@pytest.fixture
def tensorrt(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = fake_trt("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", found)
    reasons = {"tensorrt": None}
    monkeypatch.setattr("exporters._not_the_gpu_edition", lambda runtime: reasons.get(runtime, "not installed"))
    return found


def test_a_bundle_is_measured_on_the_gpu_where_a_runtime_runs_on_it(tmp_path: Path, tensorrt: Any) -> None:
    """From the five lines of README: engines are built here, judged, timed and bound to the bytes of the bundle."""
    path = small_bundle(tmp_path / "x.zip")
    done = cli("profile", path, *QUICK, "--out", tmp_path / "record")
    assert done.code == 0, done.err
    assert done.err.splitlines()[0] == "device: cuda:0, a GPU that tensorrt runs on; --device cpu measures the cpu"
    record = json.loads((tmp_path / "record/report.json").read_text())
    assert record["recipe"]["profile"]["device"] == "cuda:0" and record["verdict"] == "released"
    rows = {row["name"]: row for row in record["subjects"]}
    assert list(rows) == ["teacher", "teacher@tensorrt", "onnx-fp32@tensorrt"]
    files = read_manifest(path)[0].files
    for name in ("teacher@tensorrt", "onnx-fp32@tensorrt"):
        row = rows[name]
        assert row["accuracy"]["value"] == 1.0 and row["sha256"] == files[row["path"]].sha256
        assert [entry["kind"] for entry in row["latency"]] == ["device", "end_to_end"]
        assert all(entry["p50_ms"] > 0 for entry in row["latency"])
    assert record["selection"]["chosen"] == "onnx-fp32@tensorrt"
    assert tensorrt.built, "no engine was built"
    built = len(tensorrt.built)
    assert cli("verify", tmp_path / "record").code == 0
    assert cli("gate", tmp_path / "record").code == 0
    again = cli("profile", path, *QUICK, "--device", "cuda:0", "--out", tmp_path / "again", "--json")
    assert again.code == 0 and "device: " not in again.err
    assert len(tensorrt.built) == built, "engines are taken from the cache"


def test_the_cpu_is_measured_where_it_is_asked_for_or_nothing_else_can_be(gpu: FakeDriver, tmp_path: Path) -> None:
    none = "NOT the GPU that is here: no runtime for it; pip install 'edgestill[tensorrt]', or 'edgestill[ort-gpu]' in "
    device, why = device_here(asked())
    assert (device, why) == ("cpu", f"{none}the place of onnxruntime")
    assert device_here(asked(runtimes=("onnxruntime",))) == ("cpu", "where onnxruntime runs")
    assert device_here(asked(device="cuda:1")) == ("cuda:1", "as the recipe says")
    done = cli("profile", small_bundle(tmp_path / "x.zip"), *QUICK, "--out", tmp_path / "record", "--json")
    assert done.code == 0 and done.err.startswith(f"device: cpu, {none}")
    assert done.json["recipe"]["profile"]["device"] == "cpu"
    gpu.gpus = 0
    assert device_here(asked(runtimes=("tensorrt",))) == ("cpu", "no NVIDIA GPU is seen here")


def test_how_a_gpu_gets_a_runtime(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("exporters.cuda_driver.capability", lambda index=0: "8.9")
    assert gpu_runtime().startswith("pip install 'edgestill[tensorrt-rtx]', or ")
    jetson = plant(tmp_path, {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit"})
    assert gpu_runtime(jetson) == (
        "TensorRT comes with JetPack: make the virtual environment with --system-site-packages"
    )


def test_the_flag_stands_in_help_and_readme() -> None:
    assert "a bundle where there is a GPU" in " ".join(cli("profile", "--help").out.split())
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## On the device\n")[2].partition("\n## ")[0]
    assert "--device cuda:0" in section and "--device cpu" in section
