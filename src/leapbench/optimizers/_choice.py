"""What wrappers hand over when a loss decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Choice = TypeVar("Choice")


def lowest(losses: Mapping[Choice, float], default: Choice) -> Choice:
    """The choice with the lowest loss, the first of equal ones; `default` where every loss is nan or there is none."""
    finite = [choice for choice, loss in losses.items() if loss == loss]
    return min(finite, key=losses.__getitem__, default=default)
