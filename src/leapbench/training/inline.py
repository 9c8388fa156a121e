"""The leaps that the published code of Leap+Verify (arXiv:2602.19580) makes in the training that it then observes.

At a confirmed-stable checkpoint where the prediction lowers the verification loss, it becomes the weights: the place in
the schedule moves on by K, both moments are zeroed and their step count stays. The snapshot that is stored is the one
after the leap, but with the loss from before it. Out of zero moments momentum predicts no change, so there it is
"better" than that loss at every K: the most likely reason for the published 10.0 % at K = 5, 10 and 25 alike.
"""

from __future__ import annotations

from typing import Any

import torch

from leapbench.names import LEAPS, MomentsAfterLeap, Regime, RuleName
from leapbench.prediction.leap import Leap
from leapbench.prediction.moments import Moments
from leapbench.training.mode import Parts
from leapbench.training.parts import build_inline


class InlineLeaps:
    """Leaps as the published code does: from the live state in float32, at scale 1.

    Attributes:
        leap: what predicts, verifies and adopts; None for a training without leaps of its own.
        skipped: positions that the leap at the last checkpoint has passed, 0 without one.
        adoptions: leaps so far.
    """

    def __init__(self, parts: Parts) -> None:
        config = parts.config
        self.folder, self.clock, self.protocol = parts.folder, parts.clock, next(iter(config.protocols))
        self.leap: Leap | None = None
        self.skipped = self.adoptions = 0
        predictor, leaps = build_inline(config), config.inline_leaps
        if predictor is not None and leaps is not None:
            self.leap = Leap(
                parts.workload.model, parts.optimizer, predictor, leaps.K, parts.workload.verification_loss,
                name=leaps.predictor, interval=config.train.interval, rule=RuleName.strict,
                moments=MomentsAfterLeap.published, factor_at=parts.factor_at, clock=parts.clock,
                device=torch.device(config.history_device) if config.history_device else None,
            )  # fmt: skip

    @property
    def moments(self) -> Moments | None:
        """The optimizer's, if the predictor reads them."""
        return self.leap.moments if self.leap is not None else None

    @property
    def longest(self) -> int:
        """Positions that a leap passes, 0 where there are no leaps."""
        return self.leap.K if self.leap is not None else 0

    def after_checkpoint(self, position: int, regime: Regime, confirmed: bool, loss_now: float) -> tuple[int, float]:
        """Leap if the regime is confirmed and the loss falls; the position reached and the loss there, nats."""
        self.skipped = 0
        if self.leap is None:
            return position, loss_now
        self.leap.steps = self.leap.position = position
        self.leap.snapshot()
        for proposal in self.leap.propose() if confirmed else ():
            self.folder.append(LEAPS, {
                "step": position, "position": position, "protocol": self.protocol, "predictor": proposal.predictor,
                "K": proposal.K, "rule": RuleName.strict, "regime": regime, "confirmed": confirmed,
                "link": proposal.link, "loss_now_nats": proposal.loss_now, "loss_pred_nats": proposal.loss_pred,
                "predict_s": proposal.predict_s, "verify_s": proposal.verify_s, "adopted": proposal.adopted,
                "changed_share": proposal.changed_share, "status": "ok" if proposal.finite else "nonfinite",
                "charged_s": self.clock.charged,
            })  # fmt: skip
            if proposal.adopted:
                self.skipped, loss_now = proposal.K, proposal.loss_pred
                self.adoptions += 1
        return position + self.skipped, loss_now

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        leap = self.leap.state_dict() if self.leap is not None else None
        return {"leap": leap, "skipped": self.skipped, "adoptions": self.adoptions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.skipped, self.adoptions = state["skipped"], state["adoptions"]
        if self.leap is not None:
            self.leap.load_state_dict(state["leap"])
