"""Signals that ask a run to stop: SIGTERM, and SIGUSR2 of a scheduler that wants the node back.

Between two steps the weights, the rows and the clock agree, within one they do not. So a request is noted when it
comes and answered at the end of the step, after the checkpoint, by whoever handled the signal before: submitit, which
requeues the job on USR2 and ignores TERM, or the command line, which ends.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Terminated(SystemExit):
    """The process was asked to end; `code` is 128 + the signal's number."""


def terminate(signum: int, frame: FrameType | None = None) -> None:
    """The handler that ends a process whose run is safe."""
    raise Terminated(128 + signum)


class Deferred:
    """`with Deferred() as stop:` keeps SIGNALS back until `stop.obey()`, or the end of the block.

    Outside the main thread, where Python has no signal handlers, nothing is ever asked for.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)
        if error is None:
            self.obey()

    def obey(self) -> None:
        """Pass on what was asked for; returns if nothing was, or if the handler before ignores it."""
        while self.asked:
            signum = self.asked.pop(0)
            before = self._before[signum]
            if callable(before):
                try:
                    before(signum, None)
                except subprocess.SubprocessError as error:
                    # submitit's `scontrol requeue`: ended by the requeue that it asked for, or the controller is away.
                    print(f"{error}; the checkpoint is kept", file=sys.stderr, flush=True)
                    terminate(signum)
            elif before != signal.SIG_IGN:
                terminate(signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.asked.append(signum)
