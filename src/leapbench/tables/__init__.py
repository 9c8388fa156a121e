"""The tables: a suite in, csv + markdown + LaTeX out. No number in them is typed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from leapbench.config.tuned import TUNING
from leapbench.names import JUDGED, LEAPS, TRIALS
from leapbench.records.read import Suite
from leapbench.records.rows import RecordError
from leapbench.tables import rate_factors
from leapbench.tables.acceptance import score
from leapbench.tables.common import Published, Table, load_published, mixed, not_counted, notes_on
from leapbench.tables.cost import cost, spent
from leapbench.tables.equivalent import equivalent_budget
from leapbench.tables.extrapolation import MOMENTUM, cascade, landscape, momentum_catastrophe
from leapbench.tables.fixed_targets import fixed_targets, performance_profile
from leapbench.tables.judged import judged
from leapbench.tables.leaping import after_leap, leap_overhead
from leapbench.tables.learning_rates import learning_rates, sweeps_rates
from leapbench.tables.methods import leaping
from leapbench.tables.observe import acceptance, consistency, protocols, regime_distribution
from leapbench.tables.pipeline import is_pipelined, pipeline_tables
from leapbench.tables.reference_curve import reference_curve
from leapbench.tables.render import console, latex, markdown, sections
from leapbench.tables.skill import skill
from leapbench.tables.time_to_baseline import leaps_of, time_to_baseline
from leapbench.tables.trials import trials_of

__all__ = [
    "TABLES",
    "Published",
    "Table",
    "build",
    "console",
    "load_published",
    "mixed",
    "not_counted",
    "notes_on",
    "without_target",
    "write",
    "write_csv",
]

OBSERVED = (
    "regime_distribution", "acceptance_strict", "acceptance_adaptive", "acceptance_proximity", "skill",
    "momentum_catastrophe", "consistency", "cascade", "landscape", "protocols", "learning_rates",
)  # fmt: skip
# Of a suite in which plain training has several budgets and methods have one.
BUDGETED = ("equivalent_budget", "reference_curve", "fixed_targets", "performance_profile")
LEAPT = ("time_to_baseline", "leap_overhead", "after_leap")
# Of a suite whose methods leap at several learning rates, in place of the two above: nothing in it is tuned.
RATED = (rate_factors.NAME,)
# Of a suite with pipelines, in place of the two above: their steps and seconds are not those of a method.
PIPELINED = ("pipeline", "reconstruction", "throughput")
TABLES = (*OBSERVED, *BUDGETED, *LEAPT, *RATED, *PIPELINED)
PER_SEED = "_cells"  # ends the name of a csv with a row per seed


def build(suite: Suite, published: Published, only: str | None = None) -> list[Table]:
    """The tables of a suite in the order of TABLES, without those that it has nothing for, or `only` one.

    Raises:
        RecordError: `only` names no table, or a record cannot be used.
    """
    if only is not None and only not in TABLES:
        raise RecordError(f"no table {only!r}; there are {', '.join(TABLES)}")
    observe_part, leap_part = suite.part("observe"), leaping(suite)
    names = [only] if only else [*_observed(observe_part), *_leapt(suite, leap_part)]
    keep_empty = only is not None
    return (
        _observe_tables(observe_part, published, names)
        + _budget_tables(suite, names, keep_empty)
        + ([rate_factors.learning_rate_factors(suite.part("leap"), _cost)] if {*RATED} & {*names} else [])
        + _leap_tables(leap_part, published, names, keep_empty)
        + ([table for table in pipeline_tables(suite) if table.name in names] if {*PIPELINED} & {*names} else [])
    )


def _observe_tables(suite: Suite, published: Published, names: list[str]) -> list[Table]:
    """Those of `names` that mode=observe fills."""
    names = [name for name in names if name in OBSERVED]
    if not names:
        return []
    scored = score(suite)
    rules = JUDGED if {"consistency", "protocols"} & set(names) else [r for r in JUDGED if f"acceptance_{r}" in names]
    acceptance_tables: dict[str, Table] = {rule: acceptance(suite, scored, rule, published) for rule in rules}
    frames: dict[str, pd.DataFrame] = {rule: table.frame for rule, table in acceptance_tables.items()}
    makers: dict[str, Callable[[], Table]] = {
        "regime_distribution": lambda: regime_distribution(suite, published),
        "skill": lambda: skill(suite, scored),
        "momentum_catastrophe": lambda: momentum_catastrophe(suite, scored, published),
        "consistency": lambda: consistency(suite, frames, scored, published),
        "cascade": lambda: cascade(suite),
        "landscape": lambda: landscape(suite),
        "protocols": lambda: protocols(suite, frames),
        "learning_rates": lambda: learning_rates(suite, scored),
    }
    return [
        acceptance_tables[name.removeprefix("acceptance_")] if name.startswith("acceptance_") else makers[name]()
        for name in names
    ]


def _budget_tables(suite: Suite, names: list[str], keep_empty: bool) -> list[Table]:
    """Those of `names` that compare with plain training at several budgets; none without a reference curve."""
    names = [name for name in names if name in BUDGETED and not suite.name.endswith(TRIALS)]
    if not names:
        return []
    plan, tuning = trials_of(TUNING / f"{suite.name}.yaml")
    parts = judged(suite, _cost, plan)
    if not (parts or keep_empty):
        return []
    targets = fixed_targets(parts)
    makers: dict[str, Callable[[], Table]] = {
        "equivalent_budget": lambda: equivalent_budget(parts, tuning),
        "reference_curve": lambda: reference_curve(parts),
        "fixed_targets": lambda: targets,
        "performance_profile": lambda: performance_profile(targets.frame),
    }
    has_content = {"fixed_targets": len(targets.frame) > 0, "performance_profile": len(targets.frame) > 0}
    return [makers[name]() for name in names if has_content.get(name, True) or keep_empty]


def _cost(suite: Suite) -> pd.DataFrame:
    """In baseline steps."""
    return cost(spent(suite))


def _leap_tables(suite: Suite, published: Published, names: list[str], keep_empty: bool) -> list[Table]:
    """Those of `names` that mode=leap fills; without proposals, leaps or targets some have nothing to show."""
    names = [name for name in names if name in LEAPT]
    if not names:
        return []
    leaps = leaps_of(suite)
    makers: dict[str, Callable[[], Table]] = {
        "time_to_baseline": lambda: time_to_baseline(leaps, published),
        "leap_overhead": lambda: leap_overhead(leaps),
        "after_leap": lambda: after_leap(leaps),
    }
    proposals = suite.records[LEAPS]
    proposals = proposals[proposals["run_id"].isin(list(suite.configs))]
    has_content = {
        "time_to_baseline": len(leaps.references.frame) > 0,
        "leap_overhead": len(proposals) > 0,
        "after_leap": bool(proposals["adopted"].any()) and len(leaps.references.frame) > 0,
    }
    return [makers[name]() for name in names if has_content[name] or keep_empty]


def without_target(suite: Suite) -> list[str]:
    """For a suite of mode=leap in which no run has a baseline: why there is none, and what runs it."""
    part = leaping(suite)
    if is_pipelined(suite):
        return []
    references = leaps_of(part).references if part.configs else None
    if references is None or len(references.frame):
        return []
    return [line for lines in references.remarks.values() for line in lines]


def write(table: Table, suite: Suite, folder: Path) -> list[Path]:
    """Write csv, md and tex (and the per-seed csv) under `folder`; returns the paths."""
    paths = write_csv(table, folder)
    bodies = sections(table)
    if table.name in PIPELINED:
        notes = notes_on(suite)
    elif table.name in (*BUDGETED, *RATED):
        notes = notes_on(suite.part("leap"))
    else:
        notes = notes_on(leaping(suite) if table.name in LEAPT else suite.part("observe"))
    for end, text in (
        ("md", markdown(table, suite.name, notes, bodies)),
        ("tex", latex(table, suite.name, bodies)),
    ):
        paths.append(folder / f"{table.name}.{end}")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def write_csv(table: Table, folder: Path) -> list[Path]:
    """Write the csv and, where there is one, the csv with a row per seed; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = {table.name: table.frame}
    if table.per_seed is not None:
        frames[f"{table.name}{PER_SEED}"] = table.per_seed
    paths = [folder / f"{name}.csv" for name in frames]
    for frame, path in zip(frames.values(), paths, strict=True):
        frame.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    return paths


def _observed(suite: Suite) -> list[str]:
    """Those of OBSERVED that a suite has something for; of a sweep of rates one, whose rows are the rates."""
    if sweeps_rates(suite):
        return ["learning_rates"]
    return [name for name in OBSERVED if name != "learning_rates" and _is_configured(suite, name)]


def _leapt(suite: Suite, leap_part: Suite) -> tuple[str, ...]:
    """What a suite with runs of mode=leap, or with pipelines, is for."""
    if is_pipelined(suite):
        return PIPELINED
    if not leap_part.configs:
        return ()
    return RATED if rate_factors.leaps_at_rates(leap_part) else (*BUDGETED, *LEAPT)


def _is_configured(suite: Suite, table: str) -> bool:
    configs = suite.configs.values()
    if table in ("cascade", "landscape"):
        return any((science.get(table) or {}).get("enabled") for science in configs)
    if table == "momentum_catastrophe":
        return any(set(MOMENTUM) & set(science.get("predictors") or {}) for science in configs)
    if table == "protocols" and len({protocol for science in configs for protocol in science["protocols"]}) < 2:
        return False
    if table == "regime_distribution":
        return bool(configs)
    return any(science.get("predictors") for science in configs)
