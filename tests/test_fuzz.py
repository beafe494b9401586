"""Everything untrusted, turned at random: no traceback, no hang, no write outside, memory bounded, one clear line.

A few examples by default; EDGESTILL_FUZZ_EXAMPLES=1000 for a long look, as tests/benchmarks/faults.py --only fuzz has.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import manifest_of, parts, small_bundle
from cli_runner import Result, brightness_net, cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sample_run import sample_run

from pipeline import manifest
from pipeline.bundle.archive import write_archive
from pipeline.bundle.layout import MANIFEST
from pipeline.data.arrays import open_source
from pipeline.data.decode import decode_image
from pipeline.errors import UserError
from pipeline.recipe import Data
from pipeline.recipe_file import tomllib

EXAMPLES = int(os.environ.get("EDGESTILL_FUZZ_EXAMPLES", "12"))
PARTS = functools.cache(parts)
LONGEST_S = 60.0  # of one command; a busy machine is slow
MOST_GROWTH_KB = 1 << 20
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

RECIPE = """
name = "mine"
data = { name = "digits", validation = 0.1 }
teacher = { model = "mlperf-resnet8", train = { epochs = 1, batch_size = 64, lr = 0.05 } }
student = { model = "mlperf-resnet8" }
distill = { epochs = 1, losses = [{ loss = "kd", weight = 0.9 }] }
quantize = { samples = 16, forms = ["cpu"] }
[[gate]]
metric = "accuracy_drop"
against = "teacher"
max = "1pt"
"""
# a place as a share of the length, and what is put there
HOW = st.sampled_from(("flip", "cut", "drop", "insert"))
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), HOW, st.binary(max_size=9)), min_size=1, max_size=4)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True),
    st.text(max_size=20),
    st.just([]),
    st.just({}),
    st.just("../../../etc/passwd"),
    st.just("<script>alert(1)</script>"),
    st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)
EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.booleans(), VALUES), min_size=1, max_size=3)


def turned(content: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    """`content` after some changes of bytes."""
    for share, how, more in changes:
        place = int(share * len(content))
        if how == "flip" and content:
            content = content[:place] + bytes([content[place] ^ (more[0] if more else 1) or 1]) + content[place + 1 :]
        elif how == "cut":
            content = content[:place]
        elif how == "drop":
            content = content[:place] + content[place + 1 + len(more) :]
        else:
            content = content[:place] + more + content[place:]
    return content


def edited(value: Any, edits: list[tuple[float, bool, Any]]) -> Any:
    """JSON after some of its values were replaced or removed."""
    value = copy.deepcopy(value)
    for share, remove, new in edits:
        places: list[tuple[Any, Any]] = []

        def walk(node: Any, places: list[tuple[Any, Any]] = places) -> None:
            for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
                places.append((node, key))
                walk(node[key])

        walk(value)
        if not places:
            return new
        node, key = places[int(share * len(places))]
        if remove:
            del node[key]
        else:
            node[key] = new
    return value


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def fair(command: Callable[[], Result]) -> Result:
    """One command's end: a known code, one clear line where it failed, soon, and without much memory."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = command()
    assert time.monotonic() - begin < LONGEST_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH_KB
    assert result.code in (0, 1, 2, 3, 4), result.code
    told = result.out + result.err
    assert "Traceback" not in told and "a fault of edgestill" not in told, told[-600:]
    if result.code in (1, 2):
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert errors and all(len(line) < 2000 for line in errors), result.err
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run(tmp_path_factory.mktemp("fuzz"), n=60, timed=False)


