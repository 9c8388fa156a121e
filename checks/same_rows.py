"""Whether a change of the code has changed any number: python checks/same_rows.py REVISION.

Tiny runs that between them use every predictor, protocol, rule, optimizer, schedule, kind of workload, cascades and a
resume are carried out twice, by REVISION and by the working tree, and every row of every jsonl file is compared bit for
bit, but for the clock's columns (`*_s`), and how each run ended. Exit status 1 if anything differs. Two minutes on two
cores for each side; what a revision gave is kept in the temporary folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

TINY = (
    "progress=false", "device=cpu", "train.steps=24", "train.interval=4", "train.batch_size=4", "verify.sequences=4",
    "verify.batch_size=4", "eval.every=8", "eval.sequences=4", "eval.batch_size=4", "regime.probes=4",
    "regime.probe_tokens=16", "schedule.warmup=4",
)  # fmt: skip
TEXT = (
    "dataset=text_files", "dataset.tokens=16", "model.config.n_layer=1", "model.config.n_embd=32",
    "model.config.n_head=2", "model.config.n_positions=16", "regime=published", "checkpoint.every_s=null", *TINY,
)  # fmt: skip
DROPOUT = ("model.config.resid_pdrop=0.1", "model.config.embd_pdrop=0.1", "model.config.attn_pdrop=0.1")
# Every checkpoint after the second is confirmed stable, so that cascades are run and gates open.
STABLE = ("regime.tau_high=[-2.0]", "regime.tau_low=[-3.0]", "regime.confirm=1")
PROBES = ("landscape.enabled=true", "landscape.K=4", "cascade.enabled=true", "cascade.chains=[[3,4]]")
OBSERVED = "linear,quadratic,momentum,momentum_decay,trend,dmd,pdt,pdt_linear,pdt_nonselective,pdt_random_mask"
OBSERVED += ",pdt_shuffled,masked_linear,random_accelerated"
LEAP = (*TEXT, "mode=leap", "K=4", "leap.gate=any", "leap.follow=[2,5]", "train.steps=48")
PDT = (*LEAP, "leap=pdt", "leap.follow=[2,5]", "K=8")
DIGITS = (*TINY, "train.steps=30", "train.interval=5", "eval.every=10", "regime.probe_tokens=2", "leap.follow=[3]")

RUNS: dict[str, tuple[str, ...]] = {
    "observe_everything": (
        *TEXT, *STABLE, *PROBES, *DROPOUT, f"predictor=[{OBSERVED}]", "protocol=[exact,paper,code,code_float32]",
        "K=[3,4,8]", "train.steps=40",
    ),
    "observe_uneven": (*TEXT, "predictor=[linear,quadratic,momentum,trend]", "K=[5,7]", "train.steps=30"),
    "observe_padded": (*TEXT, "predictor=[linear,momentum]", "protocol=code", "dataset.layout=padded",
                       "model.init=scratch", "K=[4,8]"),
    "observe_bpe_bfloat16": (*TEXT, "predictor=[linear,momentum]", "dataset.tokenizer=bpe", "dataset.vocab_size=300",
                             "train.precision=bfloat16", "K=[4]", "seed=3"),
    "observe_qwen": (
        "model=qwen2_5_1_5b", "dataset=text_files", "dataset.tokens=16", "model.config.num_hidden_layers=1",
        "model.config.hidden_size=32", "model.config.intermediate_size=48", "model.config.num_attention_heads=4",
        "model.config.num_key_value_heads=2", "model.config.vocab_size=256", "+model.config.layer_types=null",
        "regime=published", *TINY, "predictor=[linear,momentum]", "K=[4]",
    ),
    "observe_sgd": (*TEXT, "optimizer=sgd", "schedule=constant", "predictor=[linear,momentum]", "K=[4]"),
    "none_sgd_momentum": (*TEXT, "optimizer=sgd_momentum", "schedule=wsd", "predictor=none", *DROPOUT),
    "none_two_stage": (*TEXT, "schedule=cosine_two_stage", "schedule.restart_at=12", "schedule.restart=0.3",
                       "predictor=none", "mode=leap", "train.grad_clip=null"),
    "diverged": (*TEXT, "optimizer=sgd", "optimizer.lr=1e12", "predictor=linear", "K=[4]", "train.grad_clip=null"),
    "resumed_observe": (*TEXT, *STABLE, *PROBES, *DROPOUT, "predictor=[linear,momentum,dmd,masked_linear]", "K=[3,8]",
                        "protocol=[exact,code]", "train.steps=400", "checkpoint.every_steps=7"),
    "resumed_leap": (*LEAP, *STABLE, *DROPOUT, "predictor=momentum", "leap.gate=confirmed", "leap.rule=adaptive",
                     "leap.cascade=2", "train.steps=600", "checkpoint.every_steps=7"),
    "leap_strict": (*LEAP, "predictor=linear"),
    "leap_adaptive": (*LEAP, "predictor=quadratic", "leap.rule=adaptive", "leap.history=keep"),
    "leap_proximity": (*LEAP, "predictor=momentum", "leap.rule=proximity", "protocol=code", "leap.moments=published",
                       *STABLE, "leap.gate=confirmed"),
    "leap_always": (*LEAP, "predictor=average", "leap.rule=always", "leap.moments=reset", "leap.cascade=3",
                    "predictors.average.context=2"),
    "leap_falling": (*LEAP, "predictor=dmd", "leap.rule=falling", "leap.advance=false", "verify.resample=false",
                     "predictors.dmd.context=3"),
    "leap_gated": (*LEAP, "predictor=trend", "leap.gate=not_chaotic", "leap.burn_in=2", "leap.every=2",
                   "leap.cooldown=1", "leap.rule=always", *STABLE),
    "leap_persistence": (*LEAP, "predictor=persistence", "leap.rule=proximity"),
    "leap_decay": (*LEAP, "predictor=momentum_decay", "leap.rule=always", "leap.gate=stable", *STABLE),
    "leap_none": (*LEAP, "predictor=none"),
    "observe_inline": (*TEXT, *PROBES, "predictor=[linear,quadratic,momentum]", "protocol=code", "K=[3,12]",
                       "train.steps=88", "train.interval=8", "train.inline_leaps=true", "verify.checkpoints=9",
                       "schedule.floor_form=clamped", "schedule.warmup_begins=at", "optimizer.lr=3e-3",
                       "regime.tau_high=[0.94]", "regime.tau_low=[0.75]"),
    "pdt_text": (*PDT, "predictor=pdt"),
    "pdt_nonselective": (*PDT, "leap=pdt_nonselective", "predictor=pdt_nonselective", "schedule.every=4"),
    "pdt_random_mask": (*PDT, "predictor=pdt_random_mask"),
    "pdt_shuffled": (*PDT, "predictor=pdt_shuffled"),
    "pdt_linear": (*PDT, "predictor=pdt_linear"),
    "pdt_random_accelerated": (*PDT, "predictor=random_accelerated"),
    "pdt_scheduled": ("experiment=digits_fcn", *DIGITS, "mode=leap", "leap=pdt", "predictor=pdt", "K=20",
                      "leap.scheduler=pdt", "predictors.pdt.h=2", "leap.burn_in=2", "optimizer.lr=1.0",
                      "train.steps=80"),
    "digits_alexnet": ("experiment=digits_alexnet", *DIGITS, "predictor=[linear,masked_linear]", "K=[5]"),
    "digits_resnet": ("experiment=digits_resnet", *DIGITS, "mode=leap", "predictor=masked_linear", "K=5",
                      "leap.gate=any", "leap.rule=always", "leap.buffers=recompute", "train.steps=60"),
    "digits_vit": ("experiment=digits_vit", *DIGITS, "predictor=[momentum,quadratic]", "protocol=[exact,code]",
                   "K=[5]"),
}  # fmt: skip
KILLED = ("resumed_observe", "resumed_leap")
WORDS = ("the", "a", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "moon", "and", "river", "stone")

Rows = dict[str, list[str]]


def write_texts(folder: Path) -> None:
    """The same 200 short texts every time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for number in range(200):
        (folder / f"{number:03}.txt").write_text(" ".join(rng.choice(WORDS) for _ in range(80)))


