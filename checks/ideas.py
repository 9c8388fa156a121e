"""Ideas for a method of our own, on the same trainings: python checks/ideas.py [--seeds 100-101] [--only IDEA ...].

What may go around an optimizer without another optimizer taking its place: what is handed over (averages, corrected for
their lag), and what a step does to the weights (displacements with equal singular values, with rows of equal size,
without what disagrees). Every idea at several learning rates and both floors, around AdamW and Muon, on the referee's
network; plain training at several budgets makes the curve that losses are read against. Runs are appended to
OUT/ideas.csv and not made again; OUT/ideas.md and OUT/ideas.png show, for every idea, the best of its settings. Seeds
are few and the best setting is chosen on the very losses shown, for all rows alike: this is where to look, not what is
claimed. Half a minute a run on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chaos import provenance
from leapbench.config.compose import configured
from leapbench.figures.style import STYLE, titled
from leapbench.names import PROJECT, VALIDATION
from leapbench.optimizers.ema import Ema
from leapbench.prediction.clock import Clock
from leapbench.prediction.weights import Entry, FlatWeights
from leapbench.prediction.wrapper import Scored, Wrapper
from leapbench.referee.plan import seeds_of
from leapbench.tables.curve import Curve
from leapbench.training.prepare import keep_memory, use_threads
from leapbench.training.schedule import factor_at
from leapbench.training.step import TrainingStep, build_optimizer
from leapbench.training.workload import Workload

STEPS = 250
SHARES = (0.71, 1.0, 1.41, 2.0)  # of STEPS, for plain training
RATES = {"adamw": (0.002, 0.004, 0.008), "muon": (0.02, 0.04, 0.08)}
FLOORS = (0.1, 0.3)
KEY = ["idea", "optimizer", "lr", "floor", "share", "seed"]
CPU = torch.device("cpu")


class Averages(Wrapper):
    """A_t = A_{t-1} + (g + 1) / (t + g) (theta_t - A_{t-1}): averages whose reach grows with the training, for two g.

    Their mean age is about t / (g + 2). Handed over is what has the lowest verification loss of the live weights, the
    averages, and the narrow one moved on by shares of its lag: N + c (N - W) l_N / (l_W - l_N).
    """

    scores_live, chooses = False, True
    POWERS, MOVES = (8.0, 20.0), (0.5, 1.0, 1.5)

    def __init__(self, optimizer: torch.optim.Optimizer, weights: FlatWeights) -> None:
        super().__init__(optimizer, weights)
        self.steps, self.chosen = 0, 2
        self.means = [torch.zeros_like(weights.vector) for _ in self.POWERS]

    def after_step(self) -> None:
        """Both averages take in the live weights."""
        self.steps += 1
        for power, mean in zip(self.POWERS, self.means, strict=True):
            mean.lerp_(self.weights.vector, min(1.0, (power + 1) / (self.steps + power)))

    def candidates(self) -> Iterator[Tensor]:
        """What may be handed over."""
        wide, narrow = self.means
        lag_wide, lag_narrow = (1 / (power + 2) for power in self.POWERS)
        yield from (self.weights.vector, wide, narrow)
        for move in self.MOVES:
            yield torch.lerp(wide, narrow, 1 + move * lag_narrow / (lag_wide - lag_narrow))

    def choose(self, loss_of: Callable[[Tensor], float]) -> None:
        """The candidate with the lowest loss."""
        self.chosen = int(np.nanargmin([loss_of(vector) for vector in self.candidates()]))

    def scored(self) -> Tensor:
        """The chosen one."""
        return list(self.candidates())[self.chosen]


class Reshaped(Wrapper):
    """Every few steps the displacement of each hidden matrix gets another shape and keeps its norm.

    Args:
        every: steps of a displacement D.
        flat: share a of (1 - a) D + a |D| O / |O|, where O has the singular vectors of D and singular values near 1.
        rows: whether rows that lead to one neuron are divided by the running root mean square of that neuron's.
        momentum: mu of a running sum of displacements that is added before.
        agreeing: whether elements against the running mean of the displacements are dropped.
        averaged: whether :class:`Averages` are handed over.
    """

    BETA = 0.95

    def __init__(
        self, optimizer: torch.optim.Optimizer, weights: FlatWeights, every: int = 1, flat: float = 0.0,
        rows: bool = False, momentum: float = 0.0, agreeing: bool = False, averaged: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(optimizer, weights)
        self.every, self.flat, self.rows, self.momentum, self.agreeing = every, flat, rows, momentum, agreeing
        self.averages = Averages(optimizer, weights) if averaged else None
        self.scores_live, self.chooses = not averaged, averaged
        self.period, self.steps, self.start = every, 0, weights.vector.clone()
        self.state: dict[str, Tensor] = {}

    def after_step(self) -> None:
        """Reshape what has happened since the last time."""
        self.steps += 1
        if self.steps % self.every == 0:
            for entry in self.weights.layout:
                if len(entry.shape) == 2 and not any(word in entry.name for word in ("wte", "wpe", "head")):
                    self._reshape(entry)
            self.start.copy_(self.weights.vector)
        if self.averages is not None:
            self.averages.after_step()

    def _reshape(self, entry: Entry) -> None:
        place = slice(entry.offset, entry.offset + entry.size)
        live, start = (vector[place].view(entry.shape) for vector in (self.weights.vector, self.start))
        moved = live - start
        new, norm = moved, moved.norm()
        if self.momentum or self.agreeing:
            mean = self.state.setdefault(f"{entry.name} mean", torch.zeros_like(moved))
            mean.mul_(self.momentum or self.BETA).add_(moved)
            new = moved + self.momentum * mean if self.momentum else moved * (moved * mean > 0)
        if self.flat:
            orthogonal = orthogonalised(new)
            new = (1 - self.flat) * new + self.flat * norm / orthogonal.norm().clamp(min=1e-12) * orthogonal
        if self.rows:  # GPT-2's matrices are (in, out)
            square = new.square().mean(0, keepdim=True)
            known = self.state.setdefault(entry.name, square.clone())
            new = new / known.lerp_(square, 1 - self.BETA).sqrt().clamp(min=1e-12)
        live.copy_(start + new * (norm / new.norm().clamp(min=1e-12)))

    def choose(self, loss_of: Callable[[Tensor], float]) -> None:
        """See :class:`Averages`."""
        if self.averages is not None:
            self.averages.choose(loss_of)

    def scored(self) -> Tensor | None:
        """See :class:`Averages`."""
        return None if self.averages is None else self.averages.scored()


def orthogonalised(matrix: Tensor, rounds: int = 5) -> Tensor:
    """U V^T of U S V^T, nearly: Muon's Newton-Schulz iteration in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    wide = x.shape[0] <= x.shape[1]
    x = (x if wide else x.T) / x.norm().clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).float()


