"""K optimizer steps along the direction of Adam's moments, in three readings."""

from __future__ import annotations

import torch
from torch import Tensor

from leapbench.history import History
from leapbench.weights import chunks

FORMS = ("exact", "paper", "code")


class Momentum:
    """K AdamW steps under the assumption that the direction stays.

    Leap+Verify, arXiv:2602.19580, section 3 (momentum), with m, v Adam's moments after u updates:

    - `exact`: theta - S (mhat / (sqrt(vhat) + eps) + wd theta), S = sum of the schedule's learning rates over the K
      skipped positions, mhat = m / (1 - beta1^u), vhat = v / (1 - beta2^u).
    - `paper`: theta + K m / (sqrt(v) + eps), as printed: the sign is + and there is no learning rate.
    - `code`: theta - c K lr m / (sqrt(v) + 1e-8) without bias correction, the best of c in {0.8, 1.0, 1.2} chosen by
      the very loss it is scored on; the published code also keeps both moments in float16 (protocol `code`).

    Args:
        form: exact | paper | code.

    Raises:
        ValueError: unknown form, or a history without Adam's moments.
    """

    context = 1
    needs_moments = True

    def __init__(self, form: str = "exact") -> None:
        if form not in FORMS:
            raise ValueError(f"form={form} is unknown; use {' or '.join(FORMS)}")
        self.form = form
        self.scales: tuple[float, ...] = (1.0, 0.8, 1.2) if form == "code" else (1.0,)

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        now, adam = history.now, history.adam
        if adam is None:
            raise ValueError("momentum needs the optimizer's Adam moments")
        if self.form == "paper":
            return adam_step(history, step=-float(K), eps=adam.eps)
        if self.form == "code":
            return adam_step(history, step=K * history.lr_at(now.position), eps=1e-8)
        lrs = [history.lr_at(now.position + j) for j in range(K)]
        return corrected_step(history, step=sum(lrs), decay=sum(lrs))


def corrected_step(history: History, step: float, decay: float) -> Tensor:
    """theta - step * mhat / (sqrt(vhat) + eps) - decay * wd * theta, moments bias-corrected: (N,) float32."""
    adam, u = history.adam, history.now.updates
    assert adam is not None
    if u == 0:
        raise ValueError("this snapshot has no Adam moments")
    first, second = 1 - adam.beta1**u, 1 - adam.beta2**u
    # sqrt(v / second) + eps = (sqrt(v) + eps sqrt(second)) / sqrt(second): the corrections move into scalars.
    return adam_step(history, step * second**0.5 / first, adam.eps * second**0.5, decay * adam.weight_decay)


def adam_step(history: History, step: float, eps: float, decay: float = 0.0) -> Tensor:
    """theta - step * m / (sqrt(v) + eps) - decay * theta: (N,) float32, in one pass over theta, m and v."""
    now, out = history.now, history.empty_vector()
    if now.exp_avg is None or now.exp_avg_sq is None:
        raise ValueError("this snapshot has no Adam moments")
    for piece in chunks(out.numel(), out.device):
        part, v = out[piece], now.exp_avg_sq[piece]
        theta, m = now.weights[piece].to(out.dtype), now.exp_avg[piece].to(out.dtype)
        root = torch.sqrt(v, out=part) if v.dtype == out.dtype else part.copy_(v).sqrt_()
        torch.addcdiv(theta, m, root.add_(eps), value=-step, out=part)
        if decay:
            part.add_(theta, alpha=-decay)
    return out
