"""Networks of segmentation-models-pytorch (MIT) by name: `smp:Unet?encoder=resnet34`, one output channel a picture.

Ronneberger, Fischer, Brox, "U-Net", 2015 (arXiv 1505.04597), with an encoder of an image classifier. Parameters for one
output channel: 24,436,369 with ResNet-34, 6,628,945 with MobileNetV2. Nothing is downloaded: an encoder starts at
random, or from a file of the classifier's weights (`&encoder_weights=FILE`, such as torchvision's resnet34-*.pth).
`&depth=3` leaves the coarsest stages of encoder and decoder out (5, all of them, is the default).
"""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.errors import UserError, nearest
from pipeline.models.options import check_smp

if TYPE_CHECKING:
    from pipeline.models import ModelName

INSTALL = "pip install 'edgestill[dense]'"
HEADS = ("fc.", "classifier.", "head.", "last_linear.")  # of the classifiers whose weights make an encoder


def build_smp(name: ModelName, *, num_classes: int | None, in_channels: int) -> nn.Module:
    """`smp:Unet?encoder=resnet34`; the head gives `num_classes` channels (None: 1), raw, of the input's size.

    Raises `RecipeError` for an unknown network or option, `UserError` when the package is missing, has no such encoder,
    or the encoder's weights do not fit.
    """
    check_smp(name)
    smp = package(name)
    encoder = str(name.args["encoder"])
    known = smp.encoders.get_encoder_names()
    # timm's encoders are named `tu-...`; smp would look them up, and so is what the message says.
    if encoder not in known and not encoder.startswith("tu-"):
        raise UserError(f"model {str(name)!r}: no encoder {encoder!r}{nearest(encoder, known)}")
    network = getattr(smp, name.family.partition(":")[2])
    shallow = shallower(network, int(name.args["depth"])) if "depth" in name.args else {}
    try:
        module = network(
            encoder_name=encoder, encoder_weights=None, in_channels=in_channels, classes=num_classes or 1, **shallow
        )
    except (TypeError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"model {str(name)!r} cannot be built: {reason}") from error
    weights = name.args.get("encoder_weights")
    if weights is not None:
        load_encoder(module, Path(str(weights)), where=f"model {str(name)!r}: encoder_weights")
    if shallow:
        drop_unused(module, torch.zeros(1, in_channels, 64, 64))
    return module


def shallower(network: Any, depth: int) -> dict[str, Any]:
    """The arguments of a network of the package with so many stages: of its decoder the finest stay."""
    channels = inspect.signature(network).parameters.get("decoder_channels")
    decoder = (
        {"decoder_channels": channels.default[-depth:]} if channels and isinstance(channels.default, tuple) else {}
    )
    return {"encoder_depth": depth, **decoder}


def drop_unused(module: nn.Module, inputs: torch.Tensor) -> None:
    """Take out the layers that these inputs never reach: the package's shallow encoders keep what they leave out."""
    called = set[nn.Module]()
    leaves = [(path, layer) for path, layer in module.named_modules() if path and not any(layer.children())]
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for _, layer in leaves]
    with torch.no_grad():
        module.eval()(inputs)
    module.train()
    for hook in hooks:
        hook.remove()
    for path, layer in leaves:
        if layer not in called:
            parent, _, child = path.rpartition(".")
            setattr(module.get_submodule(parent), child, nn.Identity())


def package(name: ModelName) -> Any:
    """The package itself. Raises `UserError` with the install line where it is missing."""
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        raise UserError(f"{name.family}: segmentation-models-pytorch is not installed; {INSTALL}")
    import segmentation_models_pytorch

    return segmentation_models_pytorch


def load_encoder(module: Any, path: Path, *, where: str) -> None:
    """Copy a classifier's weights into the encoder; its head is left out, all else has to fit. Raises `UserError`."""
    from pipeline.models.weights import load_state, read_state

    own = module.encoder.state_dict().keys()
    state = read_state(path, where=where)
    kept = {key: tensor for key, tensor in state.items() if key in own or not key.startswith(HEADS)}
    load_state(module.encoder, kept, place=f"{where}: {path}")
