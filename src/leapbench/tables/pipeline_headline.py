"""What docs/pipelines.md shows of a suite with pipelines: reconstruct the past, or predict the future?"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from leapbench.config.arms import AVERAGING, COEFFICIENTS, SEQUENTIAL, source_of
from leapbench.config.choices import Coefficient, Versions
from leapbench.tables import stats
from leapbench.tables.numbers import commit_names, interval, line_of, number
from leapbench.tables.pipeline import STASH


def pipeline_headline(folder: Path, commits: list[str]) -> str:
    """The answer in two sentences, a row per arm with its loss over that without delay, a row per moving average.

    Args:
        folder: results/tables/<suite>, with pipeline.csv and reconstruction.csv of one workload.
        commits: whose runs the table was made from.
    """
    frame = pd.read_csv(folder / "pipeline.csv", keep_default_na=False, na_values=[""])
    late = frame[frame["arm"] != SEQUENTIAL]
    stages = sorted(late["stages"].unique())
    most = late[late["stages"] == stages[-1]].set_index("arm")
    names = [str(arm) for arm in most.index]
    kinds = {
        "reconstruction": [arm for arm in names if arm.partition("/")[0] in AVERAGING],
        "prediction": [arm for arm in names if "+" in arm],
    }
    answers = []
    for kind, arms in kinds.items():
        if arms:
            best = most.loc[arms].sort_values("loss_nats").iloc[0]
            share = best["extra_bytes"] / most.loc[STASH, "extra_bytes"] if STASH in most.index else float("nan")
            memory = f" with {100 * share:.0f} % of its memory for weights" if share == share else ""
            answers.append(
                f"{kind} at its best (`{best.name}`) ends at {interval(best.to_dict(), 'over_stash')} times the loss "
                f"of exact stashing{memory}"
            )
    first = frame.iloc[0]
    without = " or ".join(f"{lr:g}" for lr in frame.loc[frame["arm"] == SEQUENTIAL, "lr"])
    stashed = late[late["arm"] == STASH]
    rates = " and ".join(f"{row['lr']:g} in {row['stages']} stages" for row in stashed.to_dict("records"))
    lines = [
        f"**With {stages[-1]} stages {'; '.join(answers)}.**",
        "",
        line_of(["arm", "rule", *(f"{n} stages" for n in stages), f"memory, {stages[-1]} stages [MB]"]),
        line_of([":--", ":--", *["--:"] * (len(stages) + 1)]),
    ]
    order = late.groupby("arm")["over_sequential"].mean().sort_values().index
    for arm in order:
        rows = late[late["arm"] == arm].set_index("stages")
        cells = [interval(rows.loc[n].to_dict(), "over_sequential") if n in rows.index else "" for n in stages]
        size = rows["extra_bytes"].get(stages[-1])
        lines.append(line_of([f"`{arm}`", source_of(arm), *cells, "" if size is None else number(size / 1e6)]))
    lines += [
        "",
        f"Final validation loss over that of the same seeds without delay; below 1 is better than without. Every arm "
        f"has its own learning rate, found with as many trials; without delay it is {without}, with exact stashing "
        f"{rates}. {first['model']} on {first['dataset']}, {first['total_steps']} steps, "
        f"{frame['n_seeds'].max()} seeds, runs of {commit_names(commits)}; "
        f"{stats.RATIO_INTERVAL}. *Memory*: weights beyond the live ones. The whole tables: "
        f"[{folder.name}](../results/tables/{folder.name}/README.md).",
    ]
    return "\n".join([*lines, *_averages(folder, late)])


def _averages(folder: Path, late: pd.DataFrame) -> list[str]:
    """How well each form of `ema_pipeline` reconstructs on the trajectory of exact stashing; nothing if none is there.

    Args:
        late: pipeline.csv without the row that has no delay.
    """
    begin = f"{Versions.ema_pipeline}/"
    frame = pd.read_csv(folder / "reconstruction.csv", keep_default_na=False, na_values=[""])
    frame = frame[(frame["arm"] == STASH) & frame["form"].str.startswith(begin)]
    if frame.empty:
        return []
    frame = frame[frame["stages"] == frame["stages"].max()]
    delays = sorted(frame["delay"].unique())
    best = frame.loc[frame.groupby("delay")["error_ratio"].idxmin()].set_index("delay")["form"]
    lines = [
        "",
        line_of(["moving average", "coefficient b, INFERRED", *(f"d = {delay}" for delay in delays)]),
        line_of([":--", ":--", *["--:"] * len(delays)]),
    ]
    for form, rows in frame.groupby("form", sort=False):
        by = rows.set_index("delay")["error_ratio"]
        cells = [f"**{number(by[d])}**" if best[d] == form else number(by[d]) for d in delays]
        lines.append(line_of([f"`{form}`", COEFFICIENTS[Coefficient(str(form).removeprefix(begin))], *cells]))
    trained = late[late["arm"].str.startswith(begin)].groupby("stages")
    stages, arms = max(trained, key=lambda item: (len(item[1]), item[0]))
    spread = f"{number(arms['over_stash'].min())} to {number(arms['over_stash'].max())}"
    return [
        *lines,
        "",
        f"Distance of the reconstructed weights from those of d updates ago, over that of the newest ones, on the "
        f"trajectory of exact stashing with {frame['stages'].iloc[0]} stages; the smallest in bold. Trained with "
        f"{stages} stages these {len(arms)} forms end at {spread} times the loss of exact stashing.",
    ]
