"""Checks of what wrappers are given: one line each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any


def flag(key: str, value: Any) -> bool:
    """`value`, given as `key`.

    Raises:
        TypeError: it is neither true nor false.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{key}={value!r} must be true or false")
    return value


def number(key: str, value: Any, least: float, most: float = math.inf, *, below: float = math.inf) -> float:
    """`value`, given as `key`, as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, below `least`, above `most` or not below `below`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{key}={value!r} must be a number")
    found = float(value)
    if not (math.isfinite(found) and least <= found <= most and found < below):
        bounds = f", {most:g} at most" if most < math.inf else f", below {below:g}" if below < math.inf else ""
        raise ValueError(f"{key}={value} must be {least:g} or more{bounds}")
    return found


def numbers(key: str, values: Any, least: float, example: str, *, below: float = math.inf) -> tuple[float, ...]:
    """`values`, given as `key`, as floats, each as of `number`; `example` is a list as it should be.

    Raises:
        TypeError: it is no list, or one of them no number.
        ValueError: one is out of range.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{key}={values!r} must be a list of numbers, as in {example}")
    return tuple(number(key, value, least, below=below) for value in values)
