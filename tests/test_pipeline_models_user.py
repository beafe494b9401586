"""Builders of the user's own: found without being run, called with what they take, stamped by content."""

from __future__ import annotations

import hashlib
import textwrap
from pathlib import Path

import pytest

from pipeline.errors import RecipeError, UserError
from pipeline.models import build, check_name, source_stamp
from pipeline.models.find_module import find_module


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `own_nets` whose import would be noticed, with a module of builders."""
    package = tmp_path / "own_nets"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    (package / "small.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            def build(num_classes, in_channels=3, hidden=4):
                return nn.Sequential(nn.Conv2d(in_channels, hidden, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                     nn.Linear(hidden, num_classes))

            def broken(num_classes):
                raise KeyError("no weights\\nhere")

            def text():
                return "net"

            number = 3
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_users_own_builder(own: Path) -> None:
    check_name("own_nets.small:build?hidden=8", where="student.model")
    assert not (own / "imported").exists()
    module = build("own_nets.small:build?hidden=8", num_classes=5, in_channels=1, input_size=(1, 8, 8))
    assert module[0].weight.shape == (8, 1, 3, 3) and module[3].out_features == 5
    assert (own / "imported").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "own_nets.small:build?hiden=8",
            "model 'own_nets.small:build' has no argument 'hiden'; did you mean 'hidden'?",
        ),
        ("own_nets.small:text?a=8", "model 'own_nets.small:text' has no argument 'a'; it takes none"),
        ("own_nets.small:broken", "model 'own_nets.small:broken' failed: KeyError: 'no weights\\nhere'"),
        ("own_nets.small:text", "model 'own_nets.small:text' returned a str; expected a torch.nn.Module"),
        ("own_nets.small:number", "model 'own_nets.small:number' is of type int; expected a function or class"),
    ],
)
def test_the_users_own_builder_fails_in_one_line(own: Path, target: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(target, num_classes=5)
    assert str(caught.value) == message


def test_a_misspelt_builder_is_found_without_running_the_module(own: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        check_name("own_nets.small:biuld", where="student.model")
    place = own / "own_nets" / "small.py"
    assert str(caught.value) == (
        f"student.model: model 'own_nets.small:biuld': {place} has no 'biuld'; did you mean 'build'?"
    )
    assert not (own / "imported").exists()


def test_find_module_goes_no_further_than_modules() -> None:
    assert find_module("json.decoder") is not None
    assert find_module("json.decoder.more") is None


def test_source_stamp_follows_content(own: Path) -> None:
    weights = own / "w.pt"
    assert source_stamp("mlperf-resnet8", str(weights)) == {"weights": None}
    weights.write_bytes(b"abc")
    assert source_stamp("mlperf-resnet8", str(weights)) == {"weights": hashlib.sha256(b"abc").hexdigest()}
    assert source_stamp("mlperf-resnet8") == {}
    before = source_stamp("own_nets.small:build")
    (own / "own_nets" / "small.py").write_text("def build(): ...\n")
    after = source_stamp("own_nets.small:build")
    assert before.keys() == after.keys() == {"module"} and before != after and None not in after.values()
    assert not (own / "imported").exists()
