"""Rebuild the tables from run folders: python scripts/aggregate.py --suite NAME."""

import argparse
import sys
from pathlib import Path

from leapbench import tables
from leapbench.names import PROJECT, Status
from leapbench.records.ending import exit_with
from leapbench.records.read import load_suite, suites_in
from leapbench.records.rows import RecordError

MAIN = (
    "regime_distribution",
    "acceptance_strict",
    "acceptance_adaptive",
    "acceptance_proximity",
    "momentum_catastrophe",
    "equivalent_budget",
    "time_to_baseline",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", help="folder under --results (default: every suite there)")
    parser.add_argument("--results", type=Path, default=Path("results/raw"), help="where the suites are")
    parser.add_argument("--out", type=Path, default=Path("results"), help="tables go to OUT/tables/SUITE")
    parser.add_argument("--only", metavar="TABLE", help=f"one of {', '.join(tables.TABLES)}")
    parser.add_argument("--published", type=Path, default=PROJECT / "results/published", help="the cited figures")
    args = parser.parse_args()
    published = tables.load_published(args.published)
    problems = []
    for name in [args.suite] if args.suite else suites_in(args.results):
        try:
            problems += aggregate(args, name, published)
        except RecordError as error:  # the other suites' tables are made all the same
            problems.append(str(error))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def aggregate(args: argparse.Namespace, name: str, published: tables.Published) -> list[str]:
    """Print and write one suite's tables; returns the problems the user has to fix before they are complete."""
    suite = load_suite(args.results / name)
    counts = suite.runs["status"].value_counts()
    print(f"{name}: {len(suite.runs)} runs, " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    for heading, notes in tables.notes_on(suite).items():
        for note in notes:
            print(f"  {heading.lower()}: {note}")
    for note in tables.without_target(suite):
        print(f"  no time_to_baseline: {note}")
    folder = args.out / "tables" / name
    suite_tables = tables.build(suite, published, args.only)
    paths = [path for table in suite_tables for path in tables.write(table, suite, folder)]
    for table in suite_tables:
        print(f"\n{table.name}: {table.summary}")
        if args.only or table.name in MAIN:
            print(tables.console(table, compact=not args.only))
    print(f"\nwrote {len(paths)} files to {folder}: {', '.join(path.name for path in paths)}")
    damaged = suite.runs.loc[suite.runs["status"] == Status.damaged, "reason"]
    return [*damaged, *(problem for table in suite_tables for problem in table.problems)]


if __name__ == "__main__":
    exit_with(main)
