"""A suite's tables, its figures and the page that links them: python scripts/report.py --suite NAME."""

import argparse
import os
import sys
from pathlib import Path

from leapbench import tables
from leapbench.figures import write_figures
from leapbench.records.read import Suite, load_suite, suites_in
from leapbench.records.rows import RecordError
from leapbench.tables.acceptance import score
from leapbench.tables.headline import headlines, into_readme

PROJECT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", metavar="SUITE", help="only put SUITE's headline tables into README.md")
    parser.add_argument("--suite", help="folder under --results (default: every suite there)")
    parser.add_argument("--results", type=Path, default=Path("results/raw"), help="where the suites are")
    parser.add_argument("--out", type=Path, default=Path("results"), help="OUT/tables/SUITE and OUT/figures/SUITE")
    parser.add_argument("--published", type=Path, default=PROJECT / "results/published", help="the cited figures")
    args = parser.parse_args()
    if args.readme:
        commits = list(load_suite(args.results / args.readme).runs["git_commit"].unique())
        for table, text in headlines(args.out / "tables" / args.readme, commits).items():
            into_readme(PROJECT / "README.md", table, text)
        return 0
    published = tables.load_published(args.published)
    problems: list[str] = []
    for name in [args.suite] if args.suite else suites_in(args.results):
        suite = load_suite(args.results / name)
        made = tables.build(suite, published)
        folder = args.out / "tables" / name
        for table in made:
            tables.write(table, suite, folder)
        figures = write_figures(suite, score(suite), made, published, args.out / "figures" / name)
        page = folder / "README.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(report(suite, made, figures, folder), encoding="utf-8")
        print(f"{name}: {len(made)} tables, {len(figures)} figures, {page}")
        for path in figures:
            print(f"  {path}")
        problems += [problem for table in made for problem in table.problems]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def report(suite: Suite, made: list[tables.Table], figures: list[Path], folder: Path) -> str:
    """The page: runs by status with their commit, tables, figures."""
    lines = [
        f"# Suite {suite.name}",
        "",
        "Written by `scripts/report.py`; every number comes from the run folders.",
        "",
    ]
    lines += ["## Runs", "", "| status | runs | git commit | run ids |", "|:--|--:|:--|:--|"]
    for status, runs in suite.runs.groupby("status"):
        commits = sorted({f"{run.git_commit[:12]}{' + changes' if run.git_dirty else ''}" for run in runs.itertuples()})
        lines.append(f"| {status} | {len(runs)} | {', '.join(commits)} | {', '.join(runs['run_id'])} |")
    notes = tables.not_counted(suite)
    lines += ["", *(["Not counted:", "", *(f"- {note}" for note in notes), ""] if notes else [])]
    lines += ["## Tables", ""]
    for table in made:
        kinds = ", ".join(f"[{end}]({table.name}.{end})" for end in ("md", "csv", "tex"))
        cells = f", [one row per seed]({table.name}_cells.csv)" if table.per_seed is not None else ""
        lines.append(f"- {table.title}: {kinds}{cells}: {table.summary}")
    lines += ["", "## Figures", ""]
    for path in figures:
        link = Path(os.path.relpath(path, folder)).as_posix()
        lines += [f"![{path.stem.replace('__', ', ').replace('_', ' ')}]({link})", ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RecordError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
