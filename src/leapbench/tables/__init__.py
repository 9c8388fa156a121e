"""The tables: a suite in, csv + markdown + LaTeX out. No number in them is typed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from leapbench.acceptance import RULES, score
from leapbench.read import RecordError, Suite
from leapbench.tables.common import Published, Table, load_published, not_counted
from leapbench.tables.extrapolation import MOMENTUM, cascade, landscape, momentum_catastrophe
from leapbench.tables.observe import acceptance, consistency, protocols, regime_distribution
from leapbench.tables.render import console, latex, markdown

__all__ = ["TABLES", "Published", "Table", "build", "console", "load_published", "not_counted", "write"]

TABLES = (
    "regime_distribution", "acceptance_strict", "acceptance_adaptive", "acceptance_proximity", "momentum_catastrophe",
    "consistency", "cascade", "landscape", "protocols",
)  # fmt: skip


def build(suite: Suite, published: Published, only: str | None = None) -> list[Table]:
    """The tables of a suite in the order of TABLES, without those that its configs ask nothing of, or `only` one.

    Raises:
        RecordError: `only` names no table, or a record cannot be used.
    """
    if only is not None and only not in TABLES:
        raise RecordError(f"no table {only!r}; there are {', '.join(TABLES)}")
    wanted = [only] if only else [name for name in TABLES if _asked(suite, name)]
    scored = score(suite)
    needed = RULES if {"consistency", "protocols"} & set(wanted) else [r for r in RULES if f"acceptance_{r}" in wanted]
    accepted = {rule: acceptance(suite, scored, rule, published) for rule in needed}
    frames = {rule: table.frame for rule, table in accepted.items()}
    makers: dict[str, Callable[[], Table]] = {
        "regime_distribution": lambda: regime_distribution(suite, published),
        "momentum_catastrophe": lambda: momentum_catastrophe(suite, scored, published),
        "consistency": lambda: consistency(suite, frames, scored, published),
        "cascade": lambda: cascade(suite),
        "landscape": lambda: landscape(suite),
        "protocols": lambda: protocols(suite, frames),
    }
    return [
        accepted[name.removeprefix("acceptance_")] if name.startswith("acceptance_") else makers[name]()
        for name in wanted
    ]


def write(table: Table, suite: Suite, folder: Path) -> list[Path]:
    """Write csv, md and tex (and the per-seed csv) under `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{table.name}{end}" for end in (".csv", ".md", ".tex")]
    _csv(table.frame, paths[0])
    paths[1].write_text(markdown(table, suite.name, not_counted(suite)), encoding="utf-8")
    paths[2].write_text(latex(table, suite.name), encoding="utf-8")
    if table.per_seed is not None:
        paths.append(folder / f"{table.name}_cells.csv")
        _csv(table.per_seed, paths[-1])
    return paths


def _csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def _asked(suite: Suite, table: str) -> bool:
    configs = suite.configs.values()
    if table in ("cascade", "landscape"):
        return any((science.get(table) or {}).get("enabled") for science in configs)
    if table == "momentum_catastrophe":
        return any(set(MOMENTUM) & set(science.get("predictors") or {}) for science in configs)
    if table == "protocols":
        return len({protocol for science in configs for protocol in science["protocols"]}) > 1
    return table == "regime_distribution" or any(science.get("predictors") for science in configs)
