"""Rewrite the golden tables from the committed runs: python tests/tables/golden/regenerate.py.

--raw rewrites the runs too.

Read the difference before committing it: every changed number needs a reason.
"""

import shutil
import sys
from pathlib import Path

from leapbench.names import PROJECT

sys.path.insert(0, str(Path(__file__).resolve().parent))

from synthetic import write_run
from synthetic_leap import write_leap_run

from leapbench import tables
from leapbench.records.read import load_suite

HERE = Path(__file__).resolve().parent
SUITES = ("tiny", "tiny_leap")
EXPECTED = HERE / "tables"
PUBLISHED = PROJECT / "results" / "published"


def write_raw(suite: Path) -> None:
    """Three completed runs, one that diverged and one that was killed; 8 checkpoints, 2 protocols."""
    common = {"predictors": ("linear", "momentum"), "protocols": ("exact", "code"), "K": (5, 100), "steps": 400}
    for seed in range(3):
        write_run(suite, seed, **common)
    write_run(suite, 3, **common, status="diverged", reason="loss is not finite at step 150", until=150)
    write_run(suite, 4, **common, status=None, until=100)


def write_raw_leaps(suite: Path) -> None:
    """Two tuned baselines, a published one, a method that is faster, one that diverges once and one that is slower."""
    for seed in range(3):
        write_leap_run(suite, seed)
        write_leap_run(suite, seed, schedule="wsd", speed=0.9)
        write_leap_run(suite, seed, lr=0.01, lr_from="published", speed=0.5)
        write_leap_run(suite, seed, "linear", speed=1.3, overhead_s=1.0, leaps=(100, 150), rejected=(50,))
        lost = {"status": "diverged", "reason": "the loss became nan by step 400"} if seed == 1 else {}
        write_leap_run(suite, seed, "pdt", "always", speed=1.4, leaps=(300, 350), overhead_s=0.5, **lost)
        write_leap_run(suite, seed, "average", speed=0.8, overhead_s=1.0, leaps=(200,))


def write_tables(folder: Path) -> None:
    """The csv files of the committed runs' tables."""
    for name in SUITES:
        for table in tables.build(load_suite(HERE / "raw" / name), tables.load_published(PUBLISHED)):
            tables.write_csv(table, folder)


if __name__ == "__main__":
    if "--raw" in sys.argv:
        for name, write in zip(SUITES, (write_raw, write_raw_leaps), strict=True):
            shutil.rmtree(HERE / "raw" / name, ignore_errors=True)
            write(HERE / "raw" / name)
    shutil.rmtree(EXPECTED, ignore_errors=True)
    write_tables(EXPECTED)
    print(f"rewrote {EXPECTED}")
