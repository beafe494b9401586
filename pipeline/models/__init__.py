"""Models by name. Importing this asks for nothing heavy: each family is imported when it is built.

A name is a family (`cifar-resnet56?shortcut=A`), one of torchvision's classifiers (`torchvision:resnet34`) or a builder
of the user's own (`my_pkg.my_module:build`); `?key=value&key=value` passes arguments to all three. `pruned:` before any
of them, with a share of its multiply-accumulates (`pruned:cifar-resnet56?macs=0.5&shortcut=A`), removes channels.
`spandrel:FILE` is the super-resolution network of a checkpoint, found out from its tensors by spandrel,
`smp:Unet?encoder=resnet34` one of segmentation-models-pytorch.
A new family: one file and one line in `MODELS` (and in `OPTIONS`, so that a recipe is checked without importing torch).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError, UserError, nearest
from pipeline.models.options import OPTIONS as OPTIONS
from pipeline.models.options import check_options, check_smp, check_spandrel
from pipeline.registry import load

if TYPE_CHECKING:
    from torch import nn

MODELS: dict[str, str] = {
    "attention-sr": "pipeline.models.attention_sr:attention_sr",
    "cifar-resnet18": "pipeline.models.cifar_resnet:cifar_resnet18",
    "cifar-resnet20": "pipeline.models.cifar_resnet:cifar_resnet20",
    "cifar-resnet32": "pipeline.models.cifar_resnet:cifar_resnet32",
    "cifar-resnet34": "pipeline.models.cifar_resnet:cifar_resnet34",
    "cifar-resnet44": "pipeline.models.cifar_resnet:cifar_resnet44",
    "cifar-resnet56": "pipeline.models.cifar_resnet:cifar_resnet56",
    "cifar-resnet101": "pipeline.models.cifar_resnet:cifar_resnet101",
    "densenet121-cifar": "pipeline.models.densenet:densenet121_cifar",
    "mlperf-resnet8": "pipeline.models.mlperf_resnet:mlperf_resnet8",
    "mobilenetv2-cifar": "pipeline.models.mobilenet_cifar:mobilenetv2_cifar",
    "mobilenetv3-small-cifar": "pipeline.models.mobilenet_cifar:mobilenetv3_small_cifar",
    "rfdn": "pipeline.models.rfdn:rfdn",
    "scene-cnn": "pipeline.models.scene_cnn:scene_cnn",
    "swinir-classical": "pipeline.models.spandrel_models:swinir_classical",
    "swinir-light": "pipeline.models.spandrel_models:swinir_light",
    "vgg11-bn-cifar": "pipeline.models.vgg:vgg11_bn_cifar",
    "vgg13-bn-cifar": "pipeline.models.vgg:vgg13_bn_cifar",
    "vgg16-cifar": "pipeline.models.vgg:vgg16_cifar",
    "vgg19-bn-cifar": "pipeline.models.vgg:vgg19_bn_cifar",
}

TORCHVISION = "torchvision"
SPANDREL = "spandrel"
SMP = "smp"
PRUNED = "pruned"
PREFIXES = (TORCHVISION, SPANDREL, SMP, PRUNED)
SIDES = {"scene-cnn": 150}  # pixels that a family is made for, where they are not a CIFAR image's 32
CHANNELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """A parsed name: `family` is what stands before `?`, `args` are the typed values after it."""

    family: str
    args: dict[str, bool | int | float | str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """`family` for a row of `MODELS`, one of `PREFIXES`, or `module` for a builder of the user's own."""
        before, colon, _ = self.family.partition(":")
        if not colon:
            return "family"
        return before if before in PREFIXES else "module"

    @property
    def unpruned(self) -> ModelName:
        """The network that a pruned one is made from; any other is itself."""
        if self.source != PRUNED:
            return self
        args = {key: value for key, value in self.args.items() if key != "macs"}
        return ModelName(family=self.family.partition(":")[2], args=args)

    def __str__(self) -> str:
        pairs = [
            f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in self.args.items()
        ]
        return self.family + ("?" + "&".join(pairs) if pairs else "")


def parse_name(text: str) -> ModelName:
    """`cifar-resnet56?shortcut=A&width=0.5` -> family and typed arguments; knows no families.

    `true`/`false` become bool, numbers int or float, the rest stays text. Raises `RecipeError` with one line.
    """
    family, mark, query = text.partition("?")
    if not family:
        raise RecipeError(f"model {text!r} has no name; write one such as 'cifar-resnet20' or 'torchvision:resnet18'")
    args: dict[str, bool | int | float | str] = {}
    for pair in query.split("&") if mark else ():
        key, equals, value = pair.partition("=")
        if not key.isidentifier() or not equals or not value:
            raise RecipeError(f"model {text!r}: {pair!r} after '?' is not of the form key=value, joined by '&'")
        if key in args:
            raise RecipeError(f"model {text!r}: {key!r} is given twice")
        args[key] = _typed(value)
    return ModelName(family=family, args=args)


def _typed(value: str) -> bool | int | float | str:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def check_name(text: str, *, where: str) -> None:
    """Refuse a name that cannot be built, without importing torch, torchvision or the user's module.

    `where` is the recipe's key and begins the message. Raises `RecipeError` (a `ValueError`) with one line.
    """
    try:
        _check(parse_name(text))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _check(name: ModelName) -> None:
    if name.source == PRUNED:
        _check_pruned(name)
        _check(name.unpruned)
    elif name.source == TORCHVISION:
        from pipeline.models.torchvision_names import check_torchvision

        check_torchvision(name)
    elif name.source == SPANDREL:
        check_spandrel(name)
    elif name.source == SMP:
        check_smp(name)
    elif name.source == "module":
        from pipeline.models.user_module import check_target

        check_target(name.family)
    else:
        _check_family(name)


