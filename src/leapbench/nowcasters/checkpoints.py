"""Files with the weights of learned predictors: the published layout, and safetensors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from leapbench.nowcasters.files import fingerprint, place_of
from leapbench.nowcasters.networks import EdgeNetwork, GraphNetwork, NotThisNetworkError, WeightNetworks

NETWORKS: dict[str, type[nn.Module]] = {"nino": GraphNetwork, "wnn_plus": EdgeNetwork, "wnn": WeightNetworks}
HEADER = "leapbench"  # the key of a safetensors file's metadata that holds ours, as JSON
# WNN's published files, one per operation, and the layers in them.
WNN_FILES = {"conv": "NWNN_Conv_13.pt", "fc": "NWNN_FC_13.pt", "bias": "NWNN_Bias_13.pt"}
WNN_LAYERS = ("wide", "narrow", "a", "b", "c", "out")
DENSE = re.compile(r"dense(?:_(\d+))?\.(?:linear\.)?(weight|bias)")

_LOADED: dict[tuple[str, str], nn.Module] = {}


def load(kind: str, checkpoint: str | None, sha256: str | None = None) -> nn.Module:
    """The network of a file, in evaluation mode; equal files give the same object.

    A file in a published layout is written as safetensors beside itself where that can be done, under the same name.

    Args:
        kind: nino | wnn_plus | wnn.
        checkpoint: the file; None = the one that comes with the package.
        sha256: how its hash begins; None = any.

    Raises:
        ValueError: one line: there is no such file, it is another than the one that was asked for, or it does not hold
            the weights of such a network.
    """
    place = place_of(kind, checkpoint)
    found = fingerprint(kind, checkpoint)
    if sha256 is not None and found != sha256:
        raise ValueError(f"checkpoint={place} has changed: its sha256 begins with {found}, and {sha256} was expected")
    if (kind, found) not in _LOADED:
        state = read(place)
        network = assemble(kind, state, place)
        if place.suffix != ".safetensors":
            with contextlib.suppress(OSError):
                beside = place / "wnn.safetensors" if place.is_dir() else place.with_suffix(".safetensors")
                if not beside.exists():
                    write(beside, kind, network)
        _LOADED[kind, found] = network
    return _LOADED[kind, found]


def read(place: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    Raises:
        ValueError: it is in neither layout.
    """
    if place.is_dir():
        return {f"{part}.{name}": t for part, file in WNN_FILES.items() for name, t in _wnn(place / file).items()}
    if place.suffix == ".safetensors":
        try:
            return safetensors.torch.load(place.read_bytes())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint={place} cannot be read as safetensors ({error})") from None
    content = _unpickled(place)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(
            f"checkpoint={place} is not of the published layout, a dictionary with state_dict and model_args"
        )
    return _tensors(content["state_dict"], place)


def assemble(kind: str, state: Mapping[str, Tensor], place: Path) -> nn.Module:
    """The network with these weights.

    Raises:
        ValueError: they are not those of such a network.
    """
    try:
        network: Any = NETWORKS[kind].like(state)  # type: ignore[attr-defined]
        wanted = network.state_dict()
        for name in sorted(wanted.keys() | state.keys()):
            if name not in state:
                raise NotThisNetworkError(f"it has no {name}")
            if name not in wanted:
                raise NotThisNetworkError(f"there is no place for {name}")
            if state[name].shape != wanted[name].shape:
                shapes = tuple(state[name].shape), tuple(wanted[name].shape)
                raise NotThisNetworkError(f"{name} has shape {shapes[0]} where {shapes[1]} would fit")
            if not bool(torch.isfinite(state[name]).all()):
                raise ValueError(f"checkpoint={place} holds inf or nan in {name}; use another file")
    except NotThisNetworkError as error:
        other = next((name for name, mark in MARKS.items() if name != kind and mark in state), None)
        hint = f": it is one for predictor={other}" if other else f" ({error})"
        raise ValueError(f"checkpoint={place} does not hold the weights of {kind}{hint}") from None
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return network.requires_grad_(False).eval()


MARKS = {"nino": "gnn.convs.0.lin.weight", "wnn_plus": "edge_mlp.fc.0.weight", "wnn": "conv.head.weight"}


def write(place: Path, kind: str, network: nn.Module, facts: Mapping[str, Any] | None = None) -> None:
    """Write a network as safetensors, at once or not at all.

    Args:
        facts: what made it, as JSON types.
    """
    header = {HEADER: json.dumps({"kind": kind, **(facts or {})}, sort_keys=True)}
    content = safetensors.torch.save({n: t.contiguous() for n, t in network.state_dict().items()}, header)
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def facts_of(place: Path) -> dict[str, Any]:
    """What :func:`write` was told about a network; empty for a file that says nothing."""
    with safe_open(place, "pt") as file:
        return json.loads((file.metadata() or {}).get(HEADER, "{}"))


def _unpickled(place: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(place.read_bytes()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"checkpoint={place} is no file of tensors alone: it may hold code, which is not run; use .safetensors, or "
            "a .pt file that torch.load(weights_only=True) can read"
        ) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"checkpoint={place} cannot be read ({' '.join(str(error).split())[:100]})") from None


def _tensors(state: Any, place: Path) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(part, Tensor) for part in state.values()):
        raise ValueError(f"checkpoint={place} is not of the published layout: its state_dict holds no tensors by name")
    return {str(name): tensor for name, tensor in state.items()}


def _wnn(place: Path) -> dict[str, Tensor]:
    """One of WNN's published files: dense to dense_5 and dense_6 to dense_11 are the streams, dense_12 the head.

    Its one-element buffers of losses are left out.
    """
    found = {}
    for name, tensor in _tensors(_unpickled(place), place).items():
        match = DENSE.fullmatch(name)
        if match is None:
            if tensor.numel() > 1:
                raise ValueError(f"checkpoint={place} is not of WNN's published layout: it has {name}")
            continue
        number = int(match[1] or 0)
        stream = "values" if number < 6 else "differences"
        layer = "head" if number == 12 else f"{stream}.{WNN_LAYERS[number % 6]}"
        found[f"{layer}.{match[2]}"] = tensor
    return found
