"""Super-resolution networks of spandrel (MIT): SwinIR by name, and any checkpoint whose architecture it recognises.

SwinIR: Liang, Cao, Sun, Zhang, Van Gool, Timofte, "SwinIR: Image Restoration Using Swin Transformer", 2021
(arXiv 2108.10257): 11,900,199 parameters (classical, x4) and 929,628 (lightweight, x4). Checkpoints of the official
repository load strictly.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.models import ModelName

WINDOW = 8
PATCH = 64  # the side that SwinIR's attention masks are made for; other sides get masks of their own


def swinir_classical(num_classes: int = 3, in_channels: int = 3, *, scale: int = 4) -> nn.Module:
    """SwinIR-M of the classical task: six groups of six layers, 180 channels."""
    return _swinir("swinir-classical", num_classes, in_channels, scale, groups=6, width=180, upsampler="pixelshuffle")


def swinir_light(num_classes: int = 3, in_channels: int = 3, *, scale: int = 4) -> nn.Module:
    """SwinIR-S, the lightweight one: four groups of six layers, 60 channels, one convolution before the shuffle."""
    return _swinir("swinir-light", num_classes, in_channels, scale, groups=4, width=60, upsampler="pixelshuffledirect")


def _swinir(
    name: str, num_classes: int, in_channels: int, scale: int, *, groups: int, width: int, upsampler: str
) -> nn.Module:
    if num_classes != in_channels:
        raise UserError(f"model {name!r} gives as many channels as it takes; got {in_channels} in, {num_classes} out")
    _spandrel(name)
    with quiet():
        from spandrel.architectures.SwinIR import SwinIR

        return SwinIR(
            img_size=PATCH,
            window_size=WINDOW,
            in_chans=in_channels,
            upscale=scale,
            depths=[6] * groups,
            num_heads=[6] * groups,
            embed_dim=width,
            mlp_ratio=2,
            upsampler=upsampler,
            resi_connection="1conv",
        )


def build_spandrel(name: ModelName, *, in_channels: int) -> nn.Module:
    """`spandrel:FILE`: the network that the checkpoint's tensors belong to, with the checkpoint's weights in it.

    The file is read as every file of weights is (`models.weights`): no code in it is run. Raises `UserError` with one
    line: spandrel is missing, the file cannot be read, its architecture is unknown or of another number of channels.
    """
    from pipeline.models.weights import read_state

    file = name.family.partition(":")[2]
    where = f"model {name.family!r}"
    spandrel = _spandrel(name.family)
    state = read_state(file, where=where)
    with quiet():
        try:
            found = spandrel.ModelLoader().load_from_state_dict(spandrel.canonicalize_state_dict(state))
        except spandrel.UnsupportedModelError as error:
            raise UserError(
                f"{where}: spandrel {spandrel.__version__} knows no network with these weights; give a checkpoint of "
                "one that it lists, or a builder of your own (my_pkg.my_module:build)"
            ) from error
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(f"{where}: {str(error).partition(chr(10))[0][:160]}; is the file complete?") from error
    if not isinstance(found, spandrel.ImageModelDescriptor):
        raise UserError(f"{where}: {found.architecture.name} takes more than one image; give a plain network")
    if found.input_channels != in_channels:
        raise UserError(f"{where}: takes {found.input_channels} channels; images have {in_channels}")
    module: nn.Module = found.model
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return module.train()


def _spandrel(name: str) -> Any:
    try:
        import spandrel
    except ImportError as error:
        raise UserError(
            f"model {name!r}: spandrel is not installed; pip install 'edgestill[super-resolution]'"
        ) from error
    return spandrel


@contextmanager
def quiet() -> Iterator[None]:
    """torch warns of `meshgrid` in spandrel's constructors; nothing here can mend it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
        yield
