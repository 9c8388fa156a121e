"""Learning rates as functions of the position alone: a factor for every parameter group's own rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from leapbench.config.choices import FloorForm, ScheduleName, WarmupBegins
from leapbench.config.groups import ScheduleConfig


def factor_at(schedule: ScheduleConfig, steps: int) -> Callable[[int], float]:
    """position -> learning rate over its peak, of the update that leaves this position.

    Args:
        schedule: constant | cosine (to `floor`) | cosine_two_stage (a cosine to `floor` by `restart_at`, and one from
            `restart` to `floor` after it, as in PDT's ImageNet runs) | linear (to `floor`) | wsd (linear to `floor`
            over the last `decay` share), each after `warmup` steps of linear warm-up from `warmup_from`; all but
            positions are shares of the peak. `warmup_from` is the rate before the first step, or with
            `warmup_begins=at` the first step's own, as both papers' code has it. With `floor_form=clamped` the cosine
            falls towards 0 and is held at `floor`, as in the code of Leap+Verify (arXiv:2602.19580). `every`: positions
            between two changes; PDT's code has an epoch.
        steps: positions of the whole run.
    """
    warmup, floor = schedule.warmup, schedule.floor
    counted = 0 if schedule.warmup_begins == WarmupBegins.at else 1

    def factor(position: int) -> float:
        position -= position % schedule.every
        if position < warmup:
            return schedule.warmup_from + (1 - schedule.warmup_from) * (position + counted) / warmup
        if schedule.name == ScheduleName.cosine:
            if schedule.floor_form == FloorForm.clamped:
                return max(floor, cosine(1.0, 0.0, warmup, steps, position))
            return cosine(1.0, floor, warmup, steps, position)
        if schedule.name == ScheduleName.cosine_two_stage:
            assert schedule.restart_at is not None and schedule.restart is not None
            if position < schedule.restart_at:
                return cosine(1.0, floor, warmup, schedule.restart_at, position)
            return cosine(schedule.restart, floor, schedule.restart_at, steps, position)
        if schedule.name in (ScheduleName.linear, ScheduleName.wsd):
            share = 1 - warmup / steps if schedule.name == ScheduleName.linear else schedule.decay
            span = max(1.0, share * steps)
            return max(floor, 1 - (1 - floor) * max(0.0, position - (steps - span)) / span)
        return 1.0

    return factor


def cosine(high: float, low: float, start: int, end: int, position: int) -> float:
    """Half a cosine from `high` at position `start` to `low` at `end`, and `low` after it."""
    progress = min(1.0, (position - start) / max(1, end - start))
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))
