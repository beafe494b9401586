"""What every loss needs so that neither its value nor its gradient leaves the real numbers."""

from collections.abc import Sequence
from typing import Any

import torch


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """float32 and float64 as they are; half precision in float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def root(square: torch.Tensor) -> torch.Tensor:
    """Square root whose gradient at 0 is 0 (a subgradient of a norm at its minimum) instead of infinity."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def by_largest(tensor: torch.Tensor, dim: int | tuple[int, ...]) -> torch.Tensor:
    """Divided by the largest absolute entry along `dim`, so that squares neither overflow nor vanish; 0 stays 0.

    Only for what does not change with that scale: the divisor is a constant to the gradient. All entries count as 0
    below the root of the smallest number (1e-19 in float32): the gradient is as large as the tensor is small.
    """
    largest = tensor.detach().abs().amax(dim, keepdim=True)
    alive = largest > torch.finfo(tensor.dtype).tiny ** 0.5
    return torch.where(alive, tensor / torch.where(alive, largest, 1), 0)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Each vector of the last dimension divided by its L2 norm; a zero vector stays 0 and gets no gradient."""
    scaled = by_largest(vectors, -1)
    norm = root(scaled.square().sum(-1, keepdim=True))
    return scaled / torch.where(norm > 0, norm, 1)


def centred(vectors: torch.Tensor) -> torch.Tensor:
    """Each vector of the last dimension less its mean; exactly 0 where all its entries are equal.

    The first entry is taken off before the mean is formed: the mean of equal numbers is rounded, and what is left would
    pass for a signal once it is divided by its own size.
    """
    shifted = vectors - vectors[..., :1].detach()
    return shifted - shifted.mean(-1, keepdim=True)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in the type that they have: autocast would form it in half precision."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def same_shapes(loss: str, student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Refuse what broadcasting would accept: ValueError in one line."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{loss}: student feature {tuple(student.shape)}, teacher feature {tuple(teacher.shape)}; "
            "expected equal shapes (an adapter makes them so)"
        )


def same_number(loss: str, student: Sequence[Any], teacher: Sequence[Any]) -> None:
    """Refuse lists that cannot be paired, or are empty: ValueError in one line."""
    if len(student) != len(teacher) or not student:
        raise ValueError(
            f"{loss}: {len(student)} student features and {len(teacher)} teacher features; "
            "expected as many of both, and at least one"
        )


def same_pictures(loss: str, student: torch.Tensor, other: torch.Tensor, what: str) -> None:
    """Refuse what broadcasting would accept, labels among them: ValueError in one line."""
    if student.shape != other.shape or not other.is_floating_point():
        raise ValueError(
            f"{loss}: student output {tuple(student.shape)}, {what} {tuple(other.shape)} of {other.dtype}; "
            "expected pictures of equal shape"
        )
