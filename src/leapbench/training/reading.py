"""One protocol at work on a trajectory that several share."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from leapbench.config.groups import ProtocolConfig
from leapbench.names import Regime
from leapbench.prediction.history import Ring
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


def storage_of(protocol: ProtocolConfig) -> str:
    """How a protocol stores snapshots: equal for protocols that can share a ring."""
    return " ".join(asdict(protocol.history).values())
