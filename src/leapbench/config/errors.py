"""A user's mistakes, each reported in one line."""

from __future__ import annotations

# Kinds of errors whose message is no sentence without them: that of a KeyError is a key.
WORDLESS = (LookupError, ArithmeticError)
LONGEST = 200  # characters


class ConfigError(Exception):
    """A user's mistake. The message is one line: what was wrong, and what would be right."""


class BusyError(ConfigError):
    """Another process is running this run id."""


def complaint(error: BaseException) -> str:
    """What a library says about a setting, in one line: its message, with the error's kind where that says more."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return text if text and not isinstance(error, WORDLESS) else f"{type(error).__name__}: {text}".removesuffix(": ")