def _reshaped(**how: Any) -> Callable[[torch.optim.Optimizer, FlatWeights], Wrapper]:
    return lambda optimizer, weights: Reshaped(optimizer, weights, **how)


PLAIN = "plain training"
IDEAS: dict[str, Callable[[torch.optim.Optimizer, FlatWeights], Wrapper]] = {
    PLAIN: Wrapper,
    "exponential averages": Ema,
    "growing averages, lag corrected": Averages,
    "equal singular values": _reshaped(flat=1.0),
    "equal singular values, every 5": _reshaped(flat=1.0, every=5),
    "equal singular values, every 10": _reshaped(flat=1.0, every=10),
    "half-way to equal singular values, every 5": _reshaped(flat=0.5, every=5),
    "equal singular values with momentum, every 5": _reshaped(flat=1.0, every=5, momentum=0.5),
    "equal singular values, every 5, averaged": _reshaped(flat=1.0, every=5, averaged=True),
    "equal neurons": _reshaped(rows=True),
    "equal neurons, averaged": _reshaped(rows=True, averaged=True),
    "equal singular values and neurons": _reshaped(flat=1.0, rows=True),
    "agreeing displacements": _reshaped(agreeing=True),
}


def trained(idea: str, optimizer: str, lr: float, floor: float, share: float, seed: int) -> dict[str, Any]:
    """Final validation loss in nats, and processor seconds of training and of the choice at its end."""
    steps = round(share * STEPS)
    config = configured(
        "experiment=referee_micro", f"optimizer={optimizer}", f"optimizer.lr={lr}", "optimizer.lr_from=given",
        "schedule=linear", f"schedule.floor={floor}", f"train.steps={steps}", f"schedule.warmup={round(0.05 * steps)}",
        f"seed={seed}",
    )  # fmt: skip
    workload = Workload(config, CPU)
    weights = FlatWeights.of(workload.model)
    inner = build_optimizer(config.optimizer, weights.named_parameters())
    wrapper = IDEAS[idea](inner, weights)
    factor = factor_at(config.schedule, steps)
    step = TrainingStep(workload, workload.forward, weights.parameters, inner, factor, wrapper)
    scored = Scored(workload.model, weights, wrapper)
    began = time.process_time()
    for index in range(steps):
        step(index, index)
    scored.choose(workload.verification_loss, Clock(CPU))
    seconds = time.process_time() - began
    return {"loss_nats": workload.score(scored.forward, VALIDATION).loss, "seconds": seconds}


def wanted(seeds: list[int], only: list[str]) -> Iterator[dict[str, Any]]:
    """Every run, as the columns KEY."""
    for seed in seeds:
        for optimizer, rates in RATES.items():
            for idea in [PLAIN, *(idea for idea in only if idea != PLAIN)]:
                for lr in rates:
                    for floor in FLOORS:
                        for share in SHARES if idea == PLAIN else (1.0,):
                            yield dict(zip(KEY, (idea, optimizer, lr, floor, share, seed), strict=True))


