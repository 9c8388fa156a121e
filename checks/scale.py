"""What a large suite costs to look at: python scripts/scale.py RUN_FOLDER... [--runs 10000].

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

from leapbench.names import PROJECT

SEED = re.compile(r"^  seed: \d+$", re.MULTILINE)
SCRIPTS = PROJECT / "scripts"


def copies(like: list[Path], folder: Path, runs: int) -> tuple[int, int]:
    """Make `runs` run folders in `folder`, as many like each; files and bytes of all."""
    known = [{path.name: path.read_text() for path in each.iterdir() if path.is_file()} for each in like]
    written, size = 0, 0
    for number in range(runs):
        files, seed = known[number % len(known)], number // len(known)
        run_id = f"{number:012x}"
        own = folder / run_id
        own.mkdir(parents=True)
        meta = json.loads(files["meta.json"]) | {"run_id": run_id, "trajectory": run_id}
        changed = {
            "config.yaml": SEED.sub(f"  seed: {seed}", files["config.yaml"]),
            "meta.json": json.dumps(meta, indent=1),
        }
        for name, text in (files | changed).items():
            written, size = written + 1, size + (own / name).write_text(text)
    return written, size


def measure(script: str, *arguments: str | Path) -> str:
    """The time and memory that one of the scripts took; what it prints is dropped."""
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, SCRIPTS / script, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(1)
    spent, clock = used.ru_utime + used.ru_stime, time.monotonic() - began
    return f"{spent:.1f} s of processor time, {clock:.1f} s on the clock, at most {used.ru_maxrss / 2**20:.2f} GiB"


def main() -> int:
    """Make the folders, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("like", metavar="RUN_FOLDER", type=Path, nargs="+", help="complete runs")
    parser.add_argument("--runs", type=int, default=10_000, help="how many copies in all")
    args = parser.parse_args()
    if missing := [folder for folder in args.like if not (folder / "summary.json").is_file()]:
        print(f"{missing[0]}: no complete run folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as place:
        files, size = copies(args.like, Path(place) / "suite", args.runs)
        print(f"{args.runs} runs, {files} files, {size / 1e6:.0f} MB")
        print(f"status:    {measure('status.py', 'suite', '--results', place)}")
        print(f"aggregate: {measure('aggregate.py', '--suite', 'suite', '--results', place, '--out', place)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
