"""What predictors may read from an optimizer: two moments of the gradient as flat vectors, and their update rule.

Any optimizer may offer them: by a method `moments(weights) -> Moments | None`, or by being one of torch's Adams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leapbench.prediction.checks import check_optimizer
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
        check_optimizer(optimizer, weights.named_parameters())
        entry_of = {id(p): entry for p, entry in zip(weights.parameters, weights.layout, strict=True)}
        self.groups: tuple[AdamGroup, ...] = ()
        self._numbers: list[int] = []  # of the optimizer's groups behind them
        for number, group in enumerate(optimizer.param_groups):
            entries = [entry_of.pop(id(p)) for p in group["params"] if id(p) in entry_of]
            if entries:
                self.groups += (_rule(group, places(entries)),)
                self._numbers.append(number)
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
            ValueError: the optimizer has not made a step yet, or some weights never had a gradient.
        """
        states = [self.optimizer.state[p] for p in self.weights.parameters if self.optimizer.state.get(p)]
        if len(states) < len(self.weights.parameters):
            raise ValueError(self._why_none())
        flat = self._flat.get(key)
        if flat is None or states[0][key].data_ptr() != flat.data_ptr():
            flat = self._flat[key] = torch.cat([state[key].reshape(-1) for state in states])
            for state, view in zip(states, self.weights.layout.views(flat).values(), strict=True):
                state[key] = view
        return flat

    def _why_none(self) -> str:
        """Why the optimizer keeps no moments of some weights."""
        without = [name for name, p in self.weights.named_parameters() if not self.optimizer.state.get(p)]
        if len(without) == len(self.weights.parameters):
            return "the optimizer has no moments before its first step; snapshots come after optimizer.step()"
        return (
            f"the optimizer has no moments of {without[0]}, which never had a gradient: freeze it (requires_grad_) "
            "before the optimizer and the Leap are made, or take a predictor that reads weights only"
        )

    def check_rates(self) -> None:
        """Raise ValueError if a schedule has moved a learning rate from what the groups say.

        A rate that is a tensor is not looked at.
        """
        for group, number in zip(self.groups, self._numbers, strict=True):
            rate = self.optimizer.param_groups[number]["lr"]
            if not isinstance(rate, Tensor) and rate != group.lr:
                raise ValueError(
                    f"the learning rate is {rate:.6g}, not {group.lr:.6g} as at first, and momentum reads it: give "
                    "the schedule, Leap(..., factor_at=position -> what the learning rates are multiplied by)"
                )


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


def needed_moments(optimizer: torch.optim.Optimizer, weights: FlatWeights, name: str) -> Moments:
    """:func:`moments_of` for the predictor `name`, which cannot do without.

    Raises:
        ValueError: the optimizer keeps none, or lacks some of the weights.
    """
    moments = moments_of(optimizer, weights)
    if moments is None:
        raise ValueError(f"predictor={name} needs Adam moments; {_why_no_moments(optimizer)}")
    return moments


def _why_no_moments(optimizer: torch.optim.Optimizer) -> str:
    """Why an optimizer has none, and what has."""
    kind = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return f"{kind} with amsgrad or maximize keeps others; switch these off"
    if isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        return f"{kind} keeps none itself; give the optimizer inside, optimizer.optimizer"
    return f"{kind} keeps none; use torch.optim.AdamW or Adam, or a predictor that reads weights only"


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
