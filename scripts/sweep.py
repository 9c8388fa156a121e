"""Run one of sweeps/*.yaml: python scripts/sweep.py NAME [--dry-run] [--allow-dirty] [-- extra overrides].

All command lines are resolved before the first one runs. While they run, a line on stderr says how many runs have
ended and how long the rest will take; a command line whose runs have all ended is passed over.

Code with changes that are not committed is refused, unless --allow-dirty (or -- allow_dirty=true) is given.
"""

from __future__ import annotations

import shlex
import signal
import sys

from leapbench import cli
from leapbench.cluster import sweep
from leapbench.cluster.arguments import parser, read
from leapbench.cluster.screen import Screen
from leapbench.config.errors import ConfigError
from leapbench.records import commit
from leapbench.training.signals import Terminated, terminate


def main() -> int:
    """Print every command line and, without --dry-run, run them one after the other."""
    args, extra = read(parser(__doc__))
    signal.signal(signal.SIGTERM, terminate)
    try:
        lines = sweep.commands(args.name, extra)
        if args.dry_run:
            for line in lines:
                print(shlex.join(["python", *line]))
            return 0
        if not args.allow_dirty:
            commit.require_clean()
        status = sweep.run(args.name, lines, Screen())
    except (LookupError, ConfigError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    except sweep.PlanError as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        status = sweep.INTERRUPTED
    except Terminated as end:
        status = int(end.code or 0)
    if status in (sweep.INTERRUPTED, sweep.TERMINATED):
        print(f"interrupted, {cli.CONTINUE}: {shlex.join(['python', *sys.argv])}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
