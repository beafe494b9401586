"""Optimizers by the recipe's words, one optimizer step, and how hard each term of an objective pulls."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.models.finetune import head_parameters
from pipeline.recipe import Training
from pipeline.training.state import Parts

FACTOR = "factor"  # of a parameter group: its share of the schedule's rate
EIGHT_BIT = {"adam8bit": "Adam8bit", "adamw8bit": "AdamW8bit"}
QUANTIZED_FROM = 4096  # values; bitsandbytes keeps the states of smaller tensors in 32 bits


def make_optimizer(module: torch.nn.Module, config: Training) -> torch.optim.Optimizer:
    """An optimizer of all that is trained in `module`, a learner.

    Weight decay on matrices and kernels only; biases and normalisation parameters are left free. `head_lr` is for the
    classifier of the student; adapters, banks, peers and exits take `lr`. The 8-bit Adams decouple weight decay, both.
    Raises `UserError` with one line when there is no classifier, or 8-bit optimizers do not run here.
    """
    groups = groups_of(module, config)
    if config.optimizer == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    if config.optimizer in EIGHT_BIT:
        kind = eight_bit(config.optimizer, next(module.parameters()).device)
    else:
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr)


def groups_of(module: torch.nn.Module, config: Training) -> list[dict[str, Any]]:
    """Parameter groups with their weight decay and share of the rate: everything else, then the classifier."""
    head: set[int] = set()
    if config.head_lr:
        student: Any = module.student
        named = dict(student.named_parameters())
        head = {id(named[name]) for name in head_parameters(student)}
        if not head:
            raise UserError("head_lr: the network has no linear layer that could be its classifier; leave head_lr out")
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = []
    for factor, part in (
        (1.0, [p for p in trainable if id(p) not in head]),
        (config.head_lr / config.lr, [p for p in trainable if id(p) in head]),
    ):
        groups += [
            {"params": [p for p in part if p.ndim > 1], "weight_decay": config.weight_decay, FACTOR: factor},
            {"params": [p for p in part if p.ndim <= 1], "weight_decay": 0.0, FACTOR: factor},
        ]
    return [group for group in groups if group["params"]]


def eight_bit(name: str, device: torch.device) -> Any:
    """The class of bitsandbytes, once it has made a step on `device`: its CPU kernels came late."""
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that optimizers do not use
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes

        kind = getattr(bitsandbytes.optim, EIGHT_BIT[name])
        tried = torch.nn.Parameter(torch.ones(QUANTIZED_FROM, device=device))
        tried.grad = torch.ones_like(tried)
        kind([tried], lr=0.1).step()
        if torch.isfinite(tried).all() and (tried < 1).all():
            return kind
        reason = "its first step went wrong"
    except Exception as error:  # a library without its kernels fails in many ways
        reason = str(error).partition("\n")[0].strip()[:160] or type(error).__name__
    instead = name.removesuffix("8bit")
    raise UserError(
        f"optimizer = {name!r}: bitsandbytes does not run on {device.type} here ({reason}); "
        f"pip install -U bitsandbytes, or set optimizer = {instead!r}"
    )


def optimize(parts: Parts, total: torch.Tensor, rate: float, config: Training) -> None:
    for group in parts.optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)
    parts.optimizer.zero_grad(set_to_none=True)
    parts.scaler.scale(total).backward()
    if config.clip_norm:
        parts.scaler.unscale_(parts.optimizer)
        torch.nn.utils.clip_grad_norm_(parts.module.parameters(), config.clip_norm)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    if parts.average is not None:
        parts.average.update_parameters(parts.module.student)  # pyright: ignore[reportArgumentType]


def gradient_norms(
    module: torch.nn.Module,
    weighted: Mapping[str, torch.Tensor],
    *,
    mean: Callable[[torch.Tensor], torch.Tensor] = lambda gradient: gradient,
) -> dict[str, float]:
    """Term -> Euclidean norm of its weighted gradient over the parameters of `module`: a drowned term shows.

    Terms that do not depend on `module`, such as those of its peers, are left out. Costs one backward pass a term and
    leaves graph and gradients as they were. `mean`: of a gradient over the processes that train together.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    norms = {}
    for name, value in weighted.items():
        if not value.requires_grad:
            continue
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        gradients = [gradient.double().flatten() for gradient in found if gradient is not None]
        if gradients:
            norms[name] = float(mean(torch.cat(gradients)).square().sum().sqrt())
    return norms
