"""What a run found, in the few lines that it ends with."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from leapbench.config.schema import RunConfig
from leapbench.names import EVALS, PROJECT, PROPOSALS, VALIDATION, Gate, Mode, Status
from leapbench.prediction.rules import strict
from leapbench.records.files import read_summary, rows_of

RAW = "results/raw"  # where scripts look unless they are told otherwise


def findings(config: RunConfig, folder: Path) -> list[str]:
    """Loss, best loss, what became of the proposals, and what was skipped: a line each. Nothing before a run's end.

    Args:
        folder: of the completed run of `config`. Records that cannot be read are one line.
    """
    summary = read_summary(folder)
    if summary is None or summary["status"] != Status.completed:
        return []
    observes = config.mode == Mode.observe
    try:
        lines = [_losses(summary, rows_of(folder / EVALS))]
        lines += _acceptance(config, folder) if observes else _adoptions(config, summary)
    except (ValueError, KeyError, TypeError):
        return [f"what {folder} holds is damaged or of another version; delete it to run anew"]
    return lines + [f"skipped {name}: {reason}" for name, reason in summary.get("skipped", {}).items()]


def tables_command(suite: str, results_dir: str) -> str:
    """The command that makes a suite's tables, for the folder one is in."""
    script = PROJECT / "scripts" / "aggregate.py"
    words = [str(script.relative_to(PROJECT) if Path.cwd() == PROJECT else script), "--suite", suite]
    words += ["--results", results_dir] if results_dir != RAW else []
    return shlex.join(["python", *words])


class Acceptance:
    """Counts, by protocol and predictor, the proposals that are better than staying where one is (rule strict)."""

    def __init__(self) -> None:
        self.accepted: Counter[tuple[str, str]] = Counter()
        self.proposed: Counter[tuple[str, str]] = Counter()

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Count rows of proposals.jsonl, in which a loss that is not finite is None."""
        rows = list(rows)
        losses = [[row[key] for row in rows] for key in ("loss_pred_nats", "loss_now_nats")]
        predicted, now = ([float("nan") if loss is None else loss for loss in column] for column in losses)
        for row, better in zip(rows, strict(predicted, now), strict=True):
            cell = (row["protocol"], row["predictor"])
            self.proposed[cell] += 1
            self.accepted[cell] += bool(better)

    def percent(self) -> dict[tuple[str, str], float]:
        """(protocol, predictor) -> share of its proposals, percent."""
        return {cell: 100 * self.accepted[cell] / count for cell, count in self.proposed.items()}


def _losses(summary: dict[str, Any], evals: list[dict[str, Any]]) -> str:
    final, best, steps = summary["final"], summary["best"], summary["steps"]
    words = [f"validation loss {final['validation_loss_nats']:.4g} nats"]
    words += [f"best {best['validation_loss_nats']:.4g} at step {best['step']}"]
    accuracies = [row["accuracy"] for row in evals if row["split"] == VALIDATION and row.get("accuracy") is not None]
    words += [f"accuracy {100 * accuracies[-1]:.1f} %, best {100 * max(accuracies):.1f} %"] if accuracies else []
    skipped = summary["position"] - steps
    taken = f"{steps} steps" + (f" and {skipped} skipped" if skipped else "")
    charged, train = summary["totals"]["charged_s"], summary["totals"]["train_s"]
    overhead = 100 * (1 - train / charged) if charged else 0.0
    return f"{', '.join(words)}; {taken}, {charged:.3g} s charged, {overhead:.0f} % of it not training"


def _acceptance(config: RunConfig, folder: Path) -> list[str]:
    """A line per protocol of a run that observes."""
    acceptance = Acceptance()
    acceptance.add(rows_of(folder / PROPOSALS))
    percent, lines = acceptance.percent(), []
    for protocol in config.protocols:
        cells = [(protocol, name) for name in config.predictors if (protocol, name) in percent]
        if cells:
            named = f"protocol {protocol}, " if len(config.protocols) > 1 else ""
            most = max(acceptance.proposed[cell] for cell in cells)
            listed = ", ".join(f"{cell[1]} {percent[cell]:.0f} %" for cell in cells)
            lines.append(f"{named}better than staying, of up to {most} proposals over all K: {listed}")
    return lines


def _adoptions(config: RunConfig, summary: dict[str, Any]) -> list[str]:
    """What became of the proposals of a run that leaps; nothing for plain training."""
    if not config.predictors:
        return []
    (name,) = config.predictors
    proposals, adoptions = summary["totals"]["proposals"], summary["totals"]["adoptions"]
    line = f"{name}, K={config.horizons[0]}, rule {config.leap.rule}: proposals {proposals}, leaps adopted {adoptions}"
    if not proposals and config.leap.gate != Gate.any:
        line += f"; leap.gate={config.leap.gate} never opened, leap.gate=any proposes in every regime"
    return [line]
