"""Two processes that train together end where one process ends: the same curve, the same weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_runs import (
    BATCH,
    CPU,
    LABELS,
    RUNS,
    config,
    data,
    learner_of,
    network,
    run,
    run_named,
    whole_batch,
    work,
)

from pipeline.data.loader import epoch_order
from pipeline.distillers.offline import offline
from pipeline.errors import UserError
from pipeline.training.distributed import Ranks, current, is_loss, join

WORLD = 2


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes, joined by gloo, did all of `distributed_runs.work`."""
    found = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work, args=(found, WORLD), nprocs=WORLD)  # pyright: ignore[reportPrivateImportUsage]
    return found


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of them found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def assert_close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Weights, and every number of the curve but times."""
    assert got[0].keys() == wanted[0].keys()
    apart = {name: float((got[0][name] - wanted[0][name]).abs().max()) for name in wanted[0]}
    assert max(apart.values()) <= tolerance, apart
    assert len(got[1].curve) == len(wanted[1].curve)
    for row, other in zip(got[1].curve, wanted[1].curve, strict=True):
        for name in ("epoch", "lr", "train_loss", "val_accuracy"):
            assert row[name] == pytest.approx(other[name], abs=tolerance, rel=tolerance), name
        assert row["terms"] == pytest.approx(other["terms"], abs=tolerance, rel=tolerance)
        assert row["gradient_norms"] == pytest.approx(other["gradient_norms"], rel=100 * tolerance)
    assert got[1].best_epoch == wanted[1].best_epoch


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_curve_and_the_weights_of_one(
    tmp_path: Path, ranks: list[dict[str, Any]], one_thread: None, name: str
) -> None:
    alone = run_named(name, tmp_path)
    assert_close(ranks[0][name], alone)
    losses = [row["train_loss"] for row in alone[1].curve]
    assert losses[-1] < losses[0], "something was learnt, so something was compared"


def test_both_processes_hold_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    for name in (*RUNS, "normed"):
        first, second = (found[name][0] for found in ranks)
        assert [key for key in first if not torch.equal(first[key], second[key])] == [], name


def test_what_is_said_names_the_shares(ranks: list[dict[str, Any]]) -> None:
    shares = f"distill: 2 processes with {BATCH // 2} images each of a batch of {BATCH}"
    assert ranks[0]["labels"][2][0] == shares
    assert ranks[0]["normed"][2][0] == f"{shares}; BatchNorm normalises each share by itself"


def test_losses_of_the_whole_batch_are_not_those_of_its_halves(tmp_path: Path, one_thread: None) -> None:
    """Else the comparison above would hold without any gathering."""
    learner, half = learner_of("relations"), learner_of("relations")
    terms = [
        run(each, config(batch_size=size, epochs=1), tmp_path)[1].curve[0]["terms"]
        for each, size in ((learner, BATCH), (half, BATCH // 2))
    ]
    for name in ("dist", "rkd", "pkt", "similarity_preserving"):
        assert abs(terms[0][name] - terms[1][name]) > 1e-3 * abs(terms[0][name]), name


def test_the_gradient_through_gathered_rows_is_that_of_the_whole_batch(ranks: list[dict[str, Any]]) -> None:
    value, gradient, _ = whole_batch()
    for found in ranks:
        assert torch.allclose(found["whole"][0], value, rtol=1e-12)
        assert torch.allclose(found["whole"][1], gradient, rtol=1e-12)
        assert found["whole"][2] == (6, 2), "rows that lie otherwise in memory, in bf16"


def test_a_run_that_both_stopped_goes_on_as_if_it_had_not(ranks: list[dict[str, Any]]) -> None:
    resumed, whole = ranks[0]["resumed"], ranks[0]["normed"]
    assert resumed[2][0].startswith("distill: resumed at epoch 3")
    assert_close(resumed, whole, 1e-6)
    weights = [name for name in whole[0] if "running" not in name]
    assert [name for name in weights if not torch.equal(resumed[0][name], whole[0][name])] == [], "dropout and all"


def test_one_process_takes_over_from_two(folder: Path, ranks: list[dict[str, Any]], one_thread: None) -> None:
    terms, changes = RUNS["kd"]
    resumed = run(offline(network(0), terms), config(**changes), folder / "taken over")
    assert resumed[2][0] == "distill: resumed at epoch 2, step 3"
    assert_close(resumed, ranks[0]["kd"])


def test_a_loss_that_is_not_finite_on_one_process_stops_both_with_the_line_of_one(
    ranks: list[dict[str, Any]],
) -> None:
    samples = epoch_order(np.arange(8, 48), 7, 1)[8:12].tolist()
    line = (
        f"distill: the loss is {math.nan} at epoch 2, step 2 (samples {samples}…); lower lr, add warmup_epochs or "
        "clip_norm, or set precision = 'fp32'"
    )
    assert [found["nan"] for found in ranks] == [line] * WORLD


def test_batches_without_equal_shares_are_refused_on_both(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["large"] == (
            "distill: batch_size = 42 is above the number of training images; for equal shares of 2 processes set it "
            "to 40 or less"
        )
        assert found["odd"] == (
            "batch_size = 5 does not divide by 2 processes; set it to 4 or 6, or start another number of processes"
        )


def test_they_exchange_values_and_notes(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["shared"] == [{"from": 0}, True, False]
        assert found["notes"][:3] == ["no room", None, None]
    assert sorted(found["notes"][3] for found in ranks) == [False, True]


def test_waiting_for_rank_0_takes_no_processor(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["idle"] < 0.3


def test_a_process_alone_exchanges_nothing() -> None:
    alone = current()
    assert (alone.rank, alone.world, alone.leads) == (0, 1, True)
    learner, values = offline(network(0), (LABELS,)), torch.ones(2)
    assert alone.together(learner) is learner
    assert alone.mean(values) is values and alone.whole(values) is values
    assert alone.share("x") == "x" and alone.any(True) and not alone.any(False)
    alone.barrier()
    alone.settle((learner, None))


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError) as caught:
        join()
    assert str(caught.value) == "2 processes on a machine with 1 GPU; start torchrun with --nproc-per-node 1"


def test_those_who_lost_each_other_say_so_instead_of_waiting() -> None:
    apart = Ranks(0, 2)
    apart.apart = True
    with pytest.raises(UserError) as caught:
        apart.share()
    assert str(caught.value) == "the 2 processes have lost each other; run the same command again to resume"


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:1"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (torch.distributed.DistBackendError("x"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (UserError("gloo"), False),
        (ConnectionError("connection reset"), False),
    ],
)
def test_a_lost_process_is_told_from_other_trouble(error: Exception, is_one: bool) -> None:
    assert is_loss(error) == is_one


def test_data_of_the_runs_has_unequal_shares_of_labels() -> None:
    held = data(unlabelled=True)
    order = epoch_order(held.train, 7, 0)[:BATCH]
    counts = [(held.images.labels[half] >= 0).sum() for half in np.split(order, 2)]
    assert counts[0] != counts[1]
    assert CPU.type == "cpu"