def _check_pruned(name: ModelName) -> None:
    if not name.unpruned.family or name.unpruned.source == PRUNED:
        raise RecipeError(
            f"model {str(name)!r}: write one network after 'pruned:', such as pruned:cifar-resnet56?macs=0.5"
        )
    macs = name.args.get("macs")
    if isinstance(macs, (bool, str)) or macs is None or not 0 < macs < 1:  # also refuses NaN
        raise RecipeError(
            f"model {str(name)!r}: macs = {macs!r}; expected the share of multiply-accumulates to keep, "
            "between 0 and 1, such as macs=0.5"
        )


def _check_family(name: ModelName) -> None:
    if name.family not in MODELS:
        known = [
            *MODELS,
            f"{TORCHVISION}:NAME",
            f"{SPANDREL}:FILE",
            f"{SMP}:Unet?encoder=NAME",
            "my_pkg.my_module:build",
        ]
        raise RecipeError(f"unknown model {name.family!r}{nearest(name.family, known)}")
    check_options(name)


def build(
    text: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    input_size: tuple[int, int, int] | None = None,
    answer_shape: tuple[int, ...] | None = None,
) -> nn.Module:
    """The model of that name, with random weights from torch's global generator, in training mode.

    num_classes: outputs of its head; None keeps the family's own (10 for CIFAR's, 1000 for torchvision's).
    in_channels: 1 or 3; torchvision's first convolution is replaced for 1.
    input_size: (C, H, W); when given, one forward pass shows that the model takes such images and gives
    (N, num_classes) logits, so that a wrong size is found before training. A pruned model needs it: its channels
    follow from its size.
    Raises `RecipeError` with one line for an unknown name or option, `UserError` for a model that does not fit.
    """
    assert num_classes is None or num_classes > 0, num_classes
    if in_channels not in CHANNELS:
        raise UserError(f"model {text!r}: images have {in_channels} channels; expected 1 (gray) or 3 (RGB)")
    name = parse_name(text)
    if name.source == PRUNED:
        _check_pruned(name)
        if input_size is None:
            raise UserError(f"model {text!r}: what pruning leaves depends on the size of images; give input_size")
    module = _build(name.unpruned, num_classes=num_classes, in_channels=in_channels)
    if name.source == PRUNED and input_size is not None:
        module = prune_as(name, module, input_size=input_size)
    if input_size is not None:
        from pipeline.models.forward_check import check_forward

        check_forward(module, text, input_size=input_size, num_classes=num_classes, answer_shape=answer_shape)
    return module


def _build(name: ModelName, *, num_classes: int | None, in_channels: int) -> nn.Module:
    if name.source == TORCHVISION:
        from pipeline.models.torchvision_models import build_torchvision

        return build_torchvision(name, num_classes=num_classes, in_channels=in_channels)
    if name.source == SPANDREL:
        from pipeline.models.spandrel_models import build_spandrel

        return build_spandrel(name, in_channels=in_channels)
    if name.source == SMP:
        from pipeline.models.segmentation_networks import build_smp

        return build_smp(name, num_classes=num_classes, in_channels=in_channels)
    if name.source == "module":
        from pipeline.models.user_module import build_user

        return build_user(name, num_classes=num_classes, in_channels=in_channels)
    _check_family(name)
    classes = {} if num_classes is None else {"num_classes": num_classes}
    return load(MODELS[name.family])(in_channels=in_channels, **classes, **name.args)


def prune_as(name: ModelName, module: nn.Module, *, input_size: tuple[int, int, int]) -> nn.Module:
    """`module`, which is `name.unpruned`, with the channels removed that `name` says, those of least magnitude."""
    from pipeline.models.prune import prune

    return prune(module, macs=float(name.args["macs"]), input_size=input_size, name=f"model {str(name)!r}")


def is_named(weights: str) -> bool:
    """Whether `weights` of a recipe name published ones (`torchvision:DEFAULT`) instead of a file."""
    return weights.startswith(f"{TORCHVISION}:")


def usual_side(text: str) -> int:
    """Pixels on a side of the images that a model is made for: 32 for the families of small images, else 224."""
    name = parse_name(text).unpruned
    return SIDES.get(name.family, 32) if name.source == "family" else 224


def source_stamp(model: str, weights: str = "") -> dict[str, str | None]:
    """What a model depends on outside the recipe: sha256 of the weights file and of the user's module, JSON-able.

    By content, so that a copied or touched file trains nothing again. None for a file that is not there: the stage
    that needs it then says so. Published weights (`torchvision:DEFAULT`) are stamped by the name of their file, which
    holds the start of its sha256. Of the user's code only the named file is looked at, not what it imports.
    """
    stamp: dict[str, str | None] = {}
    name = parse_name(model).unpruned
    if is_named(weights):
        from pipeline.models.torchvision_names import weights_url

        stamp["weights"] = weights_url(name, weights).rpartition("/")[2]
    elif weights:
        stamp["weights"] = file_stamp(Path(weights))
    if name.source == SPANDREL:
        stamp["checkpoint"] = file_stamp(Path(name.family.partition(":")[2]))
    if name.source == SMP and "encoder_weights" in name.args:
        stamp["encoder_weights"] = file_stamp(Path(str(name.args["encoder_weights"])))
    if name.source == "module":
        from pipeline.models.user_module import find_source

        source = find_source(name.family.partition(":")[0])
        stamp["module"] = file_stamp(source) if source else None
    return stamp


def file_stamp(path: Path | str) -> str | None:
    """sha256 of a file's bytes; None where there is none."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
