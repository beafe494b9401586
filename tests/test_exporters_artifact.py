import dataclasses
import hashlib
import json

import numpy as np
import pytest
from exporter_nets import PREPROCESSING, file
from hypothesis import given
from hypothesis import strategies as st

from exporters.artifact import Artifact, ExportError, IOSpec, Preprocessing, parse_metadata, read_metadata


def artifact(path):
    specs = (IOSpec(name="input", dtype="float32", shape=("batch", 3, 4, 4)),)
    return Artifact.of_file(
        path, kind="onnx", precision="fp32", inputs=specs, outputs=specs, made_by={"torch": "2.15.0"}
    )


def test_an_artifact_survives_json_and_a_move(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    value = artifact(path)
    assert value.sha256 == hashlib.sha256(b"weights").hexdigest()
    text = json.dumps(value.to_json())
    assert str(tmp_path) not in text
    elsewhere = tmp_path / "elsewhere"
    assert Artifact.from_json(json.loads(text), folder=elsewhere) == dataclasses.replace(
        value, path=elsewhere / "model.onnx"
    )


@given(st.integers(0, 255), st.floats(0, 1), st.floats(0.01, 1))
def test_preprocessing_is_the_formula_rounded_once(level, mean, std):
    preprocessing = Preprocessing(mean=(mean,), std=(std,), input_size=(1, 2, 3), class_names=("a",), color="L")
    got = preprocessing.apply(np.full((1, 2, 3, 1), level, np.uint8))
    assert got.dtype == np.float32 and got.shape == (1, 1, 2, 3)
    assert (got == np.float32((level / 255 - mean) / std)).all()


def test_preprocessing_keeps_channels_and_places_apart():
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    expected = (images / 255 - PREPROCESSING.mean) / PREPROCESSING.std
    got = PREPROCESSING.apply(images)
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_preprocessing_refuses_other_images():
    with pytest.raises(ExportError) as error:
        PREPROCESSING.apply(np.zeros((2, 3, 16, 16), np.float32))
    assert str(error.value) == "images: got float32[2, 3, 16, 16]; expected uint8[N, 16, 16, 3]"


@pytest.mark.parametrize("form", ["fp32", "fp16", "portable", "cpu"])
def test_preprocessing_travels_through_every_hop(form):
    assert Preprocessing.of_file(file(form)) == PREPROCESSING
    found = read_metadata(file(form))
    assert found["precision"] == {"fp32": "fp32", "fp16": "fp16"}.get(form, "int8")
    assert found["model"] == "tiny" and found["layout"] == "NCHW" and found["color"] == "RGB"
    assert found["versions"]["torch"]


def test_broken_metadata_is_named():
    with pytest.raises(ExportError, match=r"^m\.onnx: metadata edgestill\.mean is not JSON \(.*\); export the file"):
        parse_metadata({"edgestill.mean": "[0.5"}, where="m.onnx")
    assert parse_metadata({"author": "someone"}, where="m.onnx") == {}
