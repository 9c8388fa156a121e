"""K AdamW steps along a direction that fades."""

from __future__ import annotations

from torch import Tensor

from leapbench.history import History
from leapbench.predictors.momentum import corrected_step


class MomentumDecay:
    """theta - sum_{j=1..K} lr_j (beta1^j mhat / (sqrt(vhat) + eps) + wd theta).

    A variant of Leap+Verify's momentum (arXiv:2602.19580): `momentum` in its exact form, but the first moment fades by
    beta1 with every skipped step, as it does when the gradients to come average to zero. After about 1 / (1 - beta1)
    steps nothing more is added.

    Raises:
        ValueError: a history without Adam's moments.
    """

    context = 1
    needs_moments = True
    scales = (1.0,)

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        if history.adam is None:
            raise ValueError("momentum_decay needs the optimizer's Adam moments")
        lrs = [history.lr_at(history.now.position + j) for j in range(K)]
        faded = sum(lr * history.adam.beta1 ** (j + 1) for j, lr in enumerate(lrs))
        return corrected_step(history, step=faded, decay=sum(lrs))