def best_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per optimizer and idea at the best of its settings, with the factor against plain training.

    The cost of a run is its processor seconds over those of a plain step of the same optimizer, the median of all.
    """
    by = ["optimizer", "idea", "share", "lr", "floor"]
    means = runs.groupby(by).agg(loss_nats=("loss_nats", "mean"), seconds=("seconds", "mean"), n=("seed", "nunique"))
    means = means.reset_index().sort_values("loss_nats").drop_duplicates(["optimizer", "idea", "share"])
    found = []
    for optimizer, rows in means.groupby("optimizer"):
        plain = rows[rows["idea"] == PLAIN].sort_values("share")
        plain_runs = runs[(runs["optimizer"] == optimizer) & (runs["idea"] == PLAIN)]
        second = float((plain_runs["seconds"] / (plain_runs["share"] * STEPS)).median())
        curve = Curve(tuple(plain["share"]), tuple(plain["loss_nats"]))
        for row in rows[rows["share"] == 1.0].to_dict("records"):
            cost = row["seconds"] / (second * STEPS)
            found.append({**row, "cost": cost, "equivalent_budget": curve.budget_of(row["loss_nats"]),
                          "factor": curve.budget_of(row["loss_nats"]) / cost})  # fmt: skip
    return pd.DataFrame(found).drop(columns=["share", "seconds"])


def write(runs: pd.DataFrame, out: Path) -> None:
    """ideas.md and ideas.png."""
    best = best_of(runs).sort_values(["optimizer", "factor"], ascending=[True, False])
    shown = best.assign(factor=[_text(value) for value in best["factor"]]).drop(columns="equivalent_budget")
    lines = [
        "# Ideas for a method of our own", "",
        f"`python checks/ideas.py`; {provenance()}. Final validation loss after {STEPS} steps at the best learning "
        f"rate and floor of each row; cost in steps of the same optimizer alone over {STEPS}; factor: the share of "
        f"{STEPS} steps at which plain training, at its best settings, has that loss, over the cost. Few seeds, chosen "
        "on the losses shown: where to look, not what is claimed.", "",
        shown.to_markdown(index=False, floatfmt=".4g"), "",
    ]  # fmt: skip
    (out / "ideas.md").write_text("\n".join(lines))
    with plt.rc_context(STYLE):
        optimizers = list(dict.fromkeys(best["optimizer"]))
        figure, axes = plt.subplots(1, len(optimizers), figsize=(6.6 * len(optimizers), 4.6), squeeze=False)
        for ax, optimizer in zip(axes[0], optimizers, strict=True):
            rows = best[best["optimizer"] == optimizer].iloc[::-1]
            x = rows["factor"].replace({np.inf: SHARES[-1], -np.inf: SHARES[0]})
            beyond = ~np.isfinite(rows["factor"])
            ax.scatter(x[~beyond], np.flatnonzero(~beyond), color="#0072B2")
            ax.scatter(x[beyond], np.flatnonzero(beyond), marker=">", facecolor="white", edgecolor="#0072B2")
            ax.set_yticks(range(len(rows)), rows["idea"], fontsize=7.5)
            ax.axvline(1, color="#333333", ls="--", lw=1)
            ax.set_xlabel("factor, overhead charged; hollow: beyond plain training's curve")
            ax.set_title(optimizer)
        titled(figure, f"Ideas, the best of their settings, mean of {best['n'].min()} seeds: where to look")
        figure.savefig(out / "ideas.png", dpi=150, metadata={"Software": ""})
        plt.close(figure)


def _text(factor: float) -> str:
    if np.isfinite(factor):
        return f"{factor:.3f}"
    return f"> {SHARES[-1]:g} budgets" if factor > 0 else f"< {SHARES[0]:g} budgets"


def main() -> None:
    """Make what is missing, then the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PROJECT / "results" / "checks" / "ideas")
    parser.add_argument("--seeds", default="100-101")
    parser.add_argument("--only", nargs="+", choices=IDEAS, default=list(IDEAS), metavar="IDEA")
    args = parser.parse_args()
    use_threads(1, CPU)
    keep_memory(CPU)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "ideas.csv"
    runs = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*KEY, "loss_nats", "seconds"])
    done = set(runs[KEY].itertuples(index=False, name=None))
    for run in wanted(seeds_of(args.seeds), args.only):
        if tuple(run.values()) in done:
            continue
        runs = pd.concat([runs, pd.DataFrame([{**run, **trained(**run)}])], ignore_index=True)
        runs.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
        print(runs.iloc[-1].to_dict(), flush=True)
    write(runs, args.out)
    print((args.out / "ideas.md").read_text())


if __name__ == "__main__":
    main()
