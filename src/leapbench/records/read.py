"""Run folders in, DataFrames out. An unreadable record is an error with its path and line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from leapbench.config.schema import digest
from leapbench.names import (
    CASCADE,
    CONFIG,
    EVALS,
    LANDSCAPE,
    META,
    PROPOSALS,
    REGIMES,
    SUMMARY,
    UNCOUNTED,
    Seconds,
    Status,
)
from leapbench.records.rows import COLUMNS, KEYS, RecordError, no_rows, parse_rows
from leapbench.records.seal import check, contents
from leapbench.records.settings import settings

# What identifies an observed training, apart from its seed.
TRAINING = ["model", "dataset", "optimizer", "lr", "setting"]
RTOL = 1e-4

_MUST_AGREE = {
    EVALS: ["loss_nats"],
    REGIMES: ["similarity", "tau_low", "tau_high"],
    PROPOSALS: ["loss_now_nats", "loss_pred_nats", "loss_true_nats"],
    CASCADE: ["loss_nats"],
    LANDSCAPE: ["loss_nats"],
}
_SEED = re.compile(rb"^  seed: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Suite:
    """All runs of one suite.

    `runs` has one row per run folder: run_id, mode (observe | leap; empty if killed before it was written), trajectory,
    seed, model, dataset, optimizer, lr, setting, schedule, predictor (names, joined by +), status (completed |
    diverged | skipped | failed | partial | damaged), reason, skipped (predictors and why), interval, steps, git_commit,
    git_dirty, parameters, code (module -> hash), codes (how many versions of it wrote the run), seconds (what its clock
    counted: processor | wall, or both, joined by +), dataset_sha256 and torch. `setting` names what else differs
    between observed runs of one workload. `records` holds the rows of both modes, with run_id; the properties those of
    mode=observe; `configs` the science part of each config.yaml.
    """

    name: str
    folder: Path
    runs: pd.DataFrame
    records: dict[str, pd.DataFrame]
    configs: dict[str, dict[str, Any]]

    def part(self, mode: str) -> Suite:
        """The runs of one mode, and those that were killed before they wrote theirs."""
        return self.only(self.runs[self.runs["mode"].isin([mode, ""])])

    def only(self, runs: pd.DataFrame) -> Suite:
        """The suite with some of its runs."""
        configs = {name: self.configs[name] for name in runs["run_id"] if name in self.configs}
        return replace(self, runs=runs.reset_index(drop=True), configs=configs)

    @cached_property
    def evals(self) -> pd.DataFrame:
        """Losses along the training, completed runs, each trajectory once, with workload and seed."""
        return self._distinct(EVALS)

    @cached_property
    def regimes(self) -> pd.DataFrame:
        """Similarities and regimes, completed runs, each trajectory once, with workload and seed."""
        return self._distinct(REGIMES)

    @cached_property
    def proposals(self) -> pd.DataFrame:
        """Proposals, completed runs, each cell of a trajectory once, with workload and seed."""
        return self._distinct(PROPOSALS)

    @cached_property
    def cascade(self) -> pd.DataFrame:
        """Links of cascades, completed runs, each once, with workload and seed."""
        return self._distinct(CASCADE)

    @cached_property
    def landscape(self) -> pd.DataFrame:
        """Losses along the prediction direction, completed runs, each once, with workload and seed."""
        return self._distinct(LANDSCAPE)

    def _distinct(self, file: str) -> pd.DataFrame:
        """Records of completed, observed runs; of runs that share a trajectory, the rows they share are kept once."""
        observed = (self.runs["status"] == Status.completed) & (self.runs["mode"] == "observe")
        completed = self.runs.loc[observed, ["run_id", "trajectory", "seed", *TRAINING]]
        rows = self.records[file].merge(completed, on="run_id")
        key = ["trajectory", "setting", *KEYS[file]]
        shared = rows[rows.duplicated(key, keep=False)]
        if len(shared):
            spread = shared.groupby(key, dropna=False)[_MUST_AGREE[file]]
            low, high = spread.min(), spread.max()
            holes = spread.count().lt(spread.size(), axis=0) & low.notna()
            wrong = (holes | ((high - low) > RTOL * high.abs())).any(axis=1)
            if wrong.any():
                values = dict(zip(key, wrong.index[np.flatnonzero(wrong)[0]], strict=True))
                ids = shared.loc[shared["trajectory"] == values["trajectory"], "run_id"].unique()[:2]
                location = ", ".join(f"{name}={values[name]}" for name in KEYS[file])
                raise RecordError(
                    f"{self.folder}: runs {' and '.join(ids)} share a training but their {file} differ at {location}; "
                    "delete the one that is wrong"
                )
        return rows.drop_duplicates(key).reset_index(drop=True)


def load_suite(folder: str | Path, only: str | None = None) -> Suite:
    """Read every run folder of `folder`, or `only` one.

    Raises:
        RecordError: no runs, or a record that cannot be read, with path:line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such suite; train.py writes one with suite=NAME")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders = [path for path in folders if only in (None, path.name)]
    if not folders:
        raise RecordError(f"{folder}: no runs in this suite")
    rows: list[dict[str, Any]] = []
    configs: dict[str, dict[str, Any]] = {}
    tables: dict[str, list[pa.Table]] = {file: [] for file in COLUMNS}
    for run in folders:
        try:
            row, science, records_of_run = _read_run(run)
        except RecordError as error:
            row, science, records_of_run = {**_BLANK, "run_id": run.name, "reason": str(error)}, {}, {}
        rows.append(row)
        if science:
            configs[run.name] = science
        for file, parts in tables.items():
            table = records_of_run.get(file, no_rows(file))
            if len(table) or not parts:  # thousands of tables without rows take more memory than those with
                parts.append(table.append_column("run_id", pa.array([run.name] * len(table), pa.string())))
    runs = pd.DataFrame(rows).astype({"seed": "Int64", "interval": "Int64", "steps": "Int64", "lr": float})
    runs["setting"] = settings(runs, configs)
    records = {file: pa.concat_tables(parts).to_pandas() for file, parts in tables.items()}
    return Suite(folder.name, folder, runs, records, configs)


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, pa.Table]]:
    """One row of `runs`, the science part of the run's config (empty if it was killed before writing it), its records.

    Raises:
        RecordError: a file cannot be read, or is not what the run wrote.
    """
    files = contents(run)
    summary = _parse_json(run / SUMMARY, (run / SUMMARY).read_bytes()) if (run / SUMMARY).is_file() else {}
    if summary:
        check(run, summary, files)
    config = _parse_config(run / CONFIG, files[CONFIG]) if CONFIG in files else {}
    meta = {}
    try:
        meta = _parse_json(run / META, files[META]) if META in files else {}
    except RecordError:
        if summary:
            raise
    status = summary.get("status", Status.partial)
    if status not in (Status.completed, *UNCOUNTED):
        raise RecordError(f"{run / SUMMARY}: unknown status {status!r}")
    science = config.get("science", {})
    if summary and digest(science) != run.name:
        raise RecordError(f"{run}: holds run {digest(science)}; a run's folder has the run's id for a name")
    try:
        fields = {
            "model": science["model"]["name"], "dataset": science["dataset"]["name"],
            "optimizer": science["optimizer"]["name"], "lr": float(science["optimizer"]["lr"]),
            "schedule": science["schedule"]["name"], "seed": science["seed"],
            "interval": science["train"]["interval"], "steps": science["train"]["steps"], "mode": science["mode"],
            "predictor": "+".join(science.get("predictors") or {}) or "none",
        } if science else {}  # fmt: skip
    except (KeyError, TypeError) as error:
        raise RecordError(f"{run / CONFIG}: no {error} where one is expected under science") from None
    starts = meta.get("starts", [])
    row = _BLANK | {
        "run_id": run.name, "trajectory": meta.get("trajectory") or run.name, **fields, "status": status,
        "reason": summary.get("reason") or ("" if summary else f"no {SUMMARY}: still running, or killed"),
        "skipped": summary.get("skipped") or {}, "git_commit": meta.get("git_commit") or "unknown",
        "git_dirty": bool(meta.get("git_dirty")), "parameters": meta.get("parameters"),
        "code": meta.get("code") or {}, "codes": len({start.get("code") for start in starts}),
        "seconds": "+".join(sorted({start.get("seconds", Seconds.wall) for start in starts})) or Seconds.wall,
        "dataset_sha256": meta.get("dataset_sha256"), "torch": meta.get("torch"),
    }  # fmt: skip
    records = {file: parse_rows(run / file, files.get(file, b""), complete=bool(summary)) for file in COLUMNS}
    return row, science, records


