"""Weights from a file into a module, strictly and without running any code that the file may hold.

`.safetensors`, or PyTorch's `.pt`, `.pth` and `.th` read with `weights_only=True`. Usual wrappings are taken off: a
dict around the weights (`state_dict`, `model`, ...) and prefixes of parallel and compiled modules. Every other
difference is an error.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipeline.errors import UserError

PICKLED = (".pt", ".pth", ".th")
SAFE = ".safetensors"
# In this order: a checkpoint that holds both takes its plain weights, not their moving average.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params", "weights", "model_ema", "params_ema", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.")
SHOWN = 5
COUNTER = "num_batches_tracked"
AUXILIARY = re.compile(r"^(aux1|aux2|AuxLogits)\.")  # training-only heads of GoogLeNet and Inception v3


def load_weights(
    module: nn.Module, path: Path | str, *, where: str, head: Literal["strict", "skip"] = "strict"
) -> tuple[str, ...]:
    """Copy the weights in the file at `path` into `module`, all of them or none; -> parameters left as they were.

    where: the recipe's key, which begins every message. Batch norm's counters (`num_batches_tracked`) may be missing.
    head: `skip` leaves the classifier's parameters, its last layer, as they are when the file has another number of
    classes; everything else, and with `strict` that too, has to fit.
    Raises `UserError` with one line: no such file, unreadable, holds code, names or shapes that differ (listed),
    another number of classes, values that are not finite.
    """
    return load_state(module, read_state(path, where=where), place=f"{where}: {path}", head=head)


def load_state(
    module: nn.Module, state: Mapping[str, torch.Tensor], *, place: str, head: Literal["strict", "skip"] = "strict"
) -> tuple[str, ...]:
    """`load_weights` for a state dict in memory; `place` begins every message. Raises as `load_weights`."""
    state = known_names(state, module)
    expected = module.state_dict()
    skipped = _other_classes(module, state, expected) if head == "skip" else ()
    expected = {name: tensor for name, tensor in expected.items() if name not in skipped}
    state = {name: tensor for name, tensor in state.items() if name not in skipped}
    _compare(state, expected, place)
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{place}: NaN or infinite values in {_list(broken)}; save the weights again from a sound run")
    module.load_state_dict(state, strict=False)
    return skipped


def _other_classes(
    module: nn.Module, state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> tuple[str, ...]:
    """The classifier's parameters when they differ from the file's in nothing but the number of classes."""
    from pipeline.models.finetune import head_parameters

    names = tuple(name for name in head_parameters(module) if name in expected)
    pairs = [(state[name].shape, expected[name].shape) for name in names if name in state]
    if len(pairs) < len(names) or any(got[1:] != want[1:] or not got for got, want in pairs):
        return ()
    return names if any(got != want for got, want in pairs) else ()


def read_state(path: Path | str, *, where: str) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, on the CPU, by the names that the file gives them. Raises as `load_weights`."""
    path = Path(path)
    place = f"{where}: {path}"
    if not path.exists():
        raise UserError(f"{where}: no file {str(path)!r}; give a {SAFE}, .pt, .pth or .th file")
    if not path.is_file():
        raise UserError(f"{place}: not a file; give a {SAFE}, .pt, .pth or .th file")
    if path.suffix not in (SAFE, *PICKLED):
        raise UserError(f"{place}: {path.suffix or 'no suffix'!r} is unknown; expected {SAFE}, .pt, .pth or .th")
    if path.stat().st_size == 0:
        raise UserError(f"{place}: the file is empty; copy or download it again")
    held = _read_safetensors(path, place) if path.suffix == SAFE else _read_pickled(path, place)
    return _unwrap(held, place)


def _read_safetensors(path: Path, place: str) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{place}: corrupted or truncated ({_first_line(error)}); copy or download it again") from error


