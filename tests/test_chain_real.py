"""Real data: the published ResNet-56 scores here what it should: data, normalisation and model are right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def real_data() -> Path:
    folder = os.environ.get("EDGESTILL_REAL_DATA")
    if not folder:
        pytest.skip("EDGESTILL_REAL_DATA names no folder with the real data sets")
    return Path(folder)


@pytest.mark.timeout(900)
def test_published_resnet56_scores_93_3_on_the_test_split_of_cifar10(real_data: Path, tmp_path: Path) -> None:
    from pipeline.chain import stages
    from pipeline.evaluate import evaluate
    from pipeline.recipe_file import load_recipe
    from pipeline.stages.data import prepared
    from pipeline.stages.subjects import Judged, opened
    from pipeline.store import Store
    from pipeline.tasks.classification import Classification

    arrays = tmp_path / "cifar10.npz"
    subprocess.run([sys.executable, real_data / "unpack.py", "cifar10", arrays], check=True, capture_output=True)
    weights = real_data / "weights" / "cifar10_resnet" / "resnet56-4bfd9763.th"
    recipe = load_recipe("cifar10", ["data.name=arrays", f"data.root={arrays}", f"teacher.weights={weights}"])
    folders = Store(tmp_path / "store", recipe.name).run(stages(recipe), print, only=["teacher-check"])
    data = prepared(recipe, folders["data"])
    teacher = Judged(
        name="teacher",
        role="teacher",
        stage="teacher",
        format="torch",
        precision="fp32",
        runtime="torch",
        path=folders["teacher"] / "teacher.safetensors",
    )
    with opened([teacher], recipe, threads=2) as runners:
        outcomes = evaluate(runners, data.source.test, data.test, Classification)
    assert Classification.summary(outcomes["teacher"])["value"] == pytest.approx(0.933, abs=0.001)