@FUZZ
@given(changes=CHANGES)
def test_recipes(changes: list[Any], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(turned(RECIPE.encode(), changes))
    fair(lambda: cli("plan", tmp_path / "mine.toml", "--out", tmp_path / "out"))
    assert listing(tmp_path) == {"mine.toml"}


def toml_of(value: Any) -> str:
    """`value` as an inline TOML value; JSON's strings and numbers are TOML's, and there is no null."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml_of(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_of, value))}]"
    return '""' if value is None else str(value).lower() if isinstance(value, float) else json.dumps(value)


@FUZZ
@given(edits=EDITS)
def test_recipes_with_other_values(edits: list[Any], tmp_path: Path) -> None:
    recipe = edited(tomllib.loads(RECIPE), edits)
    lines = [f"{json.dumps(key)} = {toml_of(value)}" for key, value in recipe.items()]
    (tmp_path / "mine.toml").write_text("\n".join(lines), errors="replace")
    fair(lambda: cli("plan", tmp_path / "mine.toml", "--out", tmp_path / "out"))
    assert listing(tmp_path) == {"mine.toml"}


@FUZZ
@given(edits=EDITS)
def test_reports(edits: list[Any], run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    report = edited(json.loads((run / "report.json").read_text()), edits)
    (folder / "report.json").write_text(json.dumps(report))
    fair(lambda: cli("gate", folder))
    fair(lambda: cli("report", folder))
    fair(lambda: cli("verify", folder))
    fair(lambda: cli("compare", folder, run))
    page = folder / "report.html"
    assert not page.exists() or "<script>alert" not in page.read_text()
    assert listing(tmp_path) <= {"run", "run/report.json", "run/report.md", "run/report.html"}


@FUZZ
@given(edits=EDITS, place=st.floats(0, 1, exclude_max=True), changes=CHANGES, raw=st.booleans())
def test_manifests_and_samples(edits: list[Any], place: float, changes: list[Any], raw: bool, run: Path) -> None:
    """A file of a run, or a manifest sealed again over nonsense; the folder is put right afterwards."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    chosen = files if raw else [path for path in files if path.name == manifest.NAME]
    path = chosen[int(place * len(chosen))]
    before, there = path.read_bytes(), listing(run)
    try:
        if raw:
            path.write_bytes(turned(before, changes))
        else:
            record = edited(json.loads(before), edits)
            sealed = manifest.seal(record) if isinstance(record, dict) and _plain(record) else record
            path.write_text(json.dumps(sealed))
        fair(lambda: cli("verify", run))
        fair(lambda: cli("store", "prune", run, "--json"))
        assert listing(run) == there
    finally:
        path.write_bytes(before)


def _plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@FUZZ
@given(changes=CHANGES)
def test_bundles(changes: list[Any], tmp_path: Path) -> None:
    whole = tmp_path / "whole.zip"
    if not whole.exists():
        small_bundle(whole)
    (tmp_path / "x.zip").write_bytes(turned(whole.read_bytes(), changes))
    result = fair(lambda: cli("verify", tmp_path / "x.zip"))
    assert result.code == 1 or (tmp_path / "x.zip").read_bytes() == whole.read_bytes()
    assert listing(tmp_path) == {"whole.zip", "x.zip"}


@FUZZ
@given(edits=EDITS, place=st.floats(0, 1, exclude_max=True), honest=st.booleans())
def test_bundles_with_other_values(edits: list[Any], place: float, honest: bool, tmp_path: Path) -> None:
    """A well-formed archive with nonsense in one of its JSON files; `honest`: under the hash that it then has."""
    files = dict(PARTS())
    record = manifest_of(files)
    name = [MANIFEST, *(name for name in files if name.endswith(".json"))][int(place * 4)]
    if name == MANIFEST:
        record = edited(record, edits)
    else:
        files[name] = json.dumps(edited(json.loads(files[name]), edits)).encode()
        record = manifest_of(files) if honest else record
    write_archive(tmp_path / "x.zip", files | {MANIFEST: json.dumps(record).encode()})
    fair(lambda: cli("verify", tmp_path / "x.zip"))
    assert listing(tmp_path) == {"x.zip"}


@FUZZ
@given(changes=CHANGES)
def test_onnx_files(changes: list[Any], tmp_path: Path) -> None:
    whole = brightness_net(tmp_path / "whole.onnx", side=4)
    (tmp_path / "photos").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (200, 200, 200)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "x.onnx").write_bytes(turned(whole.read_bytes(), changes))
    before = listing(tmp_path)
    fair(lambda: cli("inspect", tmp_path / "x.onnx"))
    fair(lambda: cli("predict", tmp_path / "x.onnx", tmp_path / "photos"))
    assert listing(tmp_path) == before


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
@FUZZ
@given(changes=CHANGES)
def test_images(form: str, changes: list[Any]) -> None:
    try:
        image = decode_image(turned(encoded(form), changes), 8)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert image.shape == (8, 8, 3) and image.dtype == np.uint8


@FUZZ
@given(changes=CHANGES)
def test_archives_of_arrays(changes: list[Any], tmp_path: Path) -> None:
    labels, images = np.arange(20) % 2, np.zeros((20, 8, 8), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, x_train=images, y_train=labels, x_test=images, y_test=labels)
    (tmp_path / "x.npz").write_bytes(turned(buffer.getvalue(), changes))
    try:
        open_source(Data(name="arrays", root=str(tmp_path / "x.npz")))
    except UserError as error:
        assert "\n" not in str(error)


@FUZZ
@given(changes=CHANGES)
def test_checkpoints(changes: list[Any], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    state = {"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4)}
    whole = save(state, metadata={"edgestill": "{}"})
    (tmp_path / "x.safetensors").write_bytes(turned(whole, changes))
    fair(lambda: cli("inspect", tmp_path / "x.safetensors"))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (tmp_path / "w.pt").write_bytes(turned(buffer.getvalue(), changes))
    from pipeline.models.weights import read_state

    try:
        read_state(tmp_path / "w.pt", where="weights")
    except UserError as error:
        assert "\n" not in str(error)
    assert listing(tmp_path) == {"x.safetensors", "w.pt"}
