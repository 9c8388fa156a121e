"""Measure snapshots, predictions and swaps: python scripts/bench.py [--sizes 1M,100M] [--floor | --step EXPERIMENT]."""

import argparse
import sys
from pathlib import Path

import torch

from leapbench.bench import costs, floor, report, step
from leapbench.config.compose import configured
from leapbench.config.errors import ConfigError
from leapbench.training.prepare import pick_device

UNITS = {"K": 1_000, "M": 1_000_000, "B": 1_000_000_000}


def size(text: str) -> int:
    number = float(text[:-1]) * UNITS[text[-1]] if text[-1:] in UNITS else float(text)
    if number < 1:
        raise ValueError
    return int(number)


def sizes(text: str) -> list[int]:
    try:
        return [size(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of sizes, as in 1M,100M") from None


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 1 or more")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=sizes, default="1M,100M", help="parameters of the models (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--repeats", type=positive, default=9, help="rounds; ten times as many for small models")
    parser.add_argument("--out", type=Path, default=Path("results/checks"), help="where the tables go")
    parser.add_argument("--floor", action="store_true", help="also time observing against its floor (minutes)")
    parser.add_argument(
        "--step",
        metavar="EXPERIMENT",
        help="only time the training step of an experiment (and overrides) against a bare loop",
    )
    parser.add_argument("--steps", type=positive, default=400, help="training steps of --floor")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds of --floor and --step")
    args = parser.parse_args()
    device = pick_device(args.device)
    torch.set_num_threads(1)
    print(report.machine(device))
    if args.step:
        words = args.step.split()
        cost = step.measure(configured(f"experiment={words[0]}", *words[1:]), device, args.rounds)
        setting = f"experiment={args.step}, {args.rounds} rounds in turn."
        print(report.step_console(cost))
        print(f"wrote {', '.join(str(path) for path in report.write_step(cost, setting, device, args.out))}")
        return 0
    tables = []
    for parameters in args.sizes:
        rows = []
        for row in costs.measure(parameters, device, args.repeats):
            rows.append(row)
            print(f"  {row['parameters']:,} parameters: {row['predictor']} {row['form']}", file=sys.stderr)
        tables.append(rows)
        print(f"\n{rows[0]['parameters']:,} parameters, {rows[0]['rounds']} rounds", report.console(rows), sep="\n")
        print(*report.verdicts(rows), sep="\n")
    paths = report.write(tables, device, args.out)
    if args.floor:
        measurement, setting = floor.embedded(args.steps, args.rounds, args.device)
        print(f"\n{setting}", report.floor_console(measurement), sep="\n")
        paths += report.write_floor(measurement, setting, device, args.out)
    print(f"\nwrote {', '.join(str(path) for path in paths)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
