"""What may stand after `?` in the name of a family, with its default; a test holds it equal to the signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import RecipeError, nearest

if TYPE_CHECKING:
    from pipeline.models import ModelName

LARGEST_WIDTH = 16
SCENE_BLOCKS = (4, 6, 8, 10, 12)
SCALES = (2, 3, 4, 8)
# segmentation-models-pytorch's networks that answer with a picture of the input's size.
SMP = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus")
SMP_OPTIONS = ("encoder", "encoder_weights", "depth")
DEPTHS = (3, 4, 5)
CHECKPOINTS = (".safetensors", ".pt", ".pth", ".th")
MOST_BLOCKS = 64
MOST_CHANNELS = 1024

_WIDE: dict[str, Any] = {"width": 1.0}
_NARROW: dict[str, Any] = {"width": 1.0, "shortcut": "B"}
OPTIONS: dict[str, dict[str, Any]] = {
    "attention-sr": {"channels": 24, "blocks": 12, "scale": 4},
    "cifar-resnet18": _WIDE,
    "cifar-resnet20": _NARROW,
    "cifar-resnet32": _NARROW,
    "cifar-resnet34": _WIDE,
    "cifar-resnet44": _NARROW,
    "cifar-resnet56": _NARROW,
    "cifar-resnet101": _WIDE,
    "densenet121-cifar": _WIDE,
    "mlperf-resnet8": {},
    "mobilenetv2-cifar": _WIDE,
    "mobilenetv3-small-cifar": {},
    "rfdn": {"channels": 50, "scale": 4, "levels": 255.0},
    "scene-cnn": {"blocks": 12},
    "swinir-classical": {"scale": 4},
    "swinir-light": {"scale": 4},
    "vgg11-bn-cifar": _WIDE,
    "vgg13-bn-cifar": _WIDE,
    "vgg16-cifar": _WIDE,
    "vgg19-bn-cifar": _WIDE,
}

Rule = tuple[Callable[[Any], bool], str]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(*values: int) -> Rule:
    def inside(value: Any) -> bool:
        return _number(value) and value in values

    return inside, f"expected one of {', '.join(map(str, values))}"


def _whole(most: int) -> Rule:
    def inside(value: Any) -> bool:
        return isinstance(value, int) and _number(value) and 1 <= value <= most

    return inside, f"expected a whole number from 1 to {most}"


# By option, or by FAMILY.OPTION where a family is stricter. Comparisons with NaN are false, so NaN is refused.
RULES: dict[str, Rule] = {
    "blocks": _whole(MOST_BLOCKS),
    "channels": _whole(MOST_CHANNELS),
    "levels": (lambda value: _number(value) and 0 < value < float("inf"), "expected a positive number"),
    "scale": _one_of(*SCALES),
    "scene-cnn.blocks": _one_of(*SCENE_BLOCKS),
    "shortcut": (lambda value: value in ("A", "B"), "write A (padded) or B (1x1 convolution)"),
    "width": (
        lambda value: _number(value) and 0 < value <= LARGEST_WIDTH,
        f"expected a number in (0, {LARGEST_WIDTH}]",
    ),
}


def check_options(name: ModelName) -> None:
    """Refuse an option that the family has not, or a value out of its range. Raises `RecipeError` with one line."""
    options = OPTIONS[name.family]
    for key, value in name.args.items():
        if key not in options:
            takes = nearest(key, list(options)) if options else "; it takes none"
            raise RecipeError(f"model {name.family!r} has no option {key!r}{takes}")
        inside, expected = RULES.get(f"{name.family}.{key}") or RULES[key]
        if not inside(value):
            raise RecipeError(f"model {name.family!r}: {key} = {value!r}; {expected}")


def check_spandrel(name: ModelName) -> None:
    """Refuse a `spandrel:FILE` that names no kind of file that is read; whether it is there, building says."""
    file = name.family.partition(":")[2]
    if not file.endswith(CHECKPOINTS):
        raise RecipeError(f"model {str(name)!r}: write a checkpoint after 'spandrel:', a {', '.join(CHECKPOINTS)} file")
    if name.args:
        raise RecipeError(f"model {name.family!r} has no option {next(iter(name.args))!r}; its checkpoint says all")


def check_smp(name: ModelName) -> None:
    """Refuse an `smp:NETWORK?encoder=NAME` that cannot be; whether there is such an encoder, building says."""
    network = name.family.partition(":")[2]
    if network not in SMP:
        raise RecipeError(f"segmentation-models-pytorch: no network {network!r}{nearest(network, list(SMP))}")
    for key in name.args:
        if key not in SMP_OPTIONS:
            raise RecipeError(f"model {name.family!r} has no option {key!r}{nearest(key, SMP_OPTIONS)}")
    if not isinstance(name.args.get("encoder"), str):
        raise RecipeError(f"model {str(name)!r}: encoder is missing; write one such as {name.family}?encoder=resnet34")
    if name.args.get("depth", 5) not in DEPTHS:
        raise RecipeError(f"model {str(name)!r}: depth, how often the encoder halves its input, must be 3, 4 or 5")
