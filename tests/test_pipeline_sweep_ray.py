"""Training the points of a sweep on a real Ray cluster of this machine: same results as the local engine, and failures.

The cluster is small: two workers, no dashboard, no usage statistics, 100 MB of shared memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import chain
from pipeline.errors import UserError
from pipeline.manifest import read
from pipeline.stages import profile
from pipeline.store import Store
from pipeline.sweeps.on_ray import cluster, share_of, train_all, units_of
from pipeline.sweeps.points import plan
from pipeline.sweeps.run import Job, job_of, sweep

ROOT = Path(__file__).parent.parent
SMALL = (
    *("teacher.model=mlperf-resnet8", "teacher.train.epochs=1", "distill.epochs=1"),
    *("distill.control=false", "distill.teacher_outputs=table"),
)
QUICK = (  # what comes after the training, as short as it can be
    *("profile.runtimes=onnxruntime", "profile.min_seconds=0.01", "profile.blocks=2"),
    *("quantize=false", 'export.0.precisions=["fp32"]'),
)


def jobs_of(*values: str) -> list[Job]:
    found = plan("digits", grid=[f"distill.lr={','.join(values)}"], overrides=SMALL, smoke=True)
    return [job_of(point, found, ["digits", "--smoke"]) for point in found.points]


def test_every_different_stage_before_the_export_is_one_unit(tmp_path: Path) -> None:
    units = units_of(jobs_of("0.1", "0.05", "0.02"), Store(tmp_path, "digits-smoke"))
    names = [unit.stage.name for unit in units.values()]
    assert sorted(names) == ["data", "distill", "distill", "distill", "table", "teacher", "teacher-check"]
    for key, unit in units.items():
        assert set(unit.needs.values()) <= set(list(units)[: list(units).index(key)]), "after what it needs"
        taught = {"data", "teacher", "teacher-check"}
        before = {"data": set(), "teacher": {"data"}, "teacher-check": {"data", "teacher"}, "table": taught}
        assert set(unit.all_needs) == before.get(unit.stage.name, taught | {"table"})


class Nodes:
    def __init__(self, *resources: dict[str, float]) -> None:
        self.resources = resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in self.resources]


@pytest.mark.parametrize(
    ("resources", "share"),
    [
        ([{"CPU": 8.0}], (0, 1)),
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 4.0}], (1, 2)),
        ([{"CPU": 2.0, "GPU": 4.0}], (1, 1)),
        ([{"CPU": 16.0, "GPU": 1.0}, {"CPU": 12.0, "GPU": 2.0}], (1, 6)),
    ],
)
def test_a_task_gets_one_gpu_and_its_share_of_the_cores(resources: Any, share: tuple[int, int]) -> None:
    assert share_of(Nodes(*resources)) == share


def test_without_ray_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError) as error, cluster():
        pass
    assert str(error.value) == "--engine ray: ray is not installed; pip install 'edgestill[sweep]'"


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield ray
    ray.shutdown()


def test_a_real_cluster_trains_what_the_local_engine_would(two_workers: Any, tmp_path: Path) -> None:
    jobs = jobs_of("0.1", "1e30")
    store, said = Store(tmp_path, "digits-smoke"), []
    with store.lock():
        broken = train_all(jobs, store, said.append)
    assert two_workers.is_initialized(), "the caller's cluster is left running"
    (point, reason) = broken.popitem()[1]
    assert point == "lr=1e30" and reason.startswith("distill: the loss is") and not broken
    folders = {path.name.rpartition("-")[0]: path for path in store.folder.glob("*-*") if not path.is_symlink()}
    assert sorted(folders) == ["data", "distill", "table", "teacher", "teacher-check"]
    assert "[ray lr=0.1] teacher: building (never built)" in said
    assert any(line.startswith("[ray lr=0.1] distill: epoch 1/1 ") for line in said)
    assert "[ray lr=0.1] distill: the teacher's answers are read from a replay table" in said
    left = sorted(path.name for path in (store.folder / "sweep" / "ray").iterdir())
    assert len(left) == 1 and left[0].startswith("distill-"), "only the failed one keeps its scratch"

    states = {row.stage: row.state for row in store.status(chain.stages(jobs[0].point.recipe))}
    assert {states[name] for name in folders} == {"fresh"}, "the local engine finds them"
    said.clear()
    local = Store(tmp_path / "local", "digits-smoke")
    made = local.run(jobs[0].stages, said.append, only=["distill"])
    assert read(made["distill"])["digest"] == read(folders["distill"])["digest"], "bit for bit the same student"

    said.clear()
    assert train_all(jobs[:1], store, said.append) == {}
    assert len(said) == 1, "nothing is left to train"


@pytest.mark.slow
def test_a_whole_sweep_on_a_cluster_shares_one_table_of_answers(
    two_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"peak_memory_bytes": None, "first_ms": None, "missing": {"peak_memory_bytes": "not asked for"}}
    monkeypatch.setattr(profile, "cold", lambda *_: nothing)  # fresh processes for figures that are not looked at here
    said: list[str] = []
    found = sweep(
        "digits",
        grid=["distill.losses.0.temperature=2.0,4.0"],
        overrides=(*SMALL, *QUICK),
        smoke=True,
        out=tmp_path,
        engine="ray",
        say=said.append,
    )
    assert two_workers.is_initialized() and found["engine"] == "ray"
    assert [row["status"] for row in found["points"]] == ["done", "done"], [row["why"] for row in found["points"]]
    assert len(list((tmp_path / "digits-smoke").glob("table-*"))) == 1
    read = [line for line in said if line.endswith("the teacher's answers are read from a replay table")]
    assert len(read) == 2 and all(line.startswith("[ray ") for line in read), "both students read it, on the cluster"
    assert sum("table: building" in line for line in said) == 1
    assert not [line for line in said if line.startswith("[") and "distill: building" in line and "[ray" not in line]
    assert all(row["teacher_share"] is not None and row["stages"]["table"]["seconds"] > 0 for row in found["points"])
