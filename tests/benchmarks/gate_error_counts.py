"""Part of gate_error.py: paired counts, counted out in full where that can be done, and planned and judged by drawing.

Exact: every table (only_against, only_subject) that can come up, weighted by its probability, with the table's outcome
by the gate's own `paired_difference`. For each number of wins the outcome changes once as losses rise, so a search
finds the edges.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.gates.calibration import ece_bounds
from pipeline.gates.intervals import GATE_CONFIDENCE, Pairs, exact_share, paired_difference, samples_to_decide
from pipeline.tasks.groups import reliability

ERROR = 1 - GATE_CONFIDENCE
# samples, limit in points, shares of samples whose answer turns right or wrong
SIZES = (
    (200, 6.0, (0.08, 0.16)),
    (1_000, 3.0, (0.04, 0.12)),
    (5_000, 1.0, (0.02, 0.06, 0.12)),
    (20_000, 0.5, (0.01, 0.06)),
    (50_000, 0.5, (0.01, 0.06)),
)


def edges(n: int, limit: float, losses: range, wins: range) -> tuple[np.ndarray, np.ndarray]:
    """For each number of wins the most losses that are released, and the fewest that are refused."""

    def bounds(b: int, c: int) -> Any:
        return paired_difference(Pairs(both=n - b - c, only_subject=c, only_against=b, neither=0))

    most, fewest = [], []
    for c in wins:
        ceiling = min(losses.stop - 1, n - c)
        b = most[-1] if most else losses.start - 1
        while b < ceiling and bounds(b + 1, c).upper <= limit:
            b += 1
        most.append(b)
        b = max(fewest[-1] if fewest else losses.start, b + 1)
        step = 64
        while b <= ceiling and bounds(b, c).lower <= limit:  # first in strides, then one by one
            b += step
        while step > 1 and b > losses.start:
            step //= 2
            if b - step > most[-1] and (b - step > ceiling or bounds(b - step, c).lower > limit):
                b -= step
        fewest.append(b)
    return np.array(most), np.array(fewest)


def chances(n: int, losses: range, wins: range, loss: float, win: float) -> np.ndarray:
    """P(losses = b, wins = c), float64 (losses, wins)."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    b, c = np.meshgrid(np.array(losses), np.array(wins), indexing="ij")
    rest = n - b - c
    logs = log_factorial[n] - log_factorial[b] - log_factorial[c] - log_factorial[np.maximum(rest, 0)]
    for count, share in ((b, loss), (c, win), (rest, 1 - loss - win)):
        logs = logs + (count * math.log(share) if share > 0 else np.where(count > 0, -np.inf, 0.0))
    return np.where(rest >= 0, np.exp(logs), 0.0)


