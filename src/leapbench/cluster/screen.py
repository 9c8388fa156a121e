"""One line that is kept up to date, below everything that a command prints."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.text import Text

LINE_S = 60.0  # seconds between two lines where they cannot overwrite each other


class Screen:
    """Passes on what commands print, and keeps one progress line on stderr below it; safe between threads."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
        self.now, self.lock = now, threading.Lock()
        self.live: Live | None = None
        self.shown, self.shown_at = "", -LINE_S

    def progress(self, line: str) -> None:
        """Replace the progress line; where that is impossible, print it at most once in LINE_S seconds."""
        with self.lock:
            if self.console.is_terminal:
                if self.live is None:
                    self.live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
                    self.live.start()
                self.live.update(Text(line), refresh=True)
            elif line != self.shown and self.now() - self.shown_at >= LINE_S:
                self.console.print(Text(line))
                self.shown, self.shown_at = line, self.now()

    def write(self, text: str, target: IO[str]) -> None:
        """Print one line, with its end, above the progress line."""
        with self.lock:
            if self.live is not None and target.isatty():
                self.live.console.print(Text.from_ansi(text))
            else:
                target.write(text)
                target.flush()

    def finish(self, line: str) -> None:
        """Leave `line` where the progress line was."""
        with self.lock:
            if self.live is not None:
                self.live.stop()
                self.live = None
            self.console.print(Text(line))