# What is known of a run that cannot be read.
_BLANK: dict[str, Any] = {
    **dict.fromkeys(("trajectory", "model", "dataset", "optimizer", "schedule", "mode", "predictor", "reason"), ""),
    **dict.fromkeys(("lr", "seed", "interval", "steps", "parameters")),
    "status": Status.damaged, "skipped": {}, "git_commit": "unknown", "git_dirty": False,
    "code": {}, "codes": 0, "seconds": "", "dataset_sha256": None, "torch": None,
}  # fmt: skip


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise RecordError(f"{path}:{line}: not readable as JSON ({error})") from None
    if not isinstance(data, dict):
        raise RecordError(f"{path}:1: not a JSON object")
    return data


def _parse_config(path: Path, raw: bytes) -> dict[str, Any]:
    """A config.yaml. Read-only: runs of one cell share all but the seed."""
    seed = _SEED.search(raw)
    try:
        config = _parsed(_SEED.sub(b"  seed: 0", raw, count=1))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise RecordError(f"{path}:{mark.line + 1 if mark else 1}: not readable as YAML") from None
    if not isinstance(config, dict):
        return {}
    if seed is None or not isinstance(config.get("science"), dict):
        return config
    return {**config, "science": {**config["science"], "seed": int(seed[1])}}


@lru_cache(maxsize=4096)
def _parsed(text: bytes) -> Any:
    """A YAML text as data; parsing is what takes longest in a suite of thousands of small runs."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def suites_in(results: str | Path) -> list[str]:
    """Names of the folders of `results` that hold runs.

    Raises:
        RecordError: there is none.
    """
    results = Path(results)
    names = sorted({path.parents[1].name for path in results.glob(f"*/*/{CONFIG}")})
    if not names:
        raise RecordError(f"{results}: no suites here; train.py writes them, --results FOLDER reads them elsewhere")
    return names
