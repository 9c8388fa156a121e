"""How far the runs are: python scripts/status.py [SUITE...] [--watch].

Counts per suite, then every run that is not simply complete or waiting: what runs and how far it is, what failed and
why, with the last line of its log and its folder. Read from the run folders and, where there is one, Slurm's queue.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from leapbench.cluster.slurm import SlurmError, queue
from leapbench.cluster.status import State, Survey
from leapbench.names import Status

COLOURS = {
    Status.completed: "green", Status.running: "cyan", Status.pending: "blue", Status.partial: "yellow",
    Status.failed: "red", Status.diverged: "magenta", Status.skipped: "dim",
}  # fmt: skip
SHOWN = (Status.failed, Status.partial, Status.running, Status.diverged)


def overview(looks: dict[str, dict[str, State]]) -> Table:
    """How many runs of each suite are in which state."""
    table = Table("suite", box=None, pad_edge=False)
    for name in (*COLOURS, "runs"):
        table.add_column(Text(name, COLOURS.get(name, "")), justify="right")
    for suite, states in looks.items():
        counts = Counter(state.status for state in states.values())
        table.add_row(suite, *(str(counts[status] or "-") for status in COLOURS), str(len(states)))
    return table


def details(looks: dict[str, dict[str, State]], limit: int) -> list[Text]:
    """One to two lines for each run that needs a look, at most `limit` runs."""
    runs = [
        state for status in SHOWN for states in looks.values() for state in states.values() if state.status == status
    ]
    lines = []
    for state in runs[:limit]:
        facts = [fact for fact in (state.progress(), state.reason) if fact]
        line = Text.assemble((f"{state.status:9}", COLOURS[state.status]), f"{state.folder}  {'; '.join(facts)}")
        lines.append(line)
        if state.status in (Status.failed, Status.partial) and (last := state.last_line()):
            lines.append(Text(f"         {last}  ({state.log})", "dim"))
    if len(runs) > limit:
        lines.append(Text(f"and {len(runs) - limit} more; --limit {len(runs)} shows all"))
    return lines


def page(surveys: dict[str, Survey], limit: int) -> Group:
    """The whole answer, as of now."""
    try:
        jobs, note = queue(), ""
    except SlurmError as error:
        jobs, note = None, f"{error}; what waits in its queue is unknown"
    looks = {suite: survey.look(jobs) for suite, survey in surveys.items()}
    states = [state for look in looks.values() for state in look.values()]
    if all(state.status == Status.completed for state in states):
        note = note or f"all {len(states)} completed"
    return Group(overview(looks), "", *details(looks, limit), *([note] if note else []))


def main() -> int:
    """Print the page once, or again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="*", help="folders under --results (default: every one)")
    parser.add_argument("--results", type=Path, default=Path("results/raw"), help="where the suites are")
    parser.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help="redraw (default: 10 s)")
    parser.add_argument("--limit", type=int, default=40, help="runs that are listed one by one")
    args = parser.parse_args()
    there = sorted(path.name for path in args.results.glob("[!.]*") if path.is_dir())
    missing = [name for name in args.suite if name not in there]
    if missing or not there:
        what = f"no suite {missing[0]}; there are: {', '.join(there)}" if there else "no suites; train.py makes one"
        print(f"{args.results}: {what}", file=sys.stderr)
        return 2
    surveys = {name: Survey(args.results / name) for name in args.suite or there}
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
