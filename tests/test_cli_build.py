"""edgestill build: engines ahead of time by TensorRT-RTX itself, on a device by the stand-ins, and every refusal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_runner import cli
from exporter_nets import file
from tensorrt_fakes import install

from exporters.cuda_driver import device_count
from exporters.tensorrt_engine import read_sidecar

BOUNDS = "1,3,16,16/4,3,16,16/8,3,16,16"


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; pip install 'edgestill[test]'")
    if device_count():
        pytest.skip("an NVIDIA GPU is here")


def test_an_engine_is_built_ahead_of_time(rtx: None, tmp_path: Path) -> None:
    out = tmp_path / "m.engine"
    options = ("--for", "tensorrt-rtx", "--cc", "8.9", "--cc", "SM120", "--workspace", "64MiB", "--out", out)
    found = cli("build", file("dynamic"), *options, "--shapes", BOUNDS, "--json").json
    assert (found["kind"], found["subject"], found["edition"]) == ("engine", str(out), "tensorrt-rtx")
    assert found["compute_capabilities"] == ["SM89", "SM120"] and found["workspace_bytes"] == 64 << 20
    assert found["profiles"] == {"input": [[1, 3, 16, 16], [4, 3, 16, 16], [8, 3, 16, 16]]}
    assert found["precision"]["requested"] == "fp32" and found["precision"]["obtained"]["layers"] == {"fp32": 7}
    assert found["sha256"] == read_sidecar(out).facts["engine"]["sha256"]


def test_it_is_told_to_people_and_ends_with_what_to_do_next(rtx: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = cli("build", file("portable"), "--for", "tensorrt-rtx", "--cc", "8.9").out.splitlines()
    shown = {" ".join(line.split()[:-1]): line.split()[-1] for line in lines}
    assert shown["precision asked for"] == "int8"
    assert any(
        line.split() == ["convolutions", "and", "products", "in", "int8", "7", "parsed", "network"] for line in lines
    )
    assert lines[-2:] == [
        "take portable.engine and portable.engine.json together to the machine with the GPU; there:",
        "next: edgestill profile portable.engine",
    ]


def test_options_reach_the_builder_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("10.3.0", monkeypatch, tmp_path)
    out, timings = tmp_path / "m.plan", tmp_path / "timings.cache"
    options = ("--timing-cache", timings, "--compatible", "version", "--compatible", "ampere_plus", "--tf32")
    shown = cli("build", file("dynamic"), "--for", "tensorrt", "--input", "4,3,16,16", "--workspace", "1GiB", *options,
                "--out", out).out  # fmt: skip
    assert shown.splitlines()[-1] == f"next: edgestill profile {out}" and "together" not in shown
    ((_, config),) = sys.modules["tensorrt"].built
    assert config.pools == {"WORKSPACE": 1 << 30} and timings.read_bytes().startswith(b"timings")
    assert {flag.name for flag in config.flags} == {"VERSION_COMPATIBLE", "TF32"}
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert config.profiles == [{"input": ((4, 3, 16, 16),) * 3}]
    cli("build", file("fp32"), "--for", "tensorrt", "--out", out)
    assert read_sidecar(out).facts["onnx"]["name"] == "fp32.onnx", "one of ours is built anew"


def test_memory_that_runs_out_while_building_says_what_to_lower(tmp_path: Path, monkeypatch) -> None:
    install("10.3.0", monkeypatch, tmp_path, fails="Cuda Runtime (out of memory)")
    result = cli("build", file("fp32"), "--for", "tensorrt", "--out", tmp_path / "m.engine")
    assert result.code == 1 and result.err == (
        f"error: {file('fp32')}: tensorrt 10.3.0 cannot build it (Cuda Runtime (out of memory)); lower --workspace, or "
        "end what else uses the GPU\n"
    )


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--cc", "ada"), 2, "invalid value for '--cc': got 'ada'; expected a compute capability such as 8.9"),
        (("--workspace", "1 pint"), 2, "got '1 pint'; expected a size such as 512MiB or 1GiB"),
        (("--shapes", "1,3,16,16"), 2, "got '1,3,16,16'; expected smallest, best and largest, such as 1,3,32,32/"),
        (("--shapes", BOUNDS, "--shapes", BOUNDS), 1, "--shapes: given more than once; name the input of each"),
        (("--shapes", f"pixels={BOUNDS}"), 1, "no input named 'pixels'; its inputs are ['input']"),
        (("--cc", "9.0", "--input", "1,3,16,16"), 1, "compute_capabilities: got 'SM90'; tensorrt-rtx 1."),
        (("--input", "1,3,16,16"), 1, "no NVIDIA GPU is seen here; name the compute capabilities (--cc)"),
        (("--cc", "8.9"), 1, "has open sizes; give --input 1,3,224,224"),
        (("--cc", "8.9", "--input", "1,3,16,16", "--timing-cache", "t"), 1, "does nothing for timing_cache; name"),
        (("--compatible", "ampere_plus", "--compatible", "same_compute_capability"), 1, "give one of the two"),
        (("--out", "m.bin"), 1, "--out: got m.bin; give it one of the endings .engine, .plan, .trt"),
        (("--out", "taken.trt"), 1, "was not built by edgestill; give another --out, or remove it"),
        (("--precision", "int8", "--cc", "8.9", "--input", "1,3,16,16"), 1, "give the int8 file"),
    ],
)
def test_refusals_are_one_line(rtx: None, tmp_path: Path, monkeypatch, args, code: int, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.trt").write_bytes(b"of someone else")
    result = cli("build", file("dynamic"), "--for", "tensorrt-rtx", *args)
    assert (result.code, result.err.count("\n")) == (code, 1) and told in result.err, result.err
    assert [path.name for path in tmp_path.iterdir()] == ["taken.trt"]


def test_files_and_machines_that_will_not_do(rtx: None, tmp_path: Path) -> None:
    for name, data, told in (
        ("none.onnx", None, "no such file"),
        ("text.onnx", b"text", "not an ONNX file; it cannot be parsed"),
        ("m.engine", b"plan", "is an engine already; give the .onnx file that it was made from"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        result = cli("build", path, "--for", "tensorrt-rtx", "--cc", "8.9", "--out", tmp_path / "out.engine")
        assert (result.code, result.err) == (1, f"error: {path}: {told}\n")
    result = cli("build", file("fp32"), "--for", "tensorrt")
    assert result.code == 1 and result.err.startswith("error: --for tensorrt: ") and result.err.count("\n") == 1
