"""The README's sweep on a real Slurm and with the local launcher: python checks/usage_line.py [--out FOLDER].

Every row but its seconds must be the same, and every table. Needs root and Slurm's packages; takes twenty minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos import User, provenance, rows, tables
from leapbench.names import PROJECT
from slurm_cluster import SlurmCluster, checkout, unavailable

LINE = ("predictor=linear,quadratic", "K=5,10,25,50,75,100", "seed=0-4")
LAUNCHERS = {
    "slurm": ("hydra/launcher=slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.array_parallelism=2"),
    "local": ("hydra.launcher.n_jobs=2",),
}


def main() -> int:
    """Run both, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PROJECT / "results" / "checks" / "usage_line")
    args = parser.parse_args()
    if reason := unavailable():
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="usage", dir="/tmp") as place, SlurmCluster() as cluster:
        scratch = Path(place)
        project, results = checkout(PROJECT, scratch / "project"), scratch / "raw"
        user = User(project, {**cluster.env, "PYTHONPATH": str(project / "src")})
        said = {}
        for suite, launcher in LAUNCHERS.items():
            places = (f"suite={suite}", f"results_dir={results}", "device=cpu", "progress=false")
            command = [sys.executable, "train.py", "-m", *LINE, *launcher, *places]
            done = subprocess.run(command, cwd=project, env=user.env, stdout=subprocess.PIPE, text=True)
            print(done.stdout)
            if done.returncode:
                return done.returncode
            said[suite] = done.stdout.splitlines()[-1]
        counted = {suite: rows(results / suite) for suite in LAUNCHERS}
        made = {suite: tables(user, results, suite, scratch) for suite in LAUNCHERS}
    one, other = made.values()
    differing = sum(name not in other or not one[name].equals(other[name]) for name in one)
    here, there = counted.values()
    unequal = (here - there).total() + (there - here).total()
    lines = [
        "# The same sweep on Slurm and on this machine", "",
        f"`python train.py -m {' '.join(LINE)}`, once with `hydra/launcher=slurm` on a real Slurm of one node, once "
        f"with the local launcher; {provenance()}; written by `python checks/usage_line.py`.", "",
        "| | slurm | local |", "|---|---|---|", f"| ends | {said['slurm']} | {said['local']} |",
        f"| rows | {here.total()} | {there.total()} |", f"| tables | {len(one)} | {len(other)} |", "",
        f"Rows that differ in more than seconds: {unequal}. Tables that differ: {differing}.", "",
    ]  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "usage_line.md").write_text("\n".join(lines))
    print((args.out / "usage_line.md").read_text())
    return int(bool(unequal or differing))


if __name__ == "__main__":
    sys.exit(main())
