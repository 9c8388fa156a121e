"""Past weights of one stage, in a ring."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leapbench.training.pipeline.stages import Stage


class PastWeights:
    """The last `capacity` versions of a stage's weights; version k is that after k updates.

    Memory: capacity * stage.size elements, all of it taken at once.

    Args:
        like: a vector of the dtype and device.
    """

    def __init__(self, stage: Stage, capacity: int, like: Tensor) -> None:
        self.stage, self.capacity = stage, capacity
        self.data = like.new_zeros(capacity, stage.size)
        self.newest = -1
        self._leaves: dict[int, dict[str, Tensor]] = {}

    def push(self, weights: Tensor) -> None:
        """Keep `weights` (size,) as the next version, in place of the oldest."""
        self.newest += 1
        self.slot(self.newest).copy_(weights)

    def slot(self, version: int) -> Tensor:
        """(size,) where version `version` stands once it is kept, until a later one takes its place."""
        return self.data[version % self.capacity]

    def __getitem__(self, version: int) -> Tensor:
        """Version `version`, (size,), not to be changed."""
        assert max(0, self.newest - self.capacity + 1) <= version <= self.newest, f"version {version} is not kept"
        return self.slot(version)

    def leaves(self, version: int) -> dict[str, Tensor]:
        """Version `version` as leaves of a graph, shaped as the parameters, by name; they stay the same objects."""
        slot, start = self[version], self.stage.place.start
        key = version % self.capacity
        if key not in self._leaves:
            self._leaves[key] = {
                entry.name: slot[entry.offset - start : entry.offset - start + entry.size]
                .view(entry.shape).detach().requires_grad_()
                for entry in self.stage.entries
            }  # fmt: skip
        return self._leaves[key]

    def clear(self) -> None:
        """Forget all versions."""
        self.newest = -1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"data": self.data, "newest": self.newest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        with torch.no_grad():
            self.data.copy_(state["data"])
        self.newest = state["newest"]
