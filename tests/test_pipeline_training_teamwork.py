"""Who does what among several processes, and what is said when one is lost; with ranks that are only pretended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import chain
from pipeline.errors import RecipeError, UserError
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.training import distributed, teamwork
from pipeline.training.distributed import Ranks
from pipeline.training.teamwork import RESUME, Task, check_batches, follow, help_with, lead, led, reason

GONE = RuntimeError("[/a/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:5. This is typically caused")


class Pretended(Ranks):
    """Rank `rank` of two. `tasks` are what rank 0 shares; `word` gives what the others have noted."""

    def __init__(self, rank: int, *, tasks: list[Any] | None = None, words: dict[str, str] | None = None) -> None:
        super().__init__(rank, 2)
        self.given, self.words = list(tasks or []), words or {}
        self.shared: list[Any] = []
        self.left: dict[str, str] = {}

    def share(self, value: Any = None) -> Any:
        self.shared.append(value)
        found = self.given.pop(0) if self.given else value
        if isinstance(found, BaseException):
            raise found
        return found

    def note(self, what: str, text: str = "") -> None:
        self.left[what] = text

    def noted(self, what: str, *, within_s: float) -> str | None:
        return self.words.get(what)

    def last_word(self) -> bool:
        return True


def recipe(**changes: Any) -> Recipe:
    found = {
        "name": "tiny",
        "data": {"name": "digits"},
        "teacher": {"model": "mlperf-resnet8", "train": {"batch_size": 64}},
        "student": {"model": "mlperf-resnet8"},
        "distill": {"batch_size": 64},
    }
    return Recipe.model_validate(found | changes)


def stage(run: Callable[[Context], None], *, together: bool = True) -> Stage:
    return Stage(name="distill", version=1, config={}, run=run, together=together)


def fails(error: BaseException) -> Callable[[Context], None]:
    def run(context: Context) -> None:
        raise error

    return run


def context(folder: Path, of: Stage) -> Context:
    return Context(stage=of, folder=folder, inputs={"data": folder}, say=lambda line: None)


def test_the_stages_that_train_are_those_in_which_all_take_part() -> None:
    found = {stage.name: stage.together for stage in chain.stages(recipe())}
    assert {name for name, together in found.items() if together} == {"teacher", "table", "distill", "control"}
    loaded = recipe(teacher={"model": "mlperf-resnet8", "weights": "w.pt"})
    assert not next(stage for stage in chain.stages(loaded) if stage.name == "teacher").together


def test_a_process_alone_runs_the_stages_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    own = stage(lambda context: None)
    assert led(own, recipe()) is own
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert led(own, recipe()) is own, "it has not met the other"
    monkeypatch.setattr(distributed, "_current", Pretended(1))
    assert led(own, recipe()) is own, "it is called by rank 0"
    monkeypatch.setattr(distributed, "_current", Pretended(0))
    assert led(stage(lambda context: None, together=False), recipe()).run is not None
    assert led(own, recipe()).run is not own.run


def test_rank_0_tells_the_others_what_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ranks, seen = Pretended(0), []
    lead(ranks, stage(seen.append), recipe(), context(Path("here"), stage(seen.append)))
    (task,) = ranks.shared
    assert task == Task(recipe=recipe(), stage="distill", folder=tmp_path / "here", inputs={"data": tmp_path / "here"})
    assert len(seen) == 1 and ranks.tasks == 1 and not ranks.apart


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            {},
            "distill: another process ended early (Connection closed by peer [::1]:5); see its own output; " + RESUME,
        ),
        (
            {"lost": "rank 1 on node2: OutOfMemoryError: CUDA out of memory"},
            "rank 1 on node2: OutOfMemoryError: CUDA out of memory; run the same command again to resume",
        ),
    ],
)
def test_a_rank_that_dies_is_one_line_with_its_reason(tmp_path: Path, words: dict[str, str], said: str) -> None:
    ranks = Pretended(0, words=words)
    with pytest.raises(UserError) as caught:
        lead(ranks, stage(fails(GONE)), recipe(), context(tmp_path, stage(fails(GONE))))
    assert str(caught.value) == said
    assert caught.value.exit_code == 1
    assert ranks.apart


@pytest.mark.parametrize("theirs", [True, False])
def test_trouble_of_rank_0_is_its_own_line_whether_the_others_share_it_or_not(tmp_path: Path, theirs: bool) -> None:
    ranks = Pretended(0, words={"ended on 1": ""} if theirs else {})
    with pytest.raises(UserError, match="the loss is nan"):
        lead(ranks, stage(fails(UserError("the loss is nan"))), recipe(), context(tmp_path, stage(lambda c: None)))
    assert "ended" in ranks.left
    assert ranks.apart is not theirs, "others that are still at work would answer another question"


def task(folder: Path) -> Task:
    return Task(recipe=recipe(), stage="distill", folder=folder, inputs={"data": folder})


def test_the_others_help_until_there_is_no_more(tmp_path: Path) -> None:
    ranks, seen = Pretended(1, tasks=[task(tmp_path), task(tmp_path), None]), []
    follow(ranks, lambda recipe: [stage(seen.append)])
    assert [(each.folder, each.leads) for each in seen] == [(tmp_path, False)] * 2
    assert seen[0].say("x") is None
    assert ranks.tasks == 2


def test_trouble_that_rank_0_shares_is_left_to_it(tmp_path: Path) -> None:
    ranks = Pretended(1, tasks=[task(tmp_path), None], words={"ended": ""})
    follow(ranks, lambda recipe: [stage(fails(UserError("the loss is nan")))])
    assert ranks.left == {"ended on 1": ""}


def test_trouble_of_its_own_is_noted_for_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teamwork.socket, "gethostname", lambda: "node2")
    ranks = Pretended(1, tasks=[task(tmp_path)])
    with pytest.raises(UserError) as caught:
        follow(ranks, lambda recipe: [stage(fails(KeyError("x")))])
    assert ranks.left["lost"] == "rank 1 on node2: KeyError: 'x'"
    assert str(caught.value) == "rank 1 on node2: KeyError: 'x'; run the same command again to resume"


@pytest.mark.parametrize("waiting", [True, False])
def test_the_others_notice_that_rank_0_has_died(tmp_path: Path, waiting: bool) -> None:
    ranks = Pretended(1, tasks=[GONE] if waiting else [task(tmp_path)])
    with pytest.raises(UserError) as caught:
        follow(ranks, lambda recipe: [stage(fails(GONE))])
    assert str(caught.value) == (
        f"{'waiting for rank 0' if waiting else 'distill'}: another process ended early (Connection closed by peer "
        "[::1]:5); see its own output; run the same command again to resume"
    )
    assert ranks.left == {}


def test_a_machine_that_does_not_see_the_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teamwork, "APPEAR_S", 0.0)
    with pytest.raises(UserError) as caught:
        help_with(task(tmp_path / "gone"), [stage(lambda context: None)])
    assert str(caught.value) == f"{tmp_path / 'gone'} is not here; several machines need an --out that all of them see"


@pytest.mark.parametrize(
    ("changes", "world", "said"),
    [
        ({}, 3, "distill.batch_size = 64 does not divide by 3 processes; set it to 63 or 66"),
        ({"distill": {"batch_size": 2}}, 4, "distill.batch_size = 2 does not divide by 4 processes; set it to 4"),
        (
            {"teacher": {"model": "mlperf-resnet8", "train": {"batch_size": 65}}},
            2,
            "teacher.train.batch_size = 65 does not divide by 2 processes; set it to 64 or 66",
        ),
        (
            {"generation": [{"model": "mlperf-resnet8", "distill": {"batch_size": 7}}]},
            2,
            "generation[0].distill.batch_size = 7 does not divide by 2 processes; set it to 6 or 8",
        ),
    ],
)
def test_a_batch_that_cannot_be_cut_evenly_is_refused(changes: dict[str, Any], world: int, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_batches(recipe(**changes), world)
    assert str(caught.value) == f"{said}, or start another number of processes"
    assert caught.value.exit_code == 2


def test_a_loaded_teacher_has_no_batches() -> None:
    loaded = recipe(teacher={"model": "mlperf-resnet8", "weights": "w.pt", "train": {"batch_size": 65}})
    check_batches(loaded, 2)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("one. two"), "one. two"),
        (GONE, "Connection closed by peer [::1]:5"),
        (MemoryError(), "MemoryError"),
        (ValueError("first\nsecond"), "ValueError: first"),
    ],
)
def test_reasons_are_one_line(error: Exception, line: str) -> None:
    assert reason(error) == line
