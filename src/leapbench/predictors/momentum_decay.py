"""K AdamW steps along a direction that fades."""

from __future__ import annotations

from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.moments import AdamGroup
from leapbench.prediction.predictor import Predictor
from leapbench.predictors.momentum import Move, corrected, moved, rules_of


class MomentumDecay(Predictor):
    """theta - sum_{j=1..K} lr_j (beta1^j mhat / (sqrt(vhat) + eps) + wd theta).

    A variant of Leap+Verify's momentum (arXiv:2602.19580): `momentum` in its exact form, but the first moment fades by
    beta1 with every skipped step, as it does when the gradients to come average to zero. After about 1 / (1 - beta1)
    steps nothing more is added.

    Raises:
        ValueError: a history without Adam's moments.
    """

    needs_moments = True

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        return moved(history, [self._move(history, group, K) for group in rules_of(history)])

    def _move(self, history: History, group: AdamGroup, K: int) -> Move:
        lrs = [group.lr * history.factor_at(history.now.position + j) for j in range(K)]
        faded = sum(lr * group.beta1 ** (j + 1) for j, lr in enumerate(lrs))
        return corrected(history, group, step=faded, decay=sum(lrs))
