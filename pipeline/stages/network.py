"""A network that a recipe names, made for its data, and kept with its preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.recipe import Student, Teacher
from pipeline.stages.data import Prepared

if TYPE_CHECKING:
    from torch import nn


def network(
    part: Teacher | Student,
    data: Prepared,
    *,
    seed: int,
    where: str = "",
    head: Literal["strict", "skip"] = "strict",
    download: bool = False,
) -> nn.Module:
    """The named model in training mode, with its weights when it has some, else drawn from `seed`.

    where: the recipe's key of the weights, which begins messages; by default `student.weights` or `teacher.weights`.
    head: `skip` takes weights of another number of classes and leaves the classifier random, as published weights
    (`torchvision:DEFAULT`) always do; download: let those be fetched. Weights of a pruned model are either those of the
    whole network, which decide the channels that stay, or those of what pruning left.
    Raises `UserError` with one line for a model that does not take these images and for weights that do not fit it.
    """
    import torch

    from pipeline.models import PRUNED, build, parse_name, prune_as

    name = parse_name(part.model)
    where = where or f"{type(part).__name__.lower()}.weights"

    def made(model: str) -> nn.Module:
        torch.manual_seed(seed)
        return build(
            model,
            num_classes=data.answer_shape[0],
            in_channels=data.input_size[0],
            input_size=data.input_size,
            answer_shape=data.answer_shape,
        )

    if not part.weights:
        return made(part.model)
    if name.source != PRUNED:
        return _with_weights(made(part.model), part, where, head, download)
    smaller = made(part.model)
    if _fits(smaller, part.weights, where):
        return _with_weights(smaller, part, where, head, download)
    whole = _with_weights(made(str(name.unpruned)), part, where, head, download)
    return prune_as(name, whole, input_size=data.input_size)


def _with_weights(
    module: nn.Module, part: Teacher | Student, where: str, head: Literal["strict", "skip"], download: bool
) -> nn.Module:
    from pipeline.models import is_named
    from pipeline.models.weights import load_weights

    if is_named(part.weights):
        from pipeline.models.named_weights import load_named_weights

        which = part.weights.partition(":")[2]
        load_named_weights(module, part.model, which, download=download, where=where)
    else:
        load_weights(module, Path(part.weights), where=where, head=head)
    return module


def _fits(module: nn.Module, weights: str, where: str) -> bool:
    """Whether a file's parameters have the module's names and shapes."""
    from pipeline.models import is_named
    from pipeline.models.weights import known_names, read_state

    if is_named(weights):
        return False
    held = known_names(read_state(Path(weights), where=where), module)
    return all(name in held and held[name].shape == own.shape for name, own in module.named_parameters())


def save_network(
    path: Path,
    module: nn.Module,
    part: Teacher | Student,
    data: Prepared,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Write the trained network as a checkpoint; mean and std are its own, one value a channel, on 0 to 1."""
    from pipeline.models.checkpoint import ModelMeta, save_checkpoint

    meta = ModelMeta(
        model=part.model,
        num_classes=data.answer_shape[0],
        class_names=data.class_names,
        input_size=data.input_size,
        mean=mean,
        std=std,
        output_shape=data.answer_shape if len(data.answer_shape) > 1 else (),
    )
    save_checkpoint(path, module, meta)
