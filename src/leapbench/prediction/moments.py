"""What predictors may read from an optimizer: two moments of the gradient as flat vectors, and their update rule.

Any optimizer may offer them: by a method `moments(weights) -> Moments | None`, or by being one of torch's Adams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leapbench.prediction.weights import FlatWeights, places


@dataclass(frozen=True)
class AdamGroup:
    """AdamW's update rule for some of the weights, theta <- theta - lr (mhat / (sqrt(vhat) + eps) + wd theta).

    Attributes:
        weight_decay: decoupled.
        lr: learning rate where the schedule's factor is 1.
        places: where in the flat vector these weights lie, ascending.
    """

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    lr: float
    places: tuple[slice, ...]


class Moments:
    """Adam's two moments as flat vectors (N,), with the optimizer's own state tensors made views of them.

    Attributes:
        groups: the update rules, which cover all weights.

    Raises:
        ValueError: the optimizer lacks some of the weights.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: FlatWeights) -> None:
        self.optimizer, self.weights = optimizer, weights
        entry_of = {id(p): entry for p, entry in zip(weights.parameters, weights.layout, strict=True)}
        self.groups: tuple[AdamGroup, ...] = ()
        for group in optimizer.param_groups:
            entries = [entry_of.pop(id(p)) for p in group["params"] if id(p) in entry_of]
            if entries:
                self.groups += (_rule(group, places(entries)),)
        if entry_of:
            raise ValueError(
                f"the optimizer has no {next(iter(entry_of.values())).name}; give it all trainable parameters"
            )
        self._flat: dict[str, Tensor] = {}

    @property
    def exp_avg(self) -> Tensor:
        """First moments, (N,)."""
        return self._vector("exp_avg")

    @property
    def exp_avg_sq(self) -> Tensor:
        """Second moments, (N,)."""
        return self._vector("exp_avg_sq")

    @property
    def updates(self) -> int:
        """Optimizer steps behind these moments (Adam's t); 0 before the first."""
        state = self.optimizer.state.get(self.weights.parameters[0])
        return int(state["step"].item()) if state else 0

    def _vector(self, key: str) -> Tensor:
        """The flat vector that the optimizer's state tensors are views of; rebuilt when they no longer are.

        Raises:
            ValueError: the optimizer has not made a step yet.
        """
        if not self.updates:
            raise ValueError("the optimizer has no moments before its first step")
        states = [self.optimizer.state[p] for p in self.weights.parameters]
        flat = self._flat.get(key)
        if flat is None or states[0][key].data_ptr() != flat.data_ptr():
            flat = self._flat[key] = torch.cat([state[key].reshape(-1) for state in states])
            for state, view in zip(states, self.weights.layout.views(flat).values(), strict=True):
                state[key] = view
        return flat


def moments_of(optimizer: torch.optim.Optimizer, weights: FlatWeights) -> Moments | None:
    """What `optimizer` offers, None if it keeps no moments of this kind.

    Raises:
        ValueError: it lacks some of the weights.
    """
    if (method := getattr(optimizer, "moments", None)) is not None:
        return method(weights)
    plain = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and not any(
        group["amsgrad"] or group["maximize"] for group in optimizer.param_groups
    )
    return Moments(optimizer, weights) if plain else None


def forget(optimizer: torch.optim.Optimizer, steps_too: bool) -> None:
    """Zero the optimizer's moments or velocities in place, and with `steps_too` its count of steps."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if torch.is_tensor(value) and (key != "step" or steps_too):
                value.zero_()


def _rule(group: dict[str, Any], slices: tuple[slice, ...]) -> AdamGroup:
    """The constants of one of torch's parameter groups; a decay that is part of the gradient does not count."""
    decay = group["weight_decay"] if group.get("decoupled_weight_decay", True) else 0.0
    beta1, beta2 = group["betas"]
    lr = float(group.get("initial_lr", group["lr"]))
    return AdamGroup(beta1, beta2, group["eps"], decay, lr, slices)
