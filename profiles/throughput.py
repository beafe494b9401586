"""Images a second at several batch sizes, for subjects that can run them; the others say why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from profiles.clock import Clock, LoadMeter
from profiles.errors import ProfileError
from profiles.latency import measure_latency
from profiles.runner import Feeds, Runner

# For one batch size: a runner for each subject, not yet entered, or one line on why it cannot run that batch.
RunnersAt = Callable[[int], Mapping[str, "Runner | str"]]
FAULTS = (ValueError, RuntimeError, MemoryError)  # of a runtime: a size that it does not take, memory that it lacks


def measure_throughput(
    batches: Sequence[int],
    runners_at: RunnersAt,
    feeds_of: Callable[[Runner], Feeds],
    *,
    min_seconds: float = 3.0,
    blocks: int = 30,
    clock: Clock | None = None,
    load: LoadMeter | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Subject -> a row for each of `batches`, in their order; at each batch the subjects are interleaved.

    A row has `batch`, `n` (queries), `p50_ms` of a query, `throughput_per_s` of images by the mean, and `why`, which
    says what kept it from being measured and is None where it was. Raises ProfileError for a batch below 1.
    """
    if not batches or min(batches) < 1:
        raise ProfileError(f"got batches {list(batches)}; give sizes of 1 or more, such as 1,8,32")
    rows: dict[str, list[dict[str, Any]]] = {}
    for batch in dict.fromkeys(batches):
        reasons: dict[str, str] = {}
        with ExitStack() as stack:
            opened: dict[str, Runner] = {}
            for name, runner in runners_at(batch).items():
                rows.setdefault(name, [])
                if isinstance(runner, str):
                    reasons[name] = runner
                    continue
                try:
                    opened[name] = _opened(runner, feeds_of, stack)
                except FAULTS as error:
                    reasons[name] = _line(error)
            feeds = {name: feeds_of(runner) for name, runner in opened.items()}
            results = {}
            try:
                if opened:
                    results = measure_latency(
                        opened, feeds, min_seconds=min_seconds, blocks=blocks, clock=clock, load=load
                    )
            except ProfileError:
                raise
            except FAULTS as error:  # of one of them, side by side: nobody can tell of which
                reasons |= dict.fromkeys(opened, _line(error))
        for name, found in results.items():
            row = found.row()
            told = {key: row[key] for key in ("n", "p50_ms", "throughput_per_s", "contaminated_blocks", "blocks")}
            rows[name].append({"batch": batch, **told, "why": None})
        for name, reason in reasons.items():
            nothing = dict.fromkeys(("n", "p50_ms", "throughput_per_s", "contaminated_blocks", "blocks"))
            rows[name].append({"batch": batch, **nothing, "why": reason})
    return rows


def _opened(runner: Runner, feeds_of: Callable[[Runner], Feeds], stack: ExitStack) -> Runner:
    """The runner, open until `stack` is left, after one inference: what fails at this batch fails alone, and frees what
    it holds before the others are measured."""
    with ExitStack() as own:
        entered = own.enter_context(runner)  # type: ignore[arg-type]
        entered(feeds_of(entered))
        entered.synchronize()
        stack.push(own.pop_all())
    return entered


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