def _read_pickled(path: Path, place: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of TorchScript archives, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged pickles raise nearly anything; which error it is, is a matter of where the damage lies.
        text = str(error)
        code = re.search(r"(?:GLOBAL|Unsupported class) ([A-Za-z_][\w.]*\w)", text)
        if isinstance(error, pickle.UnpicklingError) and code:
            raise UserError(
                f"{place}: holds code or objects ({code[1]}), which could run anything; refused; "
                "re-save its state_dict with safetensors"
            ) from error
        if "TorchScript" in text:
            raise UserError(
                f"{place}: a TorchScript program, not weights; refused; save its state_dict with safetensors"
            ) from error
        raise UserError(
            f"{place}: corrupted, truncated or not a PyTorch file ({_first_line(error)}); copy or download it again"
        ) from error


def _unwrap(held: Any, place: str) -> dict[str, torch.Tensor]:
    for _ in range(3):
        if not isinstance(held, Mapping):
            raise UserError(f"{place}: holds a {type(held).__name__}; expected a state_dict (names to tensors)")
        if any(isinstance(value, torch.Tensor) and value.ndim > 0 for value in held.values()):
            break
        inner = next((held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)), None)
        if inner is None:
            raise UserError(f"{place}: no weights found; it holds {_list(map(str, held)) or 'nothing'}")
        held = inner
    others = [str(name) for name, value in held.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(f"{place}: {_list(others)} is no tensor; save the state_dict alone")
    return {str(name): value for name, value in held.items()}


def known_names(state: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors by the module's own names: prefixes taken off, training-only heads left out, other names translated.

    A module's class may have `OTHER_NAMES`: parts of names in other public implementations -> its own.
    """
    own = module.state_dict().keys()
    others: Mapping[str, str] = getattr(module, "OTHER_NAMES", {})
    found = {}
    for name, tensor in strip_prefixes(state, module).items():
        ours = ".".join(others.get(part, part) for part in name.split("."))
        if name not in own and ours in own:
            found[ours] = tensor
        elif name in own or not AUXILIARY.match(name):
            found[name] = tensor
    return found


def strip_prefixes(state: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """Names without `module.`, `_orig_mod.` and `model.` where every name has it and the module's own have not."""
    names = module.state_dict().keys()
    stripped = {name: tensor for name, tensor in state.items() if name != "n_averaged"}  # AveragedModel's counter
    found = True
    while found and stripped:
        found = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in stripped) and not all(name.startswith(prefix) for name in names):
                stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
                found = True
    return stripped


def _compare(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], place: str) -> None:
    expected = {name: tensor for name, tensor in expected.items() if name in state or not name.endswith(COUNTER)}
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    reshaped = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if not missing and not unexpected:
        if not reshaped:
            return
        _compare_ends(state, expected, reshaped, place)
    fit = len(expected.keys() & state.keys()) - len(reshaped)
    parts = [
        f"missing {_list(missing)}" if missing else "",
        f"unexpected {_list(unexpected)}" if unexpected else "",
        "of another shape " + _list(f"{name} {_shapes(state[name], expected[name])}" for name in reshaped)
        if reshaped
        else "",
    ]
    listed = "; ".join(part for part in parts if part)
    verdict = "weights of another architecture" if fit < len(expected) / 2 else "weights do not fit"
    raise UserError(
        f"{place}: {verdict}: {fit} of {len(expected)} tensors fit; {listed}; check the model's name and its ?options"
    )


def _compare_ends(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], reshaped: list[str], place: str
) -> None:
    """Say so when the only difference is the number of classes, or of input channels."""
    got = [state[name].shape for name in reshaped]
    want = [expected[name].shape for name in reshaped]
    same_rank = all(len(a) == len(b) > 0 for a, b in zip(got, want, strict=True))
    layer = reshaped[-1].rpartition(".")[0]
    classes = {(a[0], b[0]) for a, b in zip(got, want, strict=True)} if same_rank else set()
    if len(classes) == 1 and all(a[1:] == b[1:] for a, b in zip(got, want, strict=True)):
        had, has = classes.pop()
        raise UserError(
            f"{place}: head {layer!r} has {had} classes, data has {has}; give weights trained on these {has} classes"
        )
    if len(reshaped) == 1 and same_rank and len(got[0]) == 4 and got[0][:1] + got[0][2:] == want[0][:1] + want[0][2:]:
        raise UserError(
            f"{place}: first layer {layer!r} takes {got[0][1]} channels, data has {want[0][1]}; "
            "give weights trained on such images"
        )


def _shapes(got: torch.Tensor, want: torch.Tensor) -> str:
    return f"(got {list(got.shape)}, expected {list(want.shape)})"


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _first_line(error: BaseException) -> str:
    # What torch says of weights_only comes before the reason.
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return text.partition("\n")[0][:160].rstrip(".") or type(error).__name__
