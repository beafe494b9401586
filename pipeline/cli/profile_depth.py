"""What `edgestill profile` looks at when asked: batch sizes, layers, energy, and minutes of work without a pause."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.arguments import InputShape
from pipeline.cli.output import console, table
from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.cli.profile_subjects import Candidate

SLOWEST = 10  # layers that are printed; --json has all
KINDS = 4  # kinds of operators that are printed
LEAST_ENERGY_S = 3.0


class Batches(click.ParamType):
    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(size) for size in str(value).split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"got {value!r}; expected sizes such as 1,8,32", param, ctx)
        return sizes


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The options of this file."""

    minutes: float | None
    deadline_ms: float | None
    batches: tuple[int, ...] | None
    layers: bool
    energy: bool

    def check(self) -> None:
        if self.deadline_ms is not None and self.minutes is None:
            raise UserError(f"--deadline-ms {self.deadline_ms:g}: frames are counted in a soak; add --minutes 10")


def depth_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, in the order in which --help shows them."""
    above_zero = click.FloatRange(0, min_open=True)
    options = (
        click.option("--minutes", type=above_zero, help="Then soak each subject so long: drift, throttling, misses."),
        click.option("--deadline-ms", type=above_zero, help="Of a frame in the soak; slower ones are missed."),
        click.option("--batches", type=Batches(), help="Throughput at batch sizes such as 1,8,32."),
        click.option("--layers", is_flag=True, help="Name the slowest layers, by the runtime's own profiler."),
        click.option("--energy/--no-energy", default=True, help="Joules an image, where a sensor can be read."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def feeds_of(runner: Any) -> dict[str, np.ndarray]:
    """Normal noise for float inputs, zeros for others (an index or a mask must be valid), equal for every subject."""
    import numpy as np

    made = {}
    for spec in runner.inputs:
        shape = tuple(int(size) for size in spec.shape)
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        made[spec.name] = noise.astype(spec.dtype) if "float" in spec.dtype else np.zeros(shape, spec.dtype)
    return made


def look_deeper(
    candidates: Mapping[str, Candidate],
    results: Mapping[str, Mapping[str, Any]],
    rows: Sequence[dict[str, Any]],
    depth: Depth,
    *,
    classes: int | None,
    seconds: float,
    blocks: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Fill each subject's row; returns what this machine does not tell -> why.

    Rows get `states` (kind -> block -> state of the machine), `energy_j`, `energy`, `batches`, `layers` and `soak`.
    """
    from profiles.power import meter
    from profiles.runner import bus_id_of

    first = next(iter(candidates.values())).runner
    untold = dict(next(iter(next(iter(results.values())).values())).untold)
    sensor = meter(first.device, bus_id=bus_id_of(first)) if depth.energy else "--no-energy was given"
    if isinstance(sensor, str):
        untold["energy_j"] = sensor
    for row in rows:
        row["states"] = {kind: found[row["name"]].state_rows() for kind, found in results.items()}
        row |= {"energy_j": None, "energy": None, "batches": None, "layers": None, "soak": None}
        if isinstance(sensor, str) and not depth.layers and depth.minutes is None:
            continue
        with candidates[row["name"]].runner as runner:
            feeds = feeds_of(runner)
            if not isinstance(sensor, str):
                _energy(row, runner, feeds, sensor, max(seconds, LEAST_ENERGY_S))
            if depth.layers:
                _layers(row, runner, feeds)
            if depth.minutes is not None:
                say(f"soak: {row['name']}, {depth.minutes:g} min")
                _soak(row, runner, feeds, depth, sensor)
    if depth.batches:
        _batches(candidates, rows, depth.batches, classes=classes, seconds=seconds, blocks=blocks, say=say)
    return untold


def _energy(row: dict[str, Any], runner: Any, feeds: Any, sensor: Any, seconds: float) -> None:
    from profiles.errors import ProfileError
    from profiles.latency import query_of
    from profiles.power import measure_energy

    batch = next(iter(feeds.values())).shape[0]
    try:
        row["energy"] = measure_energy(query_of(runner, feeds), sensor, batch=batch, seconds=seconds).row()
        row["energy_j"] = row["energy"]["energy_j"]
    except ProfileError as error:
        row["missing"]["energy_j"] = str(error)


def _layers(row: dict[str, Any], runner: Any, feeds: Any) -> None:
    from profiles.errors import ProfileError
    from profiles.layers import profile_layers

    try:
        row["layers"] = profile_layers(runner, feeds).row()
    except ProfileError as error:
        row["missing"]["layers"] = str(error)


def _soak(row: dict[str, Any], runner: Any, feeds: Any, depth: Depth, sensor: Any) -> None:
    from profiles.soak import soak

    assert depth.minutes is not None
    found = soak(row["name"], runner, feeds, minutes=depth.minutes, deadline_ms=depth.deadline_ms, meter=sensor)
    row["soak"] = found.row()


