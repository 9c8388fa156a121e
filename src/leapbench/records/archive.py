"""The runs of a suite in one file, results/records/SUITE.tar.xz, small enough to be kept in git.

Equal runs make equal bytes: members are sorted, and nothing in them tells when or by whom they were written.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from leapbench.names import ENDS, SUMMARY, Status
from leapbench.records.files import whole
from leapbench.records.rows import RecordError
from leapbench.records.seal import SEALED, check, contents

SUFFIX = ".tar.xz"
KEPT = tuple(status for status in ENDS if status != Status.failed)
NAMES = (*SEALED, SUMMARY)


@dataclass
class Outcome:
    """What became of the runs.

    Attributes:
        written: run ids, in order.
        left: run id -> why it was left out.
    """

    written: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def pack(suite: Path, archive: Path) -> Outcome:
    """Write all runs of the folder `suite` that have ended and are as they were sealed.

    Raises:
        RecordError: there is none, or the archive has runs that the folder lacks, which would be lost.
    """
    outcome, runs = Outcome(), {}
    for folder in sorted(path for path in suite.glob("*") if path.is_dir() and not path.name.startswith(".")):
        try:
            runs[folder.name] = _ended(folder)
            outcome.written.append(folder.name)
        except RecordError as error:
            outcome.left[folder.name] = str(error)
    if not runs:
        raise RecordError(f"{suite}: no run that has ended, nothing to keep")
    lost = sorted(_read(archive).keys() - runs.keys()) if archive.exists() else []
    if lost:
        raise RecordError(
            f"{archive}: has {len(lost)} runs that {suite} lacks ({', '.join(lost[:3])}); unpack it first, or delete it"
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f"{archive.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as raw, lzma.open(raw, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            for run_id, files in runs.items():
                for name, content in sorted(files.items()):
                    member = tarfile.TarInfo(f"{run_id}/{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        os.replace(part, archive)
    finally:
        part.unlink(missing_ok=True)
    return outcome


def unpack(archive: Path, suite: Path) -> Outcome:
    """Put the runs of an archive into the folder `suite`; a run that has a folder there is left as it is.

    Raises:
        RecordError: the archive is not there or damaged, or holds what no run has written.
    """
    outcome = Outcome()
    for run_id, files in _read(archive).items():
        if (suite / run_id).exists():
            outcome.left[run_id] = "there already"
            continue
        _check(suite / run_id, files)
        with whole(suite / run_id) as draft:
            for name, content in files.items():
                (draft / name).write_bytes(content)
        outcome.written.append(run_id)
    return outcome


def _ended(folder: Path) -> dict[str, bytes]:
    """The files of a run by name.

    Raises:
        RecordError: it has not ended, failed, or was changed.
    """
    if not (folder / SUMMARY).is_file():
        raise RecordError("has not ended")
    files = {**contents(folder), SUMMARY: (folder / SUMMARY).read_bytes()}
    _check(folder, files)
    return files


def _check(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        summary = json.loads(files[SUMMARY])
    except (KeyError, ValueError):
        raise RecordError(f"{folder / SUMMARY}: missing or not readable") from None
    check(folder, summary, {name: content for name, content in files.items() if name != SUMMARY})
    if summary["status"] not in KEPT:
        raise RecordError(str(summary["status"]))


def _read(archive: Path) -> dict[str, dict[str, bytes]]:
    """Run id -> name -> content.

    Raises:
        RecordError: it is not there or damaged, or holds what no run has written.
    """
    runs: dict[str, dict[str, bytes]] = {}
    try:
        for place, content in _members(archive):
            run_id, _, name = place.partition("/")
            if name not in NAMES or not run_id.isalnum():
                raise RecordError(f"{archive}: holds {place}, which no run has written")
            runs.setdefault(run_id, {})[name] = content
    except FileNotFoundError:
        raise RecordError(f"{archive}: not there") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise RecordError(f"{archive}: damaged ({error})") from None
    return runs


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is None:
                raise RecordError(f"{archive}: holds {member.name}, which is no file")
            yield member.name, file.read()
