"""What the tables share: their shape, the published values beside them, and the list of runs that do not count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from leapbench.names import CONTROLS, UNCOUNTED, Status
from leapbench.records.read import TRAINING, Suite
from leapbench.records.rows import RecordError

PUBLISHED_AS = {"gpt2": "gpt2-124m", "qwen2_5_1_5b": "qwen2.5-1.5b", "gpt2_nano": "gpt2-124m"}
PUBLISHED_FILES = {
    "acceptance": "leap_verify_acceptance.csv",
    "regimes": "leap_verify_regimes.csv",
    "momentum": "leap_verify_momentum.csv",
    "cov": "leap_verify_cov.csv",
    "pdt": "pdt_time_to_baseline.csv",
}
NUMBERS = ["mean", "std", "ci_low", "ci_high", "n_seeds"]
PUBLISHED = ["published_mean", "published_std", "published_n", "published_model", "published_source"]


@dataclass
class Table:
    """One table. `frame` is the csv; the rest is how it is shown to a reader.

    Attributes:
        name: file stem.
        title: what is shown.
        frame: one row per cell; empty numbers are missing.
        header: one line: what is counted, n, interval, rule.
        summary: one line for the console.
        sections: columns that split the table into sections.
        rows: columns that name a row.
        cells: for a pivoted table, the horizons run across and each cell shows mean, std and interval.
        across: the column that runs across a pivoted table; None prints the frame's `show` columns.
        show: columns of a plain table.
        percent: numbers are percentages, rounded to one decimal.
        compact: the value of `regime` the console shows.
        compact_predictors: the predictors the console shows; empty = all.
        per_seed: a second csv, one row per seed.
        body: makes the body of a section from its rows and whether to be brief; None leaves it to the renderer.
        remarks: section name -> lines below its heading.
        problems: what makes the table incomplete and the user has to fix, one line each.
    """

    name: str
    title: str
    frame: pd.DataFrame
    header: str
    summary: str
    sections: list[str] = field(default_factory=lambda: [*TRAINING, "protocol"])
    rows: list[str] = field(default_factory=lambda: ["regime", "predictor"])
    across: str | None = None
    show: list[str] = field(default_factory=list)
    percent: bool = False
    compact: str | None = None
    compact_predictors: tuple[str, ...] = ()
    per_seed: pd.DataFrame | None = None
    body: Callable[[pd.DataFrame, bool], pd.DataFrame] | None = None
    remarks: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Published:
    """The cited figures, with our model names mapped to theirs."""

    acceptance: pd.DataFrame
    regimes: pd.DataFrame
    momentum: pd.DataFrame
    cov: pd.DataFrame
    pdt: pd.DataFrame


def load_published(folder: str | Path) -> Published:
    """Read results/published.

    Raises:
        RecordError: a file is missing.
    """
    frames = {}
    for key, file in PUBLISHED_FILES.items():
        path = Path(folder) / file
        if not path.is_file():
            raise RecordError(f"{path}: missing; the published figures belong there (--published FOLDER)")
        frames[key] = pd.read_csv(path)
    return Published(**frames)


def with_published(table: pd.DataFrame, published: pd.DataFrame, on: list[str], values: dict[str, str]) -> pd.DataFrame:
    """Join published values by model and `on`; cells without one stay empty.

    Args:
        table: has `model` and the columns `on`.
        published: has `model`, `on`, `source` and the keys of `values`.
        on: further columns that name the cell.
        values: column of `published` -> column of the result.
    """
    renamed = published[["model", *on, *values, "source"]].rename(
        columns={"model": "published_model", "source": "published_source", **values}
    )
    keyed = table.assign(published_model=table["model"].map(PUBLISHED_AS))
    joined = keyed.merge(renamed, on=["published_model", *on], how="left", validate="many_to_one")
    return joined.assign(published_model=joined["published_model"].where(joined["published_source"].notna()))


def seeds_counted(suite: Suite) -> str:
    """`5 seeds` or `4 of 5 seeds`, over all workloads."""
    total = suite.runs["seed"].dropna().nunique()
    completed = suite.runs.loc[suite.runs["status"] == Status.completed, "seed"].nunique()
    return f"{completed} {_plural('seed', completed)}" if completed == total else f"{completed} of {total} seeds"


def not_counted(suite: Suite) -> list[str]:
    """One line per run, or predictor of a run, that the numbers leave out, and why."""
    lines = []
    for status in UNCOUNTED:
        for run in suite.runs[suite.runs["status"] == status].to_dict("records"):
            seed = "?" if pd.isna(run["seed"]) else run["seed"]
            parts = [run["model"] or "?", run["dataset"] or "?", *([run["predictor"]] if run["mode"] == "leap" else [])]
            label = f"{run['run_id']} ({', '.join(parts)}, seed {seed})"
            reason = str(run["reason"]).strip().splitlines()
            lines.append(
                f"{status}: {reason[-1]}"  # which names the path
                if status == Status.damaged
                else f"{status}: {label}{': ' + reason[-1] if reason else ''}"
            )
    skipped: dict[tuple[str, str], list[str]] = {}
    for run in suite.runs.to_dict("records"):
        for predictor, cause in run["skipped"].items():
            skipped.setdefault((predictor, str(cause)), []).append(run["run_id"])
    lines += [
        f"predictor {predictor} skipped in {len(ids)} {_plural('run', len(ids))} ({', '.join(ids)}): {reason}"
        for (predictor, reason), ids in skipped.items()
    ]
    return lines


def mixed(suite: Suite) -> list[str]:
    """One line per part of the code, data set, PyTorch or clock that is not the same in all completed runs."""
    runs = suite.runs[suite.runs["status"] == Status.completed]
    versions: dict[str, Counter[str]] = {}
    for run in runs.to_dict("records"):
        for module, sha256 in run["code"].items():
            versions.setdefault(f"code: {module}", Counter())[sha256] += 1
        versions.setdefault(f"data: {run['dataset']}", Counter())[str(run["dataset_sha256"])] += 1
        versions.setdefault("torch", Counter())[str(run["torch"])] += 1
    lines = []
    for part, counts in versions.items():
        sizes = " and ".join(str(n) for _, n in counts.most_common())
        if len(counts) > 1:
            lines.append(f"{part} has {len(counts)} versions among the runs (of {sizes} runs)")
    counted = Counter(runs["seconds"])
    if len(counted) > 1 or any("+" in seconds for seconds in counted):
        parts = [f"{seconds} time in {n} {_plural('run', n)}" for seconds, n in counted.most_common()]
        lines.append(f"the laps' seconds are {', '.join(parts)}: compare steps and shares, not seconds")
    return lines + [f"code: run {run} was continued with other code" for run in runs.loc[runs["codes"] > 1, "run_id"]]


def notes_on(suite: Suite) -> dict[str, list[str]]:
    """What a reader of the tables has to know about the runs, by heading."""
    return {"Not counted": not_counted(suite), "Not the same in all runs": mixed(suite)}


def count_cells(per_seed: pd.DataFrame) -> str:
    """`60 cells (2 predictors x 6 K x 5 seeds) + 60 control cells`, from one row per cell asked for."""
    control = per_seed["predictor"].isin(CONTROLS)
    cells = per_seed[~control]
    workloads = len(cells[TRAINING].drop_duplicates())
    sizes = [("workload", workloads), *((key, cells[key].nunique()) for key in ("protocol", "predictor", "K", "seed"))]
    product = 1
    for _, size in sizes:
        product *= size
    words = [f"{n} {_plural(key, n)}" for key, n in sizes if n != 1 or key in ("predictor", "K", "seed")]
    shape = f" ({' x '.join(words)})" if len(cells) and product == len(cells) else ""
    missing = int((per_seed["status"] != Status.completed).sum())
    text = f"{len(cells)} {_plural('cell', len(cells))}{shape}"
    if control.any():
        text += f" + {int(control.sum())} control cells"
    return text + (f"; {missing} of them missing" if missing else "")


def _plural(word: str, n: int) -> str:
    return word if n == 1 or word == "K" else f"{word}s"
