"""What observing costs beyond its floor: the bare training and the forward passes that verification needs."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from leapbench.bench.costs import Timing, fastest, interleaved
from leapbench.config.compose import configured
from leapbench.config.schema import RunConfig
from leapbench.names import VALIDATION
from leapbench.training.prepare import pick_device
from leapbench.training.run import run
from leapbench.training.schedule import factor_at
from leapbench.training.step import TrainingStep, build_optimizer
from leapbench.training.workload import Workload

AT_MOST = 1.05
OBSERVED = ("predictor=[linear,quadratic]", "K=[5,10,25,50,75,100]")
PASSES = ("verification_loss", "score", "probe_states")


@dataclass(frozen=True)
class Floor:
    """The parts, the ratios between them, and the laps of the observed run.

    Attributes:
        parts: rows of part, what, passes (forward passes over the whole set), wall_s, cpu_s.
        ratios: rows of ratio, wall, cpu, at_most (None without a target).
        laps: seconds per lap of one observed run, by its own clock.
    """

    parts: list[dict[str, Any]]
    ratios: list[dict[str, Any]]
    laps: dict[str, float]


def embedded(steps: int, rounds: int, device: str) -> tuple[Floor, str]:
    """The floor of two predictors and six K on the embedded text, and a description of what was run."""
    common = (f"train.steps={steps}", f"device={device}", "progress=false", "checkpoint.every_s=null")
    baseline, observed = (configured(*common, *overrides) for overrides in (("predictor=none",), OBSERVED))
    setting = f"{' '.join(OBSERVED)} model=gpt2_nano dataset=stdlib train.steps={steps}, {rounds} rounds."
    return measure(baseline, observed, rounds), setting


def measure(baseline: RunConfig, observed: RunConfig, rounds: int) -> Floor:
    """Time both runs, the bare training and the forward passes in turn, `rounds` times, and keep the minimum of each.

    Args:
        baseline: a run with predictor=none.
        observed: the same training, observed.
    """
    device = pick_device(observed.device)
    if device.type == "cpu":
        torch.set_num_threads(observed.threads)
    with tempfile.TemporaryDirectory() as folder:
        numbers = itertools.count()

        def execute(config: RunConfig) -> Path:
            return run(replace(config, results_dir=folder, suite=str(next(numbers)))).folder

        calls_of = {}
        for name, config in (("none", baseline), ("observe", observed)):
            with count_passes() as counter:
                run_folder = execute(config)
            calls_of[name] = counter
        totals = json.loads((run_folder / "summary.json").read_text())["totals"]
        workload = Workload(observed, device)
        passes = calls_of["observe"]
        timings = interleaved(
            {
                "setup": lambda: Workload(observed, device),
                "bare": lambda: train(observed, device),
                "none": lambda: execute(baseline),
                "observe": lambda: execute(observed),
                "verify": lambda: run_passes(workload, {"verification_loss": passes["verification_loss"]}),
                "score": lambda: run_passes(workload, {n: passes[n] for n in PASSES if n != "verification_loss"}),
            },
            rounds,
            device,
            warm_up=0,
        )
    best = {name: fastest(samples) for name, samples in timings.items()}
    new_share = 1 - calls_of["none"]["verification_loss"] / passes["verification_loss"]
    best["verify_new"] = Timing(new_share * best["verify"].wall, new_share * best["verify"].cpu)
    return Floor(
        parts=[
            {"part": part, "what": what, "passes": count, "wall_s": best[name].wall, "cpu_s": best[name].cpu}
            for part, name, what, count in (
                ("0", "setup", "reading the data and building the model; also the start of 1, 2 and 3", None),
                ("1", "bare", "the plain loop: batch, gradient, clipping, AdamW; nothing evaluated or recorded", None),
                ("2", "none", "predictor=none as train.py runs it: 1, one verification loss and the fingerprint per "
                 "checkpoint, validation, records", None),
                ("3", "observe", f"predictor=[{','.join(observed.predictors)}] as train.py runs it", None),
                ("4", "verify", "the verification forward passes of 3 alone, on live weights",
                 passes["verification_loss"]),
                ("4'", "verify_new", "those of 4 that 2 does not make", round(new_share * passes["verification_loss"])),
                ("5", "score", "the validation and fingerprint forward passes of 3 alone",
                 passes["score"] + passes["probe_states"]),
            )
        ],
        ratios=[
            _ratio(best, "3 / (1 + 4)", ("bare", "verify"), AT_MOST),
            _ratio(best, "3 / (2 + 4')", ("none", "verify_new"), AT_MOST),
            _ratio(best, "3 / (1 + 4 + 5)", ("bare", "verify", "score"), None),
        ],
        laps={key.removesuffix("_s"): seconds for key, seconds in totals.items() if key != "charged_s"},
    )  # fmt: skip


def train(config: RunConfig, device: torch.device) -> None:
    """The configuration's training steps and nothing else."""
    workload = Workload(config, device)
    parameters = list(workload.model.parameters())
    optimizer = build_optimizer(config.optimizer, list(workload.model.named_parameters()))
    schedule = factor_at(config.schedule, config.train.steps)
    step = TrainingStep(workload, workload.forward, parameters, optimizer, schedule)
    for index in range(config.train.steps):
        step(index, index)


def run_passes(workload: Workload, passes: dict[str, int]) -> None:
    """Make each kind of forward pass the given number of times, on the live weights."""
    protocol = next(iter(workload.config.protocols))
    inputs = {
        "probe_states": (protocol,),
        "score": (workload.model, VALIDATION),
        "verification_loss": (workload.model,),
    }
    for name, times in passes.items():
        arguments = inputs[name]
        for _ in range(times):
            getattr(workload, name)(*arguments)


@contextmanager
def count_passes() -> Iterator[Counter[str]]:
    """Count how often any workload makes each kind of forward pass within the block."""
    calls: Counter[str] = Counter()
    originals = {name: getattr(Workload, name) for name in PASSES}

    def counting(name: str) -> Any:
        def call(*args: Any) -> Any:
            calls[name] += 1
            return originals[name](*args)

        return call

    try:
        for name in PASSES:
            setattr(Workload, name, counting(name))
        yield calls
    finally:
        for name, original in originals.items():
            setattr(Workload, name, original)


def _ratio(best: dict[str, Timing], name: str, floor: tuple[str, ...], at_most: float | None) -> dict[str, Any]:
    wall = best["observe"].wall / sum(best[part].wall for part in floor)
    cpu = best["observe"].cpu / sum(best[part].cpu for part in floor)
    return {"ratio": name, "wall": wall, "cpu": cpu, "at_most": at_most}
