"""The progress of a run: a bar on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

REFRESH_S, LINE_S = 1.0, 15.0  # seconds between two updates of a bar, and between two lines


class Bar:
    """Shows positions on stderr, from `start` to `total`.

    Args:
        label: what runs.
        shown: False = show nothing.
    """

    def __init__(
        self, label: str, total: int, start: int, shown: bool, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.total, self.start, self.shown, self.now = label, total, start, shown, now
        self.console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
        self.began = self.shown_at = now()
        self.position, self.loss = start, ""
        self.progress: Progress | None = None
        if shown and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
                TimeElapsedColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            self.progress = Progress(*columns, console=self.console, auto_refresh=False)
            self.task = self.progress.add_task(label, total=total, completed=start, loss="")
            self.progress.start()

    def update(self, position: int) -> None:
        """Show the position, unless something was shown a moment ago."""
        self.position = position
        if not self.shown or self.now() - self.shown_at < (REFRESH_S if self.progress else LINE_S):
            return
        self.shown_at = self.now()
        if self.progress is not None:
            self.progress.update(self.task, completed=position, loss=self.loss, refresh=True)
        else:
            rate = (position - self.start) / max(self.shown_at - self.began, 1e-9)
            self.console.print(
                f"{self.label}: {position} of {self.total} steps, {rate:.3g} a second {self.loss}".rstrip()
            )

    def note(self, loss: float) -> None:
        """The loss to be shown with the next update, nats."""
        self.loss = f"loss {loss:.3f}"

    def close(self) -> None:
        """Leave the bar at the last position."""
        if self.progress is not None:
            self.progress.update(self.task, completed=self.position, loss=self.loss)
            self.progress.stop()
