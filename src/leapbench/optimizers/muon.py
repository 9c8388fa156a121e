"""Muon for the hidden matrices, AdamW for everything else: one optimizer with two groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from leapbench.optimizers._eager import Eager, unguarded
from leapbench.optimizers.adamw import AdamW

# In the name of a matrix that is not hidden: an embedding, or the output layer.
NOT_HIDDEN = ("wte", "wpe", "embed", "head", "classifier")


def is_hidden(name: str, dimensions: int, not_hidden: Sequence[str] = NOT_HIDDEN) -> bool:
    """Whether a parameter is a matrix between a network's embeddings and its output layer."""
    return dimensions == 2 and not any(word in name for word in not_hidden)


class _Matrices(Eager, torch.optim.Muon):
    step = torch.no_grad()(unguarded(torch.optim.Muon.step))


class Muon(Eager, torch.optim.Optimizer):
    """B <- mu B + g; theta <- theta - lr sqrt(max(1, rows / columns)) NS(g + mu B) - lr wd theta, for hidden matrices.

    NS is the Newton-Schulz iteration, which brings all singular values near 1. Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon, in torch's implementation. Embeddings, the output layer, and what is no
    matrix are AdamW's.

    Args:
        parameters: (name, parameter) pairs.
        lr: learning rate at schedule factor 1, of both parts.
        momentum: mu.
        weight_decay: wd, decoupled, of both parts.
        betas, eps: of AdamW.
        not_hidden: a matrix whose name contains one of these words is AdamW's.

    Raises:
        ValueError: a constant outside its range, or no matrix is left for Muon.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        not_hidden: Sequence[str] = NOT_HIDDEN,
    ) -> None:
        hidden = {name for name, p in parameters if is_hidden(name, p.ndim, not_hidden)}
        matrices = [p for name, p in parameters if name in hidden]
        rest = [(name, p) for name, p in parameters if name not in hidden]
        if not matrices:
            raise ValueError("no parameter is a hidden matrix, which muon is for; use optimizer=adamw")
        self.parts: list[Any] = [_Matrices(matrices, lr, weight_decay=weight_decay, momentum=momentum)]
        if rest:
            self.parts += [AdamW(rest, lr, betas, eps, weight_decay)]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of both parts; gradients must be there, a closure is not taken.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError("muon takes no closure: call backward() before step()")
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.state, part.param_groups = self.state, [group]
            part.step()
