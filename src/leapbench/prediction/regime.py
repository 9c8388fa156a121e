"""How fast the network's function changes: fingerprints, their similarity, and the regime that follows.

Leap+Verify, arXiv:2602.19580, section 3 (regime detection); paper and code differ in pooling, cosine and comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leapbench.names import Regime


def fingerprint(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Pool the final hidden states of the probes.

    Args:
        hidden: (P, T, d) states after the last norm.
        mask: (P, T), 1 at real tokens, or None when nothing is padded.
        pooling: masked_mean (over real tokens), mean (padded positions included), tokens (no pooling).

    Returns:
        (P, d) or, for `tokens`, (P, T d); float32.
    """
    hidden = hidden.float()
    if pooling == "tokens":
        return hidden.flatten(1)
    if pooling == "mean" or mask is None:
        return hidden.mean(1)
    weight = mask.to(hidden).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1)


def similarity(a: Tensor, b: Tensor, cosine: str) -> float:
    """Cosine of two fingerprints (P, d): `concatenated` as one vector, or the mean over `per_probe` cosines."""
    if cosine == "concatenated":
        a, b = a.reshape(1, -1), b.reshape(1, -1)
    a, b = a.double(), b.double()
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1).mean())


def classify(s: float | None, tau_low: float, tau_high: float, inclusive: bool) -> Regime:
    """Regime of similarity `s`; None, at the first checkpoint, and nan are unknown.

    Args:
        inclusive: the published code's >= and <= instead of the paper's strict comparisons.
    """
    if s is None or s != s:
        return Regime.unknown
    if s > tau_high or (inclusive and s == tau_high):
        return Regime.stable
    if s < tau_low or (inclusive and s == tau_low):
        return Regime.chaotic
    return Regime.transition


@dataclass
class RegimeDetector:
    """The regime at each checkpoint of one run under one protocol.

    Attributes:
        tau_low, tau_high: thresholds of the similarity.
        inclusive: comparison, see :func:`classify`.
        pooling, cosine: see :func:`fingerprint`, :func:`similarity`.
        confirm: stable checkpoints in a row before `confirmed`.
    """

    tau_low: float
    tau_high: float
    inclusive: bool = False
    pooling: str = "masked_mean"
    cosine: str = "concatenated"
    confirm: int = 2
    previous: Tensor | None = None
    stable_in_a_row: int = 0

    def update(self, hidden: Tensor, mask: Tensor | None) -> tuple[float | None, Regime, bool]:
        """Process the probes' hidden states (P, T, d) of the next checkpoint: (similarity, regime, confirmed)."""
        current = fingerprint(hidden, mask, self.pooling)
        s = None if self.previous is None else similarity(current, self.previous, self.cosine)
        self.previous = current
        regime = classify(s, self.tau_low, self.tau_high, self.inclusive)
        self.stable_in_a_row = self.stable_in_a_row + 1 if regime == Regime.stable else 0
        return s, regime, self.stable_in_a_row >= self.confirm

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"previous": self.previous, "stable_in_a_row": self.stable_in_a_row}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take over the state of a checkpoint."""
        self.previous, self.stable_in_a_row = state["previous"], state["stable_in_a_row"]  # type: ignore[assignment]
