"""Pipelines of processes against the emulated ones: python checks/pipeline.py [--steps 200] [--networks NAME ...].

Three networks in 2 and 4 processes, with weights kept, newest or reconstructed and both kinds of delays, are trained by
torchrun and scripts/pipeline.py --measure, which trains the same steps in one process afterwards, emulated and plainly.
The weights must be the emulated ones to rounding. One more pipeline loses a process to SIGKILL: the others have to end
within 30 seconds with one message, and started again it has to end with the weights of the emulation. Leaves a table of
differences, speeds beside the throughput model's, waiting and bytes. Half an hour on two cores, which four processes
have to share: speeds are to be read as ratios, and count where each process has a core of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from chaos import provenance
from leapbench.config.compose import configured
from leapbench.names import PROJECT
from leapbench.training.pipeline.run import STAGES
from leapbench.training.pipeline.throughput import folder_beside, summary_of

NETWORKS = {
    "resnet_small": ("experiment=layerpipe2_digits", "optimizer.lr=0.05"),
    "fcn_small": (
        "experiment=digits_fcn", "mode=leap", "pipeline=layerpipe2", "optimizer=sgd_momentum", "optimizer.lr=0.05",
        "predictor=none",
    ),
    "gpt2_nano_untied": ("experiment=layerpipe2_nano",),
}  # fmt: skip
ARMS = ("stash/2S", "latest/2S", "ema_pipeline/2S", "ema_pipeline/S")
STAGES_OF = (2, 4)
ROUNDING = 1e-6  # largest relative difference
END_S = 30.0  # within which the others end
CHECKPOINT_EVERY = 20  # steps
LIMIT_S = 3600.0


def command(words: tuple[str, ...], stages: int, results: Path) -> list[str]:
    """torchrun with as many processes."""
    options = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={stages}"]
    return [sys.executable, *options, str(PROJECT / "scripts" / "pipeline.py"), *words, f"results_dir={results}"]


def words_of(network: str, stages: int, arm: str, steps: int) -> tuple[str, ...]:
    """The overrides of one pipeline."""
    versions, delay_model = arm.split("/")
    return (
        *NETWORKS[network], f"pipeline.stages={stages}", f"pipeline.versions={versions}",
        f"pipeline.delay_model={delay_model}", f"train.steps={steps}", "schedule.warmup=10", "device=cpu",
    )  # fmt: skip


def folder_of(words: tuple[str, ...], results: Path) -> Path:
    """Where it leaves what it finds."""
    config = configured(*words, f"results_dir={results}")
    return folder_beside(config.folder.parent) / config.run_id


def environment() -> dict[str, str]:
    """This process's, with one thread for each of the others."""
    return {**os.environ, "PYTHONPATH": str(PROJECT / "src"), "OMP_NUM_THREADS": "1"}


def trained(words: tuple[str, ...], stages: int, results: Path) -> dict[str, Any]:
    """The summary of a pipeline that runs to its end."""
    child = [*command(words, stages, results), "--measure"]
    subprocess.run(child, cwd=results, env=environment(), check=True, timeout=LIMIT_S)
    summary = summary_of(folder_of(words, results))
    assert summary is not None
    return summary


def killed(words: tuple[str, ...], stages: int, results: Path, half: int, rng: random.Random) -> dict[str, Any]:
    """Kill one process of a pipeline that has a checkpoint of step `half` or later; how the others ended."""
    words = (*words, f"checkpoint.every_steps={CHECKPOINT_EVERY}")
    folder, pipe = folder_of(words, results), subprocess.PIPE
    child = subprocess.Popen(
        command(words, stages, results), cwd=results, env=environment(), stdout=pipe, stderr=pipe, text=True
    )
    begun = time.monotonic()
    while child.poll() is None and time.monotonic() - begun < LIMIT_S:
        if any(int(path.name) >= half for path in (folder / STAGES / "0").glob("*")):
            break
        time.sleep(0.01)
    victim = rng.choice(workers_of(child.pid))
    os.kill(victim, signal.SIGKILL)
    died = time.monotonic()
    _, err = child.communicate(timeout=LIMIT_S)
    seconds = time.monotonic() - died
    lines = [line for line in err.splitlines() if line.startswith("interrupted; ")]
    return {"seconds": seconds, "messages": lines, "status": child.returncode}


def workers_of(pid: int) -> list[int]:
    """The processes of a pipeline that torchrun, itself process `pid`, has started."""
    listed = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid=,args="], capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "scripts/pipeline.py" in line]


