"""What the optimizer does to a hidden matrix in some steps, with equal singular values and even neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leapbench.config.choices import Precision
from leapbench.names import choice, whole
from leapbench.optimizers._settings import flag
from leapbench.optimizers.growing_average import GrowingAverage
from leapbench.optimizers.muon import NOT_HIDDEN, is_hidden
from leapbench.prediction.weights import Entry, FlatWeights

A, B, C = 3.4445, -4.7750, 2.0315  # of Muon's iteration
ROUNDS = 5
BETA = 0.95  # of the neurons' mean squares
TINY = 1e-12


class Orthogonal(GrowingAverage):
    """Every K steps, for each hidden matrix: theta_t = theta_{t-K} + |D| E / |E|, D = theta_t - theta_{t-K} before it.

    O = NS(D) has the singular vectors of D = U S V^T and singular values near 1, by the Newton-Schulz iteration of Muon
    (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), X <- a X + (b X X^T + c (X X^T)^2) X from D / |D|.
    E_ij = O_ij / sqrt(q_i), q_i <- 0.95 q_i + 0.05 mean_j O_ij^2, over the longer side of the matrix, whose rows O does
    not make equal by itself; this is where a network's hidden neurons are (NorMuon, arXiv:2510.05491, on the output
    side). The length of the step stays the optimizer's, and so do its state and its learning rate: what changes is that
    the K steps' displacement, in which noise and a few steep directions prevail, is spread over all directions alike.
    What is no hidden matrix stays as the optimizer left it. Handed over are averages: :class:`GrowingAverage`.

    Three vectors of N with two powers. Every K steps, for a matrix of m <= n: 10 m^2 (2 n + m) FLOPs and some passes.

    Args:
        every: K.
        flat: whether the displacement is made orthogonal; without it O is D.
        even: whether the neurons are made even.
        powers, moves: of the averages.
        precision: of the iteration: bfloat16, as in Muon | float32, for processors that do not multiply bfloat16.
        not_hidden: a matrix whose name contains one of these words is left alone.

    Raises:
        TypeError, ValueError: a constant outside its range, or the network has no hidden matrix.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: FlatWeights,
        every: int = 5,
        flat: bool = True,
        even: bool = True,
        powers: Sequence[float] = (8.0, 20.0),
        moves: Sequence[float] = (0.5, 1.0, 1.5),
        precision: str = Precision.bfloat16,
        not_hidden: Sequence[str] = NOT_HIDDEN,
    ) -> None:
        super().__init__(optimizer, weights, powers, moves)
        self.every, self.flat, self.even = whole("every", every, 1), flag("flat", flat), flag("even", even)
        self.dtype = getattr(torch, choice(Precision, precision, "precision"))
        self.period = self.every
        self.hidden = [entry for entry in weights.layout if is_hidden(entry.name, len(entry.shape), not_hidden)]
        if not self.hidden:
            raise ValueError("no parameter is a hidden matrix, which wrapper=orthogonal is for; use growing_average")
        self.start = weights.vector.clone()
        self.squares = {entry.name: self.start.new_zeros(max(entry.shape)) for entry in self.hidden if self.even}

    def after_step(self) -> None:
        """Every K steps the displacements get their new shape; the averages take in what is then live."""
        if (self.steps + 1) % self.every == 0:
            for entry in self.hidden:
                self._reshape(entry)
            self.start.copy_(self.weights.vector)
        super().after_step()

    def _reshape(self, entry: Entry) -> None:
        place = slice(entry.offset, entry.offset + entry.size)
        start, live = (vector[place].view(entry.shape) for vector in (self.start, self.weights.vector))
        if entry.shape[0] < entry.shape[1]:
            start, live = start.T, live.T  # the longer side first
        moved = live - start
        new, length = orthogonalised(moved, self.dtype) if self.flat else moved, moved.norm()
        if self.even:
            square, mean = new.square().mean(1), self.squares[entry.name]
            mean.lerp_(square, 1.0 if self.steps < self.every else 1 - BETA)
            new = new / mean.sqrt().clamp(min=TINY)[:, None]
        torch.add(start, new * (length / new.norm().clamp(min=TINY)), out=live)

    def state_dict(self) -> dict[str, Any]:
        """Those of the averages, where the displacements begin, and the neurons' mean squares."""
        more = {"start": self.start, "squares": self.squares}
        return super().state_dict() | more

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        super().load_state_dict(state)
        self.start.copy_(state["start"])
        for name, mean in self.squares.items():
            mean.copy_(state["squares"][name])


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(m, n) with the singular vectors of `matrix` (m, n) and singular values near 1, mostly 0.7 to 1.2."""
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.T if tall else x).to(matrix.dtype)
