"""Stochastic gradient descent, with or without momentum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from leapbench.optimizers._eager import Eager, unguarded


class Sgd(Eager, torch.optim.SGD):
    """u <- mu u + g + wd theta; theta <- theta - lr u, in torch's form: no dampening, no look-ahead.

    Args:
        parameters: (name, parameter) pairs; the names are not used.
        lr: learning rate at schedule factor 1.
        momentum: mu; 0 keeps no velocity u.
        weight_decay: wd, an L2 penalty.

    Raises:
        ValueError: a constant outside its range.
    """

    step = torch.no_grad()(unguarded(torch.optim.SGD.step))

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__([p for _, p in parameters], lr, momentum=momentum, weight_decay=weight_decay, fused=True)