def row_of(network: str, summary: dict[str, Any]) -> dict[str, Any]:
    """What the table says of one pipeline."""
    pipeline, one = summary["science"]["pipeline"], summary["one_process"]
    return {
        "network": network, "stages": pipeline["stages"], "delay_model": pipeline["delay_model"],
        "versions": pipeline["versions"], "steps": summary["steps"],
        "largest_relative_difference": one["largest_relative_difference"], "speedup": one["speedup"],
        "model_speedup": one["model"]["speedup"], "ideal_speedup": one["model"]["ideal_speedup"],
        "unfilled_pct": one["model"]["unfilled_pct"],
        "emulated_speedup": one["emulated"]["samples_per_s"] / one["plain"]["samples_per_s"],
        "waiting_pct": " ".join(f"{stage['waiting_pct']:.0f}" for stage in summary["stages"]),
        "sent_bytes_per_step": " ".join(f"{stage['sent_bytes_per_step']:.0f}" for stage in summary["stages"]),
    }  # fmt: skip


def write(out: Path, rows: list[dict[str, Any]], ending: dict[str, Any], options: str) -> None:
    """pipeline.csv and pipeline.md."""
    out.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(out / "pipeline.csv", index=False, float_format="%.6g", lineterminator="\n")
    titles = {
        "network": "network", "stages": "processes", "delay_model": "delays", "versions": "backward weights",
        "largest_relative_difference": "largest relative difference", "speedup": "measured", "model_speedup": "model",
        "ideal_speedup": "ideal", "unfilled_pct": "unfilled [%]", "emulated_speedup": "emulation",
        "waiting_pct": "waiting per stage [%]", "sent_bytes_per_step": "bytes sent per step and stage",
    }  # fmt: skip
    lines = [
        "# Pipelines of processes", "",
        f"`python checks/pipeline.py{options}`; {provenance()}; {os.cpu_count()} cores. Largest relative difference: "
        "of the final weights from those of the emulated pipeline, an element's as a share of the largest element of "
        "its tensor. Measured: samples per second over those of plain training in one process, after it; model: the "
        "throughput model's, ideal less the unfilled clocks; emulation: the emulated pipeline's over plain training. "
        "Waiting: share of the seconds in which a process waited for messages.", "",
        frame[list(titles)].rename(columns=titles).to_markdown(index=False, floatfmt=".3g"), "",
        f"One of {ending['stages']} processes was killed (SIGKILL) half-way. The others had ended "
        f"{ending['seconds']:.1f} s later, exit status {ending['status']}, with:", "",
        *(f"> {line}" for line in ending["messages"]), "",
        f"Started again, the pipeline went on from step {ending['resumed_at']}; largest relative difference of its "
        f"weights from the emulated ones: {ending['difference']}.", "",
    ]  # fmt: skip
    (out / "pipeline.md").write_text("\n".join(lines))


def main() -> int:
    """Train, kill, compare, write the table; 1 if anything is not as it has to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PROJECT / "results" / "checks" / "pipeline")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", type=int, default=0, help="of the choice which process is killed")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pipeline") as name:
        results = Path(name)
        for network in args.networks:
            for stages in STAGES_OF:
                for arm in args.arms:
                    words = words_of(network, stages, arm, args.steps)
                    rows.append(row_of(network, trained(words, stages, results)))
                    print(rows[-1], flush=True)
        stages, half = STAGES_OF[-1], args.steps // 2 // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        words = (*words_of(args.networks[-1], stages, args.arms[-1], args.steps), "suite=killed")
        ending = {"stages": stages} | killed(words, stages, results, half, random.Random(args.seed))
        resumed = trained(words, stages, results)
        ending |= {"resumed_at": resumed["resumed_at"],
                   "difference": resumed["one_process"]["largest_relative_difference"]}  # fmt: skip
    write(args.out, rows, ending, "".join(f" {word}" for word in sys.argv[1:]))
    print((args.out / "pipeline.md").read_text())
    differences = [row["largest_relative_difference"] for row in rows] + [ending["difference"]]
    equal = all(value is not None and value <= ROUNDING for value in differences)
    ended = ending["seconds"] <= END_S and len(ending["messages"]) == 1 and ending["resumed_at"] >= half
    return int(not (equal and ended))


if __name__ == "__main__":
    sys.exit(main())
