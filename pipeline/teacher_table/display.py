"""What a person sees while a table is built: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.progress import REFRESH_S, LiveBar, clock

LINE_S = 30.0


class BuildDisplay(LiveBar):
    """Images per second and time left; a context manager."""

    def __init__(self, label: str, *, total: int, done: int, say: Callable[[str], None], quiet: bool = False) -> None:
        """`total` answers to be stored by this process, `done` of them stored already. quiet: another one shows it."""
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
            self.bar.update(self.task, completed=self.done, note=f"{rate:,.0f} images/s")
            return
        if self.quiet:
            return
        left = clock((self.total - self.done) / rate)
        self.say(f"{self.label}: {self.done / self.total:.0%}  {rate:,.0f} images/s  {left} left")
