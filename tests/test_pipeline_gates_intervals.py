"""Bounds against published values, closed forms, scipy, and coverage counted out in full at small n."""

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gates.intervals import (
    Interval,
    Pairs,
    exact_share,
    mcnemar,
    median_bounds,
    paired_difference,
    paired_relative_drop,
    samples_by_width,
    samples_to_decide,
    wilson,
)

Z99 = 2.3263478740408408


def pairs(both: float, only_against: float, only_subject: float, neither: float = 0) -> Pairs:
    return Pairs(both=both, only_subject=only_subject, only_against=only_against, neither=neither)


@pytest.mark.parametrize(
    ("table", "confidence", "lower", "upper"),
    [
        # Bentur et al. 2009, worked in Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850
        (pairs(1, 1, 7, 12), 0.975, -0.517, -0.026),
        # R's PropCIs::scoreci.mp(60, 20, 1000) and (25, 28, 618); Tango's own method
        (pairs(920, 20, 60), 0.975, -0.0584, -0.0231),
        (pairs(565, 28, 25), 0.95, -0.0148, 0.0247),
    ],
)
def test_paired_difference_has_tangos_published_values(table, confidence, lower, upper):
    found = paired_difference(table, confidence)
    digits = 4 if abs(lower) < 0.1 else 3
    assert (round(found.lower, digits), round(found.upper, digits)) == (lower, upper)


def test_paired_ratio_has_tangs_published_values():
    # the same table in Fagerland et al. (2014): ratio 0.25 with 95 % score interval 0.065 to 0.907
    drop = paired_relative_drop(pairs(1, 7, 1, 12), 0.975)
    assert (round(1 - drop.upper, 3), round(1 - drop.lower, 3), 1 - drop.value) == (0.065, 0.907, 0.25)


@pytest.mark.parametrize("n", [1, 40, 10_000])
def test_without_discordance_the_bounds_have_their_closed_form(n):
    found = paired_difference(pairs(n, 0, 0))
    edge = Z99**2 / (n + Z99**2)
    assert found.value == 0
    assert (found.lower, found.upper) == (pytest.approx(-edge), pytest.approx(edge))


cells = st.integers(0, 300)


@given(cells, cells, cells, cells)
def test_paired_difference_mirrors_brackets_and_stays_in_range(a, b, c, d):
    if a + b + c + d == 0:
        return
    one, other = paired_difference(pairs(a, b, c, d)), paired_difference(pairs(a, c, b, d))
    assert -1 <= one.lower <= one.value <= one.upper <= 1
    assert (one.lower, one.upper) == (pytest.approx(-other.upper), pytest.approx(-other.lower))


@given(cells, cells, cells)
def test_one_more_loss_never_looks_better(a, b, c):
    before, after = paired_difference(pairs(a + 1, b, c)), paired_difference(pairs(a, b + 1, c))
    assert after.upper >= before.upper - 1e-12
    assert after.lower >= before.lower - 1e-12


@given(cells, cells, cells, cells)
def test_relative_drop_brackets_its_value(a, b, c, d):
    if a + b == 0:
        with pytest.raises(ValueError, match="the baseline got no sample right; a relative drop does not exist") as _:
            paired_relative_drop(pairs(a, b, c, d + 1))
        return
    found = paired_relative_drop(pairs(a, b, c, d))
    assert found.lower <= found.value + 1e-12
    assert found.value <= found.upper + 1e-12
    assert found.upper <= 1


@pytest.mark.parametrize(("n", "loss", "gain"), [(25, 0.1, 0.1), (25, 0.2, 0.05), (60, 0.05, 0.02), (60, 0.03, 0.001)])
def test_the_bound_that_releases_covers_at_least_99_percent(n, loss, gain):
    """Every outcome of n samples, weighted by its probability: how often the upper bound lies below the true drop."""
    missed = 0.0
    for b, c in product(range(n + 1), repeat=2):
        if b + c > n:
            continue
        rest = n - b - c
        ways = math.comb(n, b) * math.comb(n - b, c)
        chance = ways * loss**b * gain**c * (1 - loss - gain) ** rest
        if chance > 1e-8 and paired_difference(pairs(rest, b, c)).upper < loss - gain:
            missed += chance
    assert missed <= 0.01


