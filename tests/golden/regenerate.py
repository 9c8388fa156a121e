"""Rewrite the golden tables from the committed runs: python tests/golden/regenerate.py (--raw rewrites the runs too).

Read the difference before committing it: every changed number needs a reason.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from synthetic import write_run

from leapbench import tables
from leapbench.read import load_suite

HERE = Path(__file__).resolve().parent
SUITE = HERE / "raw" / "tiny"
EXPECTED = HERE / "tables"
PUBLISHED = HERE.parents[1] / "results" / "published"


def write_raw(suite: Path) -> None:
    """Three completed runs, one that diverged and one that was killed; 8 checkpoints, 2 protocols."""
    common = {"predictors": ("linear", "momentum"), "protocols": ("exact", "code"), "K": (5, 100), "steps": 400}
    for seed in range(3):
        write_run(suite, seed, **common)
    write_run(suite, 3, **common, status="diverged", reason="loss is not finite at step 150", until=150)
    write_run(suite, 4, **common, status=None, until=100)


def write_tables(folder: Path) -> None:
    """The csv files of the committed runs' tables."""
    suite = load_suite(SUITE)
    for table in tables.build(suite, tables.load_published(PUBLISHED)):
        tables.write_csv(table, folder)


if __name__ == "__main__":
    if "--raw" in sys.argv:
        shutil.rmtree(SUITE, ignore_errors=True)
        write_raw(SUITE)
    shutil.rmtree(EXPECTED, ignore_errors=True)
    write_tables(EXPECTED)
    print(f"rewrote {EXPECTED}")
