"""The names of a run's files, and files that are never half written. Imports nothing heavy: dry runs use it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

CONFIG, META, SUMMARY = "config.yaml", "meta.json", "summary.json"
EVALS, REGIMES, PROPOSALS = "evals.jsonl", "regimes.jsonl", "proposals.jsonl"
CASCADE, LANDSCAPE, LEAPS = "cascade.jsonl", "landscape.jsonl", "leaps.jsonl"
STREAMS = (EVALS, REGIMES, PROPOSALS, CASCADE, LANDSCAPE, LEAPS)
CHECKPOINT, LOCK = "checkpoint/state.pt", "lock"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What the run in `folder` left when it ended, or None."""
    path = folder / SUMMARY
    return json.loads(path.read_text()) if path.is_file() else None


def utc() -> str:
    """Now, as 2026-01-31T23:59:59Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_json(path: Path, data: Any) -> None:
    """Write atomically; floats that are not finite are refused by JSON and must be None."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write to a temporary file, then rename: readers see the old text or the new, never half."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