def _batches(
    candidates: Mapping[str, Candidate],
    rows: Sequence[dict[str, Any]],
    batches: tuple[int, ...],
    *,
    classes: int | None,
    seconds: float,
    blocks: int,
    say: Callable[[str], None],
) -> None:
    from profiles.throughput import measure_throughput

    needed = seconds * len(candidates) * len(batches) * 4 / 3
    say(f"batches {', '.join(map(str, batches))}: about {needed:.0f} s at most")
    found = measure_throughput(
        batches,
        lambda batch: {name: _at_batch(candidate, batch, classes) for name, candidate in candidates.items()},
        feeds_of,
        min_seconds=seconds,
        blocks=blocks,
    )
    for row in rows:
        row["batches"] = found[row["name"]]


def _at_batch(candidate: Candidate, batch: int, classes: int | None) -> Any:
    """A runner of the subject at `batch`, or why there is none: its file has one batch and no other."""
    from pipeline.cli.arguments import specs_of
    from pipeline.cli.profile_subjects import candidates_of, reads_modules

    runner, on_torch = candidate.runner, reads_modules(candidate.runtime)
    if not on_torch:
        fixed = {spec.shape[0] for spec in specs_of(candidate.subject) if spec.shape}
        if any(isinstance(size, int) and size != batch for size in fixed):
            return f"the file's batch is fixed at {', '.join(map(str, sorted(fixed, key=str)))}"
    shapes = tuple(
        InputShape(
            name="" if on_torch else spec.name,
            shape=(batch, *(int(size) for size in spec.shape[1:])) if spec.shape else (),
        )
        for spec in runner.inputs
    )
    chosen = () if on_torch else (candidate.runtime,)
    (made,) = candidates_of(
        candidate.subject.text, shapes, classes, chosen, device=runner.device, threads=runner.threads
    )
    return made.runner


def show_depth(found: Mapping[str, Any]) -> None:
    """What `look_deeper` found, for people."""
    from rich.text import Text

    from pipeline.quantities import show

    for subject in found["subjects"]:
        title = subject["name"].rpartition("/")[2]
        if subject["batches"]:
            made = table(f"{title}: batch", "p50", "images/s", "", right=("p50", "images/s"))
            for row in subject["batches"]:
                made.add_row(
                    str(row["batch"]), show(row["p50_ms"], "ms"), show(row["throughput_per_s"]), Text(row["why"] or "")
                )
            console().print(made)
        if subject["layers"]:
            layers = subject["layers"]
            made = table(f"{title}: slowest layers", "operator", "time", "share", right=("time", "share"))
            for row in layers["layers"][:SLOWEST]:
                made.add_row(Text(row["name"]), Text(row["operator"]), show(row["ms"], "ms"), f"{row['share']:.1%}")
            console().print(made)
            kinds = [f"{row['operator']} {row['share']:.0%} in {row['calls']}" for row in layers["operators"][:KINDS]]
            click.echo(f"slowest operators: {', '.join(kinds)}")
            click.echo(
                f"{len(layers['layers'])} layers add up to {show(layers['layers_ms'], 'ms')}; without counting, one "
                f"inference takes {show(layers['inference_ms'], 'ms')}"
            )
        if subject["energy"]:
            energy = subject["energy"]
            above = energy["above_idle_j"]
            told = "no more than idle" if above is None else f"{1e3 * above:.3g} mJ above idle"
            click.echo(
                f"{title}: {1e3 * energy['energy_j']:.3g} mJ an image, {told} ({energy['power_w']:.1f} W, idle "
                f"{energy['idle_w']:.1f} W); {energy['estimate']}"
            )
        if subject["soak"]:
            for line in _soak_lines(subject["soak"]):
                click.echo(f"{title}: {line}")
    if untold := found["conditions"]["untold"]:
        click.echo(f"note: this machine does not tell {', '.join(untold)}; --json says why")


def _soak_lines(soak: Mapping[str, Any]) -> list[str]:
    from pipeline.quantities import show

    p50, p99, p99_9, slowest = (show(soak[key], "ms") for key in ("p50_ms", "p99_ms", "p99_9_ms", "max_ms"))
    lines = [
        f"soaked {soak['seconds']:.0f} s, {soak['n']} queries: p50 {p50}, p99 {p99}, p99.9 {p99_9}, slowest {slowest}"
    ]
    drift = soak["drift_percent_per_minute"]
    if drift:
        bounds = "" if drift["lower"] is None else f" (95 %: {drift['lower']:+.2g} to {drift['upper']:+.2g})"
        lines.append(f"drift {drift['value']:+.2g} % a minute{bounds}")
    if soak["time_to_throttle_s"] is None:
        lines.append(f"no throttling seen: {soak['why']}")
    else:
        told = "; ".join(soak["facts"])
        lines.append(f"throttled after {soak['time_to_throttle_s']:.0f} s, {soak['times']:.2f} times as slow: {told}")
    if missed := soak["missed_frames"]:
        low, high = missed["ci95"]
        lines.append(
            f"missed {missed['count']} of {missed['n']} frames at {missed['deadline_ms']:g} ms: {missed['share']:.3%} "
            f"(95 %: {low:.3%} to {high:.3%}), {missed['longest_run']} in a row at most"
        )
    return lines
