"""The seal of a run that has ended: its summary says what every other file held, so no changed record is counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leapbench.names import CONFIG, META, STREAMS, SUMMARY
from leapbench.records.rows import RecordError

SCHEMA = 2
SEALED = (CONFIG, META, *STREAMS)


def sealed(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """`summary` with the schema, the rows and the sha256 of each file of `folder`, and a sha256 of all this."""
    files = {name: _facts(content) for name, content in contents(folder).items()}
    whole = {"schema": SCHEMA, **summary, "files": files}
    return {**whole, "sha256": _sha256_of(whole)}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run that a seal covers, by name; those that do not exist are left out."""
    found = {}
    for name in SEALED:
        try:
            found[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
    return found


def check(folder: Path, summary: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Whether the files are what the run wrote.

    Args:
        folder: the run's, for the message.
        summary: the content of summary.json.
        files: as :func:`contents` gives them.

    Raises:
        RecordError: the first fault, with its path.
    """
    path = folder / SUMMARY
    if summary.get("schema") != SCHEMA:
        raise RecordError(f"{path}: schema {summary.get('schema')}, but this version reads {SCHEMA}; run it anew")
    if summary.get("sha256") != _sha256_of({key: value for key, value in summary.items() if key != "sha256"}):
        raise RecordError(f"{path}: changed since the run wrote it")
    for name, facts in summary["files"].items():
        if name not in files:
            raise RecordError(f"{folder / name}: missing, though the run wrote it")
        now = _facts(files[name])
        if now["rows"] != facts["rows"]:
            raise RecordError(f"{folder / name}: has {now['rows']} lines, but the run wrote {facts['rows']}")
        if now != facts:
            raise RecordError(f"{folder / name}: changed since the run ended")
    for name in files.keys() - summary["files"].keys():
        raise RecordError(f"{folder / name}: not written by the run")


def _facts(content: bytes) -> dict[str, Any]:
    return {"rows": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}


def _sha256_of(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
