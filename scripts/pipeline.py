"""Train a pipeline of processes, one for each stage, started by torchrun:

torchrun --nproc-per-node=2 scripts/pipeline.py experiment=layerpipe2_nano pipeline.stages=2 [KEY=VALUE ...] [--measure]
"""

import argparse
import sys

from leapbench import cli
from leapbench.config.compose import configured


def main(words: list[str], measure: bool) -> None:
    from leapbench.training.pipeline.processes import Processes
    from leapbench.training.pipeline.run import run_stage

    processes = Processes()
    with processes.one_message():
        config = configured(*words)
        folder = run_stage(config, processes, measure)
    if processes.rank == 0:
        print(f"{config.run_id} has ended: {folder}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as for train.py")
    parser.add_argument("--measure", action="store_true", help="then train the same steps in one process, and compare")
    args = parser.parse_intermixed_args()
    sys.argv[1:] = args.overrides
    cli.main(lambda: main(args.overrides, args.measure))
