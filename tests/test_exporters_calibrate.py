"""Calibration against closed forms, against the definition written out, and against its promises."""

import numpy as np
import pytest
from exporter_nets import batches, file
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.helper import make_tensor_value_info

from exporters import calibrate as calibration
from exporters.artifact import ExportError, IOSpec
from exporters.calibrate import BINS, HISTOGRAM_BYTES, LEVELS, calibrate, entropy_threshold, percentile_threshold
from exporters.onnx_file import load_model

SPEC = IOSpec(name="x", dtype="float32", shape=("n", 4))


def relu_model(operators=("Relu",)):
    """x -> Relu -> y, (n, 4)."""
    nodes, tensor = [], "x"
    for place, operator in enumerate(operators):
        nodes.append(helper.make_node(operator, [tensor], [f"y{place}"], operator))
        tensor = f"y{place}"
    value = [make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", tensor)]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def ranges_of(rows, method, percentile=99.99, cuts=()):
    found = calibrate(
        relu_model(),
        np.split(np.asarray(rows, np.float32), cuts),
        spec=SPEC,
        operators=["Relu"],
        method=method,
        percentile=percentile,
        where="here",
    )
    return {name: (float(low[0]), float(high[0])) for name, (low, high) in found.ranges.items()}


def definition(counts, bins):
    """The divergence of one threshold, written out bin by bin."""
    counts = [float(count) for count in counts]
    counts[0] = counts[1]
    below, above = counts[:bins], sum(counts[bins:])
    if 2 * sum(below) < sum(counts):
        return np.inf
    reference = [*below[:-1], below[-1] + above]
    quantized = [0.0] * bins
    for level in range(LEVELS):
        places = range(level * bins // LEVELS, (level + 1) * bins // LEVELS)
        held = [place for place in places if reference[place] > 0]
        for place in held:
            mean = sum(below[place] for place in places) / len(held)
            quantized[place] = mean if mean > 0 else 1e-4
    return sum(
        p / sum(reference) * np.log((p / sum(reference)) / (q / sum(below)))
        for p, q in zip(reference, quantized, strict=True)
        if p > 0
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.floats(0.2, 4), bins=st.integers(LEVELS, 300))
def test_the_divergence_is_the_definition_written_out(seed, shape, bins):
    rng = np.random.default_rng(seed)
    counts = np.bincount(np.minimum(rng.weibull(shape, 400) * 40, 299).astype(int), minlength=300)
    assert calibration.divergences(counts)[bins - LEVELS] == pytest.approx(definition(counts, bins), abs=1e-9)


def test_entropy_cuts_a_heavy_tail_off_where_a_closed_form_says():
    # Magnitudes halve from bin to bin within the first eleven; one value lies in the last bin. Up to a threshold after
    # bin 140 (10 * 140 / 128 < 11) each of the eleven is a level of its own, and nothing but the one value is lost.
    counts = np.zeros(BINS, np.int64)
    counts[:11] = 1 << np.arange(20, 9, -1)
    counts[-1] = 1
    assert entropy_threshold(counts, width=16 / BINS) == 140 * 16 / BINS
    # The reference of that threshold: all counts (the first as high as its neighbour) and the one in an empty bin.
    kept = float(counts[1] + counts[1:11].sum())
    expected = -np.log(kept + 1) + np.log(kept) + np.log(1 / 1e-4) / (kept + 1)
    assert calibration.divergences(counts)[0] == pytest.approx(expected, abs=1e-12)


def test_entropy_keeps_a_flat_distribution_whole():
    assert entropy_threshold(np.full(BINS, 1000), width=1 / BINS) == 1.0


def test_entropy_keeps_what_is_all_zero_or_one_value():
    for place in (0, 1, 700):
        counts = np.zeros(BINS, np.int64)
        counts[place] = 5
        assert entropy_threshold(counts, width=2 / BINS) == 2.0


def test_percentile_is_the_edge_that_the_share_reaches():
    counts = np.full(BINS, 10)
    assert percentile_threshold(counts, 1.0, 100) == BINS
    assert percentile_threshold(counts, 1.0, 50) == BINS / 2
    assert percentile_threshold(counts, 1.0, 75) == BINS * 3 / 4


def test_the_methods_differ_on_a_heavy_tail_and_in_the_order_expected():
    rng = np.random.default_rng(0)
    rows = rng.laplace(size=(4000, 4))
    rows[0, 0] = 100  # as far again as any other value, several times
    found = {method: ranges_of(rows, method)["x"] for method in ("minmax", "entropy", "percentile")}
    assert found["minmax"] == (np.float32(rows.min()), 100)
    assert 4 < found["entropy"][1] < 20
    assert ranges_of(rows, "percentile", 99)["x"][1] == pytest.approx(np.quantile(np.abs(rows), 0.99), abs=100 / BINS)
    assert found["percentile"][1] < 14
    assert found["entropy"][0] >= np.float32(rows.min())


def test_ranges_never_leave_what_was_seen():
    rows = np.array([[-0.25, 3, 1, 2], [0.5, -0.125, 2, 4]])
    for method in ("minmax", "entropy", "percentile"):
        assert ranges_of(rows, method) == {"x": (-0.25, 4), "y0": (0, 4)}, method


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_batches_and_their_order_do_not_matter(method):
    rows = np.random.default_rng(3).laplace(size=(60, 4))
    one = ranges_of(rows, method, percentile=97)
    assert ranges_of(rows, method, percentile=97, cuts=[1, 20]) == one
    assert ranges_of(rows[::-1], method, percentile=97, cuts=[50]) == one


def test_memory_does_not_grow_with_the_samples():
    rows = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    found = [
        calibrate(relu_model(), np.split(rows[:count], count // 4), spec=SPEC, operators=["Relu"], method=m, where="")
        for count in (8, 80)
        for m in ("minmax", "entropy")
    ]
    assert [one.histogram_bytes for one in found] == [0, 2 * HISTOGRAM_BYTES] * 2
    assert {one.batch_bytes for one in found} == {2 * 4 * 4 * 4}, "two tensors of one batch of four rows"
    assert str(found[3]) == (
        "entropy on 80 samples, 2 tensors; memory: 32,768 bytes of histograms and 128 bytes of activations, however "
        "many samples"
    )


def test_a_real_net_is_calibrated_at_every_tensor_and_within_min_and_max():
    model = load_model(file("fp32"))
    spec = IOSpec(name="input", dtype="float32", shape=(2, 3, 16, 16))
    found = {
        method: calibrate(model, batches(), spec=spec, operators=["Conv", "Add"], method=method, where="").ranges
        for method in ("minmax", "entropy", "percentile")
    }
    assert "input" in found["minmax"] and len(found["minmax"]) > 8
    for method in ("entropy", "percentile"):
        assert list(found[method]) == list(found["minmax"])
        for name, (low, high) in found[method].items():
            assert found["minmax"][name][0] <= low <= high <= found["minmax"][name][1]


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_samples_that_cannot_be_read_again_are_refused(method):
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    message = (
        f"here: {method} reads the calibration samples twice and got other samples the second time; give a list, or a "
        "stream that starts again"
    )

    class Changing:
        seed = 0

        def __iter__(self):
            self.seed += 1
            yield np.random.default_rng(self.seed).normal(size=(4, 4)).astype(np.float32)

    for stream in (iter([rows]), Changing()):
        with pytest.raises(ExportError) as error:
            calibrate(relu_model(), stream, spec=SPEC, operators=["Relu"], method=method, where="here")
        assert str(error.value) == message


def test_an_activation_that_is_not_finite_is_named():
    with pytest.raises(ExportError) as error:
        calibrate(
            relu_model(["Neg", "Log", "Relu"]),
            [np.arange(8, dtype=np.float32).reshape(2, 4)],
            spec=SPEC,
            operators=["Log", "Relu"],
            where="here",
        )
    assert str(error.value) == "here: y1 holds NaN or infinity on calibration samples; mend the model"
