"""Random numbers that are a pure function of (seed, epoch, sample, stream): no state, no order, no batch.

Each is the splitmix64 generator (Steele, Lea and Flood, OOPSLA 2014) with a key hashed from its arguments, so one view,
one order or one split can be made again alone, on any machine and with any numpy.
"""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1

# One stream a use, so that two uses of the same (seed, epoch, sample) never share a number.
CROP_ROW, CROP_COLUMN, FLIP, BRIGHTNESS, CONTRAST, SATURATION, CUTOUT_ROW, CUTOUT_COLUMN = range(8)
MIXED, MIX_KIND, MIX_SHARE, BOX_ROW, BOX_COLUMN = range(8, 13)
ORDER, VALIDATION, TEST, CALIBRATION, PARTNER, RANK = range(32, 38)
TURN, PATCH_ROW, PATCH_COLUMN = range(48, 51)


def mix(state: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, elementwise on uint64 (...): a bijection that spreads every input bit."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def bits(seed: int, epoch: int, samples: np.ndarray, stream: int) -> np.ndarray:
    """64 random bits a sample: samples (...) integers of any sign to uint64 (...)."""
    # Arrays of one element instead of scalars: numpy wraps them silently, as wanted here.
    key = mix(np.array([(seed + GOLDEN) & MASK], dtype=np.uint64))
    key = mix(key ^ np.array([epoch & MASK], dtype=np.uint64))
    keys = mix(key ^ np.asarray(samples, dtype=np.int64).view(np.uint64))
    return mix(keys + np.array([(stream + 1) * GOLDEN & MASK], dtype=np.uint64))


def uniform(seed: int, epoch: int, samples: np.ndarray, stream: int) -> np.ndarray:
    """float64 (...) in [0, 1), 53 random bits each."""
    return (bits(seed, epoch, samples, stream) >> np.uint64(11)) * 2.0**-53


def below(limit: int, seed: int, epoch: int, samples: np.ndarray, stream: int) -> np.ndarray:
    """int64 (...) in [0, limit), each value equally likely up to 2^-40."""
    assert 0 < limit <= 1 << 13, f"limit {limit}"
    return (uniform(seed, epoch, samples, stream) * limit).astype(np.int64)


def shuffled(indices: np.ndarray, seed: int, epoch: int, stream: int) -> np.ndarray:
    """`indices` (N,) int64, each once, in an order that depends on their values alone and not on where they stood."""
    indices = np.sort(np.asarray(indices, dtype=np.int64))
    return indices[np.argsort(bits(seed, epoch, indices, stream), kind="stable")]
