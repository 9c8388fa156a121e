"""What a Leap reports about every candidate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Proposal:
    """One candidate and whether it was adopted.

    Attributes:
        step, position: of the newest snapshot, before the first link.
        predictor: its name.
        K: steps ahead.
        link: 1 for the first leap from a snapshot, 2 for the one that follows it, ...
        loss_now, loss_pred: of the weights before and of the candidate, nats; nan where the rule does not ask.
        changed_share: share of the weights that the candidate changes.
        finite: whether the candidate and its loss are numbers; adopted only then.
        adopted: whether the candidate has become the weights: a leap.
        predict_s, verify_s: seconds of :class:`leapbench.prediction.clock.Clock`.
    """

    step: int
    position: int
    predictor: str
    K: int
    link: int
    loss_now: float
    loss_pred: float
    changed_share: float
    finite: bool
    adopted: bool
    predict_s: float
    verify_s: float
