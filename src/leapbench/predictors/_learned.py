"""What the learned predictors share: a file of weights, and five snapshots."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from leapbench.nowcasters.checkpoints import load
from leapbench.nowcasters.horizons import published_at
from leapbench.nowcasters.networks import CONTEXT
from leapbench.prediction.history import History
from leapbench.prediction.predictor import Predictor, name_of, spacing

N = TypeVar("N", bound=nn.Module)


class Learned(Predictor):
    """A predictor whose numbers come from a network that was trained on other trainings.

    Args:
        checkpoint: its weights; None = those that come with the package.
        sha256: first 12 hex digits of the file's hash; None = any file.

    Attributes:
        network: shared by all predictors with equal files.

    Raises:
        ValueError: one line, about the file.
    """

    context = CONTEXT

    def __init__(self, checkpoint: str | None = None, sha256: str | None = None) -> None:
        self.network: Any = load(name_of(self), checkpoint, sha256)


@lru_cache(maxsize=4)
def on_device(network: N, device: torch.device) -> N:
    """The network, which lies in main memory, or a copy of it on another device."""
    return network if device.type == "cpu" else copy.deepcopy(network).to(device)


def intervals(history: History, K: int) -> float:
    """K in intervals between snapshots.

    Raises:
        ValueError: K < 0, or the snapshots are not evenly spaced.
    """
    if K < 0:
        raise ValueError(f"K={K} must be 0 or more")
    return K / spacing(history.steps)


def checked_schedule(steps: int | None) -> int | None:
    """`steps`, given as `schedule_steps`.

    Raises:
        ValueError: it is no length of a training.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"schedule_steps={steps} must be the steps of the training, 1 or more")
    return steps


def ahead(history: History, K: int, schedule_steps: int | None, horizons: int) -> float:
    """Intervals ahead: K, or where the published schedule of a training of `schedule_steps` steps is now.

    Args:
        history: five snapshots.
        horizons: of the network.
    """
    asked = intervals(history, K)
    if schedule_steps is None:
        return asked
    return published_at(history.now.step, schedule_steps, CONTEXT * spacing(history.steps), horizons)


def rates_of(network: Any, history: History) -> tuple[float, ...]:
    """The learning rates that a network reads, as shares of the peak: at every snapshot and at every horizon.

    Empty for a network that reads none.
    """
    if not network.rates:
        return ()
    now, interval = history.now.position, spacing(history.steps)
    ahead = [now + interval * (k + 1) for k in range(network.horizons)]
    return tuple(history.factor_at(position) for position in [*(s.position for s in history.snapshots), *ahead])


def vectors(history: History) -> list[Tensor]:
    """The snapshots' weights (N,), oldest first."""
    return [snapshot.weights for snapshot in history.snapshots]
