"""A stage of the chain as a value: what it needs, depends on and does. The store decides whether it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESUME_FOLDER = "resume"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a running stage sees.

    folder: where to write. It may hold the files of an interrupted run with the very same settings; use them or
        overwrite them. Files are renamed into place as a whole only after `run` returns, so nobody reads them before.
    inputs: needed stage -> its finished, hash-verified folder; read only.
    say: one line to the user.
    leads: whether this process writes; the others that torchrun started only help it to compute.
    """

    stage: Stage
    folder: Path
    inputs: Mapping[str, Path]
    say: Callable[[str], None]
    leads: bool = True

    @property
    def resume_folder(self) -> Path:
        """A folder for checkpoints: it survives a kill, and the store drops it once the stage has ended well.

        A stage must not delete its last checkpoint itself: a kill between that and the end would lose the work.
        """
        folder = self.folder / RESUME_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the chain.

    name: lower case letters, digits, `-` and `_`; the first part of the folder's name.
    version: raised when the code of the stage changes what it writes.
    needs: names of the stages whose folders it reads.
    config: the slice of the recipe that it depends on, JSON-able, keyed as in the recipe so that reasons read well.
    run: does the work in `Context.folder`; the same inputs must give the same bytes, `volatile` files aside.
    stamp: cheap facts from outside of the recipe (file sizes and times, machine), JSON-able; asked at every run.
    volatile: file names or patterns (`timings.json`, `latency-*.npy`) left out of the digest: stages that need this one
        stay fresh when only these differ. They are hash-verified like all others.
    together: whether all processes that torchrun started run it at once; the others are left to rank 0.
    """

    name: str
    version: int
    config: Mapping[str, Any]
    run: Callable[[Context], None]
    needs: tuple[str, ...] = ()
    stamp: Callable[[], Any] | None = None
    volatile: tuple[str, ...] = field(default=())
    together: bool = False

    def __post_init__(self) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9_-]*", self.name), f"stage name {self.name!r}"
        assert len(set(self.needs)) == len(self.needs), f"stage {self.name}: {self.needs} names a stage twice"
        assert self.name not in self.needs, f"stage {self.name} needs itself"
