"""The learning rate as a function of the position alone."""

from __future__ import annotations

import math
from collections.abc import Callable

from leapbench.config import ScheduleConfig


def lr_at(schedule: ScheduleConfig, peak: float, steps: int) -> Callable[[int], float]:
    """position -> learning rate of the update that leaves this position.

    Args:
        schedule: constant | cosine (to `floor` x peak) | wsd (linear to `floor` x peak over the last `decay` share),
            each after `warmup` steps of linear warm-up.
        peak: largest learning rate.
        steps: positions of the whole run.
    """
    warmup, floor = schedule.warmup, schedule.floor

    def factor(position: int) -> float:
        if position < warmup:
            return (position + 1) / warmup
        if schedule.name == "cosine":
            progress = min(1.0, (position - warmup) / max(1, steps - warmup))
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        if schedule.name == "wsd":
            span = max(1.0, schedule.decay * steps)
            return max(floor, 1 - (1 - floor) * max(0.0, position - (steps - span)) / span)
        return 1.0

    return lambda position: peak * factor(position)
