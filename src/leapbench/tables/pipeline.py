"""Pipelines with delayed gradients: what each arm costs and gains, how well weights are reconstructed, how fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from leapbench.config.arms import SEQUENTIAL, arm_of, source_of
from leapbench.config.choices import ForwardWeights, Versions
from leapbench.config.errors import ConfigError
from leapbench.names import EVALS, PIPELINE, VALIDATION, Status
from leapbench.records.read import Suite
from leapbench.records.rows import RecordError
from leapbench.tables import stats
from leapbench.tables.common import Table, seeds_counted
from leapbench.tables.numbers import interval, number, summarised, summarised_ratios
from leapbench.training.pipeline.throughput import BACKWARD_SHARE, measured_in, modelled

WORKLOAD = ["model", "dataset", "total_steps", "batch_size"]
CUT = ["stages", "delay_model", "microbatches"]
ARM = [*WORKLOAD, "optimizer", "schedule", *CUT, "arm", "lr"]
STASH = str(Versions.stash)
BYTES = 4  # of a weight


def is_pipelined(suite: Suite) -> bool:
    """Whether some run of the suite is a pipeline."""
    return any("pipeline" in science for science in suite.configs.values())


def pipeline_tables(suite: Suite) -> list[Table]:
    """`pipeline`, `reconstruction` and `throughput` of a suite with pipelined runs."""
    runs = _runs(suite)
    rows = suite.records[PIPELINE].merge(runs, on="run_id")
    return [_final(suite, runs, rows), _reconstruction(suite, rows), _throughput(suite, rows)]


def formula_bytes(pipeline: Mapping[str, Any], delay: int, parameters: int) -> int:
    """Memory for weights beyond the live ones that a stage needs in its arm, bytes, of float32.

    stash: a version per update of delay; a moving average: one vector; a prediction: the older versions it reads.

    Args:
        pipeline: that part of a run's science.
        delay: d, updates.
    """
    if delay == 0:
        return 0
    vectors = delay if pipeline["versions"] == Versions.stash else 0
    vectors += pipeline["versions"] in (Versions.ema_fixed, Versions.ema_pipeline, Versions.pipemare)
    older = {ForwardWeights.linear: delay, ForwardWeights.trend: 4 * max(1, delay // 4)}
    return BYTES * parameters * (vectors + older.get(ForwardWeights(pipeline["forward"]), 0))


def _runs(suite: Suite) -> pd.DataFrame:
    """One row per completed run: run_id, seed and the columns of ARM; none where there is no pipeline."""
    found = []
    for run in suite.runs[suite.runs["status"] == Status.completed].to_dict("records"):
        science = suite.configs[run["run_id"]]
        pipeline = science.get("pipeline")
        arm = arm_of(pipeline)
        cut = {name: pipeline[name] for name in CUT} if pipeline and arm != SEQUENTIAL else {
            "stages": 1, "delay_model": "", "microbatches": 1
        }  # fmt: skip
        found.append(
            {name: run[name] for name in ("run_id", "seed", "model", "dataset", "optimizer", "schedule", "lr")} | cut
            | {"total_steps": int(run["steps"]), "batch_size": science["train"]["batch_size"], "arm": arm}
        )  # fmt: skip
    return pd.DataFrame(found if is_pipelined(suite) else [], columns=["run_id", "seed", *ARM])


def _bytes(suite: Suite, rows: pd.DataFrame) -> pd.DataFrame:
    """Per run the extra bytes of its arm, measured and by the formula, and those that the emulation took."""
    used = rows[rows["form"] == rows["arm"]].drop_duplicates(["run_id", "stage"], keep="last")
    formula = [
        formula_bytes(suite.configs[row["run_id"]]["pipeline"], row["delay"], row["parameters"])
        for row in used.to_dict("records")
    ]
    columns = ["extra_bytes", "formula_bytes", "emulator_bytes"]
    return used.assign(formula_bytes=formula).groupby("run_id")[columns].sum().reset_index()


def _final(suite: Suite, runs: pd.DataFrame, rows: pd.DataFrame) -> Table:
    """Final loss and accuracy per arm and number of stages, beside the same training without delay."""
    evals = suite.records[EVALS]
    last = evals[evals["split"] == VALIDATION].sort_values("step").groupby("run_id").last().reset_index()
    by_run = runs.merge(last[["run_id", "loss_nats", "accuracy"]], on="run_id").merge(
        _bytes(suite, rows), on="run_id", how="left"
    )
    by_run["accuracy_pct"] = 100.0 * by_run["accuracy"].astype(float)
    by_run = by_run.drop(columns="accuracy")
    shared = [*WORKLOAD, "optimizer", "schedule"]
    by_run["over_sequential"] = _against(by_run, by_run["arm"] == SEQUENTIAL, [*shared, "seed"])
    by_run["over_stash"] = _against(by_run, by_run["arm"] == STASH, [*shared, *CUT, "seed"])
    frame = summarised(by_run, ARM, "loss_nats", (0.0, np.inf))
    for table in (
        summarised(by_run.dropna(subset="accuracy_pct"), ARM, "accuracy_pct"),
        *(summarised_ratios(by_run, ARM, name) for name in ("over_sequential", "over_stash")),
    ):
        frame = frame.merge(table.drop(columns="n_seeds"), on=ARM, how="left")
    sizes = by_run.groupby(ARM)[["extra_bytes", "formula_bytes", "emulator_bytes"]].max().reset_index()
    frame = frame.merge(sizes, on=ARM, how="left")
    frame["source"] = [source_of(arm) for arm in frame["arm"]]
    frame = frame.sort_values([*WORKLOAD, "optimizer", "stages", "delay_model", "microbatches", "loss_nats"])
    header = (
        "Training with delayed gradients, emulated with exact weight versions. loss: final validation loss, nats. over "
        "sequential, over stash: the same seeds' loss as a multiple of that without delay, and of that with exact "
        "stashing in as many stages; the rates may differ, each arm has its own. extra MB: memory for weights beyond "
        "the live ones that a pipeline would need, measured on the emulator's buffers; formula: sum over stages of "
        "delay x weights for stash, of weights for a moving average. INFERRED: not what the paper prints, which was "
        f"not available. {seeds_counted(suite)}; {stats.INTERVAL}."
    )
    return Table(
        "pipeline", "Delayed gradients", frame.reset_index(drop=True), header, f"{len(frame)} arms",
        sections=[*WORKLOAD], body=_final_body, per_seed=by_run,
    )  # fmt: skip


def _against(by_run: pd.DataFrame, is_reference: pd.Series, key: list[str]) -> pd.Series:
    """Each run's loss over that of the reference run of its cell; without one, or with several, missing."""
    references = by_run[is_reference].drop_duplicates(key, keep=False).set_index(key)["loss_nats"]
    cells = pd.MultiIndex.from_frame(by_run[key])
    return by_run["loss_nats"] / references.reindex(cells).to_numpy()


