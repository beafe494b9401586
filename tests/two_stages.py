"""A chain small enough to know by heart, for the tests of the store."""

import json
import os
import time
from pathlib import Path
from typing import Any

from pipeline.stage import Context, Stage
from pipeline.store import Store


class Chain:
    """teacher -> student: each writes what its settings say; who ran and what was said is kept."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = Store(tmp_path / "artifacts", "digits")
        self.ran: list[str] = []
        self.said: list[str] = []

    def stages(
        self, *, epochs: int = 30, lr: float = 0.1, comment: str = "", version: int = 1, size: int = 1
    ) -> tuple[Stage, ...]:
        def teacher(context: Context) -> None:
            self.ran.append("teacher")
            (context.folder / "teacher.safetensors").write_text(f"weights after {epochs}")
            (context.folder / "seconds.json").write_text(json.dumps(time.perf_counter_ns()))

        def student(context: Context) -> None:
            self.ran.append("student")
            taught_by = (context.inputs["teacher"] / "teacher.safetensors").read_text()
            (context.folder / "deep").mkdir(exist_ok=True)
            (context.folder / "deep" / "student.safetensors").write_text(f"{taught_by}, lr {lr}")

        return (
            Stage(
                name="teacher",
                version=version,
                config={"teacher": {"epochs": epochs, "comment": comment}},
                run=teacher,
                volatile=("seconds.json",),
            ),
            Stage(
                name="student",
                version=1,
                needs=("teacher",),
                config={"distill": {"lr": lr, "milestones": (3, 4)}},
                run=student,
                stamp=lambda: {"x.npz": {"size": size}},
            ),
        )

    def run(self, **settings: Any) -> list[str]:
        """Which stages ran."""
        self.ran, self.said = [], []
        self.folders = self.store.run(self.stages(**settings), self.said.append)
        return self.ran

    def status(self, **settings: Any) -> list[tuple[str, tuple[str, ...]]]:
        return [(status.state, status.reasons) for status in self.store.status(self.stages(**settings))]


def flip_bit(path: Path) -> None:
    """Change one bit and neither size nor time, as a bad sector does."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
