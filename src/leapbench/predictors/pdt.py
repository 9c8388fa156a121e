"""PDT: a DMD prediction where it has the sign of the optimizer's step and is larger, but not too large."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.predictor import spacing
from leapbench.prediction.weights import pieces
from leapbench.predictors._masks import accelerates_code, accelerates_paper, consistent
from leapbench.predictors.dmd import Array, Dmd, System

VARIANTS = ("code", "paper_step", "paper_cumulative")
MODES = ("both", "accel_only", "consistency_only")


class DmdFromStart(Dmd):
    """DMD that leaves the newest snapshot c out: fitted to the h snapshots that end with a, the one before it, and run
    tau = K / Delta + 1 intervals on from a.

    Args:
        h, rank, scope: `Dmd`'s context, rank and scope.
    """

    def __init__(self, h: int, rank: int | float, scope: str) -> None:
        if h < 2:
            raise ValueError(f"pdt fits one snapshot to the next: h={h} must be 2 or more")
        super().__init__(h, rank, scope)
        self.context = h + 1

    def _start(self, history: History, K: int) -> tuple[History, Tensor, float]:
        """The h snapshots that end with a, the weights c (N,), and tau."""
        if K < 0:
            raise ValueError(f"pdt predicts ahead: K={K} must be 0 or more")
        h = history.last(self.context)
        return replace(h, snapshots=h.snapshots[:-1]), h.now.weights, K / spacing(h.steps) + 1


class Pdt(DmdFromStart):
    """theta_hat_{t+K} = p where the mask m holds, else c = theta_t, weight by weight.

    PDT (predictive differential training, ICLR 2026, OpenReview zSTgrLkpRi; DMD: arXiv:1312.0041). The interval Delta
    is an epoch there: a = theta_{t-Delta} its start, c its end, delta = c - a; p = a + Re{Phi (Lambda^tau - I) Phi^+ a}
    is the DMD of the h snapshots that end with a (see `Dmd`), tau = K / Delta + 1 intervals on; d = p - a.

    - variant code, behind all of the published numbers: m = [sign d = sign delta] [|delta| <= |d| <= (tau+1) |delta|].
    - paper: m = [|delta| < |d| <= tau |delta|] (Eq. 6) [the sign of delta at every k = 1..tau] (Eq. 7), where the sign
      is that of p_k - p_{k-1} (paper_step, the authors' slides) or of p_k - a (paper_cumulative); p_0 = a. For a
      fractional tau, k = 1, 2, ..., floor(tau), tau.

    All p_k - a are X c_k with h-1 numbers each, so the paper's variants cost tau - 1 more sums per piece of memory and
    no N x tau matrix. K = 0 returns c, whatever the mask. A system without a prediction (snapshots all zero) has d = 0:
    weights that moved stay at c. Burn-in, the prediction interval and tau's scheduler belong to the training.

    Args:
        h: snapshots the DMD is fitted to, 2 or more; one more is read.
        rank, scope: as in `Dmd`; scope=group is PDT-Layerwise.
        variant: code | paper_step | paper_cumulative.
        mode: both | accel_only (size alone, Eq. 6) | consistency_only (sign alone, Eq. 7): the published ablation.

    Raises:
        ValueError: a setting outside these; in `predict` fewer snapshots than h + 1, uneven ones, weights up to a that
            are not finite, or K < 0.
    """

    def __init__(
        self, h: int = 5, rank: int | float = 0, scope: str = "global", variant: str = "code", mode: str = "both"
    ) -> None:
        super().__init__(h, rank, scope)
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant} is unknown; use {' or '.join(VARIANTS)}")
        if mode not in MODES:
            raise ValueError(f"mode={mode} is unknown; use {' or '.join(MODES)}")
        self.variant, self.mode = variant, mode

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        start, newest, tau = self._start(history, K)
        out = start.empty_vector()
        if K == 0:
            return out.copy_(newest)
        for piece, accepted in self._masks(start, newest, tau, out):
            torch.where(accepted, out[piece], newest[piece].to(out.dtype), out=out[piece])
        return out

    def _masks(self, start: History, newest: Tensor, tau: float, out: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Write p into `out` (N,) piece by piece, each once, and yield its place and what the mask (n,) accepts."""
        for system, places in self._systems(start):
            last = np.append(system.displacement(tau), 1.0)
            extra_moves = self._extra_moves(system, tau)
            for place in places:
                for piece in pieces(place, out.device):
                    p, vectors = out[piece], [s.weights[piece] for s in start.snapshots]
                    system.sum(vectors, last, p)
                    a = vectors[-1].to(out.dtype)
                    yield piece, self._mask(p - a, newest[piece].to(out.dtype) - a, tau, system, vectors, extra_moves)

    def _extra_moves(self, system: System, tau: float) -> list[Array]:
        """The numbers (h-1,) of every move whose sign the paper's variants test, except d itself."""
        if self.variant == "code" or self.mode == "accel_only":
            return []
        path = [system.displacement(k) for k in range(1, math.ceil(tau))]
        if self.variant == "paper_cumulative":
            return path
        path.append(system.displacement(tau))
        with np.errstate(invalid="ignore"):  # of powers beyond float64
            return list(np.diff(path, axis=0, prepend=np.zeros((1, len(path[0])))))

    def _mask(
        self, d: Tensor, delta: Tensor, tau: float, system: System, vectors: list[Tensor], extra_moves: list[Array]
    ) -> Tensor:
        """m (n,) bool for one piece."""

        def moves() -> Iterator[Tensor]:
            yield d
            move = torch.empty_like(d)
            for coefficients in extra_moves:
                system.sum(vectors, coefficients, move)
                yield move

        accelerates = accelerates_code if self.variant == "code" else accelerates_paper
        if self.mode == "accel_only":
            return accelerates(d, delta, tau)
        if self.mode == "consistency_only":
            return consistent(moves(), delta)
        return consistent(moves(), delta).logical_and_(accelerates(d, delta, tau))
