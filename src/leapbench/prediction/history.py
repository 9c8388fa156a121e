"""Snapshots of a training, and the ring that keeps the last of them without allocating."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from leapbench.names import whole
from leapbench.prediction.moments import AdamGroup, Moments
from leapbench.prediction.weights import Layout


@dataclass(frozen=True)
class Snapshot:
    """The weights at one step.

    Attributes:
        step: gradient updates done.
        position: place in the schedule; the next update would use `factor_at(position)`.
        weights: (N,).
        exp_avg, exp_avg_sq: (N,) Adam's moments, or None.
        updates: optimizer steps behind the moments (Adam's t).
    """

    step: int
    position: int
    weights: Tensor
    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    updates: int = 0

    def rounded(self, weights: torch.dtype, moments: torch.dtype) -> Snapshot:
        """This snapshot with its vectors in these dtypes; vectors that already are, are shared."""
        m, v = (None if vector is None else vector.to(moments) for vector in (self.exp_avg, self.exp_avg_sq))
        return replace(self, weights=self.weights.to(weights), exp_avg=m, exp_avg_sq=v)


@dataclass(frozen=True)
class History:
    """What a predictor sees: snapshots from oldest to newest and the rules of the training.

    Attributes:
        snapshots: at least one.
        layout: names, shapes and offsets within the vectors.
        factor_at: position -> what the learning rates are multiplied by in the update that leaves this position.
        adam: the rules of the optimizer's parameter groups; empty when it keeps no Adam moments.
        scratch: vectors (N,) float32 to build candidates in, each handed out once; empty = fresh memory.
    """

    snapshots: tuple[Snapshot, ...]
    layout: Layout
    factor_at: Callable[[int], float]
    adam: tuple[AdamGroup, ...] = ()
    scratch: list[Tensor] = field(default_factory=list)

    @property
    def now(self) -> Snapshot:
        """The newest snapshot."""
        return self.snapshots[-1]

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the snapshots, ascending."""
        return tuple(s.step for s in self.snapshots)

    def last(self, h: int) -> History:
        """The newest h snapshots only.

        Raises:
            ValueError: there are fewer.
        """
        if h > len(self.snapshots):
            raise ValueError(
                f"{h} snapshots wanted, {len(self.snapshots)} kept: a ring needs the capacity of a predictor's context"
            )
        return replace(self, snapshots=self.snapshots[-h:])

    def rounded(self, weights: torch.dtype, moments: torch.dtype) -> History:
        """This history as it would be with its vectors stored in these dtypes; vectors that already are, are shared."""
        return replace(self, snapshots=tuple(snapshot.rounded(weights, moments) for snapshot in self.snapshots))

    def extended(self, weights: Tensor, K: int) -> History:
        """This history with predicted `weights` (N,) appended as if K more steps had been taken."""
        predicted = replace(self.now, step=self.now.step + K, position=self.now.position + K, weights=weights)
        return replace(self, snapshots=(*self.snapshots, predicted))

    def empty_vector(self) -> Tensor:
        """An uninitialised float32 vector (N,) on the weights' device, for a candidate."""
        if self.scratch:
            return self.scratch.pop()
        return torch.empty_like(self.now.weights, dtype=torch.float32)


class Ring:
    """Keeps the last `capacity` snapshots, the newest `moments_capacity` of them with Adam's moments.

    Vectors of dropped snapshots are reused, so a run allocates only while the ring fills.

    Args:
        capacity, moments_capacity: snapshots kept.
        interval: steps between two snapshots, checked at every push.
        weights_dtype, moments_dtype: how snapshots are stored.
        device: where; None = where the weights are.

    Raises:
        ValueError: a capacity below 1.
    """

    def __init__(
        self,
        capacity: int,
        interval: int,
        layout: Layout,
        factor_at: Callable[[int], float],
        adam: tuple[AdamGroup, ...] = (),
        moments_capacity: int = 0,
        weights_dtype: torch.dtype = torch.float32,
        moments_dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        whole("capacity", capacity, 1)
        self.capacity, self.moments_capacity, self.interval = capacity, moments_capacity, interval
        self.layout, self.factor_at, self.adam = layout, factor_at, adam
        self.weights_dtype, self.moments_dtype, self.device = weights_dtype, moments_dtype, device
        self._snapshots: list[Snapshot] = []

    def __len__(self) -> int:
        return len(self._snapshots)

    def push(self, step: int, position: int, weights: Tensor, moments: Moments | None = None) -> None:
        """Copy the live weights, and the moments if any are kept, in as the newest snapshot.

        Raises:
            ValueError: `step` is not one interval after the newest snapshot.
        """
        snapshots = self._snapshots
        if snapshots and step != snapshots[-1].step + self.interval:
            raise ValueError(
                f"snapshot at step {step}, but the last was at {snapshots[-1].step}, interval {self.interval}: take "
                "one at every interval's end, none between"
            )
        keeps_moments = moments is not None and self.moments_capacity > 0
        m, v = self._take_moments() if keeps_moments else (None, None)
        buffer = snapshots.pop(0).weights if len(snapshots) == self.capacity else None
        snapshot = Snapshot(step, position, self._store(buffer, weights, self.weights_dtype))
        if moments is not None and keeps_moments:
            snapshot = replace(
                snapshot,
                exp_avg=self._store(m, moments.exp_avg, self.moments_dtype),
                exp_avg_sq=self._store(v, moments.exp_avg_sq, self.moments_dtype),
                updates=moments.updates,
            )
        snapshots.append(snapshot)

    def adopt(self, position: int, weights: Tensor, clear: bool) -> None:
        """The newest snapshot becomes the adopted `weights` (N,), at `position`; its step and its moments stay.

        Args:
            clear: drop the older snapshots, from before the leap.
        """
        newest = self._snapshots[-1]
        newest.weights.copy_(weights)
        older = [] if clear else self._snapshots[:-1]
        self._snapshots = [*older, replace(newest, position=position)]

    def history(self, until: int | None = None) -> History:
        """The kept snapshots, oldest first, up to step `until`.

        Raises:
            ValueError: `until` is given and that snapshot is no longer kept.
        """
        snapshots = tuple(s for s in self._snapshots if until is None or s.step <= until)
        if until is not None and (not snapshots or snapshots[-1].step != until):
            raise ValueError(f"the snapshot of step {until} is no longer kept")
        return History(snapshots, self.layout, self.factor_at, self.adam)

    def ends_with(self, weights: Tensor) -> bool:
        """Whether the newest snapshot is of these weights (N,); waits for the device."""
        if not self._snapshots:
            return False
        stored = self._snapshots[-1].weights
        return torch.equal(weights.to(stored.device, stored.dtype), stored)

    def state_dict(self) -> list[dict[str, Any]]:
        """The snapshots, oldest first, as plain data and tensors, to be saved in a checkpoint."""
        return [dict(vars(snapshot)) for snapshot in self._snapshots]

    def load_state_dict(self, snapshots: list[dict[str, Any]], device: torch.device) -> None:
        """Take over the snapshots of a checkpoint; `device` is where the weights are."""
        self._snapshots = [self.restored(saved, device) for saved in snapshots]

    def restored(self, saved: dict[str, Any], device: torch.device) -> Snapshot:
        """A snapshot out of a checkpoint, where this ring's are kept."""
        place = self.device or device
        placed: dict[str, Any] = {key: v.to(place) if isinstance(v, Tensor) else v for key, v in saved.items()}
        return Snapshot(**placed)

    def _take_moments(self) -> tuple[Tensor | None, Tensor | None]:
        """The vectors of the oldest snapshot with moments, if as many as allowed have them."""
        holders = [i for i, s in enumerate(self._snapshots) if s.exp_avg is not None]
        if len(holders) < self.moments_capacity:
            return None, None
        oldest = self._snapshots[holders[0]]
        self._snapshots[holders[0]] = replace(oldest, exp_avg=None, exp_avg_sq=None)
        return oldest.exp_avg, oldest.exp_avg_sq

    def _store(self, buffer: Tensor | None, source: Tensor, dtype: torch.dtype) -> Tensor:
        if buffer is None:
            buffer = torch.empty_like(source, dtype=dtype, device=self.device or source.device)
        return buffer.copy_(source)
