"""A suite's tables, its figures and the page that links them: python scripts/report.py --suite NAME.

Then one page of everything under OUT/tables and OUT/figures, OUT/report.html. Without runs, as in a fresh copy of the
project, it makes that page alone.
"""

import argparse
import sys
from pathlib import Path

from leapbench import tables
from leapbench.figures.html import write_page
from leapbench.figures.report import write_report
from leapbench.names import PROJECT
from leapbench.records.ending import exit_with
from leapbench.records.read import suites_in
from leapbench.tables.documents import write_documents

RAW = Path("results/raw")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--documents", action="store_true", help="only write what README.md and docs/ show of the tables"
    )
    parser.add_argument("--suite", help="folder under --results (default: every suite there)")
    parser.add_argument("--results", type=Path, default=RAW, help="where the suites are")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="OUT/tables/SUITE, OUT/figures/SUITE, OUT/report.html"
    )
    parser.add_argument("--published", type=Path, default=PROJECT / "results/published", help="the cited figures")
    args = parser.parse_args()
    if args.documents:
        complaints = write_documents(PROJECT)
        for name, complaint in complaints.items():
            print(f"left as it is: {name}: {complaint}", file=sys.stderr)
        return int(bool(complaints))
    published = tables.load_published(args.published)
    problems: list[str] = []
    for name in [args.suite] if args.suite else _suites(args.results, args.out):
        suite_tables, figures, page = write_report(args.results / name, published, args.out)
        print(f"{name}: {len(suite_tables)} tables, {len(figures)} figures, {page}")
        for path in figures:
            print(f"  {path}")
        problems += [problem for table in suite_tables for problem in table.problems]
    page, suites = write_page(args.out)
    print(f"{page}: {sum(len(suite.tables) for suite in suites)} tables, {page.stat().st_size / 1e6:.1f} MB")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def _suites(results: Path, out: Path) -> list[str]:
    """The suites to report on: none where nothing has been run yet, and tables are there."""
    if results == RAW and not results.exists() and (out / "tables").is_dir():
        print(f"{results}: no runs; the page shows the tables that are there")
        return []
    return suites_in(results)


if __name__ == "__main__":
    exit_with(main)
