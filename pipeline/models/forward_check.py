"""One forward pass before any work: does the model take these images and give what is asked of it?"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.errors import UserError


def check_forward(
    module: nn.Module,
    name: str,
    *,
    input_size: tuple[int, int, int],
    num_classes: int | None = None,
    answer_shape: tuple[int, ...] | None = None,
) -> None:
    """Raise `UserError`, one line, unless `module` maps (2, C, H, W) float32 to logits (2, num_classes), or to pictures
    (2, *answer_shape) where that has a height and a width.

    Runs in eval mode without gradients and leaves the module's mode and torch's generator as they were.
    """
    images = torch.zeros(2, *input_size)
    parameter = next(module.parameters(), None)
    if parameter is not None:
        images = images.to(parameter.device)
    modes = {part: part.training for part in module.modules()}
    size = "x".join(str(side) for side in input_size)
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = module(images)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0].strip()[:160] or type(error).__name__
        raise UserError(
            f"model {name!r} does not take images of {size} ({reason}); set data.image_size or take another model"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    if answer_shape is not None and len(answer_shape) > 1:
        _check_picture(logits, name, size, answer_shape)
        return
    if not isinstance(logits, torch.Tensor):
        raise UserError(f"model {name!r} returns a {type(logits).__name__}; expected one tensor of logits (N, classes)")
    classes = num_classes if num_classes is not None else logits.shape[-1]
    if logits.shape != (2, classes):
        raise UserError(
            f"model {name!r} returns shape {tuple(logits.shape)} for 2 images; expected (2, {classes}): logits"
        )


def _check_picture(answer: object, name: str, size: str, shape: tuple[int, ...]) -> None:
    got = tuple(answer.shape[1:]) if isinstance(answer, torch.Tensor) else type(answer).__name__
    if got != shape:
        raise UserError(
            f"model {name!r} answers an image of {size} with {got}; expected a picture {shape} (channels, height, "
            "width), as the targets of the data are; look at the model's scale and at data.patch"
        )
