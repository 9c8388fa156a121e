"""AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from leapbench.optimizers._eager import Eager, unguarded


class AdamW(Eager, torch.optim.AdamW):
    """theta <- theta - lr (mhat / (sqrt(vhat) + eps) + wd theta), mhat = m / (1 - beta1^t), vhat = v / (1 - beta2^t).

    Loshchilov and Hutter, arXiv:1711.05101. m and v are running means of the gradient and its square.

    Args:
        parameters: (name, parameter) pairs; the names are not used.
        lr: learning rate at schedule factor 1.
        betas: decay of the two means.
        eps: added to the root.
        weight_decay: wd, decoupled from the gradient.

    Raises:
        ValueError: a constant outside its range, or not two betas.
    """

    step = torch.no_grad()(unguarded(torch.optim.AdamW.step))

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        try:
            beta1, beta2 = map(float, betas)
        except (TypeError, ValueError):
            raise ValueError(f"betas={betas} must be two numbers, as in [0.9, 0.999]") from None
        super().__init__([p for _, p in parameters], lr, (beta1, beta2), eps=eps, weight_decay=weight_decay, fused=True)
