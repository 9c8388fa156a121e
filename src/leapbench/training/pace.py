"""How far a run in mode=leap predicts, and how often: constant, or as in PDT's acceleration scheduler."""

from __future__ import annotations

from typing import Any

from leapbench.config.choices import PaceName


class Pace:
    """K and the distance between proposals, the same throughout.

    Attributes:
        K: steps ahead.
        every: intervals between two proposals.
    """

    def __init__(self, K: int, every: int, interval: int) -> None:
        self.K, self.every, self.interval = K, every, interval

    def after_interval(self, mean_loss: float) -> None:
        """Take the interval's mean training loss, nats, into account."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"K": self.K, "every": self.every}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.K, self.every = state["K"], state["every"]


class PdtPace(Pace):
    """Slows both down when the training loss rises.

    PDT (OpenReview zSTgrLkpRi), the acceleration scheduler of its distributed trainers: after each epoch from the
    fourth on, with L_t its mean training loss and tau = K / interval + 1,

        L_t > L_{t-1} and L_t > L_{t-2}:  tau > 4: tau -= 2;  tau = 4: tau = 3, T_i += 1;  tau <= 3: T_i += 2
        L_t > L_{t-1} only:               tau > 3: tau -= 1;  else T_i += 1

    and never the other way. Here the loss is the mean over all examples, as in the released code; the paper's runs
    took each rank's own. T_i is `every`.
    """

    def __init__(self, K: int, every: int, interval: int) -> None:
        super().__init__(K, every, interval)
        self.losses: list[float] = []

    def after_interval(self, mean_loss: float) -> None:
        """Take the interval's mean training loss, nats, into account."""
        self.losses.append(mean_loss)
        if len(self.losses) < 4 or not mean_loss > self.losses[-2]:
            return
        tau = self.K // self.interval + 1
        if mean_loss > self.losses[-3]:
            decrease, increase = (2, 0) if tau > 4 else (1, 1) if tau == 4 else (0, 2)
        else:
            decrease, increase = (1, 0) if tau > 3 else (0, 1)
        self.K -= decrease * self.interval
        self.every += increase

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return super().state_dict() | {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        super().load_state_dict(state)
        self.losses = list(state["losses"])


PACES: dict[PaceName, type[Pace]] = {PaceName.none: Pace, PaceName.pdt: PdtPace}
