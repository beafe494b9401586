"""doctor --device: what a target takes, said on a host that is none, by the checks that the exporter uses."""

from __future__ import annotations

import re

import pytest
from cli_runner import cli

from exporters import RUNTIMES
from exporters.tensorrt_api import probe
from exporters.tensorrt_forecast import FORMS, forecast, typing_of
from pipeline.cli.main import COMMANDS
from profiles.errors import ProfileError
from profiles.machine import machine
from profiles.targets import devices


def test_an_orin_nano_release_by_release() -> None:
    found = cli("doctor", "--device", "jetson-orin-nano", "--json").json
    assert found["compute_capability"] == "8.7" and "MAXN_SUPER" in found["power_modes"]
    releases = {release["name"]: release for release in found["releases"]}
    old, new = releases["JetPack 6.0"], releases["JetPack 6.1 and 6.2"]
    assert (old["version"], old["opsets"], old["typing"]) == ("8.6.2", [7, 17], "precision by builder flags")
    assert (old["python"], old["runs_edgestill"], old["half_scales"]) == ("3.10", True, False)
    assert {p: (f["form"], f["opset"]) for p, f in old["precisions"].items()} == {
        "int8": ("trt86", 17),
        "fp16": ("fp16", 17),
        "fp32": ("fp32", 17),
    }
    assert old["precisions"]["fp16"]["why"] == "the build converts it from opset 18"
    assert (new["version"], new["precisions"]["int8"]["form"], new["precisions"]["int8"]["opset"]) == (
        "10.3.0",
        "gpu",
        19,
    )
    refused = {file["form"]: file["why"] for file in new["files"] if not file["works"]}
    assert list(refused) == ["cpu"] and "is unsigned; TensorRT takes signed int8" in refused["cpu"]
    assert "has an fp16 scale" in next(file["why"] for file in old["files"] if file["form"] == "gpu")


def test_it_is_told_to_people() -> None:
    out = cli("doctor", "--device", "jetson-orin-nano").out
    for text in (
        "jetson-orin-nano: NVIDIA Jetson Orin Nano",
        "power modes: 7W, 15W, 25W, MAXN_SUPER",
        "8.6.2",
        "7 to 17",
        "is refused by JetPack 6.0: node 'weights' (DequantizeLinear) has an fp16 scale",
        'in the recipe: quantize.forms = ["trt86", "gpu"]',
    ):
        assert text in out, text
    xavier = cli("doctor", "--device", "jetson-xavier").out
    assert "its Python 3.8 is older than 3.10" in xavier
    cpu = cli("doctor", "--device", "cpu").out
    assert "onnx-int8-cpu" in cpu and "in the recipe" not in cpu


def test_an_unknown_device_gets_the_nearest_name() -> None:
    result = cli("doctor", "--device", "jetson-orin-nona")
    assert result.code == 1
    assert result.err == "error: --device: unknown device 'jetson-orin-nona'; did you mean 'jetson-orin-nano'?\n"


@pytest.mark.parametrize("name", list(devices()))
def test_every_target_is_answered(name: str) -> None:
    target, found = devices()[name], cli("doctor", "--device", name, "--json").json
    assert set(target.record) <= machine().keys() and target.hints and set(target.runtimes) <= set(RUNTIMES)
    assert {word for hint in target.hints for word in re.findall(r"edgestill ([a-z]+)", hint)} <= set(COMMANDS)
    assert bool(found["releases"]) == target.device.startswith("cuda")
    for release in found["releases"]:
        assert set(release["precisions"]) == set(target.precisions)
        assert all(release["precisions"].values()), release["name"]
        assert {file["form"] for file in release["files"]} == set(FORMS)


def test_typing_by_version_is_what_the_module_would_be_probed_for() -> None:
    from tensorrt_fakes import fake_trt

    for version in ("8.6.2", "10.3.0", "11.4.0"):
        assert typing_of("tensorrt", version) == probe("tensorrt", fake_trt(version)).typing
    assert typing_of("tensorrt-rtx", "1.7.1") == "always"


def test_the_forecast_is_what_the_parser_of_tensorrt_rtx_takes() -> None:
    """Ours says yes to nothing that the rules refuse, and the forms that it says yes to are those shipped for GPUs."""
    works = {found.form for found in forecast("tensorrt-rtx", "1.7.1") if found.works}
    assert works == {"fp32", "fp16", "portable", "gpu", "trt86"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[releases]]\nedition = "tensorrt"', "releases: got keys edition; needs name and may have"),
        ("[[releases]]\nname = 6", "releases: name: got 6; expected a string"),
        ('releases = "JetPack"', "releases: got 'JetPack'; write [[releases]] tables"),
        ('hints = "one"', "hints: got 'one'; expected a list of strings"),
    ],
)
def test_bad_releases_are_named(tmp_path, text: str, told: str) -> None:
    head = 'description = "d"\ndevice = "cpu"\nprecisions = []\nruntimes = []\n'
    (tmp_path / "mine.toml").write_text(head + text)
    with pytest.raises(ProfileError) as caught:
        devices(tmp_path)
    assert told in str(caught.value)
