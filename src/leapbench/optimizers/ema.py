"""Exponential moving averages of the weights, several at once; the training does not see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from leapbench.optimizers._choice import lowest
from leapbench.optimizers._settings import numbers
from leapbench.optimizers.wrapper import Wrapper
from leapbench.prediction.weights import FlatWeights


class Ema(Wrapper):
    """E_t = E_{t-1} + (1 - d) / (1 - d^t) (theta_t - E_{t-1}), for each decay d.

    That is sum_i d^(t-i) theta_i over sum_i d^(t-i), i = 1 .. t: the average whose first values are not pulled towards
    any start (the bias correction of arXiv:1412.6980, section 3; averaging: Polyak and Juditsky 1992, of networks
    arXiv:2411.18704). d = 0 is the live weights. It reaches back about 1 / (1 - d) steps.

    With one decay its average is handed over. With several, the one that has the lowest loss on verification data when
    weights are handed over, a pass over these data for each; until then the first.

    One vector of N and, at every step, one pass over memory for each decay but 0.

    Args:
        decays: d, each in [0, 1).

    Raises:
        TypeError, ValueError: no decay, the same one twice, or one outside its range.
    """

    scores_live = False

    def __init__(
        self, optimizer: torch.optim.Optimizer, weights: FlatWeights, decays: Sequence[float] = (0.98, 0.99, 0.995)
    ) -> None:
        super().__init__(optimizer, weights)
        self.decays = numbers("decays", decays, 0.0, "[0.98, 0.99]", below=1.0)
        if not self.decays or len(set(self.decays)) < len(self.decays):
            raise ValueError(f"decays={list(decays)} must be one or more different numbers, as in [0.98, 0.99]")
        self.chooses = len(self.decays) > 1
        self.steps, self.chosen = 0, self.decays[0]
        self.means = {d: torch.zeros_like(weights.vector) for d in self.decays if d > 0}

    def after_step(self) -> None:
        """Each average takes in the live weights."""
        self.steps += 1
        for d, mean in self.means.items():
            mean.lerp_(self.weights.vector, (1 - d) / (1 - d**self.steps))

    def scored(self) -> Tensor | None:
        """The chosen average, (N,); None where it is the live weights, or before the first step."""
        return self.means.get(self.chosen) if self.steps else None

    def choose(self, loss_of: Callable[[Tensor], float]) -> None:
        """The average with the lowest loss, the first of equal ones; nan is never lower."""
        if not self.steps:
            return
        losses = {d: loss_of(self.means.get(d, self.weights.vector)) for d in self.decays}
        self.chosen = lowest(losses, self.chosen)

    def state_dict(self) -> dict[str, Any]:
        """The averages, the choice and the number of steps."""
        return {"steps": self.steps, "chosen": self.chosen, "means": list(self.means.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.steps, self.chosen = state["steps"], state["chosen"]
        for mean, saved in zip(self.means.values(), state["means"], strict=True):
            mean.copy_(saved)
