"""What a person sees while something takes long: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.quantities import show

if TYPE_CHECKING:
    from typing_extensions import Self

REFRESH_S = 0.2  # reading a loss from a GPU waits for it
LINE_S = 30.0
DROWNED = 0.01  # share of the gradient below which a term is as good as left out


def interactive() -> bool:
    """Whether a live bar makes sense: standard error is a terminal, and no other process draws one there."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


class LiveBar:
    """A bar on standard error while the context is open, where a person watches; else `bar` is None."""

    def __init__(self, label: str, *, total: int, done: int, quiet: bool = False) -> None:
        self.bar: Progress | None = None
        if interactive() and not quiet:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self.task = self.bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()


class CountDisplay(LiveBar):
    """Work that is counted in images: images per second and time left, on a live bar or in a line every 30 s."""

    def __init__(self, label: str, *, total: int, done: int, say: Callable[[str], None], quiet: bool = False) -> None:
        """`total` images for this process, `done` of them done already. quiet: another process shows it."""
        self.label, self.total, self.first, self.done, self.say = label, total, done, done, say
        self.begin = self.shown = time.monotonic()
        self.quiet = quiet
        if done and done < total and not quiet:
            say(f"{label}: resumed at {done / total:.0%}")
        super().__init__(label, total=total, done=done, quiet=quiet)

    def step(self, images: int) -> None:
        """After each batch; cheap."""
        self.done += images
        now = time.monotonic()
        if now - self.shown < (REFRESH_S if self.bar else LINE_S):
            return
        self.shown = now
        rate = (self.done - self.first) / max(1e-9, now - self.begin)
        if self.bar:
            self.bar.update(self.task, completed=self.done, note=pace(rate))
            return
        if self.quiet:
            return
        left = clock((self.total - self.done) / rate)
        self.say(f"{self.label}: {self.done / self.total:.0%}  {pace(rate)}  {left} left")


class TrainingDisplay(LiveBar):
    """Images per second, share of time spent waiting for data, every loss term, time left."""

    def __init__(
        self,
        label: str,
        *,
        epochs: int,
        samples: int,
        done: int,
        say: Callable[[str], None],
        settled: float = 0.0,
        unit: str = "fraction",
    ) -> None:
        """`samples` an epoch; `done` samples of the whole run are behind us already (a resumed run); after `settled`
        epochs every term has its whole weight, so that none is called drowned before. `unit`: of the validation score,
        as `quantities.show` knows it."""
        self.unit = unit
        self.label, self.epochs, self.samples, self.say, self.settled = label, epochs, samples, say, settled
        self.begin = time.monotonic()
        self.first = done
        self.shown = 0.0
        self.warned: set[str] = set()
        super().__init__(label, total=epochs * samples, done=done)

    def step(self, *, epoch: int, done: int, wait_s: float, epoch_s: float, sums: Mapping[str, Any], seen: int) -> None:
        """After each optimizer step; cheap. `sums` over the `seen` samples of this epoch may lie on a GPU."""
        if not self.bar or time.monotonic() - self.shown < REFRESH_S:
            return
        self.shown = time.monotonic()
        rate = (done - self.first) / max(1e-9, time.monotonic() - self.begin)
        values = "  ".join(f"{name} {float(value) / seen:.3f}" for name, value in sums.items())
        waiting = wait_s / max(1e-9, epoch_s)
        note = f"epoch {epoch + 1}/{self.epochs}  {rate:,.0f} images/s  data wait {waiting:.0%}  {values}"
        self.bar.update(self.task, completed=done, note=note)

    def epoch(self, row: Mapping[str, object], *, left_s: float) -> None:
        """After each epoch: one line that also serves a log file, and once a line for each term that is drowned."""
        terms, norms = row["terms"], row["gradient_norms"]
        assert isinstance(terms, Mapping) and isinstance(norms, Mapping)
        pulls = shares(norms)
        values = "  ".join(f"{name} {value:.4f}" for name, value in terms.items())
        pulling = f"gradient {', '.join(f'{name} {percent(pull)}' for name, pull in pulls.items())}  " if pulls else ""
        self.line(
            f"{self.label}: epoch {row['epoch']}/{self.epochs}  {values}  {pulling}"
            f"validation {scored(row['val_accuracy'], self.unit)}  {row['images_per_s']:,.0f} images/s  "
            f"data wait {row['data_wait']:.0%}  {clock(left_s)} left"
        )
        for name, pull in pulls.items():
            if pull < DROWNED and name not in self.warned and self.settled <= float(str(row["epoch"])):
                self.warned.add(name)
                self.line(
                    f"{self.label}: {name}'s gradient is {percent(pull)} of the objective's: raise its weight or leave "
                    "it out"
                )

    def line(self, text: str) -> None:
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            self.say(text)


def pace(rate: float) -> str:
    """`1,250 images/s`, and below ten `0.7 images/s`."""
    return f"{rate:,.0f} images/s" if rate >= 9.95 else f"{rate:.1f} images/s"


def scored(value: Any, unit: str) -> str:
    return f"{value:.2%}" if unit == "fraction" else show(value, unit)


def shares(norms: Mapping[str, float]) -> dict[str, float]:
    """Term -> its part in the sum of all gradient norms; empty where there is nothing to compare."""
    total = sum(norms.values())
    return {name: norm / total for name, norm in norms.items()} if len(norms) > 1 and 0 < total < math.inf else {}


def percent(share: float) -> str:
    """`97 %`, and below one percent `0.4 %` or `<0.1 %`."""
    if share >= 0.00995:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1f} %" if share >= 0.0005 else "<0.1 %"


def clock(seconds: float) -> str:
    """`1:02:03` or `4:05`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
