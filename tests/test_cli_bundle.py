"""From a real run to a verdict of the device and back, in processes of their own, those of the device without torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import QUICK, small_bundle
from cli_runner import brightness_net, cli
from steady_speed import steady

import pipeline
from pipeline.bundle import signature
from pipeline.bundle.archive import read_archive
from pipeline.manifest import sha256_file

ROOT = Path(__file__).parent.parent
# What the base install and one runtime do not bring; absent, not failing: looking for them finds nothing.
ABSENT = ("torch", "torchvision", "sklearn", "scipy", "PIL", "safetensors", "onnxscript", "onnxconverter_common")
ABSENT += ("bitsandbytes", "openvino", "tensorrt_rtx", "jsonschema", "ray")
BLOCKER = """
import importlib.machinery as machinery
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.partition(".")[0] in {absent!r} else find(name, path, target)
)
"""
SMALL = ("distill.control=false", "quantize=false", "teacher.train.epochs=1", "distill.epochs=1")
SMALL += ('profile.runtimes=["onnxruntime"]', "profile.min_seconds=0.05")
RULES = (
    '{metric = "accuracy_drop", against = "teacher", max = "100pt"}',
    '{metric = "speedup_p50", against = "teacher", min = 0.001}',
    '{metric = "size_bytes", max = 400000}',
    '{metric = "flip_rate", against = "teacher", max = "100%", slice = "light=night"}',
)
# A machine that is busy enough leaves any speed-up undecided, and that is no fault of a bundle.
WAIVER = '{metric = "speedup_p50", owner = "Ada", reason = "a busy machine", expires = 2199-12-31}'


class Device:
    """A folder of its own, and a Python that finds neither torch nor any other part of [train]."""

    def __init__(self, folder: Path, absent: tuple[str, ...] = ABSENT) -> None:
        self.folder = folder
        blocker = folder / "blocker"
        blocker.mkdir(parents=True)
        (blocker / "sitecustomize.py").write_text(BLOCKER.format(absent=absent))
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(blocker), str(ROOT)])}

    def __call__(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of handwritten digits as arrays, with a column that says of each test image whether it was written at night."""
    from sklearn.datasets import load_digits

    out = tmp_path_factory.mktemp("host") / "out"
    digits = load_digits()
    images, labels = (digits.images * 15.9).astype(np.uint8)[..., None], digits.target
    light = np.where(np.arange(719) % 3, "day", "night")
    arrays = {"x_train": images[719:], "y_train": labels[719:], "x_test": images[:719], "y_test": labels[:719]}
    np.savez(out.parent / "digits.npz", **arrays, slice_light=light)
    data = (
        "data.name=arrays",
        f"data.root={out.parent / 'digits.npz'}",
        f"gate=[{', '.join(RULES)}]",
        f"waiver=[{WAIVER}]",
    )
    pipeline.run("digits", out=out, overrides=[*SMALL, *data], smoke=True, say=lambda line: None)
    return out / "digits-smoke"


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    done = cli("bundle", run, "--out", run.parent / "d.edgestill.zip")
    assert done.code == 0, done.err
    return run.parent / "d.edgestill.zip"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return Device(tmp_path_factory.mktemp("device") / "home")


@pytest.fixture(scope="module")
def record(bundle: Path, device: Device) -> Path:
    def measured(attempt: int) -> dict[str, Any]:
        shutil.rmtree(device.folder / "digits-smoke-record", ignore_errors=True)
        done = device("profile", bundle, "--seconds", "0.05", "--runtime", "onnxruntime", "--no-memory")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "next: edgestill gate digits-smoke-record"
        return read(device.folder / "digits-smoke-record")

    steady(measured)
    return device.folder / "digits-smoke-record"


def read(record: Path) -> dict[str, Any]:
    return json.loads((record / "report.json").read_text())


def test_the_device_has_no_torch(device: Device) -> None:
    code = f"import importlib.util as u; print([name for name in {ABSENT} if u.find_spec(name)])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=device.environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_bundle_says_what_it_wrote_and_writes_the_same_again(run: Path, bundle: Path, tmp_path: Path) -> None:
    again = cli("bundle", run, "--out", tmp_path / "again.zip")
    assert again.err == "bundle: 161 of 161 validation images\nbundle: 719 of 719 test images\n"
    first, second, last = again.out.splitlines()
    assert first.startswith(f"wrote {tmp_path / 'again.zip'}: onnx-fp16, onnx-fp32, teacher; ")
    assert second.startswith("manifest sha256 ") and last == f"next: edgestill verify {tmp_path / 'again.zip'}"
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()
    found = cli("bundle", run, "--out", tmp_path / "small.zip", "--samples", "50", "--without-teacher", "--json").json
    assert found["models"] == ["onnx-fp16", "onnx-fp32"] and not found["signed"]
    assert found["samples"] == {"validation": {"n": 50, "of": 161}, "test": {"n": 50, "of": 719}}
    assert cli("verify", tmp_path / "small.zip").code == 0


