"""How far the runs are: python scripts/status.py [SUITE...] [--watch].

Counts per suite, then every run that is not simply complete or waiting: what runs and how far it is, what failed and
why, with the last line of its log and its folder. Read from the run folders and, where there is one, Slurm's queue.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from leapbench.cluster.page import page
from leapbench.cluster.status import Survey


def main() -> int:
    """Print the page once, or repeatedly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="*", help="folders under --results (default: every one)")
    parser.add_argument("--results", type=Path, default=Path("results/raw"), help="where the suites are")
    parser.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help="redraw (default: 10 s)")
    parser.add_argument("--limit", type=int, default=40, help="runs that are listed one by one")
    args = parser.parse_args()
    suites = sorted(path.name for path in args.results.glob("[!.]*") if path.is_dir())
    missing = [name for name in args.suite if name not in suites]
    if missing or not suites:
        problem = (
            f"no suite {missing[0]}; there are: {', '.join(suites)}" if suites else "no suites; train.py makes one"
        )
        print(f"{args.results}: {problem}", file=sys.stderr)
        return 2
    surveys = {name: Survey(args.results / name) for name in args.suite or suites}
    if args.watch is None:
        Console(soft_wrap=not sys.stdout.isatty(), highlight=False).print(page(surveys, args.limit))
        return 0
    with Live(page(surveys, args.limit), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            time.sleep(args.watch)
            live.update(page(surveys, args.limit), refresh=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
