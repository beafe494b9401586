"""How often are pictures that have nothing in common taken for near duplicates? By labels, on a real data set.

    python tests/benchmarks/near_duplicates.py cifar10.npz --json

FILE is an .npz with x_train, y_train, x_test and y_test. A copy has the label of its picture, so near pairs of two
labels are chance; of k labels, equally frequent, chance makes k - 1 times as many pairs of two labels as of one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.data.near import near, perceptual_hashes
from pipeline.data.source import InMemory
from pipeline.environment import collect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with np.load(given.file, allow_pickle=False) as archive:
        sets = {split: (archive[f"x_{split}"], archive[f"y_{split}"].astype(np.int64)) for split in ("train", "test")}
    hashes = {
        split: perceptual_hashes(InMemory(images, labels), np.arange(len(images)))
        for split, (images, labels) in sets.items()
    }
    (_, train), (_, test) = sets["train"], sets["test"]
    same = other = 0
    for label in np.unique(test):
        mine = hashes["test"][test == label]
        same += near(mine, hashes["train"][train == label]).count
        other += near(mine, hashes["train"][train != label]).count
    found = near(hashes["test"], hashes["train"])
    pairs = int(sum((test == label).sum() * (train != label).sum() for label in np.unique(test)))
    record = {
        "test": len(test),
        "train": len(train),
        "near": found.count,
        "near_with_the_same_label": same,
        "near_with_another_label": other,
        "pairs_of_two_labels": pairs,
        "empty": found.empty,
        "unsure": found.unsure,
    }
    if given.json:
        environment = collect()
        print(json.dumps(record | {key: environment[key] for key in ("cpu", "python", "source")}, indent=1))
    else:
        print("\n".join(f"{key.replace('_', ' ')}: {value:,}" for key, value in record.items()))


if __name__ == "__main__":
    main()
