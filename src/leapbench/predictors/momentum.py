"""K optimizer steps along the direction of Adam's moments, in three readings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.moments import AdamGroup
from leapbench.prediction.predictor import Predictor
from leapbench.prediction.weights import pieces

FORMS = ("exact", "paper", "code")


class Momentum(Predictor):
    """K AdamW steps under the assumption that the direction stays.

    Leap+Verify, arXiv:2602.19580, section 3 (momentum), with m, v Adam's moments after u updates:

    - `exact`: theta - S (mhat / (sqrt(vhat) + eps) + wd theta), S = sum of the schedule's learning rates over the K
      skipped positions, mhat = m / (1 - beta1^u), vhat = v / (1 - beta2^u).
    - `paper`: theta + K m / (sqrt(v) + eps), as printed: the sign is + and there is no learning rate.
    - `code`: theta - c K lr m / (sqrt(v) + 1e-8) without bias correction, lr that of the last update, the best of c in
      {0.8, 1.0, 1.2} chosen by the same loss that it is scored on (c = 1 alone where it leaps); for its sweep the
      published code also keeps both moments in float16 (protocol `code`).

    Args:
        form: exact | paper | code.

    Raises:
        ValueError: unknown form, or a history without Adam's moments.
    """

    needs_moments = True

    def __init__(self, form: str = "exact") -> None:
        if form not in FORMS:
            raise ValueError(f"form={form} is unknown; use {' or '.join(FORMS)}")
        self.form = form
        self.scales = (1.0, 0.8, 1.2) if form == "code" else (1.0,)

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        return moved(history, [self._move(history, group, K) for group in rules_of(history)])

    def _move(self, history: History, group: AdamGroup, K: int) -> Move:
        position = history.now.position
        if self.form == "paper":
            return Move(group, step=-float(K), eps=group.eps)
        if self.form == "code":
            return code_move(group, K, history.factor_at(position - 1))
        lrs = [group.lr * history.factor_at(position + j) for j in range(K)]
        return corrected(history, group, step=sum(lrs), decay=sum(lrs))


@dataclass(frozen=True)
class Move:
    """theta - step * m / (sqrt(v) + eps) - decay * theta, for one group of weights."""

    group: AdamGroup
    step: float
    eps: float
    decay: float = 0.0


def code_move(group: AdamGroup, K: int, factor: float) -> Move:
    """K steps of the published code, at the schedule's `factor`."""
    return Move(group, step=K * (group.lr * factor), eps=1e-8)


def rules_of(history: History) -> tuple[AdamGroup, ...]:
    """The optimizer's update rules.

    Raises:
        ValueError: it keeps no Adam moments.
    """
    if not history.adam:
        raise ValueError("momentum needs the optimizer's Adam moments")
    return history.adam


def corrected(history: History, group: AdamGroup, step: float, decay: float) -> Move:
    """theta - step * mhat / (sqrt(vhat) + eps) - decay * wd * theta, moments bias-corrected.

    Raises:
        ValueError: the snapshot has no moments.
    """
    u = history.now.updates
    if u == 0:
        raise ValueError("this snapshot has no Adam moments")
    first, second = 1 - group.beta1**u, 1 - group.beta2**u
    # sqrt(v / second) + eps = (sqrt(v) + eps sqrt(second)) / sqrt(second): the corrections move into scalars.
    return Move(group, step * second**0.5 / first, group.eps * second**0.5, decay * group.weight_decay)


def moved(history: History, moves: list[Move]) -> Tensor:
    """The weights after all moves: (N,) float32, in one pass over theta, m and v.

    Raises:
        ValueError: the snapshot has no moments.
    """
    now, out = history.now, history.empty_vector()
    if now.exp_avg is None or now.exp_avg_sq is None:
        raise ValueError("this snapshot has no Adam moments")
    for move in moves:
        for piece in (piece for place in move.group.places for piece in pieces(place, out.device)):
            part, v = out[piece], now.exp_avg_sq[piece]
            theta, m = now.weights[piece].to(out.dtype), now.exp_avg[piece].to(out.dtype)
            root = torch.sqrt(v, out=part) if v.dtype == out.dtype else part.copy_(v).sqrt_()
            torch.addcdiv(theta, m, root.add_(move.eps), value=-move.step, out=part)
            if move.decay:
                part.add_(theta, alpha=-move.decay)
    return out
