"""torchvision's classifiers by name, with random weights, for any number of classes and for gray images."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.errors import RecipeError, UserError, nearest
from pipeline.models.torchvision_names import OURS, check_torchvision

if TYPE_CHECKING:
    from pipeline.models import ModelName

# Auxiliary heads give tuples in training, which no loss here reads.
ALWAYS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
RGB = 3


def build_torchvision(name: ModelName, *, num_classes: int | None, in_channels: int) -> nn.Module:
    """`torchvision:NAME?key=value`; arguments go to the constructor (such as `image_size=64` of the ViTs).

    The head is built for `num_classes` (None: 1000). For 1 channel the first convolution gets the sum of its weights
    over the channels, so that a gray image gives what the same image in three equal channels would.
    Raises `RecipeError` for an unknown name or argument, `UserError` when torchvision is missing or refuses a value.
    """
    models = torchvision_classifiers(name.family)
    check_torchvision(name)
    builder = models.get_model_builder(name.family.partition(":")[2])
    accepted = _accepted(builder)
    for key in name.args:
        if accepted and key not in accepted:
            raise RecipeError(f"model {name.family!r} has no option {key!r}{nearest(key, accepted)}")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    try:
        module = builder(weights=None, **classes, **ALWAYS.get(builder.__name__, {}) | name.args)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise UserError(f"model {name.family!r} refuses {name.args}: {error}") from error
    if in_channels != RGB:
        replace_first_convolution(module, name.family, in_channels)
    return module


def torchvision_classifiers(family: str) -> Any:
    """The package `torchvision.models`; `family` is the model that needs it. Raises `UserError` where it is missing."""
    try:
        from torchvision import models
    except ImportError as error:
        raise UserError(f"{family}: torchvision is not installed; pip install 'edgestill[train]'") from error
    return models


def _accepted(builder: Any) -> tuple[str, ...]:
    """Plain arguments of the class behind a builder: numbers, switches and texts."""
    returned = inspect.signature(builder).return_annotation
    if not inspect.isclass(returned):
        return ()
    plain = (bool, int, float, str)
    parameters = inspect.signature(returned.__init__).parameters.values()
    return tuple(
        parameter.name
        for parameter in parameters
        if parameter.name not in OURS and (parameter.annotation in plain or isinstance(parameter.default, plain))
    )


def replace_first_convolution(module: nn.Module, family: str, in_channels: int) -> None:
    """Let the first convolution of 3 channels take `in_channels` (1): its weights are summed over the colours.

    Raises `UserError` with one line when there is no such convolution; `family` names the model.
    """
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d) and part.in_channels == RGB and part.groups == 1:
            parent, _, attribute = path.rpartition(".")
            part.weight = nn.Parameter(part.weight.detach().sum(dim=1, keepdim=True))
            part.in_channels = in_channels
            assert getattr(module.get_submodule(parent), attribute) is part
            return
    raise UserError(f"model {family!r} has no convolution of 3 channels to adapt to gray images; take another model")
