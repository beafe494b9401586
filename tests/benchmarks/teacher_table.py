"""What does a teacher cost in a training step: live, from a table, and in torchdistill?

    python tests/benchmarks/teacher_table.py --json > teacher-table.json

ResNet-56 teaches ResNet-20 (kd and cross-entropy, SGD, batch 128, pad-4 crop and mirror on 32x32 images). Steps are
those of `pipeline.training.train`, from one batch to the next: data, augmentation, teacher, forward and backward pass,
optimizer, bookkeeping. The rounds are interleaved, forwards and backwards; a ratio is that of the medians over rounds,
with a bootstrapped 95 % interval. "Best setting": ours bf16 and channels-last, torchdistill at its best number of
workers (fp32; it has no bf16 on a CPU). "Equal precision": all in fp32. The table is a finite one of 162 views of
50,000 images, as large as CIFAR-10's; it holds noise and so do the images, since neither changes the time of a step;
`--data FILE.npz` (x_train, y_train) takes real images. On a CPU the process keeps to `--threads` cores. `--clock cpu`
counts processor time in place of time, for a machine that others use: one thread, torchdistill without workers.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from torchdistill_loop import Rival  # noqa: E402

from pipeline import environment  # noqa: E402
from pipeline.data.augment import AUGMENT_VERSION, view_count  # noqa: E402
from pipeline.data.source import InMemory  # noqa: E402
from pipeline.data.view import View  # noqa: E402
from pipeline.distillers.learner import DTYPES  # noqa: E402
from pipeline.distillers.offline import offline  # noqa: E402
from pipeline.distillers.teacher import LiveTeacher, Network, TeacherOutputs  # noqa: E402
from pipeline.models import build  # noqa: E402
from pipeline.recipe import Augment, LossTerm, Training  # noqa: E402
from pipeline.teacher_table import storage  # noqa: E402
from pipeline.teacher_table.key import Key, ids_digest  # noqa: E402
from pipeline.teacher_table.table import Table  # noqa: E402
from pipeline.training.train import TrainData, train  # noqa: E402
from profiles.clock import CpuLoad  # noqa: E402
from profiles.flops import count_torch  # noqa: E402
from profiles.stats import ratio_of_block_medians  # noqa: E402

TEACHER, STUDENT = "cifar-resnet56", "cifar-resnet20"
CLASSES, LR = 10, 0.05
SPEC = Augment.model_validate({"pad_crop": 4, "flip": True})
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
KD = {"loss": "kd", "weight": 0.9, "temperature": 4.0}
CE = {"loss": "cross_entropy", "weight": 0.1}
SKIP = 2  # steps at the start of a block: the optimizer's state is made, gradient norms are taken
BEST, EQUAL = "bf16", "fp32"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Ours:
    """One way of training by pipeline.training.train, measured block by block."""

    def __init__(
        self, student: torch.nn.Module, images: InMemory, device: torch.device, precision: str, clock: str, batch: int
    ) -> None:
        self.student, self.images, self.device, self.clock = student, images, device, clock
        settings = {"epochs": 1, "batch_size": batch, "lr": LR, "precision": precision, "augment": SPEC}
        self.config = Training.model_validate(settings)
        self.blocks = 0

    def seconds_a_step(self, steps: int, teacher: TeacherOutputs | None) -> float:
        """Mean of `steps` steps, from one forward pass to the one of the step after the last."""
        terms = [LossTerm.model_validate(term) for term in ((KD, CE) if teacher else (CE | {"weight": 1.0},))]
        learner = offline(Network(module=copy.deepcopy(self.student), mean=MEAN, std=STD), terms)
        stamps: list[float] = []
        learner.register_forward_pre_hook(lambda *_: stamps.append(self._now(len(stamps), steps)))
        self.blocks += 1
        count = self.config.batch_size * (SKIP + steps + 1)
        chosen = np.random.default_rng(self.blocks).choice(len(self.images.labels), count, replace=False)
        data = TrainData(
            images=self.images, train=np.sort(chosen), validation=np.array([0]), num_classes=CLASSES, workers=0
        )
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"key": "", "seed": 0, "label": "", "device": self.device}
            train(learner, self.config, data, folder=Path(folder), say=lambda _: None, teacher=teacher, **options)
        return (stamps[SKIP + steps] - stamps[SKIP]) / steps

    def _now(self, step: int, steps: int) -> float:
        if self.device.type == "cuda" and step in (SKIP, SKIP + steps):
            torch.cuda.synchronize(self.device)
        return CLOCKS[self.clock]()


def noise_table(folder: Path, ids: np.ndarray, precision: str) -> Table:
    """A table of every view of the images `ids`, filled without a teacher."""
    slices = view_count(SPEC) or 0
    key = Key(
        form="finite",
        teacher="0" * 64,
        mean=MEAN,
        std=STD,
        dtype=precision,
        augment=SPEC,
        augment_version=AUGMENT_VERSION,
        data="0" * 64,
        ids=ids_digest(ids),
        image_shape=(32, 32, 3),
    )
    layout = storage.Layout.of(samples=len(ids), slices=slices, outputs={"logits": CLASSES})
    generator = np.random.default_rng(0)
    storage.write_json(folder / storage.HEADER, storage.header_of(key, layout, None))
    for shard in range(layout.shards):
        with storage.ShardWriter(folder, layout, shard) as writer:
            for _ in layout.slices_of(shard):
                writer.append(generator.standard_normal((len(ids), CLASSES), dtype=np.float32).astype("<f2").tobytes())
    storage.finish(folder, layout)
    return Table(folder, key, ids, slices=slices)


def seconds(work: Callable[[], object], device: torch.device, clock: str, repeats: int = 10) -> float:
    found = []
    for _ in range(repeats):
        start = CLOCKS[clock]()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(CLOCKS[clock]() - start)
    return float(np.median(found))


def ratio(blocks: dict[str, list[float]], above: str, below: str) -> dict[str, Any]:
    found = ratio_of_block_medians(np.array(blocks[above]), np.array(blocks[below]), confidence=0.975)
    return {"value": found.value, "ci95": [found.lower, found.upper], "rounds": found.blocks}


def three_ratios(blocks: dict[str, list[float]], precision: str) -> dict[str, Any]:
    table, live, plain = (f"{kind} {precision}" for kind in ("table", "live", "plain"))
    found = {"ratio_table_to_plain": ratio(blocks, table, plain), "ratio_live_to_plain": ratio(blocks, live, plain)}
    if "torchdistill" in blocks:
        found["ratio_torchdistill_to_live"] = ratio(blocks, "torchdistill", live)
        found["ratio_torchdistill_to_table"] = ratio(blocks, "torchdistill", table)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    if device.type == "cpu":
        options.threads = 1 if options.clock == "cpu" else options.threads  # threads that wait burn processor time
        torch.set_num_threads(options.threads)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, options.images)
    if options.data:
        with np.load(options.data) as arrays:
            pixels, labels = arrays["x_train"], arrays["y_train"].astype(np.int64)
    images, ids, batch = InMemory(pixels, labels), np.arange(len(labels)), options.batch
    torch.manual_seed(0)
    teacher, student = build(TEACHER, num_classes=CLASSES).eval(), build(STUDENT, num_classes=CLASSES)
    network = Network(module=teacher, mean=MEAN, std=STD)
    view = View(images=torch.zeros(batch, 3, 32, 32, dtype=torch.uint8, device=device), sample_ids=ids[:batch], epoch=0)
    tasks: dict[str, Callable[[], float]] = {}
    forwards: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in (BEST, EQUAL):
            path = Path(folder) / precision
            path.mkdir()
            table = noise_table(path, ids, precision)
            live = LiveTeacher(network, dtype=DTYPES[precision], device=device)
            pupil = LiveTeacher(Network(module=student, mean=MEAN, std=STD), dtype=DTYPES[precision], device=device)
            run = Ours(student, images, device, precision, options.clock, batch)
            for kind, answers in (("plain", None), ("table", table), ("live", live)):
                tasks[f"{kind} {precision}"] = lambda run=run, answers=answers: run.seconds_a_step(
                    options.steps, answers
                )
            lookup = View(images=view.images, sample_ids=generator.permutation(ids)[:batch], epoch=1)
            forwards[precision] = {
                "teacher_s": seconds(lambda live=live: live(view), device, options.clock),
                "student_s": seconds(lambda pupil=pupil: pupil(view), device, options.clock),
                "table_rows_s": seconds(lambda table=table, lookup=lookup: table(lookup), device, options.clock, 200),
            }
        rivals = {}
        if not options.without_torchdistill:
            for workers in [0] if options.clock == "cpu" else options.workers:
                rival = Rival(
                    copy.deepcopy(teacher),
                    copy.deepcopy(student),
                    pixels,
                    labels,
                    mean=MEAN,
                    std=STD,
                    batch_size=batch,
                    workers=workers,
                    lr=LR,
                    device=device,
                    clock=CLOCKS[options.clock],
                )
                rivals[workers] = (rival.seconds_a_step(options.trial_steps, SKIP), rival)
                print(f"torchdistill, {workers} workers: {batch / rivals[workers][0]:.0f} images/s", file=sys.stderr)
            best = min(rivals, key=lambda workers: rivals[workers][0])
            rival = rivals[best][1]
            tasks["torchdistill"] = lambda: rival.seconds_a_step(options.steps, 0)
        trials = {str(workers): batch / found[0] for workers, found in rivals.items()}
        rivals.clear()  # ends the workers of the others
        blocks, external = in_rounds(tasks, options.rounds)
    medians = {name: float(np.median(values)) for name, values in blocks.items()}
    macs = {name: count_torch(module, (1, 3, 32, 32)).macs for name, module in (("F_T", teacher), ("F_S", student))}
    floor = (macs["F_T"] + 3 * macs["F_S"]) / (3 * macs["F_S"])
    for found in forwards.values():
        found["floor_ratio"] = (found["teacher_s"] + 3 * found["student_s"]) / (3 * found["student_s"])
    return {
        "command": "python tests/benchmarks/teacher_table.py " + " ".join(sys.argv[1:]),
        "pair": {"teacher": TEACHER, "student": STUDENT, "batch": batch, "augment": "pad 4, crop 32, mirror"},
        "data": options.data or "noise of CIFAR-10's shape",
        **three_ratios(blocks, BEST),
        "equal_precision": three_ratios(blocks, EQUAL),
        "floor": {"macs": macs, "ratio_live_to_plain": floor, "rule": "(F_T + 3 F_S) / 3 F_S", "measured": forwards},
        "images_per_s": {name: batch / value for name, value in medians.items()},
        "torchdistill_workers": {"images_per_s": trials, "best": min(trials, key=lambda w: -trials[w], default=None)},
        "s_per_step": blocks,
        "clock": options.clock,
        "external_load_cpus": external,
        "hardware": {"device": str(device), "cpu": environment.cpu_model(), "threads": torch.get_num_threads()},
        "versions": environment.collect()["packages"],
    }


def in_rounds(tasks: dict[str, Callable[[], float]], rounds: int) -> tuple[dict[str, list[float]], float]:
    """Task -> seconds a step of every round; processors' worth of work by others while ours ran."""
    blocks: dict[str, list[float]] = {name: [] for name in tasks}
    meter, busy, own, wall = CpuLoad(), 0.0, 0.0, 0.0
    for index in range(rounds + 1):
        for name in list(tasks)[:: 1 if index % 2 else -1]:
            before, start = meter.read(), time.perf_counter()
            value = tasks[name]()
            after = meter.read()
            if not index:
                continue  # the first round warms up
            blocks[name].append(value)
            if name != "torchdistill":  # its workers are others too
                busy, own = busy + after.busy - before.busy, own + after.own - before.own
                wall += time.perf_counter() - start
        print(f"round {index} of {rounds}", file=sys.stderr)
    return blocks, (busy - own) / max(1e-9, wall)


