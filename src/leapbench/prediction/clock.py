"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch

from leapbench.names import Seconds

# `other` is logging and checkpoints; `eval` is the scorer's. Neither is charged to the method.
CHARGED = ("train", "snapshot", "regime", "predict", "verify", "adopt")
LAPS = (*CHARGED, "eval", "other")


class Clock:
    """Adds up seconds per lap. Exactly one lap runs at a time; entering another closes it.

    On a CPU a second is one of processor time of this process, all its threads together: what else the machine does
    adds nothing, and neither does waiting for a disk. On any other device it is one of wall time, with the device
    synchronised where a lap ends and only there, so that steps within one lap keep its queue full. This holds for every
    column, metric and field whose name ends in `_s` and has a lap's name, or `charged`, before it.

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
        processor = seconds_on(device) == Seconds.processor
        self._read: Callable[[], float] = time.process_time if processor else time.perf_counter
        self._lap, self._since = "other", self._read()

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
        now = self._read()
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


def seconds_on(device: torch.device) -> Seconds:
    """What the clock counts where a model is on this device."""
    return Seconds.processor if device.type == "cpu" else Seconds.wall


def _nothing() -> None:
    pass
