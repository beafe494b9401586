"""Perceptual loss: Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution"
(arXiv 1603.08155), in the form of ESRGAN (arXiv 1809.00219): VGG-19 features before the activation, mean absolute.

    PERC = mean over all elements of |VGG(s) - VGG(y)|

Conventions: pictures on the scale 0 to 1 are normalised as VGG was trained (ImageNet's mean and standard deviation);
`layer` counts as torchvision's `vgg19().features` does (34: conv5_4, ESRGAN's; 7: conv2_2). VGG's weights are no part
of this project: `weights` is a file with torchvision's names, `features.0.weight` and so on; of it only the layers up
to `layer` are read, once for a process.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import UserError
from pipeline.losses.numerics import same_pictures, widen

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)  # 0: pooling
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHERE = "distill.losses: loss 'perceptual': weights"


def perceptual(
    student_logits: torch.Tensor, target: torch.Tensor, *, weights: str = "", layer: int = 34
) -> torch.Tensor:
    """Scalar loss of RGB pictures (B, 3, H, W) against targets of the same shape; float32 or wider.

    Raises `UserError`, one line: no weights named, no such file, a file without VGG-19's layers, pictures that are gray
    or too small.
    """
    same_pictures("perceptual", student_logits, target, "target")
    if student_logits.shape[1] != len(MEAN):
        raise UserError(f"perceptual: pictures have {student_logits.shape[1]} channels; VGG takes 3 (RGB)")
    network = vgg(weights, layer, str(student_logits.device))
    mean, std = (torch.tensor(v, device=student_logits.device)[:, None, None] for v in (MEAN, STD))
    # The networks work in half precision under autocast; features of 512 channels do not bear it.
    with torch.autocast(student_logits.device.type, enabled=False):
        with torch.no_grad():
            wanted = network((target.float() - mean) / std)
        if not wanted.numel():
            raise UserError(f"perceptual: pictures of {tuple(target.shape[2:])} leave nothing at layer {layer}")
        return F.l1_loss(network((widen(student_logits).float() - mean) / std), wanted)


@functools.lru_cache(maxsize=2)
def vgg(weights: str, layer: int, device: str) -> nn.Module:
    """VGG-19 up to and with `layer`, frozen, with the weights of the file. Raises as `perceptual` does."""
    from pipeline.models.weights import load_state, read_state

    if not weights:
        raise UserError(f"{WHERE} is missing; give a file with VGG-19's weights, as torchvision saves them")
    module = nn.Module()
    module.features = features(layer)
    state = read_state(weights, where=WHERE)
    wanted = {name: tensor for name, tensor in state.items() if name in module.state_dict()}
    load_state(module, wanted, place=f"{WHERE}: {weights}")
    return module.features.eval().requires_grad_(False).to(device)


def features(layer: int) -> nn.Sequential:
    """The layers 0 to `layer` of torchvision's `vgg19().features`: convolution, ReLU, pooling."""
    layers: list[nn.Module] = []
    channels = len(MEAN)
    for width in WIDTHS:
        layers += [nn.MaxPool2d(2)] if not width else [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width or channels
    return nn.Sequential(*layers[: layer + 1])
