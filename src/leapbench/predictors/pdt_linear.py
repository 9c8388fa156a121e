"""Control: a straight line on the same weights that PDT accepts."""

from __future__ import annotations

import torch
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.predictors.pdt import Pdt


class PdtLinear(Pdt):
    """theta_hat_{t+K} = a + tau (c - a) where `pdt`'s mask holds, else c = theta_t; mask, a, c and tau as in `pdt`.

    Not in the PDT paper (OpenReview zSTgrLkpRi): the same weights are moved, along the last interval's own step instead
    of DMD's prediction. What `pdt` gains over this is due to DMD's values; DMD still decides which weights they are.

    Args:
        h, rank, scope, variant, mode: as in `Pdt`.

    Raises:
        ValueError: as in `Pdt`.
    """

    control = True

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        start, newest, tau = self._start(history, K)
        out = start.empty_vector()
        for piece, accepted in self._masks(start, newest, tau, out):
            a, c = start.now.weights[piece].to(out.dtype), newest[piece].to(out.dtype)
            torch.where(accepted, torch.lerp(a, c, tau), c, out=out[piece])
        return out
