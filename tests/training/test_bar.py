"""What a run shows of itself while it goes on."""

import io
import sys

from leapbench.training.bar import Bar


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def shown(monkeypatch, positions, terminal=False, wanted=True):
    """What stands on stderr after a position every 10 seconds."""
    stderr, clock = io.StringIO(), Clock()
    stderr.isatty = lambda: terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = Bar("net seed 0", 100, 40, wanted, clock)
    for position in positions:
        clock.time += 10.0
        bar.update(position)
        bar.note(position / 10)
    bar.close()
    return stderr.getvalue()


def test_a_log_gets_a_line_every_quarter_of_a_minute(monkeypatch):
    assert shown(monkeypatch, [50, 60, 70, 80]).splitlines() == [
        "net seed 0: 60 of 100 steps, 1 a second loss 5.000", "net seed 0: 80 of 100 steps, 1 a second loss 7.000",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar(monkeypatch):
    text = shown(monkeypatch, [50, 60], terminal=True)
    assert "net seed 0" in text and "60/100" in text and "loss 5.000" in text


def test_a_bar_stays_at_the_last_position(monkeypatch):
    stderr, clock = io.StringIO(), Clock()
    stderr.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = Bar("net seed 0", 100, 0, True, clock)
    bar.note(1.25)
    bar.update(100)  # a moment after the start
    bar.close()
    assert "100/100" in stderr.getvalue() and "loss 1.250" in stderr.getvalue()


def test_nothing_is_shown_unless_wanted(monkeypatch):
    assert shown(monkeypatch, [50, 60, 70], wanted=False) == shown(monkeypatch, [50], True, False) == ""
