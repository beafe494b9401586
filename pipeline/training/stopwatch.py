"""How long a device works on a part of each step, without waiting for it at every step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Adds up the seconds of all `with watch.running():` blocks.

    A GPU is given its work ahead of time, so the clock around a call tells how long it took to ask: there a pair of
    events in its queue measures each block, read once all of it is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if self.device.type != "cuda":
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self.events.append((first, last))

    def take(self) -> float:
        """Seconds since the last time it was asked; waits for what a GPU has still to do."""
        if self.events:
            self.events[-1][1].synchronize()
        self.seconds += sum(first.elapsed_time(last) for first, last in self.events) / 1e3  # elapsed_time is in ms
        self.events.clear()
        seconds, self.seconds = self.seconds, 0.0
        return seconds