def optimum(n: int, losses: range, wins: range, limit: float, inside: np.ndarray, changed: float) -> float:
    """The most that any test with an error of 1 % on the limit can release of the law `inside` (Neyman and Pearson).

    Against each single law on the limit the best test is known; the least favourable of those tried bounds them all.
    """
    best = 1.0
    for share in np.linspace(max(limit * 1.001, 0.6 * changed), 1.6 * changed + limit, 9):
        on_limit = chances(n, losses, wins, (share + limit) / 2, (share - limit) / 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(inside > 0, on_limit / inside, np.inf).ravel()
        order = np.argsort(ratio, kind="stable")
        spent = np.cumsum(on_limit.ravel()[order])
        k = int(np.searchsorted(spent, ERROR))
        power = float(inside.ravel()[order][:k].sum())
        if k < len(order) and on_limit.ravel()[order][k] > 0:  # the cell on the edge is drawn by lot
            left = ERROR - (spent[k - 1] if k else 0.0)
            power += float(inside.ravel()[order][k] * left / on_limit.ravel()[order][k])
        best = min(best, power)
    return best


def accuracy_rows() -> list[dict[str, Any]]:
    """A row a setting: how a drop on the limit, one of nothing, and one of twice the limit come out."""
    rows = []
    for n, points, shares in SIZES:
        for changed in shares:
            limit = points / 100
            on = max(changed, 1.05 * limit)
            spread = 6 * math.sqrt(n * on) + 12
            top = n * max(on + limit, changed) / 2
            losses = range(max(0, int(n * changed / 2 - spread)), min(n, int(top + spread)) + 1)
            low = n * min(on - limit, changed) / 2
            wins = range(max(0, int(low - spread)), min(n, int(n * changed / 2 + spread)) + 1)
            most, fewest = edges(n, limit, losses, wins)
            b = np.array(losses)[:, None]
            released, refused = b <= most[None, :], b >= fewest[None, :]
            at = chances(n, losses, wins, (on + limit) / 2, (on - limit) / 2)
            inside = chances(n, losses, wins, changed / 2, changed / 2)
            rows.append(
                {
                    "gate": "accuracy_drop",
                    "n": n,
                    "limit_pt": points,
                    "changed": changed,
                    "released_on_the_limit": float(at[released].sum()),
                    "refused_on_the_limit": float(at[refused].sum()),
                    "released_inside": float(inside[released].sum()),
                    "refused_inside": float(inside[refused].sum()),
                    "undecided_inside": 1.0 - float(inside[released].sum()) - float(inside[refused].sum()),
                    "undecided_at_best": 1.0 - optimum(n, losses, wins, limit, inside, changed),
                    "how": "every table counted",
                }
            )
    return rows


def planning_row(rng: np.random.Generator, releases: int) -> dict[str, Any]:
    """Of what is undecided at first, how much the samples asked for decide; promised are 4 in 5."""
    asked = decided = never = 0
    while asked < releases:
        n, changed, limit = int(rng.choice([200, 1_000, 5_000, 20_000])), rng.uniform(0.01, 0.15), 0.02
        drop = float(np.clip(limit + rng.uniform(-4, 4) * math.sqrt(changed / n), -changed, changed))
        law = [(changed + drop) / 2, (changed - drop) / 2, 1 - changed]
        first = rng.multinomial(n, law)
        found = paired_difference(_pairs(first))
        if found.upper <= limit or found.lower > limit:
            continue
        asked += 1
        table = _pairs(first)
        more = samples_to_decide(lambda factor, table=table: paired_difference(table.scaled(factor)), n, limit)
        if more is None:
            never += 1
            continue
        found = paired_difference(_pairs(first + rng.multinomial(more, law)))
        decided += found.upper <= limit or found.lower > limit
    named = asked - never
    return {"gate": "more samples: accuracy_drop", "releases": asked, "no_figure": never, "decided": decided / named}


def _pairs(table: np.ndarray) -> Pairs:
    return Pairs(both=float(table[2]), only_against=float(table[0]), only_subject=float(table[1]), neither=0.0)


def share_rows() -> list[dict[str, Any]]:
    """Clopper and Pearson's bounds (accuracy, agreement, flips, late queries), counted in full."""
    rows = []
    for n, share in ((200, 0.02), (1_000, 0.005), (1_000, 0.9), (5_000, 0.01), (20_000, 0.95)):
        k = np.arange(n + 1)
        log_choose = np.concatenate([[0.0], np.cumsum(np.log(n - k[:-1]) - np.log(k[1:]))])
        weight = np.exp(log_choose + k * math.log(share) + (n - k) * math.log1p(-share))
        likely = [int(i) for i in k if weight[i] > 1e-9]
        found = {i: exact_share(i, n) for i in likely}
        below = float(sum(weight[i] for i in likely if found[i].upper < share))
        above = float(sum(weight[i] for i in likely if found[i].lower > share))
        rows.append({"gate": "a share", "n": n, "share": share, "missed_above": below, "missed_below": above})
    return rows


def calibration_rows(rng: np.random.Generator, releases: int) -> list[dict[str, Any]]:
    """ECE with its truth known: answers right with a chance that is the confidence bent by a power."""
    rows = []
    centres = (np.arange(15) + 0.5) / 15
    for n, power in ((1_000, 1.0), (1_000, 1.6), (10_000, 1.0), (10_000, 1.3)):
        shares = centres**4 / (centres**4).sum()
        truth = float(shares @ np.abs(centres - centres**power))
        above = below = 0
        for _ in range(releases):
            confidence = centres[rng.choice(15, size=n, p=shares)]
            found = ece_bounds(reliability({"confidence": confidence, "correct": rng.random(n) < confidence**power}))
            below += found.upper < truth
            above += found.lower > truth
        name = {"gate": "calibration_error", "n": n, "truth": truth, "releases": releases}
        rows.append(name | {"missed_above": below / releases, "missed_below": above / releases})
    return rows
