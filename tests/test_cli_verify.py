"""`edgestill verify`: the verdict again from the samples, wherever the run lies; whatever was touched is said."""

from __future__ import annotations

import fnmatch
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import cli
from sample_run import sample_run
from two_stages import flip_bit

from pipeline import manifest
from pipeline.gates.judge import judge
from pipeline.gates.rejudge import rejudge
from pipeline.sample_files import EvidenceError, read_array, read_outcomes, read_timings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy elsewhere, to be spoiled."""
    shutil.copytree(made, tmp_path / "copied")
    return tmp_path / "copied"


def only(run: Path, pattern: str) -> Path:
    (path,) = run.glob(pattern)
    return path


def resealed(folder: Path, name: str, content: bytes) -> None:
    """Write a file of a stage and its manifest, as somebody would who knows how that is done."""
    (folder / name).write_bytes(content)
    record = manifest.read(folder)
    record["files"][name] = {"sha256": manifest.sha256_bytes(content), "size": len(content)}
    record["digest"] = manifest.digest_of(record["files"], record["volatile"])
    (folder / manifest.NAME).write_text(json.dumps(manifest.seal(record)))


def test_a_copied_run_is_whole_and_judged_again(run: Path) -> None:
    done = cli("verify", run)
    assert done.code == 0, done.err
    assert done.out.splitlines()[1] == (
        "judged again from 15 files of samples: RELEASED  onnx-int8@openvino keeps all 3 limits"
    )
    found = cli("verify", run, "--json").json
    assert found["whole"] and found["verdict"] == found["recorded"] == "released" and found["taken"] == []
    assert [gate["outcome"] for gate in found["gates"]] == ["pass"] * 3


def test_judging_again_loads_nothing_heavy(made: Path) -> None:
    code = (
        "import sys\nfrom pipeline.cli.main import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        "    print(end.code, {'torch', 'onnx', 'onnxruntime', 'openvino', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, "verify", made], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()"


@pytest.mark.parametrize(("limit", "code", "verdict"), [("0.1pt", 3, "REFUSED"), ("7pt", 4, "UNDECIDED")])
def test_verify_exits_as_the_gate_does(tmp_path: Path, limit: str, code: int, verdict: str) -> None:
    rules = [{"metric": "accuracy_drop", "against": "teacher", "max": limit}]
    run = sample_run(tmp_path, rules=rules, timed=False)
    done = cli("verify", run)
    assert done.code == code and f"samples: {verdict}  " in done.out, done.out
    assert cli("gate", run).code == code


def test_rules_that_differ_in_their_subject_are_each_judged_again(tmp_path: Path) -> None:
    rules = [
        {"metric": "accuracy_drop", "against": "teacher", "max": limit, "subject": subject}
        for limit, subject in (("20pt", "onnx-int8@openvino"), ("20pt", "student"))
    ]
    run = sample_run(tmp_path, rules=rules, timed=False)
    assert cli("verify", run).code == 0
    report = json.loads((run / "report.json").read_text())
    report["gates"].reverse()
    report["gates"][0]["outcome"] = "fail"
    found = rejudge(report, lambda name, sha256: (run / name).read_bytes())
    assert found.verdict == "released"
    assert found.differences[0] == (
        "the check accuracy_drop against teacher <= 20pt of onnx-int8@openvino: recorded as accuracy_drop against "
        "teacher <= 20pt of student"
    )


def test_a_bound_that_was_left_out_or_made_up_does_not_decide(tmp_path: Path) -> None:
    """Of bursty latencies: with what `tails` says taken away, a check would believe a bound of independent queries."""
    run = sample_run(tmp_path, timed=False)
    report = json.loads((run / "report.json").read_text())
    chosen = report["selection"]["chosen"]
    row = next(row for row in report["subjects"] if row["name"] == chosen)
    entry = next(entry for entry in row["latency"] if entry["kind"] == "device")
    report["recipe"]["gate"] = [{"metric": "latency_p99_ms", "max": entry["p99_ms"] * 1.0001}]
    entry.pop("tails", None)
    entry["p99_bound_ms"] = entry["p90_bound_ms"] = entry["p99_ms"]
    made_up = judge(report)
    assert made_up.verdict == "released", made_up.checks
    found = rejudge(report | made_up.recorded(), lambda name, sha256: (run / name).read_bytes())
    assert found.verdict != "released"
    said = f"{chosen}: latency (device): p99_bound_ms: recorded "
    assert [line for line in found.differences if line.startswith(said)]


def outcomes(run: Path) -> None:
    flip_bit(only(run, "evaluate-*/outcomes-onnx-int8@openvino.npz"))


def timings(run: Path) -> None:
    flip_bit(only(run, "profile-*/latency-device-teacher.npy"))


def artifact(run: Path) -> None:
    flip_bit(only(run, "export-*/onnx-int8.onnx"))


def report(run: Path) -> None:
    path = run / "report.json"
    path.write_text(path.read_text().replace('"verdict": "released"', '"verdict": "refused"'))


def sealed_outcomes(run: Path) -> None:
    """Better outcomes, with every hash and digest of the evaluate stage put right."""
    path = only(run, "evaluate-*/outcomes-onnx-int8@openvino.npz")
    better = only(run, "evaluate-*/outcomes-teacher.npz").read_bytes()
    resealed(path.parent, path.name, better)


def sealed_report(run: Path) -> None:
    """A better accuracy in the report, with the gate stage's manifest put right."""
    text = json.loads((run / "report.json").read_text())
    row = next(row for row in text["subjects"] if row["name"] == "onnx-int8@openvino")
    row["accuracy"]["value"] = 0.99
    content = json.dumps(text).encode()
    resealed(only(run, "gate-*"), "report.json", content)
    (run / "report.json").write_bytes(content)


