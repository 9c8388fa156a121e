"""What cannot be meant, said in one line with the remedy: models, optimizers, settings, predictions and calls."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from itertools import chain, pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

# ---- settings --------------------------------------------------------------------------------------------------------


def check_callable(key: str, function: Any, *arguments: str) -> None:
    """Raise TypeError if `function`, given as `key`, is not None and cannot be called with as many arguments."""
    if function is None:
        return
    form = f"{key}=function({', '.join(arguments)})"
    if isinstance(function, nn.Module) or not callable(function):
        raise TypeError(f"{key} is an object of type {type(function).__name__}; it must be a function: {form}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # of builtins it is not known
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{key} does not take the arguments it gets ({error}); write {form}") from None


def check_storage(device: torch.device | str | None, *dtypes: Any) -> torch.device | None:
    """The device of snapshots.

    Raises:
        TypeError: a dtype is none of floating point.
        ValueError: there is no such device here.
    """
    for dtype in dtypes:
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(
                f"snapshots cannot be stored as {dtype}; use torch.float32, torch.bfloat16 or torch.float16"
            )
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={device} cannot be used here: {str(error).splitlines()[0]}") from None


def check_state(state: Any, keys: set[str], identity: dict[str, Any]) -> None:
    """Raise ValueError if `state` is not what a Leap's `state_dict` gives: `keys`, and this `identity`."""
    missing = (keys | identity.keys()) - set(state)
    if missing:
        raise ValueError(f"this is not the state_dict() of a Leap: it has no {', '.join(sorted(missing))}")
    for key, own in identity.items():
        if state[key] != own:
            theirs = state[key]
            if isinstance(own, list):  # what differs first
                theirs, own = next((a, b) for a, b in zip_longest(theirs, own) if a != b)
            raise ValueError(
                f"the state is of a Leap with {key}={theirs}, this one has {own}: make it for the same model, with the "
                "same settings"
            )


# ---- model and optimizer ---------------------------------------------------------------------------------------------


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters with their names, tied ones once, in registration order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def check_training(model: Any, optimizer: Any) -> None:
    """Raise TypeError, ValueError or RuntimeError if a Leap cannot take part in this training."""
    check_mode()
    check_model(model)
    pairs = trainable(model)
    check_parameters(model, pairs)
    if (dtype := pairs[0][1].dtype) != torch.float32:
        raise ValueError(
            f"the weights are {dtype}, predictions are float32: keep the model in float32 (model.float()) and train it "
            "under torch.autocast"
        )
    check_optimizer(optimizer, pairs)


def check_model(model: Any) -> None:
    """Raise TypeError if `model` is not a network whose weights can be exchanged for the length of a call."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the first argument must be the model, a torch.nn.Module, not a {type(model).__name__}")
    kind = type(model).__name__
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(
            f"the model is wrapped in {kind}; give the network inside, Leap(model.module, ...), and every process the "
            "same held-out data, so that all of them decide alike"
        )
    if kind == "FullyShardedDataParallel":
        raise TypeError(
            f"{kind} spreads the weights over processes; Leap needs them whole, as DistributedDataParallel has"
        )
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError("torch.jit fixes the weights of a module; give the model as it was before torch.jit")


def check_parameters(model: nn.Module, trainable: list[tuple[str, nn.Parameter]]) -> None:
    """Raise ValueError if these parameters of `model` cannot be moved into one vector without changing the model."""
    if not trainable:
        raise ValueError("the model has no trainable parameter; call requires_grad_(True) on what is to be trained")
    for name, p in trainable:
        if isinstance(p, UninitializedParameter):
            raise ValueError(f"{name} has no shape yet; call the model once, so that its lazy modules are made")
        if type(p.data) is not Tensor or p.layout != torch.strided:
            kind = p.layout if type(p.data) is Tensor else type(p.data).__name__
            raise ValueError(
                f"{name} is a {kind}; only plain dense tensors, neither sharded nor quantized, can be one vector"
            )
        if p.is_meta:
            raise ValueError(f"{name} is on the meta device, without values; load the weights first")
    kinds = {(p.dtype, p.device) for _, p in trainable}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(
            f"all trainable parameters must share one dtype and device, found {found}; convert them by model.to(...) "
            "before the optimizer is made"
        )
    _check_memory(model, {name for name, _ in trainable})


def _check_memory(model: nn.Module, trainable: set[str]) -> None:
    """Raise ValueError if a trainable parameter shares memory with another tensor: they would be torn apart."""
    spans = []
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            continue
        if type(tensor.data) is Tensor and tensor.layout == torch.strided and tensor.numel() and not tensor.is_meta:
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            spans.append((str(tensor.device), start, start + (last + 1) * tensor.element_size(), name))
    for (device, _, stop, name), (next_device, start, _, next_name) in pairwise(sorted(spans)):
        if device == next_device and start < stop and {name, next_name} & trainable:
            raise ValueError(
                f"{name} and {next_name} share memory but are not one Parameter; tie them by assigning the Parameter "
                "itself (b.weight = a.weight), or give each its own memory (clone())"
            )


def check_optimizer(optimizer: Any, trainable: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raise TypeError if it is no optimizer, ValueError if it lacks some of these parameters."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"the second argument must be the optimizer, a torch.optim.Optimizer, not a {type(optimizer).__name__}"
        )
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = [name for name, _ in trainable]
    missing = [name for name, p in trainable if id(p) not in owned]
    if missing and len(missing) == len(names):
        raise ValueError(
            "the optimizer has none of the model's parameters; build it from model.parameters() of this very model, "
            "not of a copy"
        )
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ValueError(
            f"the optimizer has no {missing[0]}{others}; give it all trainable parameters, or freeze the rest by "
            "requires_grad_(False)"
        )


def check_mode() -> None:
    """Raise RuntimeError in inference mode, whose tensors cannot be changed outside of it."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "a Leap cannot work in torch.inference_mode(), whose tensors cannot be trained; leave it first"
        )
