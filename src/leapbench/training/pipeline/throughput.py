"""What a pipeline gains in speed: by a model of its seconds, and as measured with real processes.

Imports nothing heavy: tables use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leapbench.config.errors import ConfigError
from leapbench.names import SUMMARY
from leapbench.records.files import read_object

PROCESSES = "_processes"  # ends the name of the folder beside a suite that holds its pipelines of processes
BACKWARD_SHARE = 2.0  # seconds of a backward pass per second of a forward pass


def modelled(forward_s: Sequence[float], boundary_bytes: Sequence[int], microbatches: int) -> dict[str, float]:
    """The speed of a pipeline whose stages never wait but for the slowest of them, and while it fills and drains.

    Args:
        forward_s: seconds of a forward pass of each stage, in any unit of work.
        boundary_bytes: what each stage's forward passes take per update from the stage before.
        microbatches: of the whole run.

    Returns:
        slowest_share_pct: of all seconds, those of the slowest stage; ideal_speedup: over one process, once the
        pipeline is full; unfilled_pct: clocks in which it fills or drains; speedup: ideal less those;
        bytes_per_update: activations and their gradients across all boundaries.
    """
    seconds = [value * (1 + BACKWARD_SHARE) for value in forward_s]
    full_share = microbatches / (microbatches + 2 * (len(seconds) - 1))
    ideal = sum(seconds) / max(seconds)
    return {
        "slowest_share_pct": 100.0 * max(seconds) / sum(seconds), "ideal_speedup": ideal,
        "unfilled_pct": 100.0 * (1 - full_share), "speedup": ideal * full_share,
        "bytes_per_update": 2 * sum(boundary_bytes[1:]),
    }  # fmt: skip


def folder_beside(suite: Path) -> Path:
    """Where the pipelines of processes of a suite are, a folder each by run id."""
    return suite.with_name(f"{suite.name}{PROCESSES}")


def measured_in(suite: Path) -> list[Mapping[str, Any]]:
    """The summaries of pipelines of processes that were timed against one process, of a suite's folder.

    Raises:
        ConfigError: one of them cannot be read.
    """
    found = [summary_of(path.parent) for path in sorted(folder_beside(suite).glob(f"*/{SUMMARY}"))]
    return [summary for summary in found if summary and summary["one_process"]]


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The summary of a pipeline of processes, None before it has ended.

    Raises:
        ConfigError: it is damaged.
    """
    remedy = "delete it, and the pipeline starts over"
    summary = read_object(folder / SUMMARY, remedy)
    if summary is not None and not {"one_process", "science", "stages", "made_by"} <= summary.keys():
        raise ConfigError(f"{folder / SUMMARY} is damaged; {remedy}")
    return summary
