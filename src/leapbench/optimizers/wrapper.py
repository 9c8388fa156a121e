"""What goes around a base optimizer. This one, `wrapper=none`, does nothing; others override what they change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leapbench.prediction.weights import FlatWeights


class Wrapper:
    """Decides where the gradient is taken, and which weights a run would hand over.

    A training step is: `before_step`, gradient, clipping, `optimizer.step`, `after_step`. What is evaluated, observed
    and handed over at the end is `scored`.

    Args:
        optimizer: what is wrapped; its parameters are views of `weights`.
        weights: the live ones.

    Attributes:
        scores_live: whether `scored` is always None, so that the optimizer's moments belong to what is observed.
        period: steps after which its work repeats; it is timed in whole periods.
    """

    scores_live: bool = True
    period: int = 1

    def __init__(self, optimizer: torch.optim.Optimizer, weights: FlatWeights) -> None:
        self.optimizer, self.weights = optimizer, weights

    def before_step(self) -> None:
        """Move the live weights to the point where the gradient is taken."""

    def after_step(self) -> None:
        """Record what the optimizer has done to the live weights, or change it."""

    def scored(self) -> Tensor | None:
        """The weights that would be handed over, (N,), not to be changed; None: the live ones."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, besides the optimizer's state and the live weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
