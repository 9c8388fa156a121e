"""The processes of a pipeline: which of them this one is, how they reach each other, and which one says why they end.

torchrun starts them and, when one dies, asks the others to end and ends them by force half a minute later. A process
that waits for a message does not hear that; it finds its neighbour's connection closed. Whichever notices first tells,
the others end silently.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from leapbench.config.errors import ConfigError
from leapbench.training.pipeline.links import answering
from leapbench.training.prepare import pick_device
from leapbench.training.signals import Terminated

START = "torchrun --nproc-per-node=2 scripts/pipeline.py experiment=layerpipe2_nano pipeline.stages=2"
TIMEOUT = timedelta(minutes=5)  # a message that takes longer does not come
LEAVE_S = 10  # a process that has told why it ends is ended by force so many seconds later
GRACE_S = 2.0  # for another process to tell: when one has ended, torchrun ends them all
T = TypeVar("T")


class Processes:
    """This process among those that torchrun has started.

    Attributes:
        rank: of this one, from 0; it is the number of its stage.
        size: how many there are.

    Raises:
        ConfigError: torchrun has not started this process.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        try:
            self.rank, self.size, port = (int(environ[key]) for key in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
            self.local, host = int(environ.get("LOCAL_RANK", self.rank)), environ["MASTER_ADDR"]
        except (KeyError, ValueError):
            raise ConfigError(f"a pipeline is started by torchrun, a process per stage: {START}") from None
        is_host = self.rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self.store = dist.TCPStore(
            host, port, is_master=is_host, timeout=TIMEOUT, wait_for_workers=False, multi_tenant=True
        )
        self.connections = 0

    def __str__(self) -> str:
        return f"stage {self.rank} of {self.size}"

    def device(self, name: str) -> torch.device:
        """The device of this process's stage: the CPU, or a GPU for each process of this machine.

        Raises:
            ConfigError: there is no such device, or there are fewer of them than processes.
        """
        device = pick_device(name)
        if device.type != "cuda":
            return device
        if device.index is not None or self.local >= torch.cuda.device_count():
            raise ConfigError(
                f"device={name} is not a GPU for each stage, of which this machine has {torch.cuda.device_count()}; "
                "use device=cuda with as many GPUs as stages, or device=cpu"
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    @contextlib.contextmanager
    def connected(self, device: torch.device) -> Iterator[Connection]:
        """The processes can reach each other inside.

        Raises:
            LostStageError: not all of them come.
        """
        self.connections += 1
        store = dist.PrefixStore(f"connection{self.connections}", self.store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        with answering("one of the other stages"):
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT)
            groups = [dist.new_group(backend=backend, timeout=TIMEOUT) for _ in range(2)]
        yield Connection(self.rank, self.size, *groups)
        dist.destroy_process_group()  # not after an error, for then it could wait for the dead

    @contextlib.contextmanager
    def one_message(self) -> Iterator[None]:
        """Of the processes that end badly inside, the first one's error goes on; the others end silently."""
        try:
            yield
        except BaseException as error:
            is_first = self._is_first()
            if dist.is_initialized() or not is_first:
                # Neither the others' end nor a message that never comes may keep this process from telling and leaving.
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(LEAVE_S)
                for signum in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(signum, signal.SIG_IGN if is_first else signal.SIG_DFL)
            if not is_first:
                time.sleep(GRACE_S)
                os._exit(1)
            if type(error) is Terminated:
                error.add_note(f"{self} was told to end, because another stage has died or all of them are to end")
                error.add_note("the same command continues from the last checkpoint")
            elif isinstance(error, Exception):
                error.add_note(f"{self} has ended with this error, and the other stages end with it")
            raise

    def _is_first(self) -> bool:
        """Whether no other process has ended badly before."""
        try:
            return self.store.add("ended", 1) == 1
        except RuntimeError:  # its host is gone
            return True


class Connection:
    """What all processes of a pipeline do together.

    Attributes:
        forward, backward: the groups of the messages between neighbours, one for each direction.
    """

    def __init__(self, rank: int, size: int, forward: Any, backward: Any) -> None:
        self.rank, self.size, self.forward, self.backward = rank, size, forward, backward

    def barrier(self) -> None:
        """Wait until all are here."""
        self._together(dist.barrier)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes."""
        made: list[Any] = [make() if self.rank == 0 else None]
        self._together(lambda: dist.broadcast_object_list(made))
        return made[0]

    def from_all(self, value: T) -> list[T]:
        """Every process's value, in the order of the stages, for each of them."""
        values: list[Any] = [None] * self.size
        self._together(lambda: dist.all_gather_object(values, value))
        return values

    def at_first(self, value: T) -> list[T]:
        """Every process's value, in the order of the stages, for the first process; nothing for the others."""
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        self._together(lambda: dist.gather_object(value, values))
        return values or []

    def _together(self, operation: Callable[[], Any]) -> None:
        with answering("one of the other stages"):
            operation()
