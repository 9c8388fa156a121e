"""Files that are never half written. Imports nothing heavy: dry runs use it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leapbench.config.errors import ConfigError
from leapbench.names import ENDS, SUMMARY


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of the run in `folder`, None before it has ended.

    Raises:
        ConfigError: it is damaged.
    """
    remedy = "delete it, and the run goes on from its checkpoint, or starts over"
    summary = read_object(folder / SUMMARY, remedy)
    if summary is not None and summary.get("status") not in ENDS:
        raise ConfigError(f"{folder / SUMMARY} is damaged; {remedy}")
    return summary


def read_object(path: Path, remedy: str) -> dict[str, Any] | None:
    """The JSON object in a file, None if there is no such file.

    Raises:
        ConfigError: it holds something else; ends with the `remedy`.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged; {remedy}")
    return content


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of one jsonl file, none if it is absent."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A draft to fill, which becomes `folder` in one rename: a folder that is there is complete.

    If another process was faster, its folder stays and the draft is removed.
    """
    draft = folder.with_name(f"{folder.name}.draft-{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        yield draft
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def utc() -> str:
    """Now, as 2026-01-31T23:59:59Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_json(path: Path, data: Any) -> None:
    """Write atomically; floats that are not finite are refused by JSON and must be None."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write to a temporary file, then rename: readers see the old text or the new, never half."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
