"""Messages between neighbouring stages: activations go forward, their gradients backward.

Each direction has a process group of its own. NCCL carries out the messages between two processes in the order in which
each of them asks for them, so with one group an activation on its way out could wait for a gradient on its way in.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from leapbench.config.errors import complaint
from leapbench.training.signals import Terminated

UNCONFIRMED = 2  # messages that may be on their way to one neighbour


class LostStageError(Terminated):
    """A process of the pipeline does not answer; `code` is 1."""

    def __init__(self, who: str, error: Exception) -> None:
        super().__init__(1)
        reason = complaint(error).partition(". ")[0]
        self.add_note(f"{who} does not answer, its process has ended or hangs ({reason})")
        self.add_note("the same command continues from the last checkpoint")


class Source(Protocol):
    """Where a stage takes the tensors of one kind from, in their order."""

    def take(self) -> Tensor:
        """The next one, which is the caller's."""
        ...


class Sink(Protocol):
    """Where a stage puts the tensors of one kind, in their order."""

    def put(self, tensor: Tensor) -> None:
        """Send one; it is not to be changed afterwards."""
        ...


@dataclass(frozen=True)
class Links:
    """What a stage is connected by; None where there is no neighbour."""

    activations_in: Source | None
    activations_out: Sink | None
    gradients_in: Source | None
    gradients_out: Sink | None


class Meter:
    """What the messages of one process took.

    Attributes:
        waited_s: seconds in which the process could do nothing but wait for its neighbours.
        sent_bytes: of tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.waited_s, self.sent_bytes = device, 0.0, 0

    def wait(self, work: Any) -> None:
        """Wait for a message, and on a GPU first for what is computed there."""
        self._synchronize()
        begun = time.perf_counter()
        work.wait()
        self._synchronize()
        self.waited_s += time.perf_counter() - begun

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Inbox:
    """Tensors from one neighbour; each is asked for when the one before it is taken, so that it comes meanwhile.

    Args:
        like: shape, dtype and device of each.
        count: how many there will be.
    """

    def __init__(self, peer: int, group: Any, like: Tensor, count: int, meter: Meter) -> None:
        self.peer, self.group, self.like, self.left, self.meter = peer, group, like, count, meter
        self.asked: tuple[Any, Tensor] | None = None

    def take(self) -> Tensor:
        """The next tensor.

        Raises:
            LostStageError: the neighbour does not answer.
        """
        with answering(f"stage {self.peer}"):
            work, tensor = self.asked or self._ask()
            self.meter.wait(work)
            self.asked = self._ask() if self.left else None
        return tensor

    def _ask(self) -> tuple[Any, Tensor]:
        assert self.left, "no more messages are expected"
        self.left -= 1
        tensor = torch.empty(self.like.shape, dtype=self.like.dtype, device=self.like.device)
        return dist.irecv(tensor, self.peer, group=self.group), tensor


class Outbox:
    """Tensors to one neighbour."""

    def __init__(self, peer: int, group: Any, meter: Meter) -> None:
        self.peer, self.group, self.meter = peer, group, meter
        self.sent: deque[tuple[Any, Tensor]] = deque()

    def put(self, tensor: Tensor) -> None:
        """Send a tensor; waits while UNCONFIRMED others have not arrived.

        Raises:
            LostStageError: the neighbour does not answer.
        """
        tensor = tensor.detach().contiguous()
        with answering(f"stage {self.peer}"):
            self.sent.append((dist.isend(tensor, self.peer, group=self.group), tensor))
            self.meter.sent_bytes += tensor.nbytes
            while len(self.sent) > UNCONFIRMED:
                self.meter.wait(self.sent.popleft()[0])

    def empty(self) -> None:
        """Wait until everything has arrived.

        Raises:
            LostStageError: the neighbour does not answer.
        """
        with answering(f"stage {self.peer}"):
            while self.sent:
                self.meter.wait(self.sent.popleft()[0])


@contextlib.contextmanager
def answering(who: str) -> Iterator[None]:
    """Messages inside fail because `who` does not answer.

    Raises:
        LostStageError: they failed.
    """
    try:
        yield
    except RuntimeError as error:  # of torch.distributed, for a connection that was closed and for one that is silent
        raise LostStageError(who, error) from None
