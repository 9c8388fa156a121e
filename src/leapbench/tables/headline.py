"""The tables and sentences that README.md and docs/ show, from the committed csv files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from leapbench.tables import stats
from leapbench.tables.compare import FACTOR_INTERVAL, SIGNIFICANT
from leapbench.tables.equivalent import DIVERGED, FASTER, SLOWER, UNDECIDED, factor_text
from leapbench.tables.judged import PLAIN
from leapbench.tables.learning_rates import LOSS, RATE
from leapbench.tables.methods import WORKLOAD
from leapbench.tables.numbers import commit_names, line_of, number
from leapbench.tables.observed_headline import HORIZONS
from leapbench.tables.published_pdt import as_published
from leapbench.tables.time_to_baseline import ratio

SHOWN = ("linear", "trend")  # against the learning rate
MOST_ROWS = 8  # of the front page's tables


def budget_headline(folder: Path, commits: list[str]) -> str:
    """The answer in a sentence, the figure, and what was judged with every base optimizer: charged factors.

    Args:
        folder: results/tables/<suite>, with equivalent_budget.csv of one workload.
        commits: whose runs the table was made from.
    """
    frame = pd.read_csv(folder / "equivalent_budget.csv", keep_default_na=False, na_values=[""])
    by_optimizer = {str(name): part.set_index("row") for name, part in frame.groupby("optimizer", sort=False)}
    methods = {name: part[part["kind"] == "method"] for name, part in by_optimizer.items()}
    answers = []
    for name, part in methods.items():
        counts = [f"{(part['verdict'] == word).sum()} {word}" for word in (FASTER, SLOWER, UNDECIDED, DIVERGED)]
        best = part.iloc[0]  # sorted by the charged factor
        answers.append(
            f"with {name} {', '.join(words for words in counts if not words.startswith('0'))} of {len(part)}, the "
            f"best `{best.name}` at {factor_text(best.to_dict(), 'factor_charged')}"
        )
    first = frame.iloc[0]
    everywhere = [row for row in frame["row"].unique() if all(row in part.index for part in by_optimizer.values())]
    everywhere = [row for row in everywhere if row != PLAIN]
    controls = [row for row in everywhere if frame.loc[frame["row"] == row, "kind"].iloc[0] == "control"]
    # Controls always; of the methods those with the largest factors.
    shown = [row for row in everywhere if row not in controls][: MOST_ROWS - len(controls)] + controls
    lines = [
        f"**Charged factor: {'; '.join(answers)}.** A factor of 1 is plain training; 1.25 does in one step what plain "
        "training with the same base optimizer does in 1.25, everything charged. Every row, plain training too, had "
        "the same number of trials for learning rate, schedule and floor.",
        "",
        *_figure(folder, "equivalent_budget", "Charged factor of every method, plain training at 1"),
        "",
        line_of(["method", *(f"{name}: charged factor, Holm p, verdict" for name in by_optimizer)]),
        line_of([":--", *[":--"] * len(by_optimizer)]),
    ]
    for row in shown:
        cells = [_judged_text(part.loc[row].to_dict()) for part in by_optimizer.values()]
        lines.append(line_of([f"`{row}`" + (" (control)" if row in controls else ""), *cells]))
    seeds = frame.loc[frame["row"].isin(shown), "n_seeds"]
    lines += [
        "",
        f"{first['model']} on {first['dataset']}, B = {first['total_steps']} steps, {seeds.min()} to {seeds.max()} "
        f"seeds, runs of {commit_names(commits)}; brackets: {FACTOR_INTERVAL}. The whole table, with trials, edges "
        f"and null laws: [{folder.name}]({_link(folder)}/equivalent_budget.md).",
    ]
    return "\n".join(lines)


def _judged_text(cell: Mapping[Hashable, Any]) -> str:
    p = f", p {number(cell['p_holm'])}" if pd.notna(cell["p_holm"]) else ""
    verdict = f", {cell['verdict']}" if isinstance(cell["verdict"], str) and cell["verdict"] else ""
    return f"{factor_text(cell, 'factor_charged')}{p}{verdict}"


def rates_headline(folder: Path, commits: list[str]) -> str:
    """What learning rate and predictability have to do with each other: a sentence, the figure, a row per rate.

    Args:
        folder: results/tables/<suite>, with learning_rates.csv of one training.
        commits: whose runs the table was made from.
    """
    frame = pd.read_csv(folder / "learning_rates.csv", keep_default_na=False, na_values=[""])
    frame = frame[frame["protocol"] == frame["protocol"].iloc[0]]
    losses = frame[frame["measure"] == LOSS].set_index("lr")
    cells = frame[frame["measure"] == RATE].set_index(["predictor", "K", "lr"])
    horizons = [K for K in HORIZONS if K in set(frame["K"].dropna())]
    columns = [(name, K) for name in SHOWN for K in horizons]
    best, lowest = losses["mean"].idxmin(), losses.index.min()

    def share(name: str, K: int, lr: float) -> str:
        return f"{cells.loc[(name, K, lr), 'mean']:.0f}"

    near, far = horizons[0], horizons[-1]
    lines = [
        f"**At learning rate {lowest:g}, `linear` predicts better weights than the current ones in "
        f"{share('linear', near, lowest)} % of its proposals at K = {near} and {share('linear', far, lowest)} % at "
        f"K = {far}; at {best:g}, where the same steps end with the lowest loss, in "
        f"{share('linear', near, best)} % and {share('linear', far, best)} %.** The final losses are "
        f"{number(losses.loc[lowest, 'mean'])} and {number(losses.loc[best, 'mean'])} nats.",
        "",
        *_figure(folder, "learning_rates", "Skill, acceptance and distance against the learning rate"),
        "",
        line_of(["learning rate", "final loss [nats]", *(f"`{name}`, K = {K} [%]" for name, K in columns)]),
        line_of(["--:"] * (2 + len(columns))),
    ]
    for lr, loss in losses.sort_index()["mean"].items():
        lines.append(line_of([f"{lr:g}", number(loss), *(share(name, K, lr) for name, K in columns)]))
    first = frame.iloc[0]
    lines += [
        "",
        f"Percent of proposals with a lower held-out loss than the current weights (rule `strict`), mean over "
        f"{losses['n_seeds'].max()} seeds; {first['model']} on {first['dataset']}, {first['optimizer']}, runs of "
        f"{commit_names(commits)}. Intervals, all predictors, skill and distance: "
        f"[{folder.name}]({_link(folder)}/learning_rates.md).",
    ]
    return "\n".join(lines)


def _figure(folder: Path, stem: str, caption: str) -> list[str]:
    """A line of markdown for each figure of a suite whose name begins with `stem`."""
    places = sorted((folder.parents[1] / "figures" / folder.name).glob(f"{stem}__*.png"))
    return [f"![{caption}](results/figures/{folder.name}/{place.name})" for place in places]


def _link(folder: Path) -> str:
    return f"results/tables/{folder.name}"


def leap_headline(folder: Path, commits: list[str]) -> str:
    """One markdown table, a row per workload: what tuning, PDT and all methods do to the time to the baseline's best.

    Args:
        folder: results/tables/<suite>, with time_to_baseline.csv.
        commits: whose runs the table was made from.
    """
    frame = pd.read_csv(folder / "time_to_baseline.csv", keep_default_na=False, na_values=[""])
    lines = [
        f"Runs of {commit_names(commits)}. Charged time until a run first reaches the best validation loss of its "
        "baseline, over the baseline's own time to it, overhead included; below 1 is faster. Geometric mean over "
        f"{frame['n_seeds'].max()} paired seeds and {stats.RATIO_INTERVAL}.",
        "",
        line_of(["workload", "tuned baseline, against the published setting", "PDT, against the published setting",
              "PDT, against the tuned baseline", "faster than the tuned baseline", "reach its loss"]),
        line_of([":--", *["--:"] * 5]),
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
            line_of(
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
