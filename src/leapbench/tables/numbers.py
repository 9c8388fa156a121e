"""Numbers formatted for a reader."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from leapbench.tables import stats

MISSING = "missing"
PERCENT = (0.0, 100.0)

Cell = Mapping[Hashable, Any]


def number(value: object, percent: bool = False) -> str:
    """A number rounded for a reader; empty for a missing one."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{value:d}"
    size = abs(float(value))  # type: ignore[arg-type]
    if percent:
        return f"{value:.1f}"
    if 0 < size < 0.01:
        return f"{value:.2g}"
    if size >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.{0 if size >= 100 else 1 if size >= 10 else 3}f}"


def summarised(
    frame: pd.DataFrame, by: list[str], name: str, within: tuple[float, float] | None = None
) -> pd.DataFrame:
    """Mean and interval of a column over seeds under the names that :func:`interval` reads, and n_seeds.

    `within` is what a mean can be; of a column of percentages, `*_pct`, 0 to 100 unless told.
    """
    limits = within or (PERCENT if name.endswith("_pct") else (-np.inf, np.inf))
    return _named(stats.summarise(frame, by, name, limits), name)


def summarised_ratios(frame: pd.DataFrame, by: list[str], name: str) -> pd.DataFrame:
    """The same of a column of ratios: geometric mean and its interval."""
    return _named(stats.summarise_ratios(frame, by, name), name)


def _named(table: pd.DataFrame, name: str) -> pd.DataFrame:
    names = {"mean": name, "ci_low": f"{name}_ci_low", "ci_high": f"{name}_ci_high"}
    return table.drop(columns="std").rename(columns=names)


def bounded(value: float, least: float, most: float) -> str:
    """A factor or one of its bounds: `1.120`; `< 0.350` for -inf and `> 2.000` for inf, which are outside the curve."""
    return f"< {number(least)}" if value == -np.inf else f"> {number(most)}" if value == np.inf else number(value)


def interval(cell: Cell, name: str, brief: bool = False) -> str:
    """`0.870 [0.810, 0.930]` from `name`, `name`_ci_low and `name`_ci_high; `missing` without a mean."""
    mean, low, high = (number(cell[f"{name}{end}"]) for end in ("", "_ci_low", "_ci_high"))
    return (f"{mean} [{low}, {high}]" if low and not brief else mean) or MISSING


def commit_names(commits: Iterable[str]) -> str:
    """`commit 0123456789ab`, or `commits` and all of them, each once."""
    names = sorted({commit[:12] for commit in commits})
    return f"commit{'s' if len(names) > 1 else ''} {', '.join(f'`{name}`' for name in names)}"


def line_of(cells: Sequence[str]) -> str:
    """A row of a table in markdown."""
    return f"| {' | '.join(cells)} |"
