"""CRD whole: Tian, Krishnan, Isola, "Contrastive Representation Distillation" (arXiv 1910.10699).

    CRD = L(student's embeddings, teacher's bank) + L(teacher's embeddings, student's bank)
    L(a, bank) = 1/B * sum_i [ -log D(i, i) - sum_k log(1 - D(i, n_ik)) ],    n_ik the K negatives of image i
    D(i, j) = x / (x + K/N + e),    1 - D = (K/N) / (x + K/N + e),    x = exp(<a_i, bank_j> / tau) / Z,    e = 1e-7

with N the training images; an embedding is a Linear layer of either side and the L2 norm, a bank one row an image.

Conventions, as in RepDistiller: tau 0.07, 128 dimensions, K 16384; Z is N times the mean of the first batch's
exponentials and stays; after each step an image's row of each bank becomes (momentum * row + (1 - momentum) *
embedding), normalised. The positive is the image itself; negatives are of another class, each at most once, or with
repetition where fewer than K images are of another class. Its weight is 0.8, or 1 beside plain KD.

An image's class is learnt when it is first met. Until then its rows hold noise of no class, and may be anyone's
negative.

Negatives are a pure function of (seed, step, image), not of the batch: the j-th is drawn from the j-th of K equal parts
of all negatives in the order of their classes, and all are turned by one random offset. So each negative is equally
likely, none is drawn twice, the classes are evenly met, and a run that is continued draws as if it had never stopped.
Everything is in log space: finite for any tau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from pipeline.losses.numerics import product, unit, widen

EPSILON = 1e-7


class CRD(nn.Module):
    """Call with embeddings, classes and places in the training set. Its banks, Z, seed and step are buffers."""

    student_bank: torch.Tensor
    teacher_bank: torch.Tensor
    labels: torch.Tensor
    student_log_z: torch.Tensor
    teacher_log_z: torch.Tensor
    seed: torch.Tensor
    step: torch.Tensor

    def __init__(
        self,
        *,
        student_shapes: Sequence[tuple[int, ...]],
        teacher_shapes: Sequence[tuple[int, ...]],
        samples: int,
        num_classes: int,
        dimensions: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        """One shape a side, without the batch: (D,), or (D, H, W) of a map that will be pooled.

        The seed of the negatives is taken from torch's global generator, as the initial weights are.
        """
        super().__init__()
        if num_classes < 2 or samples < 2:
            raise ValueError(f"crd: {num_classes} classes and {samples} images; expected two or more of both")
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.student_head = nn.Linear(student_shapes[0][0], dimensions)
        self.teacher_head = nn.Linear(teacher_shapes[0][0], dimensions)
        limit = 1 / math.sqrt(dimensions / 3)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(samples, dimensions).uniform_(-limit, limit))
        self.register_buffer("labels", torch.full((samples,), -1))
        for name in ("student_log_z", "teacher_log_z"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        student_embedding: torch.Tensor,
        teacher_embedding: torch.Tensor,
        target: torch.Tensor,
        sample_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Scalar loss in float32 or wider; embeddings (B, D) and (B, D'), classes and places in the training set (B,)
        int64. TypeError for soft labels.

        Trains its memory too; in eval mode, or without gradients, it leaves that as it is.
        """
        if target.is_floating_point():
            raise TypeError("crd: target holds soft labels; expected one true class (int64) an image")
        student = unit(widen(self.student_head(widen(student_embedding))))
        teacher = unit(widen(self.teacher_head(widen(teacher_embedding))))
        learns = self.training and torch.is_grad_enabled()
        if learns:
            self.labels[sample_ids] = target
        chosen = torch.cat([sample_ids[:, None], self.draw(target, sample_ids)], dim=1)
        of_student, student_log_z = self._contrast(student, self.teacher_bank, self.student_log_z, chosen)
        of_teacher, teacher_log_z = self._contrast(teacher, self.student_bank, self.teacher_log_z, chosen)
        if learns:
            self.student_log_z.copy_(student_log_z)
            self.teacher_log_z.copy_(teacher_log_z)
            self._remember(self.student_bank, student, sample_ids)
            self._remember(self.teacher_bank, teacher, sample_ids)
            self.step += 1
        return of_student + of_teacher

    @torch.no_grad()
    def draw(self, target: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor:
        """Places of this step's negatives, (B, K) int64, none of the image's own class."""
        target = target.contiguous()  # searchsorted warns otherwise
        labels, order = self.labels.sort(stable=True)
        first = torch.searchsorted(labels, target)[:, None]
        own = torch.searchsorted(labels, target, right=True)[:, None] - first
        others = (len(order) - own).clamp(min=1)
        draws = torch.arange(self.negatives, device=target.device)
        key = _spread(_spread(self.seed + self.step * GOLDEN) ^ sample_ids)[:, None]
        start, end = draws * others // self.negatives, (draws + 1) * others // self.negatives
        repeats = others < self.negatives
        start, width = torch.where(repeats, 0, start), torch.where(repeats, others, end - start)
        turn = _below(others, _spread(key))
        place = (start + _below(width, _spread(key + (draws + 1) * GOLDEN)) + turn) % others
        return order[(place + torch.where(place >= first, own, 0)) % len(order)]

    def _contrast(
        self, embedding: torch.Tensor, bank: torch.Tensor, log_z: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One direction's loss, and log Z. All of the bank is multiplied and the chosen are picked from the products,
        which is less to move than B * K rows; the copy lets the bank change before the gradient is formed."""
        scores = product(embedding, bank.to(embedding.dtype, copy=True).T).gather(1, chosen) / self.temperature
        samples = len(bank)
        fresh = scores.detach().flatten().logsumexp(0) - math.log(scores.numel()) + math.log(samples)
        log_z = torch.where(self.step == 0, fresh, log_z)
        log_x = scores - log_z
        noise = self.negatives / samples
        log_total = torch.logaddexp(log_x, torch.full_like(log_x, math.log(noise + EPSILON)))
        positive = log_x[:, 0] - log_total[:, 0]
        negative = (math.log(noise) - log_total[:, 1:]).sum(1)
        return -(positive + negative).mean(), log_z

    @torch.no_grad()
    def _remember(self, bank: torch.Tensor, embedding: torch.Tensor, sample_ids: torch.Tensor) -> None:
        rows = self.momentum * bank[sample_ids] + (1 - self.momentum) * embedding.detach().to(bank.dtype)
        bank[sample_ids] = unit(rows)


GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""The step of splitmix64 as a signed number: torch multiplies int64 modulo 2^64."""


def _spread(state: torch.Tensor) -> torch.Tensor:
    """splitmix64's finalizer on int64: a bijection that spreads every input bit."""
    state = (state ^ _right(state, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    state = (state ^ _right(state, 27)) * (0x94D049BB133111EB - 2**64)
    return state ^ _right(state, 31)


def _right(state: torch.Tensor, places: int) -> torch.Tensor:
    """Shift to the right that fills with zeros."""
    return (state >> places) & ((1 << (64 - places)) - 1)


def _below(limit: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """An integer in [0, limit) of 31 of the random bits; limit at most 2^31."""
    return (_right(bits, 33) * limit) >> 31
