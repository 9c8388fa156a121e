"""Trainings of learned predictors side by side: python scripts/learned.py [--meta FOLDER] [--out FOLDER].

Writes trainings.csv, trainings.md, curves.png, and records/ with what each training left but its weights.
"""

import argparse
import shutil
from pathlib import Path

import matplotlib.pyplot as plt

from leapbench.figures.learned import learning_curves
from leapbench.figures.style import DPI, STYLE
from leapbench.meta.learn import CURVE
from leapbench.meta.results import curves, page, trainings
from leapbench.names import PROJECT, SUMMARY
from leapbench.records.ending import exit_with

KEPT = (CURVE, SUMMARY, "config.yaml", "meta.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta", type=Path, default=PROJECT / "results" / "meta", help="where the trainings are")
    parser.add_argument("--out", type=Path, default=PROJECT / "results" / "learned", help="where the tables go")
    args = parser.parse_args()
    frame = trainings(args.meta)
    for run_id in frame["run_id"]:
        (args.out / "records" / run_id).mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(args.meta / run_id / name, args.out / "records" / run_id / name)
    frame.to_csv(args.out / "trainings.csv", index=False, float_format="%.6g", lineterminator="\n")
    text = page(frame)
    (args.out / "trainings.md").write_text(text, encoding="utf-8")
    with plt.rc_context(STYLE):
        learning_curves(frame, curves(args.meta, list(frame["run_id"]))).savefig(args.out / "curves.png", dpi=DPI)
    print(text)


if __name__ == "__main__":
    exit_with(main)