def _final_body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    rows = []
    for row in part.to_dict("records"):
        cells = {
            "stages": str(row["stages"]) + (f", {row['delay_model']}" if row["delay_model"] else ""),
            "arm": row["arm"], "rule": row["source"], "optimizer": row["optimizer"], "lr": f"{row['lr']:g}",
            "loss [nats]": interval(row, "loss_nats", brief),
            "accuracy [%]": interval(row, "accuracy_pct", brief) if not pd.isna(row["accuracy_pct"]) else "",
            "over sequential": interval(row, "over_sequential", brief),
            "over stash": interval(row, "over_stash", brief) if row["arm"] != SEQUENTIAL else "",
            "extra MB": _megabytes(row["extra_bytes"]), "formula MB": _megabytes(row["formula_bytes"]),
            "seeds": str(row["n_seeds"]),
        }  # fmt: skip
        if row["microbatches"] > 1:
            cells["stages"] += f", {row['microbatches']} microbatches"
        rows.append(cells)
    body = pd.DataFrame(rows)
    return body if body["accuracy [%]"].any() else body.drop(columns="accuracy [%]")


def _reconstruction(suite: Suite, rows: pd.DataFrame) -> Table:
    """How far reconstructed weights are from those that they stand for, against the delay."""
    by = [*WORKLOAD, "optimizer", *CUT, "arm", "lr", "form", "delay"]
    rows = rows[(rows["delay"] > 0) & rows["error_ratio"].notna()]
    by_seed = rows.groupby([*by, "seed"])["error_ratio"].median().reset_index()
    frame = summarised(by_seed, by, "error_ratio", (0.0, np.inf))
    frame["source"] = [source_of(form) for form in frame["form"]]
    frame = frame.sort_values(by).reset_index(drop=True)
    header = (
        "Reconstruction error ||w_rec - w(t-d)|| / ||w(t) - w(t-d)|| per delay d, updates: 0 exact, 1 as far as the "
        "newest weights. Of arms that predict: ||w_hat - w(t)|| / ||w(t-d) - w(t)||. Median over snapshots and stages "
        "of a seed, mean over seeds. trained: the arm of the training; form: what is measured on it. "
        f"INFERRED: not what the paper prints, which was not available. {seeds_counted(suite)}; {stats.INTERVAL}."
    )
    return Table(
        "reconstruction", "Reconstruction error", frame, header, f"{len(frame)} cells", sections=[*WORKLOAD],
        body=_reconstruction_body, per_seed=by_seed,
    )  # fmt: skip


