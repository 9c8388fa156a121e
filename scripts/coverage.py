"""Simulate what the intervals of the tables cover and write it into docs/judging.md: python scripts/coverage.py."""

import argparse

from leapbench.names import PROJECT
from leapbench.records.ending import exit_with
from leapbench.tables.coverage import correlations, page, simulate
from leapbench.tables.documents import COVERAGE, into_document


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    text = page(simulate(), correlations(PROJECT / "results" / "tables"))
    into_document(PROJECT / COVERAGE[0], COVERAGE[1], text)
    print(text)


if __name__ == "__main__":
    exit_with(main)
