"""What a large suite costs to look at: python scripts/scale.py --like RUN_FOLDER [--runs 10000].

Copies one run folder under new ids and seeds, then measures, each in a process of its own, what scripts/status.py and
scripts/aggregate.py do first: looking at every run, and reading every record.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SEED = re.compile(r"^  seed: \d+$", re.MULTILINE)
LOOK = "from leapbench.status import Survey; print(len(Survey(Path(sys.argv[1])).look(None)), 'states')"
READ = """
from leapbench.read import load_suite
suite = load_suite(sys.argv[1])
print(len(suite.runs), 'runs,', sum(map(len, suite.records.values())), 'rows')
"""
PREFIX = "import sys; from pathlib import Path\n"


def copies(like: Path, folder: Path, runs: int) -> tuple[int, int]:
    """Make `runs` run folders in `folder`; files and bytes of one."""
    files = {path.name: path.read_text() for path in like.iterdir() if path.is_file()}
    for number in range(runs):
        run_id = f"{number:012x}"
        own = folder / run_id
        own.mkdir(parents=True)
        meta = json.loads(files["meta.json"]) | {"run_id": run_id, "trajectory": run_id}
        changed = {
            "config.yaml": SEED.sub(f"  seed: {number}", files["config.yaml"]),
            "meta.json": json.dumps(meta, indent=1),
        }
        for name, text in (files | changed).items():
            (own / name).write_text(text)
    return len(files), sum(len(text.encode()) for text in files.values())


def measure(code: str, suite: Path) -> str:
    """What `code` prints, and the time and memory that its process took."""
    child = subprocess.Popen([sys.executable, "-c", PREFIX + code, str(suite)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    said = child.stdout.read().strip()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(1)
    return f"{said}: {used.ru_utime + used.ru_stime:.1f} s of CPU, peak {used.ru_maxrss / 2**20:.2f} GiB"


def main() -> int:
    """Make the folders, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", type=Path, required=True, help="a complete run folder")
    parser.add_argument("--runs", type=int, default=10_000, help="how many copies")
    args = parser.parse_args()
    if not (args.like / "summary.json").is_file():
        print(f"{args.like}: no complete run folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as place:
        suite = Path(place) / "suite"
        files, size = copies(args.like, suite, args.runs)
        print(f"{args.runs} runs of {files} files and {size} bytes each")
        print(f"status:    {measure(LOOK, suite)}")
        print(f"aggregate: {measure(READ, suite)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
