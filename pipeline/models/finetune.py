"""Fine-tuning a network that has learnt something already: which parameters are its head, and which stand still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pipeline.errors import UserError, nearest


def head_parameters(module: nn.Module) -> list[str]:
    """Names of the classifier's parameters: of the linear layer or 1x1 convolution that was registered last.

    Empty for a network that has none.
    """
    layers = [
        path
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1))
    ]
    if not layers:
        return []
    return [
        ".".join(filter(None, (layers[-1], name))) for name, _ in module.get_submodule(layers[-1]).named_parameters()
    ]


def freeze(module: nn.Module, paths: Sequence[str], *, where: str = "freeze") -> list[str]:
    """Take the parameters below each module path (`layer1`, `features.0`) out of training; -> their names.

    Frozen batch norms have to be held after each `module.train()`: see `hold_frozen`.
    where: the recipe's key, which begins every message. Raises `UserError` with one line, and freezes nothing, for a
    path that is no module or parameter, and when nothing would be left to train.
    """
    parameters = dict(module.named_parameters())
    known = [*(path for path, _ in module.named_modules() if path), *parameters]
    for path in paths:
        if path not in known:
            close = nearest(path, known)
            if close.startswith("; known"):  # hundreds are too many for a line
                close = f"; it begins with {', '.join(name for name, _ in module.named_children())}"
            raise UserError(f"{where}: the network has no {path!r}{close}")
    frozen = [name for name in parameters if any(name == path or name.startswith(f"{path}.") for path in paths)]
    if frozen and all(name in frozen or not parameter.requires_grad for name, parameter in parameters.items()):
        raise UserError(f"{where}: {', '.join(paths)} leave nothing to train; freeze fewer")
    for name in frozen:
        parameters[name].requires_grad = False
    return frozen


def hold_frozen(module: nn.Module) -> None:
    """Keep frozen batch norms in eval mode, so that their statistics stand still too; call it after `module.train()`.

    A batch norm is frozen when all its parameters are; one without parameters goes with the module around it.
    """
    for parent in module.modules():
        for part in parent.children():
            if isinstance(part, nn.modules.batchnorm._NormBase) and _stands_still(part, parent):
                part.eval()
    if isinstance(module, nn.modules.batchnorm._NormBase) and _stands_still(module, module):
        module.eval()


def _stands_still(part: Any, parent: nn.Module) -> bool:
    parameters = list(part.parameters()) or list(parent.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