def carry_out(name: str, project: Path, folder: Path) -> Rows:
    """Run `name` with the code of `project`; its rows by file, without the clock's columns.

    Raises:
        RuntimeError: it left no run folder, or ended before it could be killed.
    """
    suite = folder / name
    settings = [f"suite={name}", f"results_dir={folder}", f"cache_dir={folder / 'cache'}"]
    if "dataset=text_files" in RUNS[name]:
        settings.append(f"dataset.path={folder.parent / 'texts'}")
    # Where a key is overridden twice, only the last value is passed to Hydra.
    overrides = {word.partition("=")[0]: word for word in (*RUNS[name], *settings)}
    command = [sys.executable, str(project / "train.py"), *overrides.values()]
    env = {**os.environ, "PYTHONPATH": str(project / "src")}
    if name in KILLED:
        kill_in_the_middle(command, env, suite)
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    folders = [path for path in suite.glob("[!.]*") if path.is_dir()]
    if len(folders) != 1:
        raise RuntimeError(f"{name}: {result.stderr[-2000:]}")
    summary = json.loads((folders[0] / "summary.json").read_text())
    end = {key: summary[key] for key in ("status", "reason", "steps", "position", "final", "best")}
    rows = {path.name: untimed(path) for path in sorted(folders[0].glob("*.jsonl"))}
    return rows | {"summary.json": [json.dumps(end, sort_keys=True)]}