def no_samples(run: Path) -> None:
    text = json.loads((run / "report.json").read_text())
    for row in text["subjects"]:
        del row["stored"]
    content = json.dumps(text).encode()
    resealed(only(run, "gate-*"), "report.json", content)
    (run / "report.json").write_bytes(content)


def foreign_release(run: Path) -> None:
    (run / "release").mkdir()
    (run / "release" / "onnx-int8.onnx").write_bytes(b"another")


def outside(run: Path) -> None:
    text = json.loads((run / "report.json").read_text())
    text["subjects"][0]["stored"]["outcomes"]["path"] = "../../../etc/passwd"
    content = json.dumps(text).encode()
    resealed(only(run, "gate-*"), "report.json", content)
    (run / "report.json").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (outcomes, "error: evaluate-*/outcomes-onnx-int8@openvino.npz: sha256: expected *"),
        (timings, "error: profile-*/latency-device-teacher.npy: sha256: expected *"),
        (artifact, "error: export-*/onnx-int8.onnx: sha256: expected *"),
        (report, "error: report.json: no gate stage of this folder wrote it"),
        (lambda run: (run / "report.json").unlink(),
         "error: report.json: missing: this run has no verdict; run its recipe again"),
        (lambda run: shutil.rmtree(only(run, "profile-*")), "error: profile-*: missing"),
        (lambda run: flip_bit(only(run, "profile-*/manifest.json")), "error: profile-*: manifest.json is corrupted (*"),
        (sealed_outcomes, "error: evaluate-*: digest: expected *"),
        (sealed_report, "error: report.json: onnx-int8@openvino: accuracy: value: recorded 0.99, its samples *"),
        (no_samples, "error: report.json: names no recorded samples, so its verdict cannot be judged again"),
        (foreign_release, "error: release/onnx-int8.onnx: sha256: expected *"),
        (outside, "error: report.json: its file '../../../etc/passwd' points outside of the archive"),
        (lambda run: only(run, "export-*/").joinpath("x.so").write_bytes(b"x"),
         "error: export-*/x.so: not in the manifest"),
    ],
)  # fmt: skip
def test_what_was_touched_is_said_in_one_line(run: Path, spoil: Callable[[Path], Any], line: str) -> None:
    spoil(run)
    done = cli("verify", run)
    assert done.code == 1 and "CHANGED" in done.out, done.out
    pattern = line.replace("[", "[[]")
    assert any(fnmatch.fnmatchcase(said, pattern) for said in done.err.splitlines()), done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("digest", [[], {}, None, 3])
def test_a_digest_that_is_no_text_is_said_in_one_line(run: Path, digest: Any) -> None:
    path = only(run, "evaluate-*/manifest.json")
    path.write_text(json.dumps(manifest.seal(json.loads(path.read_text()) | {"digest": digest})))
    done = cli("verify", run)
    assert done.code == 1 and done.err.startswith(f"error: {path.parent.name}: digest: expected "), done.err


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    done = cli("verify", tmp_path)
    assert done.code == 1 and done.err == (
        f"error: {tmp_path}: no finished stage in it; give a bundle or the folder of a run\n"
    )


def test_samples_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="not an array"):
        read_array(b"\x93NUMPY\x01\x00\xff\xff{", "x.npy")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(EvidenceError, match="not an array"):
        read_array((tmp_path / "o.npy").read_bytes(), "x.npy")
    np.save(tmp_path / "f.npy", np.zeros((3, 4)))
    with pytest.raises(EvidenceError, match="not timings"):
        read_timings((tmp_path / "f.npy").read_bytes(), "x.npy")
    np.savez_compressed(tmp_path / "c.npz", test_correct=np.zeros(10**6, bool))
    with pytest.raises(EvidenceError, match="is compressed"):
        read_outcomes((tmp_path / "c.npz").read_bytes(), "c.npz")
    with pytest.raises(EvidenceError, match="not an archive"):
        read_outcomes(b"PK\x03\x04 no", "c.npz")