def lines(found: dict[str, Any]) -> list[str]:
    """For people."""

    def one(name: str, entry: dict[str, Any]) -> str:
        return f"  {name[6:].replace('_to_', ' / ').replace('_', ' '):26} {entry['value']:.3f}  95 % {entry['ci95']}"

    said = ["best setting (ours bf16, channels-last):"]
    said += [one(name, entry) for name, entry in found.items() if name.startswith("ratio_")]
    said += ["equal precision (fp32):"]
    said += [one(name, entry) for name, entry in found["equal_precision"].items()]
    said += [
        f"floor of live / plain by multiply-adds, {found['floor']['rule']}: {found['floor']['ratio_live_to_plain']:.3f}"
    ]
    said += ["images a second:"]
    said += [f"  {name:26} {value:,.0f}" for name, value in found["images_per_s"].items()]
    return [*said, f"others' work meanwhile: {found['external_load_cpus']:.2f} processors"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one json object")
    parser.add_argument("--steps", type=int, default=3, help="measured steps a block")
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--trial-steps", type=int, default=6, help="steps to choose torchdistill's workers by")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of torchdistill, to choose from")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU: threads and cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000, help="of noise; the table has 162 rows for each")
    parser.add_argument("--data", default="", help="an .npz with x_train, y_train")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--without-torchdistill", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    print(json.dumps(found, indent=1) if options.json else "\n".join(lines(found)))


if __name__ == "__main__":
    main()
