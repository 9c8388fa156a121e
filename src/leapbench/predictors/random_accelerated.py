"""Control: some weights, always the same, continue as in the last interval."""

from __future__ import annotations

import torch
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.predictor import Predictor, spacing
from leapbench.prediction.weights import chunks
from leapbench.predictors._masks import check_fraction, check_seed, generator, random_subset


class RandomAccelerated(Predictor):
    """theta_hat_{t+K} = a + tau (theta_t - a) on a fixed random subset, else theta_t; a = theta_{t-Delta}.

    tau = K / Delta + 1. A baseline of PDT (OpenReview zSTgrLkpRi, Fig. 5), neither DMD nor a mask that looks at the
    weights: whether the selected coordinates matter or only that some steps get longer. Paper and code agree; the code
    has another seed.

    Args:
        fraction: share of the weights that are accelerated, about what PDT's mask accepts.
        seed: of the subset, which stays the same throughout.

    Raises:
        ValueError: a fraction outside (0, 1], a negative seed; in `predict` fewer than two snapshots.
    """

    control = True
    context = 2

    def __init__(self, fraction: float = 0.18, seed: int = 0) -> None:
        self.fraction, self.seed = check_fraction(fraction), check_seed(seed)

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        h = history.last(self.context)
        tau, out = K / spacing(h.steps) + 1, h.empty_vector()
        rng = generator(out.device, self.seed)
        for piece in chunks(out.numel(), out.device):
            a, c = (s.weights[piece].to(out.dtype) for s in h.snapshots)
            part = torch.lerp(a, c, tau, out=out[piece])
            torch.where(random_subset(part.numel(), self.fraction, rng), part, c, out=part)
        return out
