"""Fresh or stale, with reasons; early cutoff; what the manifest says."""

import re
from pathlib import Path
from typing import Any

import pytest
from two_stages import Chain

from pipeline import manifest
from pipeline.atomic import format_bytes
from pipeline.errors import UserError
from pipeline.stage import Stage


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def held(chain: Chain) -> str:
    return format_bytes(sum(file.stat().st_size for file in chain.store.folder.rglob("*") if file.is_file()))


def test_what_was_built_is_fresh(chain: Chain) -> None:
    assert chain.status() == [("missing", ("never built",)), ("missing", ("never built",))]
    assert not chain.store.folder.exists(), "asking writes nothing"
    assert chain.run() == ["teacher", "student"]
    assert f"holds {held(chain)}, " in chain.said[-1] and chain.said[-1].endswith(" of it new")
    assert [re.sub(r"\d+\.\d s, \d+", "T s, N", line) for line in chain.said[:-1]] == [
        "teacher: building (never built)",
        "teacher: done in T s, N bytes",
        "student: building (never built)",
        "student: done in T s, N bytes",
    ]
    assert chain.status() == [("fresh", ()), ("fresh", ())]
    assert chain.run() == []
    assert chain.said == ["teacher: fresh", "student: fresh"]
    assert chain.store.fresh == {"teacher": True, "student": True}
    assert (chain.folders["student"] / "deep" / "student.safetensors").read_text() == "weights after 30, lr 0.1"
    assert re.fullmatch(r"student-[0-9a-f]{12}", chain.folders["student"].name)


def test_the_manifest_says_how_it_was_made(chain: Chain) -> None:
    chain.run()
    teacher, student = (manifest.read(chain.folders[name]) for name in ("teacher", "student"))
    assert set(student) == {
        *("schema_version", "stage", "version", "fingerprint", "config", "stamp", "inputs", "files", "volatile"),
        *("digest", "seconds", "resumed", "peak_rss_bytes", "created", "environment", "manifest_sha256"),
    }
    assert student["config"] == {"distill": {"lr": 0.1, "milestones": [3, 4]}}
    assert student["stamp"] == {"x.npz": {"size": 1}}
    assert student["inputs"] == {"teacher": {"fingerprint": teacher["fingerprint"], "digest": teacher["digest"]}}
    assert student["files"]["deep/student.safetensors"]["size"] == 24
    assert chain.folders["student"].name == f"student-{student['fingerprint'][:12]}"
    assert teacher["volatile"] == ["seconds.json"]
    assert teacher["digest"] == manifest.sha256_json(
        [["teacher.safetensors", teacher["files"]["teacher.safetensors"]["sha256"]]]
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", student["created"])
    assert student["resumed"] is False


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": 0.2}, [("fresh", ()), ("stale", ("changed: distill.lr 0.1 -> 0.2",))]),
        ({"size": 2}, [("fresh", ()), ("stale", ("changed outside: x.npz.size 1 -> 2",))]),
        (
            {"epochs": 60},
            [("stale", ("changed: teacher.epochs 30 -> 60",)), ("unknown", ("teacher has to be built first",))],
        ),
        (
            {"version": 2, "lr": 0.2},
            [
                ("stale", ("its code changed (version 1 -> 2)",)),
                ("stale", ("changed: distill.lr 0.1 -> 0.2",)),
            ],
        ),
    ],
)
def test_reasons_name_what_changed(chain: Chain, settings: dict[str, Any], expected: list[Any]) -> None:
    chain.run()
    assert chain.status(**settings) == expected


def test_the_closest_earlier_build_explains(chain: Chain) -> None:
    chain.run(epochs=30, lr=0.1)
    chain.run(epochs=30, lr=0.5)
    assert chain.status(epochs=30, lr=0.3)[1] == ("stale", ("changed: distill.lr 0.5 -> 0.3",))
    chain.run(epochs=60, lr=0.1)
    assert chain.said[2] == "student: building (teacher changed)"


def test_an_input_built_again_with_the_same_bytes_leaves_the_next_stage_fresh(chain: Chain) -> None:
    chain.run()
    assert chain.run(comment="only a comment") == ["teacher"]
    assert chain.said[-2] == "student: fresh"


def test_going_back_costs_nothing_and_the_kept_bytes_are_said(chain: Chain) -> None:
    chain.run()
    before = chain.folders["student"]
    assert chain.run(lr=0.2) == ["student"]
    size = format_bytes(sum(file.stat().st_size for file in before.rglob("*") if file.is_file()))
    held, new = (
        format_bytes(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
        for folder in (chain.store.folder, chain.folders["student"])
    )
    said = f"1 folder of other settings kept, {size}; 'edgestill store prune'"
    assert chain.said[-1] == f"{chain.store.folder}: holds {held}, {new} of it new; {said}"
    assert chain.run() == []
    chain.run(lr=0.3)
    assert "2 folders of other settings kept" in chain.said[-1]


def test_only_runs_a_stage_and_what_it_needs(chain: Chain) -> None:
    assert set(chain.store.run(chain.stages(), chain.said.append, only=["teacher"])) == {"teacher"}
    assert set(chain.store.run(chain.stages(), chain.said.append, only=["student"])) == {"teacher", "student"}
    with pytest.raises(UserError) as caught:
        chain.store.run(chain.stages(), chain.said.append, only=["studnet"])
    assert str(caught.value) == "no stage is named 'studnet'; did you mean 'student'?"


def test_mistakes_of_the_programmer_are_assertions(chain: Chain) -> None:
    teacher, student = chain.stages()
    with pytest.raises(AssertionError, match="stands before one that it needs"):
        chain.store.status([student, teacher])
    with pytest.raises(AssertionError, match="two stages are named teacher"):
        chain.store.status([teacher, teacher])
    with pytest.raises(AssertionError, match="wrote nothing"):
        chain.store.run([Stage(name="idle", version=1, config={}, run=lambda context: None)], chain.said.append)
    with pytest.raises(AssertionError, match="stage name"):
        Stage(name="No Good", version=1, config={}, run=lambda context: None)
