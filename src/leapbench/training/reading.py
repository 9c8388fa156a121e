"""One protocol at work on a trajectory that several share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leapbench.config.groups import ProtocolConfig
from leapbench.names import Regime
from leapbench.prediction.history import History, Ring
from leapbench.prediction.predictor import Predictor
from leapbench.prediction.regime import RegimeDetector


@dataclass
class Reading:
    """One protocol at work on the shared trajectory."""

    name: str
    protocol: ProtocolConfig
    predictors: dict[str, Predictor]
    ring: Ring
    detector: RegimeDetector
    regime: Regime = Regime.unknown
    confirmed: bool = False

    def history(self, until: int | None = None) -> History:
        """As many of the ring's snapshots as the predictors look at, up to step `until`, as the protocol stores them.

        Raises:
            ValueError: `until` is given and that snapshot is no longer kept.
        """
        history, stored = self.ring.history(until), self.protocol.history
        wanted = max((p.context for p in self.predictors.values()), default=1)
        history = history.last(min(wanted, len(history.snapshots)))
        return history.rounded(getattr(torch, stored.weights), getattr(torch, stored.moments))
