"""Control: nothing changes."""

from __future__ import annotations

from leapbench.prediction.predictor import LinearInHistory


class Persistence(LinearInHistory):
    """theta_hat_{t+K} = theta_t.

    The reference every distance is compared with: a prediction farther from the truth than this is worse than none.
    Its loss is the current loss, so it is never strictly accepted and always within any proximity.
    """

    control = True
    context = 1

    def coefficients(self, steps: tuple[int, ...], K: int) -> list[float]:
        """(1,)."""
        return [1.0]
