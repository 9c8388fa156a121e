"""The figures of a suite as png files, one set per workload, drawn from the same frames as the tables."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from leapbench.figures import pipeline
from leapbench.figures.budget import factors, profile, reference_curves
from leapbench.figures.leaping import after_leap, loss_curves, overhead, time_to_baseline
from leapbench.figures.prediction import acceptance, catastrophe, distance, skill
from leapbench.figures.rates import factors_at_rates, learning_rates
from leapbench.figures.style import DPI, STYLE
from leapbench.figures.training import landscape, loss_regimes, similarity
from leapbench.names import JUDGED, PROJECT, Status
from leapbench.records.read import TRAINING, Suite, load_suite
from leapbench.tables import LEAPT, Published, Table, build, load_published, rate_factors
from leapbench.tables import pipeline as pipeline_table
from leapbench.tables.acceptance import score
from leapbench.tables.judged import SECTION
from leapbench.tables.learning_rates import WITHOUT_RATE
from leapbench.tables.methods import MAIN, WORKLOAD, leaping, of_workload, workload_name
from leapbench.tables.render import section_name
from leapbench.tables.time_to_baseline import leaps_of

__all__ = ["figures_of_run", "slug", "write_figures"]


def write_figures(
    suite: Suite, scored: pd.DataFrame, tables: list[Table], published: Published, folder: Path
) -> list[Path]:
    """Draw every figure that the suite has records for; returns the paths.

    Args:
        suite: the runs.
        scored: of :func:`leapbench.tables.acceptance.score`.
        tables: of :func:`leapbench.tables.build`; their frames hold means and intervals.
        published: the cited figures.
        folder: where the png files go.
    """
    frames = {table.name: table.frame for table in tables}
    if "pipeline" in frames:
        return _pipeline_figures(frames, folder)
    if rate_factors.NAME in frames:
        return _factor_figures(frames[rate_factors.NAME], folder)
    paths = _leap_figures(suite, frames, folder) + _budget_figures(suite, tables, folder)
    if "learning_rates" in frames:
        return paths + _rate_figures(frames["learning_rates"], folder)
    completed = suite.runs[(suite.runs["status"] == Status.completed) & (suite.runs["mode"] == "observe")]
    for workload in completed[TRAINING].drop_duplicates().to_dict("records"):

        def select(frame: pd.DataFrame, workload: dict[Hashable, Any] = workload) -> pd.DataFrame:
            return frame[np.logical_and.reduce([frame[name] == value for name, value in workload.items()])]

        name = section_name({str(key): value for key, value in workload.items()})
        figures: dict[str, Figure | None] = {}
        with plt.rc_context(STYLE):
            figures["loss_regimes"] = loss_regimes(select(suite.evals), select(suite.regimes), name)
            figures["similarity"] = similarity(select(suite.regimes), name)
            for rule in JUDGED:
                if f"acceptance_{rule}" in frames:
                    figures |= acceptance(select(frames[f"acceptance_{rule}"]), rule, name)
            if "momentum_catastrophe" in frames:
                figures["momentum_catastrophe"] = catastrophe(
                    select(frames["momentum_catastrophe"]), published.momentum, name
                )
            figures["skill"] = skill(select(scored), name)
            figures["distance"] = distance(select(scored), name)
            figures["landscape"] = landscape(select(suite.landscape), name)
            paths += _save(figures, name, folder)
    return paths


def _rate_figures(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """In place of a set of figures for every learning rate: one figure per training, with the rates along its axis."""
    paths: list[Path] = []
    for training, rows in frame.groupby(WITHOUT_RATE, sort=False):
        name = section_name(dict(zip(WITHOUT_RATE, training, strict=True)))
        with plt.rc_context(STYLE):
            paths += _save({"learning_rates": learning_rates(rows, name)}, name, folder)
    return paths


def _factor_figures(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """One figure per training, with the learning rates along its axis."""
    paths: list[Path] = []
    for key, rows in frame.groupby(SECTION, sort=False, dropna=False):
        name = section_name(dict(zip(SECTION, key, strict=True)))
        with plt.rc_context(STYLE):
            paths += _save({rate_factors.NAME: factors_at_rates(rows, name)}, name, folder)
    return paths


def _pipeline_figures(frames: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """A set of figures per workload of a suite with pipelines."""
    paths: list[Path] = []
    for workload in frames["pipeline"][pipeline_table.WORKLOAD].drop_duplicates().to_dict("records"):
        name = workload_name(workload)
        final, errors = (of_workload(frames[table], workload) for table in ("pipeline", "reconstruction"))
        with plt.rc_context(STYLE):
            figures = {"pipeline": pipeline.arms(final, name), "reconstruction": pipeline.reconstruction(errors, name)}
            paths += _save(figures, name, folder)
    return paths


def _leap_figures(suite: Suite, frames: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """The figures of the runs of mode=leap; for a single run, those that need no baseline."""
    part = leaping(suite)
    if not part.configs:
        return []
    leaps = leaps_of(part)
    completed = leaps.runs[leaps.runs["status"] == Status.completed]
    columns = ["run_id", *WORKLOAD, "row"]
    curves = leaps.curves.merge(completed[columns], on="run_id")
    references = leaps.references.frame[leaps.references.frame["reference"].isin(MAIN)]
    paths: list[Path] = []
    for workload in completed[WORKLOAD].drop_duplicates().to_dict("records"):
        name = workload_name(workload)
        main = of_workload(references, workload)[["row", "reference"]].to_dict("records")
        reference = (str(main[0]["row"]), str(main[0]["reference"])) if main else None
        tables = {table: of_workload(frame, workload) for table, frame in frames.items() if table in LEAPT}
        with plt.rc_context(STYLE):
            figures = {"loss_curves": loss_curves(
                of_workload(curves, workload), of_workload(leaps.rows, workload), reference, name
            )}  # fmt: skip
            for stem, table, draw in (
                ("time_to_baseline", "time_to_baseline", time_to_baseline), ("overhead", "leap_overhead", overhead),
                ("after_leap", "after_leap", after_leap),
            ):  # fmt: skip
                if table in tables:
                    figures[stem] = draw(tables[table], name)
            paths += _save(figures, name, folder)
    return paths


def _budget_figures(suite: Suite, tables: list[Table], folder: Path) -> list[Path]:
    """The figures of a suite with reference curves; all its workloads in one."""
    by_name = {table.name: table for table in tables}
    if "equivalent_budget" not in by_name:
        return []
    table = by_name["equivalent_budget"]
    assert table.per_seed is not None
    with plt.rc_context(STYLE):
        figures = {
            "equivalent_budget": factors(table.frame, table.per_seed, suite.name),
            "reference_curve": reference_curves(by_name["reference_curve"].frame, table.frame, suite.name),
        }
        if "performance_profile" in by_name:
            figures["performance_profile"] = profile(by_name["performance_profile"].frame, suite.name)
        return _save(figures, suite.name, folder)


def _save(figures: dict[str, Figure | None], name: str, folder: Path) -> list[Path]:
    """Write the figures that were drawn as `folder`/<stem>__<workload>.png, and close them."""
    paths: list[Path] = []
    end = slug(name)
    for stem, figure in figures.items():
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{stem}__{end}.png")
            figure.savefig(paths[-1], dpi=DPI, metadata={"Software": ""})
            plt.close(figure)
    return paths


def slug(name: str) -> str:
    """The name of a workload within a file's name: `gpt2_nano_stdlib_adamw_lr_0.001`."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_")


def figures_of_run(folder: Path, out: Path) -> dict[str, Path]:
    """Draw the figures of the completed run in `folder` into `out`; name -> path."""
    suite = load_suite(folder.parent, only=folder.name)
    published = load_published(PROJECT / "results" / "published")
    paths = write_figures(suite, score(suite), build(suite, published), published, out)
    return {path.stem.partition("__")[0]: path for path in paths}
