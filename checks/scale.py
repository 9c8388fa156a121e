"""What a large suite costs to look at: python checks/scale.py RUN_FOLDER... [--runs 10000].

Copies run folders (in mode=leap a method and its baseline) under new ids and seeds, then measures scripts/status.py
and scripts/aggregate.py on them, each in a process of its own: processor seconds, time on the clock, largest memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from leapbench.config.schema import digest
from leapbench.names import CONFIG, META, PROJECT, SUMMARY
from leapbench.records.files import write_json
from leapbench.records.seal import sealed

SEED = re.compile(r"^  seed: \d+$", re.MULTILINE)
SCRIPTS = PROJECT / "scripts"


def copies(sources: list[Path], folder: Path, runs: int) -> tuple[int, int]:
    """Make `runs` run folders in `folder`, copying `sources` in turn; the number of files and of bytes."""
    templates = [{path.name: path.read_text() for path in source.iterdir() if path.is_file()} for source in sources]
    count, size = 0, 0
    for number in range(runs):
        files, seed = templates[number % len(templates)], number // len(templates)
        config = SEED.sub(f"  seed: {seed}", files[CONFIG])
        run_id = digest(yaml.load(config, Loader=yaml.CSafeLoader)["science"])
        copy = folder / run_id
        copy.mkdir(parents=True)
        meta = json.loads(files[META]) | {"run_id": run_id, "trajectory": run_id}
        for name, text in (files | {CONFIG: config, META: json.dumps(meta, indent=1)}).items():
            count, size = count + 1, size + (copy / name).write_text(text)
        summary = json.loads(files[SUMMARY])
        write_json(copy / SUMMARY, sealed(copy, {key: summary[key] for key in summary.keys() - {"files", "sha256"}}))
    return count, size


def measure(script: str, *arguments: str | Path) -> str:
    """The time and memory that one of the scripts took; its output is discarded."""
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, SCRIPTS / script, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(1)
    cpu_s, wall_s = usage.ru_utime + usage.ru_stime, time.monotonic() - start
    return f"{cpu_s:.1f} s of processor time, {wall_s:.1f} s on the clock, at most {usage.ru_maxrss / 2**20:.2f} GiB"


def main() -> int:
    """Make the folders, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("like", metavar="RUN_FOLDER", type=Path, nargs="+", help="complete runs")
    parser.add_argument("--runs", type=int, default=10_000, help="how many copies in all")
    args = parser.parse_args()
    if missing := [folder for folder in args.like if not (folder / SUMMARY).is_file()]:
        print(f"{missing[0]}: no complete run folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder_name:
        files, size = copies(args.like, Path(folder_name) / "suite", args.runs)
        print(f"{args.runs} runs, {files} files, {size / 1e6:.0f} MB")
        print(f"status:    {measure('status.py', 'suite', '--results', folder_name)}")
        print(
            f"aggregate: {measure('aggregate.py', '--suite', 'suite', '--results', folder_name, '--out', folder_name)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
