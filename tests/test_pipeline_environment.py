"""What is recorded with every result, and what must not be."""

import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import environment

ROOT = Path(__file__).parent.parent


def test_it_is_json_and_says_versions_and_machine() -> None:
    found = environment.collect()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["packages"]["numpy"] == np.__version__
    assert found["python"].endswith(platform.python_version())
    assert 1 <= found["usable_cores"] <= found["cores"]
    assert found["memory_bytes"] > 1 << 26
    assert environment.collect() is found, "asked once a process"


def test_it_names_no_host_no_user_and_no_path() -> None:
    text = json.dumps(environment.collect())
    assert str(ROOT) not in text
    assert str(Path.home() / "x")[:-1] not in text
    assert sys.executable not in text
    host = platform.node()
    assert len(host) < 4 or f'"{host}"' not in text
    user = getpass.getuser()
    assert f'"{user}"' not in text


def test_asking_imports_none_of_the_packages_that_it_names() -> None:
    code = (
        "import sys\nfrom pipeline import environment\nenvironment.collect()\n"
        "print(sorted({'numpy', 'torch', 'torchvision', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_the_revision_is_that_of_the_source_and_says_whether_it_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert environment.source_revision(tmp_path) is None, "not a checkout"
    git("init", "-q")
    assert environment.source_revision(tmp_path) is None, "no commit yet"
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("1")
    assert environment.source_revision(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert environment.source_revision(tmp_path) == {"commit": commit, "dirty": True}


def test_gpu_memory_is_asked_of_torch_once_something_ran_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: a torch.cuda of two."""

    class Cuda:
        running, held = False, [30, 20]
        is_initialized = staticmethod(lambda: Cuda.running)
        device_count = staticmethod(lambda: 2)
        max_memory_allocated = staticmethod(lambda index: Cuda.held[index])
        reset_peak_memory_stats = staticmethod(lambda index: Cuda.held.__setitem__(index, 0))

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=Cuda))
    environment.reset_peaks()
    assert Cuda.held == [30, 20] and environment.peaks().keys() == {"peak_rss_bytes"}
    Cuda.running = True
    assert environment.peaks()["peak_cuda_bytes"] == 30
    environment.reset_peaks()
    assert environment.peaks()["peak_cuda_bytes"] == 0
    monkeypatch.delitem(sys.modules, "torch")
    assert environment.peaks().keys() == {"peak_rss_bytes"}


def test_peak_memory_starts_anew() -> None:
    """In a fresh process: what other tests left on the heap may come and go there."""
    code = """
import numpy as np
import pytest
from pipeline import environment
block = np.ones(128 << 17)
high = environment.peak_rss_bytes()
assert high > block.nbytes, (high, block.nbytes)
size = block.nbytes
del block
environment.reset_peak_rss()
low = environment.peak_rss_bytes()
can = environment.Path("/proc/self/clear_refs").exists()
assert low < high - size // 2 if can else low >= high, (low, high)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
