"""The README's first tables, from the committed csv files of the embedded suites."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from leapbench.records.rows import RecordError
from leapbench.tables import stats
from leapbench.tables.compare import SIGNIFICANT
from leapbench.tables.extrapolation import CALM
from leapbench.tables.methods import WORKLOAD
from leapbench.tables.published_pdt import as_published
from leapbench.tables.time_to_baseline import ratio

HORIZONS = (5, 25, 100)
MARKS = {
    "acceptance_strict": ("<!-- headline: written by scripts/report.py --readme -->", "<!-- /headline -->"),
    "time_to_baseline": (
        "<!-- time to baseline: written by scripts/report.py --readme -->", "<!-- /time to baseline -->",
    ),
    "coverage": ("<!-- coverage: written by scripts/coverage.py -->", "<!-- /coverage -->"),
}  # fmt: skip


def headlines(folder: Path, commits: list[str]) -> dict[str, str]:
    """Of the README's tables those that `folder` has -> the text that goes between their marks.

    Args:
        folder: results/tables/<suite>.
        commits: whose runs the tables were made from.

    Raises:
        RecordError: it has none of them, or one whose intervals are not those of this version.
    """
    makers = {"acceptance_strict": headline, "time_to_baseline": leap_headline}
    words = {"acceptance_strict": stats.RATE_INTERVAL, "time_to_baseline": stats.RATIO_INTERVAL}
    names = [name for name in makers if (folder / f"{name}.csv").is_file()]
    if not names:
        raise RecordError(f"{folder}: no {' and no '.join(f'{name}.csv' for name in makers)}; make the tables first")
    for name in names:
        page = folder / f"{name}.md"
        if not page.is_file() or words[name] not in page.read_text(encoding="utf-8"):
            raise RecordError(f"{page}: its intervals are not the {words[name]}; make the tables again")
    return {name: makers[name](folder, commits) for name in names}


def headline(folder: Path, commits: list[str]) -> str:
    """Two markdown tables: acceptance and distance by predictor, and the momentum catastrophe by protocol.

    Args:
        folder: results/tables/<suite>, with acceptance_strict.csv and momentum_catastrophe.csv of one workload.
        commits: whose runs the tables were made from.
    """
    strict = pd.read_csv(folder / "acceptance_strict.csv")
    momentum = pd.read_csv(folder / "momentum_catastrophe.csv")
    exact = strict[(strict["protocol"] == "exact") & (strict["regime"] == "all")]
    first = exact.iloc[0]
    # Trainings that leap by themselves are another workload.
    momentum = momentum[momentum["setting"].isna() | (momentum["setting"] == first["setting"])]
    seeds = int(first["n_seeds"])
    across = [f"K = {K}" for K in HORIZONS]
    lines = [
        f"Runs of {_commit_names(commits)}: {first['model']} on {first['dataset']}, {first['optimizer']} "
        f"lr {first['lr']:g}, {seeds} seeds; every checkpoint, all regimes, protocol `exact`; mean and "
        f"{stats.RATE_INTERVAL}.",
        "",
        _row(["predictor", *(f"better than staying, {k} [%]" for k in across), *(f"distance, {k}" for k in across)]),
        _row([":--", *["--:"] * 6]),
    ]
    for name in exact["predictor"].drop_duplicates():
        group = exact[exact["predictor"] == name].set_index("K")
        cells = [
            f"{r['mean']:.0f}" + (f" [{r['ci_low']:.0f}, {r['ci_high']:.0f}]" if pd.notna(r["ci_low"]) else "")
            for _, r in group.loc[list(HORIZONS)].iterrows()
        ]
        lines.append(_row([f"`{name}`", *cells, *(f"{group.loc[K, 'distance_ratio']:.2f}" for K in HORIZONS)]))
    lines += [
        "",
        "*Better than staying*: the candidate's held-out loss is below the current one (rule `strict`). *Distance*: "
        "median of the candidate's distance to the weights really reached K steps later, over that of the current "
        "weights; below 1 the prediction is closer than no prediction.",
        "",
        "The published momentum catastrophe, loss of the predicted weights over the current loss, on one trajectory. "
        "Ours and the published one are both over the checkpoints of transition and stable alone "
        f"({_calm_share(momentum)}):",
        "",
        _row(["momentum as in", *across, "second moments lost to float16 [%]"]),
        _row([":--", *["--:"] * 4]),
    ]
    rows = momentum[(momentum["regime"] == CALM) & (momentum["predictor"] == "momentum")]
    for protocol in rows["protocol"].drop_duplicates():
        group = rows[rows["protocol"] == protocol].set_index("K")
        cells = [_ratio(value) for value in group.loc[list(HORIZONS), "ratio_of_means"]]
        lines.append(_row([f"`{protocol}`", *cells, f"{group.loc[HORIZONS[0], 'underflow_pct']:.0f}"]))
    cited = momentum.dropna(subset=["published_ratio"]).drop_duplicates("K").set_index("K")
    source = cited["published_source"].iloc[0]
    cells = [_ratio(value) for value in cited.loc[list(HORIZONS), "published_ratio"]]
    lines.append(_row([f"published, {cited['published_model'].iloc[0]} ({source})", *cells, ""]))
    return "\n".join(lines)


def _calm_share(momentum: pd.DataFrame) -> str:
    """`75-76 of 117 proposals at K = 5`: how many of our proposals those are, over the protocols."""
    rows = momentum[(momentum["predictor"] == "momentum") & (momentum["K"] == HORIZONS[0])]
    calm, total = (rows.loc[rows["regime"] == regime, "n_proposals"] for regime in (CALM, "all"))
    span = f"{calm.min()}" if calm.min() == calm.max() else f"{calm.min()}-{calm.max()}"
    return f"{span} of {total.max()} proposals at K = {HORIZONS[0]}"


def leap_headline(folder: Path, commits: list[str]) -> str:
    """One markdown table, a row per workload: what tuning, PDT and all methods do to the time to the baseline's best.

    Args:
        folder: results/tables/<suite>, with time_to_baseline.csv.
        commits: whose runs the table was made from.
    """
    frame = pd.read_csv(folder / "time_to_baseline.csv", keep_default_na=False, na_values=[""])
    lines = [
        f"Runs of {_commit_names(commits)}. Charged time until a run first reaches the best validation loss of its "
        "baseline, over the baseline's own time to it, overhead included; below 1 is faster. Geometric mean over "
        f"{frame['n_seeds'].max()} paired seeds and {stats.RATIO_INTERVAL}.",
        "",
        _row(["workload", "tuned baseline, against the published setting", "PDT, against the published setting",
              "PDT, against the tuned baseline", "faster than the tuned baseline", "reach its loss"]),
        _row([":--", *["--:"] * 5]),
    ]  # fmt: skip
    ours = frame[frame["definition"] == "ours"]
    for _, group in ours.groupby(WORKLOAD, sort=False):
        tuned, published = (
            group[group["reference"] == reference].set_index("row") for reference in ("tuned", "published")
        )
        others = tuned[tuned["kind"] != "baseline"]
        others = others[others["n_seeds"] > 0]
        pdt = next(iter(group.loc[as_published(group), "row"]), None)
        faster = int(((others["charged_steps_ratio_ci_high"] < 1) & (others["p_holm"] < SIGNIFICANT)).sum())
        reached = int((others["reached"] == others["n_seeds"]).sum())
        lines.append(
            _row(
                [
                    f"{group['model'].iloc[0]}, {group['dataset'].iloc[0]}",
                    _ratio_of(published, next(iter(tuned["reference_row"].dropna()), None)), _ratio_of(published, pdt),
                    _ratio_of(tuned, pdt), f"{faster} of {len(others)}", f"{reached} of {len(others)}",
                ]
            )
        )  # fmt: skip
    lines += [
        "",
        f"*Faster*: methods and controls whose whole interval is below 1, with p < {SIGNIFICANT} (sign-flip test, "
        "corrected by Holm over the methods of the workload). *Reach its loss*: in every seed. *Tuned "
        "baseline*: plain training with the learning rate and schedule that are best on the verification split; every "
        "method is tuned as well. *PDT*: with the mask of its released code, adopted unseen at every epoch; the "
        "scheduler that slowed its published ResNet and ViT rows down is left out.",
    ]
    return "\n".join(lines)


def _ratio_of(table: pd.DataFrame, row: str | None) -> str:
    return ratio(table.loc[row].to_dict() if row in table.index else None, "charged_steps")


def _commit_names(commits: list[str]) -> str:
    names = sorted({commit[:12] for commit in commits})
    return f"commit{'s' if len(names) > 1 else ''} {', '.join(f'`{name}`' for name in names)}"


def into_readme(readme: Path, table: str, text: str) -> None:
    """Replace what stands between the two marks of `table`, one of MARKS.

    Raises:
        RecordError: the marks are missing.
    """
    content = readme.read_text(encoding="utf-8")
    start, end = MARKS[table]
    pattern = re.compile(rf"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(content):
        raise RecordError(f"{readme}: no place for {table}; put the lines {start} and {end} where it belongs")
    readme.write_text(pattern.sub(lambda _: f"{start}\n{text}\n{end}", content), encoding="utf-8")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
