"""Control: a straight line for the weights that keep their direction."""

from __future__ import annotations

import torch
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.predictor import Predictor, spacing
from leapbench.prediction.weights import chunks
from leapbench.predictors._masks import consistent


class MaskedLinear(Predictor):
    """theta_hat_{t+K} = theta_0 + s (theta_0 - theta_{-1}) where the last two moves agree in sign, else theta_0.

    s = K / Delta: `linear` under a mask, [sign(theta_0 - theta_{-1}) = sign(theta_{-1} - theta_{-2})]. Not in the PDT
    paper (OpenReview zSTgrLkpRi) but the control it needs: what a mask is worth without DMD. In PDT's notation
    p = a + tau delta, tau = s + 1, which its bounds on |p - a| always accept.

    Raises:
        ValueError: fewer than three snapshots, or uneven ones.
    """

    control = True
    context = 3

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        h = history.last(self.context)
        tau, out = K / spacing(h.steps) + 1, h.empty_vector()
        for piece in chunks(out.numel(), out.device):
            b, a, c = (s.weights[piece].to(out.dtype) for s in h.snapshots)
            accepted = consistent([c - a], a - b)
            part = torch.lerp(a, c, tau, out=out[piece])
            torch.where(accepted, part, c, out=part)
        return out
