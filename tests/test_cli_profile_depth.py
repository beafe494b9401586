"""profile's deeper looks on real small models: batches, layers, soak, and what the machine does not tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runner import brightness_net, cli

from pipeline.cli import profile_depth
from pipeline.cli.profile_depth import show_depth
from profiles.power import Energy

QUICK = ("--seconds", "0.05", "--blocks", "2", "--no-memory")


def test_a_soak_with_layers_in_json(tmp_path: Path) -> None:
    path = brightness_net(tmp_path / "m.onnx")
    args = (f"{path}@onnxruntime", *QUICK, "--minutes", "0.004", "--deadline-ms", "1000", "--layers")
    found = cli("profile", *args, "--json").json
    (row,) = found["subjects"]
    soak = row["soak"]
    assert soak["n"] == soak["missed_frames"]["n"] > 0 and soak["missed_frames"]["deadline_ms"] == 1000
    assert soak["why"] == "the soak is not longer than the first minute, which the rest is compared with"
    assert {layer["operator"] for layer in row["layers"]["layers"]} >= {"GlobalAveragePool"}
    assert len(row["states"]["device"]) == row["latency"][0]["blocks"]
    assert row["states"]["device"][0]["affinity"]
    assert (row["energy_j"] is None) == ("energy_j" in found["conditions"]["untold"])
    assert row["batches"] is None


def test_batches_that_a_file_has_and_has_not(tmp_path: Path) -> None:
    fixed, open_ = brightness_net(tmp_path / "fixed.onnx"), brightness_net(tmp_path / "open.onnx", batch="n")
    args = ("--runtime", "onnxruntime", *QUICK, "--batches", "1,3", "--no-energy", "--json")
    (row,) = cli("profile", fixed, *args).json["subjects"]
    assert [(entry["batch"], entry["why"]) for entry in row["batches"]] == [
        (1, None),
        (3, "the file's batch is fixed at 1"),
    ]
    found = cli("profile", open_, "--input", "1,3,4,4", *args).json
    (row,) = found["subjects"]
    assert [entry["why"] for entry in row["batches"]] == [None, None]
    assert all(entry["throughput_per_s"] > 0 for entry in row["batches"])
    assert found["conditions"]["untold"]["energy_j"] == "--no-energy was given"


def test_everything_is_told_to_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--input", "1,3,8,8", *QUICK, "--minutes", "0.003", "--deadline-ms", "500", "--layers", "--batches", "1,2")
    result = cli("profile", "mlperf-resnet8", *args)
    assert result.code == 0, result.err
    for text in (
        "slowest layers",
        "Conv2d",
        "images/s",
        "layers add up to",
        "slowest operators: ",
        "soaked ",
        "no throttling seen: ",
        "missed ",
    ):
        assert text in result.out, text


def test_energy_and_throttling_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    energy = Energy(
        energy_j=0.0125,
        above_idle_j=None,
        power_w=10.0,
        idle_w=11.0,
        seconds=30.0,
        queries=10,
        batch=1,
        source="rapl",
        scope="package-0",
        cadence="a counter",
        estimate="estimate of package-0",
    ).row()
    show_depth(
        {
            "subjects": [{"name": "a/m.onnx", "batches": None, "layers": None, "energy": energy, "soak": None}],
            "conditions": {"untold": {}},
        }
    )
    assert capsys.readouterr().out == (
        "m.onnx: 12.5 mJ an image, no more than idle (10.0 W, idle 11.0 W); estimate of package-0\n"
    )
    numbers = dict.fromkeys(("p50_ms", "p99_ms", "p99_9_ms", "max_ms"), 2.0) | {"n": 5, "seconds": 90.0}
    told = {"time_to_throttle_s": 75.4, "times": 1.254, "facts": ["cpu 1500 MHz, was 2000", "cpu 80 °C, was 50"]}
    drift = {"value": 1.5, "lower": None, "upper": None}
    lines = profile_depth._soak_lines(numbers | told | {"drift_percent_per_minute": drift, "missed_frames": None})
    assert lines[1:] == [
        "drift +1.5 % a minute",
        "throttled after 75 s, 1.25 times as slow: cpu 1500 MHz, was 2000; cpu 80 °C, was 50",
    ]


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--deadline-ms", "33"], 1, "--deadline-ms 33: frames are counted in a soak; add --minutes 10"),
        (["--batches", "1,x"], 2, "got '1,x'; expected sizes such as 1,8,32"),
        (["--minutes", "0"], 2, "0.0 is not in the range x>0"),
    ],
)
def test_refusals(tmp_path: Path, args: list[str], code: int, text: str) -> None:
    result = cli("profile", brightness_net(tmp_path / "m.onnx"), *args)
    assert result.code == code and text in result.err
