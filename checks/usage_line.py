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
    with tempfile.TemporaryDirectory(prefix="usage", dir="/tmp") as folder, SlurmCluster() as cluster:
        scratch = Path(folder)
        project, results = checkout(PROJECT, scratch / "project"), scratch / "raw"
        user = User(project, {**cluster.env, "PYTHONPATH": str(project / "src")})
        endings = {}
        for suite, launcher in LAUNCHERS.items():
            overrides = (f"suite={suite}", f"results_dir={results}", "device=cpu", "progress=false")
            command = [sys.executable, "train.py", "-m", *LINE, *launcher, *overrides]
            result = subprocess.run(command, cwd=project, env=user.env, stdout=subprocess.PIPE, text=True)
            print(result.stdout)
            if result.returncode:
                return result.returncode
            endings[suite] = result.stdout.splitlines()[-1]
        row_counts = {suite: rows(results / suite) for suite in LAUNCHERS}
        suite_tables = {suite: tables(user, results, suite, scratch) for suite in LAUNCHERS}
    slurm_tables, local_tables = suite_tables.values()
    different_tables = sum(
        name not in local_tables or not slurm_tables[name].equals(local_tables[name]) for name in slurm_tables
    )
    slurm_rows, local_rows = row_counts.values()
    different_rows = (slurm_rows - local_rows).total() + (local_rows - slurm_rows).total()
    lines = [
        "# The same sweep on Slurm and on this machine", "",
        f"`python train.py -m {' '.join(LINE)}`, once with `hydra/launcher=slurm` on a real Slurm of one node, once "
        f"with the local launcher; {provenance()}; written by `python checks/usage_line.py`.", "",
        "| | slurm | local |", "|---|---|---|", f"| ends | {endings['slurm']} | {endings['local']} |",
        f"| rows | {slurm_rows.total()} | {local_rows.total()} |",
        f"| tables | {len(slurm_tables)} | {len(local_tables)} |", "",
        f"Rows that differ in more than seconds: {different_rows}. Tables that differ: {different_tables}.", "",
    ]  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "usage_line.md").write_text("\n".join(lines))
    print((args.out / "usage_line.md").read_text())
    return int(bool(different_rows or different_tables))


if __name__ == "__main__":
    sys.exit(main())
