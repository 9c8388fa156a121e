"""Signals that ask a run to stop: SIGINT (Ctrl-C), SIGTERM, and SIGUSR2 from a scheduler that reclaims the node.

Between two steps the weights, the rows and the clock agree, within one they do not. So a request is recorded when
it arrives and handled at the end of the step, after the checkpoint, by the previous handler of the signal: submitit,
which requeues the job on USR2 and ignores TERM, or the command line, which ends. A second Ctrl-C does not wait; the
last checkpoint is whole in any case.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Terminated(SystemExit):
    """The process was asked to end; `code` is 128 + the signal's number."""


def terminate(signum: int, frame: FrameType | None = None) -> None:
    """The handler that ends a process whose run is safe."""
    raise Terminated(128 + signum)


class Deferred:
    """`with Deferred() as stop:` defers signals until `stop.obey()`, or the end of the block.

    Outside the main thread, where Python has no signal handlers, it does nothing.

    Args:
        signals: their numbers; default SIGNALS.
    """

    def __init__(self, *signals: int) -> None:
        self._signals = signals or SIGNALS
        self.asked: list[int] = []
        self._broken_off = False
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            for signum in self._signals:
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        if error is None:
            self.obey()
        elif self._broken_off and isinstance(error, Exception):  # a write in C++ reports the interrupt as its own error
            raise KeyboardInterrupt from None

    def obey(self) -> None:
        """Pass deferred signals to their previous handlers; returns if there are none, or if those ignore them."""
        while self.asked:
            signum = self.asked.pop(0)
            previous = self._previous[signum]
            if callable(previous):
                try:
                    previous(signum, None)
                except subprocess.SubprocessError as error:
                    # submitit's `scontrol requeue`: ended by its own requeue, or the controller is down.
                    print(f"{error}; the checkpoint is kept", file=sys.stderr, flush=True)
                    terminate(signum)
            elif previous != signal.SIG_IGN:
                terminate(signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        again = signum == signal.SIGINT and signum in self.asked and self._previous[signum] != signal.SIG_IGN
        self.asked.append(signum)
        if again:
            self._broken_off = True
            raise KeyboardInterrupt
