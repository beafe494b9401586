"""What `edgestill quantize` takes for calibration images, and what goes into its bundle."""

from pathlib import Path

import numpy as np
import pytest
from cli_runner import cli
from foreign_files import SIDE, images, network, saved
from PIL import Image

from exporters.to_openvino import convert_ir
from pipeline.bundle.contents import read_manifest

PLAIN = ("--mean", "0,0,0", "--std", "1,1,1")


@pytest.fixture
def foreign(tmp_path):
    return saved(network(), tmp_path / "theirs.onnx")


def test_openvinos_own_form_goes_into_the_bundle(foreign, tmp_path, monkeypatch):
    """NNCF takes ten seconds to import, so its file is one that was only converted here."""
    pytest.importorskip("openvino")
    monkeypatch.setattr("exporters.to_openvino.NncfExporter.unavailable", lambda self: None)
    monkeypatch.setattr("exporters.to_openvino.quantize_nncf", lambda source, path, **_: convert_ir(source, path))
    words = (
        "--images",
        str(images(tmp_path / "pictures", each=24)),
        *PLAIN,
        "--samples",
        "12",
        "--form",
        "nncf",
        "--out",
        str(tmp_path / "out"),
    )
    made = cli("quantize", str(foreign), *words, "--json")
    assert made.code == 0, made.err
    manifest, _, entries = read_manifest(Path(made.json["bundle"]))
    model = manifest.models["openvino-int8-nncf"]
    assert (model.format, model.file) == ("openvino", "models/openvino-int8-nncf.xml")
    assert {"models/openvino-int8-nncf.xml", "models/openvino-int8-nncf.bin"} <= entries.keys()
    assert manifest.counted() == "models/teacher.onnx" and not manifest.left_out


def test_noise_is_no_calibration_image(foreign, tmp_path):
    folder, rng = tmp_path / "noise", np.random.default_rng(0)
    folder.mkdir()
    for number in range(16):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{number}.png")
    made = cli("quantize", str(foreign), "--images", str(folder), *PLAIN, "--out", str(tmp_path / "out"))
    assert made.code == 1
    assert made.err.startswith(
        f"error: {folder}: the calibration samples look like noise: neighbouring pixels correlate"
    )
    assert made.err.count("\n") == 1 and not (tmp_path / "out").exists()
