"""ImageNet weights that torchvision publishes, by name: `weights = "torchvision:DEFAULT"`.

They are read from the cache of torch's hub (`TORCH_HOME`, else ~/.cache/torch), and fetched into it when that is
allowed. The classifier stays random unless the data has as many classes as the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models import TORCHVISION, parse_name
from pipeline.models.torchvision_names import cached_weights, check_weights, weights_url
from pipeline.models.weights import known_names, load_state, read_state

# torch no longer allows the dots that DenseNet's published names have.
_OLD_DENSE = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")


def load_named_weights(
    module: nn.Module, model: str, which: str = "DEFAULT", *, download: bool = False, where: str = "weights"
) -> tuple[str, ...]:
    """Load torchvision's `which` weights of `model` (`torchvision:resnet34`) into `module`; -> parameters left random.

    The classifier's are left when the number of classes differs. A first convolution for gray images gets the sum over
    the colours. where: the recipe's key, which begins every message.
    Raises `RecipeError` for a name that torchvision does not have, `UserError` with one line when the file is not there
    and `download` is false, when fetching fails, and as `load_weights` does.
    """
    name, weights = parse_name(model).unpruned, f"{TORCHVISION}:{which}"
    check_weights(name, weights, where=where, download=download)
    url = weights_url(name, weights)
    path = cached_weights(url)
    if getattr(module, "transform_input", None) is False:
        raise UserError(
            f"{where}: these weights expect inputs that the network rescales; write model "
            f"'{name.family}?transform_input=true'"
        )
    if not path.is_file():
        _fetch(url, where)
    state = {_OLD_DENSE.sub(r"\1\2", key): tensor for key, tensor in read_state(path, where=where).items()}
    return load_state(module, _summed_over_colours(state, module), place=f"{where}: {path}", head="skip")


def _fetch(url: str, where: str) -> None:
    path = cached_weights(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    hash_prefix = re.search(r"-([a-f0-9]{8,})\.", path.name)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix[1] if hash_prefix else None, progress=False)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{where}: cannot fetch {path.name} ({reason}); put it into {path.parent}") from error


def _summed_over_colours(state: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    own = module.state_dict()
    found = known_names(state, module)
    for name, tensor in found.items():
        want = own[name].shape if name in own else tensor.shape
        if tensor.ndim == 4 and want == (tensor.shape[0], 1, *tensor.shape[2:]) and tensor.shape[1] == 3:
            found[name] = tensor.sum(dim=1, keepdim=True)
    return found
