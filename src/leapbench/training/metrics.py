"""From the rows of a run's records to what a logger shows: losses of every split, learning rate, similarity and regime,
shares of accepted proposals, charged time (`time/<lap>_s`, seconds of leapbench.prediction.clock).
"""

from __future__ import annotations

from typing import Any

import torch

from leapbench.config.schema import RunConfig
from leapbench.names import EVALS, LEAPS, PROPOSALS, REGIMES, TRAIN, Regime
from leapbench.prediction.clock import CHARGED
from leapbench.records.files import rows_of
from leapbench.records.findings import Acceptance
from leapbench.records.folder import RunFolder
from leapbench.training.logger import Logger

LEVELS = {Regime.chaotic: 0, Regime.transition: 1, Regime.stable: 2}  # for curves, which words do not make


class Metrics:
    """Called with every row of a run; a resumed run counts on from the rows that are there.

    What the rows of other files say waits for the next row of evals.jsonl, which is written while no charged lap runs.

    Args:
        optimizer: whose first group's learning rate is shown.
    """

    def __init__(self, config: RunConfig, logger: Logger, optimizer: torch.optim.Optimizer, folder: RunFolder) -> None:
        self.logger, self.optimizer = logger, optimizer
        self.several = len(config.protocols) > 1
        self.acceptance = Acceptance()
        self.observed = rows_of(folder.path / PROPOSALS)  # not yet among the accepted or not accepted
        self.waiting: list[tuple[int, dict[str, Any]]] = []  # steps, and what they show
        self.proposals = self.adoptions = 0
        for row in rows_of(folder.path / LEAPS):
            self._count(row)

    def __call__(self, stream: str, row: dict[str, Any]) -> None:
        """Show what `row`, about to be appended to the file `stream`, says."""
        if stream == PROPOSALS:
            self.observed.append(row)
        elif stream == REGIMES:
            self.waiting.append((row["step"], self._regime(row)))
        elif stream == LEAPS:
            self._count(row)
            self.waiting.append((row["step"], self._leap(row)))
        elif stream == EVALS:
            for step, metrics in [*self.waiting, (row["step"], self._eval(row))]:
                self.logger.log({key: value for key, value in metrics.items() if value is not None}, step)
            self.waiting.clear()

    def _regime(self, row: dict[str, Any]) -> dict[str, Any]:
        name = self._named("regime", row["protocol"])
        metrics = {f"{name}/similarity": row["similarity"], f"{name}/regime": str(row["regime"])}
        return metrics | {f"{name}/level": LEVELS.get(row["regime"])}

    def _eval(self, row: dict[str, Any]) -> dict[str, Any]:
        """A split's scores; at the end of an interval also learning rate, acceptance and time."""
        split = row["split"]
        metrics = {f"{split}/{key}": row[key] for key in ("loss_nats", "perplexity", "accuracy") if key in row}
        if split != TRAIN:
            return metrics
        self.acceptance.add(self.observed)
        self.observed.clear()
        percent = self.acceptance.percent()
        shares = {f"{self._named('acceptance', of)}/{name}_pct": share for (of, name), share in percent.items()}
        laps = {f"time/{lap}_s": row[f"{lap}_s"] for lap in CHARGED}
        rate = self.optimizer.param_groups[0]["lr"]
        totals = {"time/charged_s": sum(laps.values()), "train/position": row["position"]}
        return metrics | shares | laps | totals | {"train/lr": float(rate)}

    def _leap(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "leap/loss_now_nats": row["loss_now_nats"], "leap/loss_pred_nats": row["loss_pred_nats"],
            "leap/proposals": self.proposals, "leap/adoptions": self.adoptions,
            f"acceptance/{row['predictor']}_pct": 100 * self.adoptions / self.proposals,
        }  # fmt: skip

    def _count(self, row: dict[str, Any]) -> None:
        self.proposals += 1
        self.adoptions += bool(row["adopted"])

    def _named(self, what: str, protocol: str) -> str:
        """`what`, by protocol where there are several."""
        return f"{what}/{protocol}" if self.several else what
