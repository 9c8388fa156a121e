"""Invented run folders of mode=leap: losses by hand or from a seeded curve, times a whole number of steps."""

import hashlib
import json
from pathlib import Path

import numpy as np
import yaml

from leapbench.records.files import write_json
from leapbench.records.seal import SCHEMA, sealed

STEP_S = 0.1


def target_of(predictor: str) -> str:
    """Where a predictor's class is."""
    return f"leapbench.predictors.{predictor}.{''.join(map(str.capitalize, predictor.split('_')))}"


def write_leap_run(
    suite: Path,
    seed: int = 0,
    predictor: str | None = None,
    rule: str = "strict",
    *,
    model: str = "fcn_small",
    dataset: str = "digits",
    schedule: str = "cosine",
    lr: float = 0.1,
    lr_from: str = "tuned",
    K: int = 10,
    validation: list[float | None] | None = None,
    train: list[float] | None = None,
    verification: list[float] | None = None,
    accuracy: list[float] | None = None,
    leaps: tuple[int, ...] = (),
    rejected: tuple[int, ...] = (),
    followed: dict[int, float] | None = None,
    overhead_s: float = 0.0,
    step_s: float = STEP_S,
    every: int = 50,
    speed: float = 1.0,
    status: str | None = "completed",
    reason: str | None = None,
    mode: str = "leap",
    extra: dict | None = None,
) -> Path:
    """One run folder.

    Args:
        predictor: None is the baseline.
        validation: loss at `every`, 2 `every`, ...; None draws a curve that falls `speed` times as fast.
        train, verification, accuracy: likewise; None is made from `validation`. Texts have no accuracy.
        leaps, rejected: steps of the adopted and rejected proposals.
        followed: step -> validation loss of the extra looks after a leap.
        overhead_s: charged seconds of verification, spread over the steps.
        step_s: seconds of one training step.
        status: None leaves summary.json out.
    """
    evaluations = len(validation) if validation is not None else 8
    steps = every * evaluations
    science = {
        "model": {"name": model}, "dataset": {"name": dataset},
        "optimizer": {"name": "sgd", "lr": lr, "lr_from": lr_from}, "schedule": {"name": schedule, "warmup": 0},
        "train": {"steps": steps, "interval": every, "batch_size": 48}, "verify": {"sequences": 96},
        "eval": {"every": every, "sequences": 300}, "predictors": {}, "mode": mode, "seed": seed,
        "protocols": {"exact": {"inclusive": False}},
    }  # fmt: skip
    if predictor:
        science["predictors"] = {predictor: {"_target_": target_of(predictor)}}
        science["K"] = [K]
        science["leap"] = {"gate": "any", "rule": rule, "advance": True, "follow": [50, 100, 200]}
    for key, value in (extra or {}).items():
        group, leaf = key.split(".")
        science[group][leaf] = value
    run_id = hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:12]
    run = suite / run_id
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"science": science, "machine": {"suite": suite.name}}))
    meta = {"schema": SCHEMA, "run_id": run_id, "trajectory": "same", "git_commit": "0123abc", "git_dirty": False}
    (run / "meta.json").write_text(json.dumps({**meta, "parameters": 9}))

    rng = np.random.default_rng([seed, len(predictor or "")])
    if validation is None:
        at = np.arange(1, evaluations + 1)
        validation = (0.5 + 2.0 * np.exp(-0.5 * speed * at) + 0.01 * rng.normal(size=evaluations)).round(6).tolist()
    if accuracy is None and dataset != "stdlib":
        accuracy = [None if loss is None else round(float(np.exp(-loss)), 4) for loss in validation]

    def row(step: int, split: str, loss: float | None, right: float | None) -> dict:
        seconds = dict.fromkeys(("snapshot_s", "regime_s", "predict_s", "adopt_s"), 0.0)
        second = {"perplexity": 9.9} if right is None else {"accuracy": right}
        return {
            "step": step, "position": step, "split": split, "loss_nats": loss, **second, "train_s": step * step_s,
            **seconds, "verify_s": overhead_s * step / steps, "eval_s": 7.0 * step,
        }  # fmt: skip

    evals = []
    for i, loss in enumerate(validation):
        step = every * (i + 1)
        evals.append(row(step, "train", train[i] if train else loss, None))
        evals.append(row(step, "validation", loss, accuracy[i] if accuracy else None))
        evals.append(row(step, "verification", verification[i] if verification else loss, None))
    evals += [row(step, "validation", loss, None) for step, loss in (followed or {}).items()]
    evals.sort(key=lambda one: one["step"])
    proposals = [
        {
            "step": step, "position": step, "protocol": "exact", "predictor": predictor, "K": K, "rule": rule,
            "regime": "stable", "confirmed": True, "link": 1, "loss_now_nats": 1.0, "loss_pred_nats": 0.9,
            "predict_s": 0.001, "verify_s": 0.01, "adopted": step in leaps, "changed_share": 0.25, "status": "ok",
            "charged_s": step * step_s,
        }
        for step in sorted({*leaps, *rejected})
    ]  # fmt: skip
    for file, rows in (("evals.jsonl", evals), ("leaps.jsonl", proposals)):
        (run / file).write_text("".join(json.dumps(one) + "\n" for one in rows))
    if status is not None:
        summary = {"status": status, "reason": reason, "steps": steps, "skipped": {}, "final": {}, "totals": {}}
        write_json(run / "summary.json", sealed(run, summary))
    return run
