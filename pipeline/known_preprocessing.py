"""Preprocessings in common use, to be tried on a teacher that may have been fed with another one. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# (what, mean, std) on the scale 0 to 1, as public training scripts have them; one value serves every channel.
KNOWN: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ("CIFAR-10 (std 0.2023)", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ("CIFAR-100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ("MNIST", (0.1307,), (0.3081,)),
    ("Fashion-MNIST", (0.2860,), (0.3530,)),
    ("the scale -1 to 1", (0.5,), (0.5,)),
    ("the scale 0 to 1", (0.0,), (1.0,)),
    ("the scale 0 to 255", (0.0,), (1 / 255,)),
    ("the scale 0 to 255 less ImageNet's mean", (0.485, 0.456, 0.406), (1 / 255,)),
)
SAME = 0.004  # declared values this near to known ones are those


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to feed images: (x / 255 - mean) / std by colour, then in the order BGR if so."""

    what: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False


def variants(declared: Variant) -> list[Variant]:
    """Every known preprocessing but the declared one, and for colour images all of them in BGR order."""
    channels = len(declared.mean)
    found = []
    for what, mean, std in KNOWN:
        if channels % len(mean) or (channels == 1 and what.startswith("CIFAR")):
            continue
        spread = Variant(
            what=what if what.startswith("the scale") else f"mean/std of {what}",
            mean=mean * (channels // len(mean)),
            std=std * (channels // len(std)),
        )
        if not (
            np.allclose(spread.mean, declared.mean, atol=SAME) and np.allclose(spread.std, declared.std, atol=SAME)
        ):
            found.append(spread)
    if channels == 3:
        found += [
            Variant(
                what=f"BGR order with {other.what.replace('as declared', 'the declared mean/std')}",
                mean=other.mean,
                std=other.std,
                bgr=True,
            )
            for other in (declared, *found)
        ]
    return found
