"""The exact binomial against SciPy, MLPerf's published sample counts, and the block bootstrap's coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

from profiles.errors import ProfileError
from profiles.stats import (
    allowed_overlatency,
    block_medians,
    exact_interval,
    lag1_autocorrelation,
    least_samples,
    log_binomial_cdf,
    percentile,
    percentile_bound,
    percentile_bound_ms,
    percentile_ms,
    ratio_of_block_medians,
    ratio_of_medians,
    robust_slope,
)


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 5000), p=st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.5, 0.9]))
def test_binomial_cdf_equals_scipy(n, p):
    ours = np.exp(log_binomial_cdf(n, p))
    np.testing.assert_allclose(ours, oracle.binom.cdf(np.arange(n + 1), n, p), rtol=1e-8, atol=1e-13)


def test_binomial_tail_keeps_its_digits_far_below_the_smallest_float():
    assert log_binomial_cdf(20_000, 0.1)[0] == pytest.approx(20_000 * math.log(0.9), rel=1e-12)


@pytest.mark.parametrize(("q", "n"), [(90.0, 64), (95.0, 130), (99.0, 662), (99.9, 6636)])
def test_least_samples_are_those_of_mlperf(q, n):
    assert least_samples(q) == n
    assert allowed_overlatency(n, q) == 1
    assert allowed_overlatency(n - 1, q) == 0


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 5000), q=st.sampled_from([50.0, 90.0, 99.0]))
def test_allowed_overlatency_is_the_largest_of_scipy(n, q):
    t = allowed_overlatency(n, q)
    tail = oracle.binom(n, 1 - q / 100)
    assert t < 0 or tail.cdf(t) <= 0.01 * (1 + 1e-9)
    assert tail.cdf(t + 1) > 0.01 * (1 - 1e-9)


def test_effective_quantile_of_the_bound_is_that_of_mlperf():
    """The bound on p90 is the 92.3 % quantile at n = 1000, the 90.7 % quantile at n = 10000."""
    assert percentile_bound(np.arange(1, 1001), 90.0) == pytest.approx(923, abs=1)
    assert percentile_bound(np.arange(1, 10_001), 90.0) == pytest.approx(9070, abs=3)


def test_percentiles_without_enough_samples_are_none():
    assert percentile(np.arange(63), 90.0) is None
    assert percentile_bound(np.arange(63), 90.0) is None
    assert percentile(np.arange(661), 99.0) is None
    assert percentile(np.array([]), 50.0) is None
    assert percentile_bound_ms(np.arange(10), 90.0) is None


def test_percentiles_are_observed_values_in_milliseconds():
    samples = np.arange(1, 101, dtype=np.int64)[::-1] * 1_000_000
    assert percentile_ms(samples, 50.0) == 50.5
    assert percentile_ms(samples, 90.0) == 90.0
    assert percentile_ms(samples, 99.0) is None
    assert percentile_bound_ms(samples, 90.0) == 98.0  # t = 3 of 100: two are set aside


def test_bound_covers_the_true_percentile_as_often_as_it_says():
    rng = np.random.default_rng(0)
    true = -math.log(0.1)
    above = [percentile_bound(rng.exponential(size=200), 90.0) >= true for _ in range(2000)]
    assert np.mean(above) >= 0.985


def test_autocorrelation_closed_forms():
    assert lag1_autocorrelation(np.array([1.0, 2.0])) is None
    assert lag1_autocorrelation(np.full(9, 5.0)) is None
    alternating = np.tile([1.0, -1.0], 50)
    assert lag1_autocorrelation(alternating) == pytest.approx(-0.99)
    assert lag1_autocorrelation(np.arange(1000)) == pytest.approx(1.0, abs=0.01)


def test_block_medians_in_order_of_the_blocks():
    numbers, medians = block_medians(np.array([5, 1, 2, 3, 9]), np.array([1, 0, 0, 0, 1]))
    assert numbers.tolist() == [0, 1]
    assert medians.tolist() == [2.0, 7.0]


def test_ratio_of_equal_blocks_is_exact():
    ratio = ratio_of_block_medians(np.full(30, 6.0), np.full(30, 3.0))
    assert (ratio.value, ratio.lower, ratio.upper) == pytest.approx((2.0, 2.0, 2.0))
    assert ratio.blocks == 30


def test_ratio_is_the_same_for_the_same_seed_and_turns_around():
    rng = np.random.default_rng(1)
    a, b = rng.lognormal(1.0, 0.1, 30), rng.lognormal(0.0, 0.1, 30)
    one, again, turned = ratio_of_block_medians(a, b), ratio_of_block_medians(a, b), ratio_of_block_medians(b, a)
    assert one == again
    assert one.lower < one.value < one.upper
    assert turned.value == pytest.approx(1 / one.value)
    assert turned.lower == pytest.approx(1 / one.upper, rel=1e-3)


def test_drift_common_to_a_round_cancels():
    drift = np.linspace(1.0, 3.0, 31)
    ratio = ratio_of_block_medians(2.0 * drift, drift)
    assert ratio.lower == pytest.approx(2.0)
    assert ratio.upper == pytest.approx(2.0)


def test_work_of_others_in_half_of_the_rounds_cancels():
    """Everything takes three times as long while others work, and a round in which they began hits one subject only."""
    busy = np.where(np.arange(30) % 10 < 5, 3.0, 1.0)
    a, b = 2.0 * busy, 1.0 * busy
    a[10], a[20], b[25] = 2.0, 2.0, 3.0
    assert np.median(a) / np.median(b) < 1.1
    assert ratio_of_block_medians(a, b).value == pytest.approx(2.0)


def test_bounds_hold_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    below = above = 0
    for _ in range(400):
        a, b = rng.lognormal(0.0, 0.2, (2, 30))
        ratio = ratio_of_block_medians(a, b, resamples=1000)
        below += ratio.lower <= 1.0
        above += ratio.upper >= 1.0
    assert min(below, above) / 400 >= 0.97


def test_too_few_blocks_have_a_value_and_no_bounds():
    ratio = ratio_of_block_medians(np.array([4.0] * 6), np.array([2.0] * 6))
    assert (ratio.value, ratio.lower, ratio.upper) == (pytest.approx(2.0), None, None)


def test_ratio_of_raw_samples_pairs_the_rounds():
    blocks = np.repeat(np.arange(10), 3)
    a, b = np.tile([10, 20, 900], 10), np.tile([5, 10, 11], 10)
    assert ratio_of_medians(a, blocks, b, blocks).value == pytest.approx(2.0)
    with pytest.raises(ProfileError, match="got rounds 10 and 9 that do not pair; measure both subjects in one call"):
        ratio_of_medians(a, blocks, b[:27], blocks[:27])


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        ([1.0, 2.0], [1.0], "got 2 and 1 block medians; both subjects need the same rounds"),
        ([1.0], [0.0], "a block median is not a positive number; measure again"),
        ([math.nan], [1.0], "a block median is not a positive number; measure again"),
    ],
)
def test_ratio_refuses(a, b, text):
    with pytest.raises(ProfileError) as caught:
        ratio_of_block_medians(np.array(a), np.array(b))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("k", "n"), [(0, 10), (1, 10), (5, 100), (10, 10), (99, 100), (3, 1_000_000), (50_000, 99_999)]
)
def test_exact_interval_is_that_of_the_beta_distribution(k, n):
    beta = oracle.beta
    low, high = exact_interval(k, n)
    assert low == pytest.approx(beta.ppf(0.025, k, n - k + 1) if k else 0.0, rel=1e-6, abs=1e-12)
    assert high == pytest.approx(beta.ppf(0.975, k + 1, n - k) if k < n else 1.0, rel=1e-6)


def test_exact_interval_closed_forms():
    assert exact_interval(0, 50) == (0.0, pytest.approx(1 - 0.025 ** (1 / 50)))
    assert exact_interval(50, 50, 0.99) == (pytest.approx(0.005 ** (1 / 50)), 1.0)
    low, high = exact_interval(7, 90)
    assert exact_interval(83, 90) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_slope_of_a_line_and_of_a_line_with_a_disturbed_part():
    x = np.arange(60.0)
    exact = robust_slope(x, 3.0 * x + 1.0)
    assert exact.value == pytest.approx(3.0)
    assert (exact.lower, exact.upper) == (pytest.approx(3.0), pytest.approx(3.0))
    y = 0.5 * x
    y[20:26] += 1000.0
    assert robust_slope(x, y).value == pytest.approx(0.5, abs=0.02)
    few = robust_slope(x[:11], x[:11])
    assert (few.value, few.lower, few.upper) == (1.0, None, None)
    assert robust_slope(np.arange(1000.0), 2.0 * np.arange(1000.0)).value == pytest.approx(2.0)


@pytest.mark.parametrize("memory", [0.0, 0.3, 0.6])
def test_slope_bounds_hold_about_as_often_as_they_say(memory):
    rng, x, inside = np.random.default_rng(3), np.arange(60.0), 0
    for _ in range(200):
        noise = rng.normal(size=60)
        for i in range(1, 60):
            noise[i] += memory * noise[i - 1]
        found = robust_slope(x, 0.1 * x + noise)
        inside += found.lower <= 0.1 <= found.upper
    assert inside / 200 >= 0.92
