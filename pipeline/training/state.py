"""Everything a training run needs to go on bit for bit: one atomic file, `state.pt`, in the stage's folder."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.atomic import write_bytes
from pipeline.training.schedule import Plateau

STATE_FILE = "state.pt"
STATE_VERSION = 2
DIGEST_BYTES = hashlib.sha256().digest_size  # stands before the archive
SHARE_OF_TIME = 0.02  # checkpoints may cost this much of the training time
AT_LEAST_S = 10.0


@dataclass
class Progress:
    """The run's position and what it has seen; plain values, all of them checkpointed."""

    epoch: int = 0
    step_in_epoch: int = 0
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    epoch_seconds: float = 0.0
    seen: int = 0
    sums: dict[str, torch.Tensor | float] = field(default_factory=dict)  # float64 tensors, left on the device
    norms: dict[str, float] = field(default_factory=dict)  # of each term's gradient, at the epoch's first step
    best: float = -math.inf
    best_epoch: int = -1
    curve: list[dict[str, Any]] = field(default_factory=list)
    plateau: Plateau = field(default_factory=Plateau)


@dataclass
class Parts:
    """The stateful objects of one run; `module` is the learner. `best` is the selected state dict on the CPU, or None
    before the first epoch."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: torch.optim.swa_utils.AveragedModel | None
    progress: Progress
    best: dict[str, torch.Tensor] | None = None


class Checkpointer:
    """Saves at most SHARE_OF_TIME of the run's time; loads only what belongs to `key`."""

    def __init__(self, folder: Path, *, key: str) -> None:
        self.path = folder / STATE_FILE
        self.key = key
        self.last = time.monotonic()
        self.cost = 0.0

    def due(self) -> bool:
        return time.monotonic() - self.last >= max(AT_LEAST_S, self.cost / SHARE_OF_TIME)

    def save(self, parts: Parts) -> None:
        """Write the state atomically: a kill leaves the former file or the new one, never half of either."""
        start = time.monotonic()
        progress = vars(parts.progress) | {"plateau": vars(parts.progress.plateau)}
        state = {
            "version": STATE_VERSION,
            "key": self.key,
            "module": parts.module.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "scaler": parts.scaler.state_dict(),
            "average": parts.average.state_dict() if parts.average else None,
            "best": parts.best,
            "progress": progress,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_bytes(self.path, hashlib.sha256(content).digest() + content)
        self.last = time.monotonic()
        self.cost = self.last - start

    def read(self) -> dict[str, Any] | None:
        """The state of an interrupted run; None when there is none that fits."""
        try:
            stored = self.path.read_bytes()
            # PyTorch reads its archives without looking at their checksums: a turned bit would become a weight.
            if hashlib.sha256(content := stored[DIGEST_BYTES:]).digest() != stored[:DIGEST_BYTES]:
                return None
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
            return None  # a damaged file (a failing disk) costs the progress, never the run
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION or state.get("key") != self.key:
            return None
        return state

    @staticmethod
    def load(parts: Parts, state: dict[str, Any]) -> None:
        """Put what `read` gave into `parts`."""
        parts.module.load_state_dict(state["module"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.scaler.load_state_dict(state["scaler"])
        if parts.average is not None:
            parts.average.load_state_dict(state["average"])
        parts.best = state["best"]
        parts.progress = Progress(**state["progress"] | {"plateau": Plateau(**state["progress"]["plateau"])})
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.device_count() == len(state["cuda_rng"]):
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
