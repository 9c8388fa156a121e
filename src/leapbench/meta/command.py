"""The command `python meta_train.py`: help, one training, and what it found. Torch is loaded for a training only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from leapbench import cli
from leapbench.config.help import keys_page
from leapbench.meta.settings import resolve
from leapbench.names import FAILURES

USAGE = (
    "Train the network of a learned predictor on recorded trainings.",
    "  python meta_train.py network=NAME trajectories=FOLDER validation.trajectories=FOLDER KEY=VALUE ...",
    "  python meta_train.py --cfg job KEY=VALUE ...   every key and its value; conf/network/ explains a network's",
)


def answer(arguments: Sequence[str]) -> str | None:
    """The page of --help; None if the arguments do not ask for it."""
    return keys_page("meta_train", USAGE, "network") if {"-h", "--help"} & set(arguments) else None


def job(cfg: DictConfig) -> dict[str, str]:
    """Carry out one training, say how it ended and where its weights are. A mistake, and divergence, end the process.

    Args:
        cfg: the composed configuration, without Hydra's own node.
    """
    try:
        config = resolve(cfg)
        from leapbench.meta.run import run

        result = run(config)
    except Exception as error:  # here, because Hydra says a line of its own about errors that it sees
        cli.give_up(error, str(cfg.results_dir))
    summary = result.pop("summary")
    cli.report(result)
    if result["status"] in FAILURES:
        sys.exit(1)
    print(*(f"  {line}" for line in findings(summary, Path(result["folder"]))), sep="\n", flush=True)
    return result


def findings(summary: dict[str, Any], folder: Path) -> list[str]:
    """What a training that is complete found, line by line."""
    final, weights = summary["final"], summary["weights"]
    lines = [f"loss: {final['loss']:.4f}, mean over the last steps"]
    if final["validation"] is not None:
        lines.append(f"validation loss: {final['validation']:.4f}, of no change: {final['no_change']:.4f}")
    return [*lines, f"weights: predictor.checkpoint={folder / weights['file']}"]
