"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch

# `other` is logging and checkpoints; `eval` is the scorer's. Neither is charged to the method.
CHARGED = ("train", "snapshot", "regime", "predict", "verify", "adopt")
LAPS = (*CHARGED, "eval", "other")


class Clock:
    """Adds up seconds per lap. Exactly one lap runs at a time; entering another closes it.

    The device is synchronised only where a lap ends, so steps within one lap keep the device's queue full.

    >>> import torch
    >>> from leapbench.prediction.clock import Clock
    >>> clock = Clock(torch.device("cpu"))
    >>> with clock.lap("train") as lap:
    ...     _ = sum(range(1000))
    >>> clock.running, lap.seconds == clock.now()["train"] > 0
    ('other', True)

    Args:
        device: whose queue is waited for.
        spent: seconds per lap so far, from a checkpoint.
    """

    def __init__(self, device: torch.device, spent: dict[str, float] | None = None) -> None:
        self.seconds = dict.fromkeys(LAPS, 0.0) | (spent or {})
        self._wait: Callable[[], None] = partial(torch.cuda.synchronize, device) if device.type == "cuda" else _nothing
        self._lap, self._since = "other", time.perf_counter()

    def enter(self, lap: str) -> None:
        """Close the running lap and start `lap`; entering the running lap does nothing."""
        if lap != self._lap:
            self._close()
            self._lap = lap

    def lap(self, name: str) -> Lap:
        """A block that belongs to `name`; the lap around it continues afterwards."""
        return Lap(self, name)

    def now(self) -> dict[str, float]:
        """Seconds per lap up to this moment."""
        self._close()
        return dict(self.seconds)

    @property
    def charged(self) -> float:
        """Seconds charged to the method: everything but evaluation and logging."""
        return sum(self.now()[lap] for lap in CHARGED)

    @property
    def running(self) -> str:
        """The running lap."""
        return self._lap

    def _close(self) -> None:
        self._wait()
        now = time.perf_counter()
        self.seconds[self._lap] += now - self._since
        self._since = now


class Lap(AbstractContextManager["Lap"]):
    """A block of code that belongs to one lap.

    Attributes:
        seconds: that the block took, once it is left.
    """

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name, self.seconds = clock, name, 0.0

    def __enter__(self) -> Lap:
        self.outer = self.clock.running
        self.clock.enter(self.name)
        self.seconds -= self.clock.seconds[self.name]
        return self

    def __exit__(self, *exc: object) -> None:
        self.clock.enter(self.outer)
        self.seconds += self.clock.seconds[self.name]


def _nothing() -> None:
    pass
