"""Control: PDT without its mask, every weight takes the prediction."""

from __future__ import annotations

from torch import Tensor

from leapbench.prediction.history import History
from leapbench.predictors.pdt import DmdFromStart


class PdtNonselective(DmdFromStart):
    """theta_hat_{t+K} = p = a + Re{Phi (Lambda^tau - I) Phi^+ a}, a = theta_{t-Delta}, tau = K / Delta + 1.

    The "nonselective" baseline of PDT (OpenReview zSTgrLkpRi, Fig. 2): the DMD of `pdt`, counted from the start of the
    last interval, overwrites all weights, and what that interval trained is lost. K = 0 returns theta_t. (`dmd` starts
    from theta_t instead.)

    Args:
        h, rank, scope: as in `Pdt`.
    """

    control = True

    def __init__(self, h: int = 5, rank: int | float = 0, scope: str = "global") -> None:
        super().__init__(h, rank, scope)

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        start, newest, tau = self._start(history, K)
        return start.empty_vector().copy_(newest) if K == 0 else self._run(start, tau)