@pytest.mark.parametrize(("k", "n"), [(0, 300), (1, 10), (883, 1000), (8870, 10_000), (300, 300)])
def test_exact_share_agrees_with_the_beta_quantiles(k, n):
    beta = pytest.importorskip("scipy.stats").beta
    found = exact_share(k, n, 0.99)
    assert found.lower == pytest.approx(beta.ppf(0.01, k, n - k + 1) if k else 0.0, abs=1e-9)
    assert found.upper == pytest.approx(beta.ppf(0.99, k + 1, n - k) if k < n else 1.0, abs=1e-9)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (12, 3), (0, 9), (300, 240), (2_000, 2_100)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    found = mcnemar(Pairs(both=700, only_subject=b, only_against=c, neither=40))
    expected = pytest.importorskip("scipy.stats").binomtest(b, b + c).pvalue if b + c else 1.0
    assert found == pytest.approx(expected, rel=1e-9)


def test_wilson_has_its_published_value():
    # Newcombe (1998), Statistics in Medicine 17:857: 81 of 263, method 3
    assert tuple(round(x, 4) for x in wilson(81, 263)) == (0.2553, 0.3662)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


def test_median_bounds_are_order_statistics():
    found = median_bounds(list(range(30, 0, -1)))
    assert found == Interval(value=15.5, lower=9.0, upper=22.0)
    assert median_bounds([1, 2, 3, 4, 5, 6]) is None
    assert median_bounds([1.0] * 20 + [math.nan]) is None
    # the fewest: 2^-7 is the first tail below 1 %
    assert median_bounds(range(7)) == Interval(value=3.0, lower=0.0, upper=6.0)


def test_more_samples_decide_with_the_chance_that_is_promised():
    """Drops drawn evenly around the limit: of those undecided at first, 4 in 5 are decided by the samples asked for."""
    rng = np.random.default_rng(1)
    limit, asked, decided = 0.02, 0, 0
    for _ in range(400):
        n, changed = int(rng.choice([200, 1000, 5000])), rng.uniform(0.02, 0.15)
        drop = np.clip(limit + rng.uniform(-4, 4) * math.sqrt(changed / n), -changed, changed)
        chances = [(changed + drop) / 2, (changed - drop) / 2, 1 - changed]
        b, c, rest = rng.multinomial(n, chances)
        first = pairs(rest, b, c)
        if (found := paired_difference(first)).upper <= limit or found.lower > limit:
            continue
        more = samples_to_decide(lambda factor, first=first: paired_difference(first.scaled(factor)), n, limit)
        if more is None:
            continue
        b, c, rest = np.array([b, c, rest]) + rng.multinomial(more, chances)
        found = paired_difference(pairs(rest, b, c))
        asked, decided = asked + 1, decided + (found.upper <= limit or found.lower > limit)
    assert asked > 150
    assert decided / asked == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / asked))


def test_what_is_decided_needs_no_more_and_what_sits_on_the_limit_needs_very_many():
    table = pairs(700, 10, 6, 3)

    def bounds(factor: float) -> Interval:
        return paired_difference(table.scaled(factor))

    assert samples_to_decide(bounds, 719, 0.5) == 0
    assert samples_to_decide(bounds, 719, 0.01) > 719
    assert samples_to_decide(bounds, 719, bounds(1).value, most=10_000) is None


def test_width_shrinks_with_the_root():
    found = samples_by_width(Interval(value=2.0, lower=1.8, upper=2.2), 30, 1.9)
    # normal bounds: P(decided) = Phi(((2 - 1.9) - w) / t) + Phi((-(2 - 1.9) - w) / t), w = 0.2 / sqrt(f), t of f - 1
    z, f = Z99, (30 + found) / 30
    w, t = 0.2 / math.sqrt(f), 0.2 / z / math.sqrt(f) * math.sqrt(f - 1)
    normal = NormalDist()
    assert normal.cdf((0.1 - w) / t) + normal.cdf((-0.1 - w) / t) == pytest.approx(0.8, abs=0.005)
    assert samples_by_width(Interval(value=2.0, lower=2.0, upper=2.0), 30, 1.9) == 0
    assert samples_by_width(Interval(value=2.0, lower=-math.inf, upper=2.2), 30, 1.9) is None


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: wilson(3, 0), "3 of 0 is not a share; it needs 0 <= k <= n and n > 0"),
        (
            lambda: paired_difference(pairs(0, 0, 0)),
            r"paired counts \(0, 0, 0, 0\) must be finite, not negative, and not all zero",
        ),
        (lambda: paired_difference(pairs(1, 0, 0), 0.4), "confidence = 0.4: must lie between 0.5 and 1"),
    ],
)
def test_nonsense_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
