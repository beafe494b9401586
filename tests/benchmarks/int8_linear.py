"""What bitsandbytes' int8 linear layers save: size, latency and accuracy, also where it is nothing.

    OMP_NUM_THREADS=1 python tests/benchmarks/int8_linear.py > artifacts/reference/int8-linear.json
    python tests/benchmarks/int8_linear.py --cifar10 cifar10.npz --checkpoint student.safetensors

Each network in fp32 and with int8 linear layers, one thread, batch 1 and 32, interleaved: file sizes, the ratio of the
medians with its 99 % interval, and the signal to noise of the outputs on random images (weights are random, so that is
no accuracy). With a checkpoint and CIFAR-10 (an .npz as data set "arrays" takes it), top-1 on the first --images ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

NETWORKS = ("mlperf-resnet8", "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:vit_b_16", "mlp")
PRECISIONS = ("fp32", "int8-linear")


def network(name: str) -> Any:
    import torch
    from torch import nn

    from pipeline.models import build

    torch.manual_seed(0)
    if name == "mlp":
        widths = (3 * 32 * 32, 2048, 2048, 10)
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers[:-1]).eval()
    return build(name, num_classes=10, in_channels=3).eval()


def sizes(module: Any) -> dict[str, int]:
    from safetensors.torch import save

    from exporters.to_int8_linear import export_int8_linear

    with tempfile.TemporaryDirectory() as folder:
        made = export_int8_linear(module, Path(folder) / "int8.safetensors", metadata={"about": "benchmark"}).path
        state = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
        return {"fp32": len(save(state)), "int8-linear": made.stat().st_size}


def timed(module: Any, shape: tuple[int, ...], seconds: float) -> dict[str, Any]:
    from exporters.run_torch import TorchRunner
    from profiles.latency import measure_latency
    from profiles.stats import ratio_of_medians

    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    runners = {p: TorchRunner(module, threads=1, input_shape=shape, precision=p) for p in PRECISIONS}
    feeds = {p: {"input": images} for p in PRECISIONS}
    with runners["fp32"], runners["int8-linear"]:
        expected, got = (runners[p]({"input": images})["logits"].astype(np.float64) for p in PRECISIONS)
        found = measure_latency(runners, feeds, min_seconds=seconds, blocks=30)
    fast, slow = found["int8-linear"], found["fp32"]
    ratio = ratio_of_medians(slow.samples_ns, slow.block, fast.samples_ns, fast.block, confidence=0.99)
    return {
        "batch": shape[0],
        "p50_ms": {p: float(np.median(found[p].samples_ns)) / 1e6 for p in PRECISIONS},
        "speedup": [ratio.value, ratio.lower, ratio.upper],
        "sqnr_db": float(10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum())),
    }


def accuracy(checkpoint: Path, data: Path, count: int) -> dict[str, Any]:
    from exporters.run_torch import TorchRunner
    from pipeline.data import open_source
    from pipeline.models.checkpoint import load_checkpoint
    from pipeline.recipe import Data
    from pipeline.stages.export import preprocessing_of

    module, meta = load_checkpoint(checkpoint)
    test = open_source(Data.model_validate({"name": "arrays", "root": str(data)})).test
    images, labels = test.load(np.arange(count)), test.labels[:count]
    inputs = preprocessing_of(meta).apply(images)
    answers = {}
    for precision in PRECISIONS:
        with TorchRunner(module, threads=1, input_shape=("batch", *meta.input_size), precision=precision) as runner:
            parts = [runner({"input": inputs[i : i + 100]})["logits"] for i in range(0, len(inputs), 100)]
        answers[precision] = np.concatenate(parts).argmax(1)
    right = {precision: float((made == labels.ravel()).mean()) for precision, made in answers.items()}
    flips = int((answers["fp32"] != answers["int8-linear"]).sum())
    return {"model": meta.model, "n": len(inputs), "top1": right, "answers_changed": flips, "sizes": sizes(module)}


def main() -> None:
    from exporters.artifact import installed_versions
    from profiles.machine import machine

    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    asked = parser.parse_args()
    host = machine()
    record: dict[str, Any] = {
        "command": " ".join(
            ["python tests/benchmarks/int8_linear.py", *(word.split("/")[-1] for word in sys.argv[1:])]
        ),
        "hardware": {key: host.get(key) for key in ("cpu", "cores", "load_1min")},
        "versions": installed_versions("torch", "bitsandbytes", "numpy"),
        "networks": {},
    }
    for name in filter(None, asked.networks.split(",")):
        module, side = network(name), 224 if name.startswith("torchvision:") else 32
        batches = (1, 32) if side == 32 else (1,)
        record["networks"][name] = {
            "sizes": sizes(module),
            "latency": [timed(module, (batch, 3, side, side), asked.seconds) for batch in batches],
        }
        print(name, record["networks"][name], file=sys.stderr, flush=True)
    if asked.checkpoint and asked.cifar10:
        record["accuracy"] = accuracy(asked.checkpoint, asked.cifar10, asked.images)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
