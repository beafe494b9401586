"""Time of each layer: derived figures in closed form, and every runtime's own profiler on a real small net."""

import json

import numpy as np
import pytest
from exporter_nets import INPUT_SHAPE, file, net

from exporters import open_runner
from exporters.run_torch import TorchRunner
from profiles.errors import ProfileError
from profiles.layers import profile_layers

FEEDS = {"input": np.zeros(INPUT_SHAPE, np.float32)}


class Told:
    """A runner whose profiler tells what it is given; an inference takes 7 ms of simulated time."""

    name, device = "told", "cpu"

    def __init__(self, rows):
        self.rows, self.ns = rows, 0

    def now_ns(self):
        return self.ns

    def prepare(self, feeds):
        def infer():
            self.ns += 7_000_000

        return infer

    def synchronize(self):
        pass

    def profile_layers(self, feeds, runs):
        return self.rows


def test_layers_are_sorted_and_summed_by_operator():
    told = Told(
        [
            ("a", "Conv", np.array([1_000_000, 1_000_000, 9_000_000])),
            ("b", "Relu", np.array([500_000] * 3)),
            ("c", "Conv", np.array([2_500_000] * 3)),
            ("never ran", "Conv", np.array([], np.int64)),
        ]
    )
    found = profile_layers(told, FEEDS, runs=3, clock=told)
    assert [(layer.name, layer.ms) for layer in found.layers] == [("c", 2.5), ("a", 1.0), ("b", 0.5)]
    assert (found.layers_ms, found.inference_ms) == (4.0, 7.0)
    assert found.operators() == [
        {"operator": "Conv", "calls": 2, "ms": 3.5, "share": 0.875},
        {"operator": "Relu", "calls": 1, "ms": 0.5, "share": 0.125},
    ]
    row = found.row(most=1)
    assert json.loads(json.dumps(row)) == row
    assert row["layers"] == [{"name": "c", "operator": "Conv", "ms": 2.5, "share": 0.625, "n": 3}]


def test_a_runtime_that_cannot_tell_is_refused():
    class Silent(Told):
        profile_layers = None

    with pytest.raises(ProfileError) as caught:
        profile_layers(Silent([]), FEEDS)
    assert str(caught.value) == ("told: this runtime does not tell the time of each layer; use another for --layers")
    with pytest.raises(ProfileError, match="told: its profiler named no layer; leave out --layers"):
        profile_layers(Told([]), FEEDS, runs=1)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_onnx_runtimes_name_their_convolutions(runtime, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_runner(runtime, file("fp32"), threads=1) as runner:
        found = profile_layers(runner, FEEDS, runs=4)
        assert runner(FEEDS)["logits"].shape == (2, 5)
    convolutions = [layer for layer in found.layers if "Conv" in layer.operator]
    assert len(convolutions) >= 6
    assert all(layer.n == 4 for layer in found.layers)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1.0)
    assert not list(tmp_path.iterdir())


def test_torch_names_modules_and_leaves_no_hook():
    module = net()
    with TorchRunner(module, threads=1, input_shape=INPUT_SHAPE) as runner:
        found = profile_layers(runner, FEEDS, runs=3)
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in runner._module.modules())
    named = {layer.name: layer for layer in found.layers}
    assert named["blocks.1.shortcut.0"].operator == "Conv2d"
    assert named["fc"].operator == "Linear"
    assert named["fc"].n == 3
    assert "blocks" not in named
    assert found.layers_ms > 0
