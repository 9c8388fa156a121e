"""A user's mistakes, each reported in one line."""

from __future__ import annotations


class ConfigError(Exception):
    """A user's mistake. The message is one line: what was wrong, and what would be right."""


class BusyError(ConfigError):
    """Another process is running this run id."""