def test_verify_on_the_device_and_of_the_run(run: Path, bundle: Path, device: Device) -> None:
    done = device("verify", bundle)
    assert done.returncode == 0, done.stderr
    judged = r"not signed\nwhole: \d+ files of .*\njudged again from \d+ files of samples: RELEASED  "
    assert re.match(judged, done.stdout)
    assert done.stdout.endswith(f"next: edgestill profile {bundle}\n")
    whole = cli("verify", run, "--json")
    assert whole.code == 0 and whole.json["whole"] and whole.json["files"] > 20


def test_a_changed_bundle_is_said_by_verify_and_refused_by_profile(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[read_archive(bundle)["models/onnx-fp32.onnx"].offset + 500] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    done = cli("verify", tmp_path / "x.zip")
    assert done.code == 1
    assert re.fullmatch(r"CHANGED  1 of \d+ files are not as they were written", done.out.splitlines()[-1])
    assert done.err.startswith("error: models/onnx-fp32.onnx: sha256: expected ")
    done = cli("profile", tmp_path / "x.zip")
    assert done.code == 1
    assert done.err == (
        f"error: {tmp_path / 'x.zip'}: models/onnx-fp32.onnx was changed; 'edgestill verify {tmp_path / 'x.zip'}' "
        "says more\n"
    )


def test_the_accuracy_on_the_device_is_that_of_the_host(run: Path, record: Path) -> None:
    host = {row["name"]: row for row in read(run)["subjects"]}
    there = {row["name"]: row for row in read(record)["subjects"]}
    assert set(there) == set(host)
    for name, row in there.items():
        assert row["accuracy"] == host[name]["accuracy"], name
        assert row["sha256"] == host[name]["sha256"], name
        assert (row["latency"] == []) == (row["runtime"] == "torch")
    assert [(row["metric"], row["outcome"]) for row in read(record)["gates"]] == [
        ("accuracy_drop", "pass"),
        ("speedup_p50", "pass"),
        ("size_bytes", "pass"),
        ("flip_rate", "pass"),
    ]
    assert read(record)["recipe"]["waiver"] == read(run)["recipe"]["waiver"]


def test_a_slice_is_judged_on_the_device(run: Path, record: Path, device: Device) -> None:
    host, there = (
        next(gate for gate in read(place)["gates"] if gate["metric"] == "flip_rate") for place in (run, record)
    )
    assert there["n"] == 240 and "of light=night" in there["rule"]
    assert {key: there[key] for key in ("value", "bound_upper", "n")} == {
        key: host[key] for key in ("value", "bound_upper", "n")
    }
    done = device("verify", record, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gates"][3]["n"] == 240 and json.loads(done.stdout)["verdict"] == "released"


def test_the_gate_on_the_device_names_the_bytes(record: Path, device: Device, bundle: Path, tmp_path: Path) -> None:
    done = device("gate", record)
    assert done.returncode == 0, done.stderr
    chosen = read(record)["selection"]["chosen"]
    row = next(row for row in read(record)["subjects"] if row["name"] == chosen)
    assert done.stdout.splitlines()[-2] == f"judged: {row['path']}, sha256 {row['sha256']}"
    (tmp_path / "strict.toml").write_text('[[gate]]\nmetric = "size_bytes"\nmax = 10\n')
    done = device("gate", record / "report.json", "--rules", tmp_path / "strict.toml", "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["judged"][0]["sha256"] == row["sha256"]


def test_the_record_joins_the_report_of_the_host(run: Path, record: Path) -> None:
    done = cli("report", run, "--join", record / "report.json")
    assert done.code == 0, done.err
    assert ": RELEASED  " in done.out and "\non " in done.out
    for page in ("report.md", "report.html"):
        assert "On the device: " in (run / page).read_text()
    before = sha256_file(run / "report.json")
    again = cli("report", run, "--json")
    assert [entry["verdict"] for entry in again.json["devices"]] == ["released"]
    assert sha256_file(run / "report.json") == before, "the run's own record stays as it was"
    done = cli("report", record, "--join", run)
    assert done.code == 1 and "not measured from a bundle" in done.err


def test_without_a_runtime_the_device_says_so(tmp_path: Path) -> None:
    path = small_bundle(tmp_path / "x.zip")
    bare = Device(tmp_path / "home", (*ABSENT, "onnxruntime"))
    done = bare("profile", path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("device: cpu, ") and done.stderr.endswith(
        f"\nerror: {path}: no runtime runs on cpu here; pip install 'edgestill[ort]' or 'edgestill[openvino]' "
        "('edgestill doctor' says what this machine can run)\n"
    )
    assert not (bare.folder / "digits-record").exists()


def test_options_that_are_not_for_a_bundle_are_refused(tmp_path: Path) -> None:
    path = small_bundle(tmp_path / "x.zip")
    net = brightness_net(tmp_path / "net.onnx")
    for words, line in (
        ((path, "--against", "a.onnx"), f"{path}: --against is not for a bundle, which says that itself; leave it out"),
        ((path, "--kind", "device"), f"{path}: --kind is not for a bundle, which says that itself; leave it out"),
        ((path, net), f"{path} {net}: a bundle is measured alone; name it and nothing else"),
        ((path, "--out", tmp_path), f"{tmp_path}: is there already; give another --out, or remove it"),
        ((net, "--out", tmp_path / "r"), f"--out {tmp_path / 'r'}: only of a bundle; --json prints what was measured"),
    ):
        done = cli("profile", *words)
        assert (done.code, done.err) == (1, f"error: {line}\n")


def test_a_bundle_is_measured_in_this_process_too(tmp_path: Path) -> None:
    path = small_bundle(tmp_path / "x.zip")
    done = cli("profile", path, *QUICK, "--out", tmp_path / "record", "--json")
    assert done.code == 0, done.err
    assert done.json["verdict"] == "released"
    assert done.json["command"] == "edgestill profile x.zip --no-memory --runtime onnxruntime --seconds 0.05"


@pytest.mark.skipif(not signature.available(), reason="ssh-keygen is not installed")
def test_a_bundle_is_signed_and_the_signer_known(run: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    done = cli("bundle", run, "--out", tmp_path / "x.zip", "--sign", key)
    assert done.code == 0 and ", signed\n" in done.out
    (tmp_path / "signers").write_text("me " + key.with_suffix(".pub").read_text())
    known = cli("verify", tmp_path / "x.zip", "--signers", tmp_path / "signers")
    assert known.code == 0 and known.out.startswith("signed by me, ED25519 key SHA256:")
    unknown = cli("verify", tmp_path / "x.zip")
    assert unknown.code == 0 and "; --signers FILE says whether you know that key" in unknown.out
    unsigned = cli("bundle", run, "--out", tmp_path / "y.zip", "--sign", tmp_path / "none")
    assert unsigned.code == 1 and "no such key" in unsigned.err and not (tmp_path / "y.zip").exists()


def test_what_cannot_be_bundled_is_said(run: Path, tmp_path: Path) -> None:
    done = cli("bundle", tmp_path)
    assert done.code == 1 and done.err == (
        f"error: {tmp_path / 'report.json'}: no such report; make one with 'edgestill run RECIPE'\n"
    )
    (folder,) = run.glob("export-*")
    file = folder / "onnx-fp16.onnx"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole + b"x")
        done = cli("bundle", run, "--out", tmp_path / "x.zip")
        assert done.err == f"error: {file}: is not the file that the report judged; run the recipe again\n"
        found = cli("verify", run)
        assert found.code == 1 and f"error: {folder.name}/onnx-fp16.onnx: sha256: expected " in found.err
        file.unlink()
        done = cli("bundle", run, "--out", tmp_path / "x.zip")
        assert done.err.startswith(f"error: {file}: is missing; make it again with: edgestill run digits --smoke")
    finally:
        file.write_bytes(whole)
    assert not (tmp_path / "x.zip").exists()
    nothing = tmp_path / "nothing"
    assert cli("verify", nothing).err == f"error: {nothing}: no such file; give a bundle or the folder of a run\n"
    assert cli("verify", tmp_path).err == (
        f"error: {tmp_path}: no finished stage in it; give a bundle or the folder of a run\n"
    )