def _reconstruction_body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    """A row per training and form; delays across."""
    found = []
    delays = sorted(part["delay"].unique())
    for (optimizer, stages, arm, form), group in part.groupby(["optimizer", "stages", "arm", "form"], sort=False):
        cells = {row["delay"]: interval(row, "error_ratio", brief) for row in group.to_dict("records")}
        row = {
            "optimizer": optimizer,
            "stages": str(stages),
            "trained": arm,
            "form": form,
            "rule": source_of(str(form)),
        }
        found.append(row | {f"d={delay}": cells.get(delay, "") for delay in delays})
    return pd.DataFrame(found)


def _throughput(suite: Suite, rows: pd.DataFrame) -> Table:
    """What a pipeline of these stages could gain, by a model."""
    found = []
    first = rows[rows["form"] == rows["arm"]].drop_duplicates(["run_id", "stage"])
    for key, group in first[first["stages"] > 1].groupby([*WORKLOAD, *CUT], sort=True):
        # Of several runs with the same cuts, the median seconds of each stage.
        stage = group.groupby("stage").agg(
            parameters=("parameters", "first"), forward_s=("forward_s", "median"), bytes=("boundary_bytes", "first")
        )  # fmt: skip
        cell: dict[str, Any] = dict(zip([*WORKLOAD, *CUT], key, strict=True))
        microbatches = int(cell["total_steps"]) * int(cell["microbatches"])
        found.append(
            cell
            | {"largest_share_pct": 100.0 * float(stage["parameters"].max() / stage["parameters"].sum())}
            | modelled(stage["forward_s"].tolist(), stage["bytes"].astype(int).tolist(), microbatches)
            | {"n_runs": group["run_id"].nunique()}
        )
    columns = [
        *WORKLOAD, *CUT, "largest_share_pct", "slowest_share_pct", "ideal_speedup", "unfilled_pct", "speedup",
        "bytes_per_update", "n_runs",
    ]  # fmt: skip
    frame = pd.DataFrame(found, columns=columns)
    keys = {name: frame[name].dtype for name in (*WORKLOAD, *CUT)}
    frame = frame.merge(_measured(suite).astype(keys), on=list(keys), how="left")
    header = (
        "A model: a pipeline whose stages each take the seconds of their parts' forward pass, "
        f"measured in one process, and {BACKWARD_SHARE:g} times that for the backward pass. ideal: all seconds over "
        "those of the slowest stage; unfilled: share of the clocks in which the pipeline fills or drains, 2 (n-1) of "
        "the run; speed-up: ideal less that, communication free. MB per update: activations and their gradients "
        "across all boundaries. Where such pipelines were run with a process per stage, measured: samples per second "
        "over those of plain training in one process on the same machine; waiting: share of the seconds in which a "
        "process waited for its neighbours, mean over stages."
    )
    return Table(
        "throughput", "Throughput model", frame, header, f"{len(frame)} pipelines", sections=[*WORKLOAD],
        body=_throughput_body,
    )  # fmt: skip


def _measured(suite: Suite) -> pd.DataFrame:
    """Speed-up and waiting of the suite's pipelines of processes, mean over runs of the same cut."""
    try:
        summaries = measured_in(suite.folder)
    except ConfigError as error:
        raise RecordError(str(error)) from None
    found = []
    for summary in summaries:
        science = summary["science"]
        found.append(
            {"model": science["model"]["name"], "dataset": science["dataset"]["name"],
             "total_steps": science["train"]["steps"], "batch_size": science["train"]["batch_size"]}
            | {name: science["pipeline"][name] for name in CUT}
            | {"measured_speedup": summary["one_process"]["speedup"],
               "waiting_pct": float(np.mean([stage["waiting_pct"] for stage in summary["stages"]]))}
        )  # fmt: skip
    frame = pd.DataFrame(found, columns=[*WORKLOAD, *CUT, "measured_speedup", "waiting_pct"])
    return frame.groupby([*WORKLOAD, *CUT]).mean().reset_index()


def _throughput_body(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    rows = []
    for row in part.to_dict("records"):
        is_measured = not pd.isna(row["measured_speedup"])
        rows.append({
            "stages": str(row["stages"]), "delays": row["delay_model"], "microbatches": str(row["microbatches"]),
            "most weights in one stage [%]": number(row["largest_share_pct"], True),
            "most seconds in one stage [%]": number(row["slowest_share_pct"], True),
            "ideal speed-up": number(row["ideal_speedup"]), "unfilled [%]": number(row["unfilled_pct"], True),
            "speed-up": number(row["speedup"]), "MB per update": _megabytes(row["bytes_per_update"]),
            "measured": number(row["measured_speedup"]) if is_measured else "",
            "waiting [%]": number(row["waiting_pct"], True) if is_measured else "", "runs": str(row["n_runs"]),
        })  # fmt: skip
    body = pd.DataFrame(rows)
    return body if body["measured"].any() else body.drop(columns=["measured", "waiting [%]"])


def _megabytes(value: Any) -> str:
    """Bytes in units of 10^6; zero where there are none to count."""
    return "0" if value is None or np.isnan(value) or value == 0 else number(float(value) / 1e6)