def kill_in_the_middle(command: list[str], env: dict[str, str], suite: Path) -> None:
    """Start `command` and kill it once it has written a checkpoint."""
    child = subprocess.Popen(command, cwd=suite.parent, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not list(suite.glob("*/checkpoint/*.*")):
        time.sleep(0.02)
    time.sleep(0.2)
    if child.poll() is not None:
        raise RuntimeError(f"{suite.name} ended before it could be killed; give it more steps")
    child.send_signal(signal.SIGKILL)
    child.wait()


def untimed(path: Path) -> list[str]:
    """The rows of a jsonl file, keys sorted, without those of the clock."""
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return [json.dumps({k: v for k, v in row.items() if not k.endswith("_s")}, sort_keys=True) for row in rows]


def record(project: Path, folder: Path, names: list[str]) -> dict[str, Rows]:
    """The rows of all runs, two at a time."""
    folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(lambda name: carry_out(name, project, folder), names), strict=True))


def of_revision(revision: str, folder: Path, names: list[str]) -> dict[str, Rows]:
    """The rows of all runs with the code of `revision`, cached in the temporary folder."""
    git = ["git", "-C", str(PROJECT)]
    commit = subprocess.run([*git, "rev-parse", f"{revision}^{{commit}}"], check=True, capture_output=True, text=True)
    key = hashlib.sha256(json.dumps([commit.stdout, RUNS], sort_keys=True).encode()).hexdigest()[:12]
    cache = Path(tempfile.gettempdir()) / f"leapbench_rows_{key}.json"
    rows = json.loads(cache.read_text()) if cache.is_file() else {}
    if missing := [name for name in names if name not in rows]:
        tree = folder / "tree"
        subprocess.run([*git, "worktree", "add", "-q", "--detach", tree, commit.stdout.strip()], check=True)
        try:
            rows |= record(tree, folder / "before", missing)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", tree], check=True)
        cache.write_text(json.dumps(rows))
    return {name: rows[name] for name in names}


def differences(before: dict[str, Rows], after: dict[str, Rows]) -> list[str]:
    """One line for every file whose rows differ, with the first such row."""
    lines = []
    for name, files in before.items():
        for file in sorted(files.keys() | after[name].keys()):
            old, new = files.get(file, []), after[name].get(file, [])
            if old != new:
                index = next(
                    (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
                )
                pair = [rows[index] if index < len(rows) else "(no such row)" for rows in (old, new)]
                lines.append(
                    f"{name}/{file}: {len(old)} and {len(new)} rows, row {index} differs\n  {pair[0]}\n  {pair[1]}"
                )
    return lines


def main() -> int:
    """Record both, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what the working tree is compared with: a commit, branch or tag")
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="RUN", help=f"of {', '.join(RUNS)}")
    args = parser.parse_args()
    names = args.only or list(RUNS)
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        write_texts(folder / "texts")
        before = of_revision(args.revision, folder, names)
        after = record(PROJECT, folder / "after", names)
    lines = differences(before, after)
    total = sum(len(rows) for files in before.values() for rows in files.values())
    print(*lines, sep="\n")
    print(
        f"{len(names)} runs, {total} rows: {len(lines)} files differ"
        if lines
        else f"{len(names)} runs, {total} rows, all equal"
    )
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
