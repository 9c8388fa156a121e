"""Control: PDT's prediction on weights drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.weights import chunks
from leapbench.predictors._masks import check_fraction, check_seed, generator, random_subset
from leapbench.predictors.pdt_nonselective import PdtNonselective


class PdtRandomMask(PdtNonselective):
    """theta_hat_{t+K} = p on a random subset, else c = theta_t; p as in `pdt`.

    The "random mask" baseline of PDT (OpenReview zSTgrLkpRi, Fig. 6): each weight takes part with probability
    `fraction`, redrawn at every step. The code seeds by the clock (time of day); here by (seed, step), so that a
    prediction can be repeated.

    Args:
        h, rank, scope: as in `Pdt`.
        fraction: share of the weights that take the prediction; the code's is 0.09699, PDT's own in that experiment.
        seed: of the subsets.

    Raises:
        ValueError: a fraction outside (0, 1], a negative seed, and as in `Pdt`.
    """

    control = True

    def __init__(
        self, h: int = 5, rank: int | float = 0, scope: str = "global", fraction: float = 0.097, seed: int = 0
    ) -> None:
        super().__init__(h, rank, scope)
        self.fraction, self.seed = check_fraction(fraction), check_seed(seed)

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        out, newest = super().predict(history, K), history.now.weights
        rng = generator(out.device, self.seed, history.now.step)
        for piece in chunks(out.numel(), out.device):
            part = out[piece]
            accepted = random_subset(part.numel(), self.fraction, rng)
            torch.where(accepted, part, newest[piece].to(out.dtype), out=part)
        return out
