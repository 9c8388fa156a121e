"""Watches over the loop around a Leap: whose weights these are, and which steps were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from leapbench.prediction.checks import check_mode
from leapbench.prediction.weights import FlatWeights

# A gradient scaler may skip as many updates in a row until it has found its scale.
PATIENCE = 16


class StepCount:
    """Whether `Leap.step()` is called once after every `optimizer.step()`: counts both, on the host.

    Where torch does not see the updates (an optimizer with a `step` that is not torch's, CUDA graphs), only a training
    whose weights do not move at all is noticed.

    Attributes:
        updates: calls of `optimizer.step()` seen so far.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.updates = 0
        self._calls = self._seen = self._idle = self._excess = self._intervals = 0
        self._begun = self._moves = False
        if getattr(getattr(type(optimizer), "step", None), "hooked", False):
            optimizer.register_step_post_hook(self._updated)

    def called(self) -> None:
        """`Leap.step()` was called."""
        self._calls += 1

    def check(self, unchanged: Callable[[], bool]) -> None:
        """Compare the counts since the last check; to be called at every snapshot.

        Args:
            unchanged: whether the weights are those of the last snapshot; asked once at most, and only in a training
                without visible updates, because it waits for the device.

        Raises:
            RuntimeError: no update at all, or updates and calls in another ratio than 1, for longer than PATIENCE.
        """
        calls, updates, first = self._calls, self.updates - self._seen, not self._begun
        self._calls, self._seen, self._begun = 0, self.updates, True
        if not calls:  # snapshots are taken by hand
            return
        if not updates:
            self._idle, self._excess, self._intervals = self._idle + calls, 0, 0
            if self._idle >= PATIENCE and not self._moves:
                if unchanged():
                    raise RuntimeError(
                        f"step() was called {self._idle} times and the weights have not changed: call it once after "
                        "every optimizer.step(), of the optimizer that Leap was given"
                    )
                self._moves = True
            return
        self._idle = 0
        if 2 * max(calls, updates) <= 3 * min(calls, updates):
            self._excess = self._intervals = 0
            return
        self._excess, self._intervals = self._excess + abs(calls - updates), self._intervals + 1
        # Few updates in one interval may be those before a CUDA graph, many in the first those before the first call.
        if self._excess > PATIENCE and (self._intervals > 1 or (updates > calls and not first)):
            raise RuntimeError(
                f"step() was called {calls} times for {updates} optimizer.step() since the last snapshot: call it "
                "once after every optimizer.step(), not per batch, epoch or accumulated gradient"
            )

    def _updated(self, *_: Any) -> None:
        self.updates += 1


class Watch:
    """What has to hold between a Leap and the training that it takes part in.

    Args:
        model, weights, optimizer: those of the Leap, which from now on is the only one that may replace the weights.

    Attributes:
        count: the calls.
    """

    def __init__(self, model: nn.Module, weights: FlatWeights, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.weights, self.count = model, weights, StepCount(optimizer)
        self._claim = weights.owner = object()
        self._updates = 0

    def check_attached(self) -> None:
        """Raise RuntimeError if what is done to the vector would not be done to the model, or by two at once."""
        check_mode()
        if fault := self.weights.fault(self.model):
            raise RuntimeError(
                f"{fault}, so that this Leap's vector is not the model's weights: write values in place (p.copy_(...), "
                "load_state_dict without assign), and make a new Leap after model.to(...), p.data = ..., a second "
                "FlatWeights, or freezing, unfreezing and exchanging parameters"
            )
        if self.weights.owner is not self._claim:
            raise RuntimeError("another Leap was made for this model after this one: use that one, or make a new one")

    def taken(self) -> None:
        """A snapshot is of the live weights."""
        self._updates = self.count.updates

    def check_present(self, steps: int, newest: int) -> None:
        """Raise RuntimeError if a training that has made `steps` has moved on since the snapshot of step `newest`."""
        if late := max(steps - newest, self.count.updates - self._updates):
            raise RuntimeError(
                f"propose() at step {newest + late}, but the newest snapshot is of step {newest}: a leap would undo "
                "the steps between; call it right after snapshot(), or let step() do both"
            )
