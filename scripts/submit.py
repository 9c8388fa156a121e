"""Submit one of sweeps/*.yaml to Slurm and return: python scripts/submit.py NAME [--retry failed] [-- overrides].

Each command line of the sweep becomes one array, each run one job. Runs that are complete, running or in the queue are
left out, so the same command again submits what is missing or was killed; --retry failed adds what failed. Resources
are the keys of conf/hydra/launcher/slurm.yaml: -- hydra.launcher.partition=gpu hydra.launcher.timeout_min=240, or
-- hydra/launcher=OTHER.

Jobs run the commit that is checked out now, from a copy in results/code/COMMIT, however long they wait. They start in
this checkout, and results_dir is made absolute, so their records are where scripts/status.py looks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from leapbench import cli
from leapbench.cluster import submit
from leapbench.cluster.slurm import Site
from leapbench.config.errors import ConfigError
from leapbench.records import commit
from leapbench.records.plan import PlannedRun
from sweep import PROJECT, PlanError, commands, parse, plan


def by_suite(runs: list[PlannedRun]) -> dict[Path, list[PlannedRun]]:
    """The runs of each suite, every run once."""
    found: dict[Path, dict[str, PlannedRun]] = {}
    for run in runs:
        found.setdefault(run.folder.parent, {})[run.run_id] = run
    return {suite: list(each.values()) for suite, each in found.items()}


def report(suite: Path, counts: dict[str, int], submitted: list[str]) -> None:
    """One line per suite, then one per array."""
    print(f"{suite.name}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    for line in submitted or ["nothing to submit"]:
        print(f"  {line}", flush=True)
    if counts.get("failed") and not submitted:
        print("  --retry failed submits the failed ones")


def main() -> int:
    """Plan every command line, prepare what the jobs share, submit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retry", choices=["failed"], help="submit runs that failed as well")
    args, extra = parse(parser, sys.argv[1:])
    launcher, extra = submit.split(extra)
    retry = args.retry == "failed"
    try:
        code = PROJECT if args.dry_run else commit.code(args.allow_dirty)
        keys = submit.launcher(launcher, args.name)
        site = Site(keys, PROJECT, code, commit.current())
        plans = [by_suite(plan(line)) for line in commands(args.name, extra)]
        if code == PROJECT and not args.dry_run:
            print("the code differs from its commit: jobs run what is here when they start", file=sys.stderr)
        for suites in plans:
            for suite, runs in suites.items():
                chosen, counts = submit.to_do(runs, submit.survey(suite), retry)
                if args.dry_run or not chosen:
                    report(suite, counts, [f"would submit {run.run_id}" for run in chosen])
                    continue
                submit.prepare(chosen)
                arrays, counts = submit.submit(suite, runs, retry, site)
                lines = [f"submitted {len(a.runs)} runs as job {a.id}, logs in {a.logs}" for a in arrays]
                report(suite, counts, lines)
    except (LookupError, ConfigError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    except OSError as error:
        if (known := cli.explain(error)) is None:
            raise
        print(known[0], file=sys.stderr)
        return known[1]
    except PlanError as error:
        print(error.args[0], file=sys.stderr)
        return int(error.args[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
