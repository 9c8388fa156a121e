"""Keep the runs of suites in git: python scripts/records.py pack|unpack [--suite NAME].

pack writes results/raw/NAME into results/records/NAME.tar.xz, unpack puts them back where they are missing, as in a
fresh copy of the project: then `make tables` needs no run at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from leapbench.records.archive import SUFFIX, pack, unpack
from leapbench.records.ending import exit_with


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("--suite", help="folder under --results (pack: needed; unpack: default all that are kept)")
    parser.add_argument("--results", type=Path, default=Path("results/raw"), help="where the run folders are")
    parser.add_argument("--records", type=Path, default=Path("results/records"), help="where the archives are")
    args = parser.parse_args()
    kept = sorted(path.name.removesuffix(SUFFIX) for path in args.records.glob(f"*{SUFFIX}"))
    if args.action == "pack" and not args.suite:
        parser.error("pack needs --suite NAME")
    for name in [args.suite] if args.suite else kept:
        suite, archive = args.results / name, args.records / f"{name}{SUFFIX}"
        outcome = pack(suite, archive) if args.action == "pack" else unpack(archive, suite)
        to = f"{archive}, {archive.stat().st_size / 1e6:.2f} MB" if args.action == "pack" else str(suite)
        print(f"{name}: {len(outcome.written)} runs to {to}; {len(outcome.left)} left out")
        if args.action == "pack":
            for run_id, reason in outcome.left.items():
                print(f"  {run_id}: {reason}")
    return 0


if __name__ == "__main__":
    exit_with(main)
