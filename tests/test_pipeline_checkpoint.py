"""Checkpoints: model and preprocessing in one file, byte for byte the same, and refused in one line when damaged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.checkpoint import ModelMeta, load_checkpoint, read_meta, save_checkpoint

MODEL = "cifar-resnet20?width=0.25"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(1)
    return build(MODEL, num_classes=10)


META = ModelMeta(
    model=MODEL,
    num_classes=10,
    class_names=tuple("abcdefghij"),
    input_size=(3, 32, 32),
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    made_by={"torch": "2", "edgestill": "0.1"},
)


def test_checkpoint_keeps_model_and_preprocessing(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, module.to(memory_format=torch.channels_last), META)
    state = torch.get_rng_state()
    found, meta = load_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert meta == META == read_meta(path)
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert found.state_dict().keys() == module.state_dict().keys() and not found.training


def test_checkpoint_bytes_depend_on_values_alone(module: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", module, META)
    save_checkpoint(tmp_path / "b", module.to(memory_format=torch.channels_last), META)
    code = (
        "import sys, torch\nfrom pipeline.models.checkpoint import load_checkpoint, save_checkpoint\n"
        "torch.set_num_threads(1)\nmodule, meta = load_checkpoint(sys.argv[1])\n"
        "save_checkpoint(sys.argv[2], module, meta)\n"
    )
    root = Path(__file__).parent.parent
    (tmp_path / "a").rename(tmp_path / "a.safetensors")
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.safetensors", tmp_path / "c"], cwd=root, check=True)
    whole = (tmp_path / "a.safetensors").read_bytes()
    assert (tmp_path / "b").read_bytes() == whole == (tmp_path / "c").read_bytes()


def test_checkpoint_of_compiled_and_tied_modules(tmp_path: Path, module: nn.Module) -> None:
    save_checkpoint(tmp_path / "plain", module, META)
    wrapped = nn.Module()
    wrapped._orig_mod = module
    save_checkpoint(tmp_path / "wrapped", wrapped, META)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "wrapped").read_bytes()
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    save_checkpoint(tmp_path / "tied", tied, META)


def test_meta_is_read_without_torch(tmp_path: Path, module: nn.Module) -> None:
    save_checkpoint(tmp_path / "w.safetensors", module, META)
    code = (
        "import sys\nfrom pipeline.models.checkpoint import read_meta\nprint(read_meta(sys.argv[1]).model)\n"
        "assert not {'torch', 'safetensors'} & set(sys.modules)\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "w.safetensors"], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == MODEL


def test_damaged_and_foreign_checkpoints(module: nn.Module, tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            load_checkpoint(path)
        return str(caught.value)

    path = tmp_path / "w.safetensors"
    assert refused(path) == f"checkpoint: no file {str(path)!r}; run the stage that writes it"
    path.write_bytes(b"\xff" * 64)
    assert refused(path) == f"checkpoint: {path}: corrupted, or not a safetensors file; build it again"
    save_file(module.state_dict(), path)
    assert refused(path) == (
        f"checkpoint: {path}: plain weights, not a checkpoint of edgestill; give them as weights of a named model"
    )
    save_file(module.state_dict(), path, metadata={"edgestill.model": json.dumps({"version": 1, "model": MODEL})})
    assert refused(path) == f"checkpoint: {path}: its description is damaged ('input_size'); build it again"
    save_file(module.state_dict(), path, metadata={"edgestill.model": json.dumps({"version": 9})})
    assert refused(path) == f"checkpoint: {path}: written by another version of edgestill; build it again"
    save_checkpoint(path, module, META)
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(path).startswith(f"checkpoint: {path}: corrupted or truncated (")
