"""Judge methods on one workload: python scripts/judge.py PLAN [--dry-run] [--allow-dirty] [-- extra overrides].

Finds settings for every row of plans/PLAN.yaml with the same number of trials, then makes the runs that are scored.
What was tried stands in results/tuning/PLAN.yaml; the same command continues where it was interrupted.
"""

from __future__ import annotations

import shlex
import signal
import sys

from hydra.errors import HydraException

from leapbench import cli
from leapbench.cluster import sweep
from leapbench.cluster.arguments import parser, read
from leapbench.cluster.screen import Screen
from leapbench.config.errors import ConfigError
from leapbench.records import commit
from leapbench.referee.drive import FailedError, Judge
from leapbench.referee.plan import load
from leapbench.referee.search import NothingWorksError
from leapbench.training.signals import Terminated, terminate


def main() -> int:
    """Carry out the plan, or with --dry-run say what it costs."""
    args, extra = read(parser(__doc__, "plans"))
    signal.signal(signal.SIGTERM, terminate)
    try:
        plan = load(args.name)
        if args.dry_run:
            print(plan.costs())
            return 0
        if not args.allow_dirty:
            commit.require_clean()
        Judge(plan, Screen(), extra).carry_out()
    except (ConfigError, NothingWorksError, HydraException) as error:
        known = None if isinstance(error, NothingWorksError) else cli.explain(error)
        print(known[0] if known else error, file=sys.stderr)
        return 2
    except (sweep.PlanError, FailedError) as error:
        if str(error):
            print(error, file=sys.stderr)
        status = error.status
    except KeyboardInterrupt:
        status = sweep.INTERRUPTED
    except Terminated as end:
        status = int(end.code or 0)
    else:
        print(f"tables: python scripts/aggregate.py --suite {plan.suite}")
        return 0
    if status in (sweep.INTERRUPTED, sweep.TERMINATED):
        print(f"interrupted, {cli.CONTINUE}: {shlex.join(['python', *sys.argv])}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
