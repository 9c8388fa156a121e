"""The one table of what a user may type or find on disk: the line, the exit status, and what is left.

REFUSED are command lines, PLACED are files in the place of a run's own, ACCEPTED is what works and says how.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from helpers import EVERY_3_STEPS, Lab, call, job, records, refused, script
from leapbench.config.remarks import remark
from leapbench.names import CHECKPOINT, CONFIG, LOCK, META, SUMMARY
from leapbench.records.lock import OWNER
from leapbench.training.run import run

STABLE = ("regime.tau_high=[-2.0]", "regime.tau_low=[-3.0]", "regime.confirm=1", "cascade.enabled=true")
LEAP = ("mode=leap", "predictor=linear", "K=4")


class Refused(NamedTuple):
    """A command line; a regular expression for its one line; the exit status; whether Hydra itself must read it, which
    takes half a second. Nothing is left on disk."""

    arguments: tuple[str, ...]
    line: str
    status: int
    read: bool


def no(*arguments: str, line: str, status: int = 2) -> Refused:
    """Values of keys that are there."""
    return Refused(arguments, line, status, read=False)


def hydra(*arguments: str, line: str, status: int = 2) -> Refused:
    """Sweeps, choices, new keys, and values that are no values."""
    return Refused(arguments, line, status, read=True)


REFUSED = {
    # ---- horizons, seeds, ranges -------------------------------------------------------------------------------------
    "K=0": no("K=0", line="K=0 predicts nothing.* 1 or more"),
    "K=-5": no("K=-5", line="K=-5 predicts nothing.* 1 or more"),
    "K=abc": no("K=abc", line="K=abc is not a number of steps.*positive integer"),
    "K in a sweep": hydra("-m", "K=5,0", line="K=0 predicts nothing"),
    "K too large everywhere": no("K=21", line=r"K=21 is larger.*at most 20.*train\.steps=24"),
    "K of fifty digits": no(f"K={'9' * 50}", line="K=9{50} is larger"),
    "downward range": hydra("-m", "seed=4-0", line="seed=4-0 is an empty range.*seed=0-4"),
    "range without -m": hydra("seed=0-4", line="seed=0-4 is not an integer.*-m seed=0-4"),
    "a range of a hundred million": hydra(
        "-m", "seed=0-100000000", line="100,000,001 values; a sweep has at most 100,000"
    ),
    "an endless range": hydra(
        "-m", "seed=range(0,100000000)", line="100,001 cells or more; a sweep has at most 100,000"
    ),
    "a range that stands still": hydra("-m", "seed=range(0,9,0)", line=r"seed=range\(0,9,0\): .*must not be zero"),
    "a million cells": hydra(
        "-m", "seed=0-9999", "train.steps=range(100,200)", line="1,000,000 cells or more; a sweep"
    ),
    # ---- choices -----------------------------------------------------------------------------------------------------
    "unknown predictor": hydra("predictor=quadratc", line="predictor=quadratc does not exist; did you mean quadratic?"),
    "unknown predictor in a list": hydra("predictor=[linear,tremd]", line="tremd.*did you mean trend?"),
    "unknown model": hydra("model=gpt2_nan", line="model=gpt2_nan does not exist; did you mean gpt2_nano?"),
    "unknown dataset": hydra("dataset=wikitext", line="dataset=wikitext does not exist; did you mean wikitext103?"),
    "predicter=": hydra("predicter=linear", line=r"^predicter is not a key; did you mean predictor\?$"),
    "protocols=": hydra(
        "protocols=exact", line=r"^protocols=exact .* choose with protocol=NAME, one of code, .* exact, "
    ),
    "predictors=": hydra(
        "predictors=linear", line=r"^predictors=linear .* choose with predictor=NAME, one of average, "
    ),
    "a predictor that is a number": hydra("predictors.linear=5", line=r"^predictors\.linear=5 .* set its keys"),
    "predictor=[]": hydra(
        "predictor=[]", line=r"^predictor=\[\] chooses nothing; use predictor=none .* or another name$"
    ),
    "predictor=[] in a sweep": hydra("-m", "predictor=[]", line=r"^predictor=\[\] chooses nothing"),
    "a group that is a number": hydra("train=5", line=r"^train=5 replaces a group of keys by one value; set its keys"),
    "a number that is a list": no("train.steps=[1]", line=r"^train\.steps: "),
    "a list that is a number": hydra("leap.follow=5", line=r"^leap\.follow=5 must be a list"),
    "lists within a list of numbers": no("landscape.fractions=[[1]]", line=r"fractions=\[\[1\]\] must hold numbers"),
    # ---- what cannot work --------------------------------------------------------------------------------------------
    "interval larger than steps": no("train.interval=25", line=r"train\.interval=25 is larger than train\.steps=24"),
    "context that never fills": no(
        "predictor=trend", "train.interval=6", "K=[1,3]", line="predictor=trend needs 5 snapshots.*never fills"
    ),
    "too few sequences to train on": no("train.batch_size=99999", line=r"train\.batch_size=99999"),
    "too few sequences to verify on": no("verify.sequences=99999", line=r"verify\.sequences.*100003"),
    "too few sequences to score": no("eval.sequences=99999", line=r"eval\.sequences.*99999"),
    "dmd in a cascade of another K": no(
        "predictor=dmd", *STABLE, "cascade.chains=[[3,3]]", "train.steps=48",
        line=r"^predictor=dmd, cascade\.chains=\[3, 3\]: .*not evenly spaced.*; .*use K=train\.interval=4",
    ),
    "pdt in a cascade of another K": no(
        "predictor=[linear,pdt]", *STABLE, "cascade.chains=[[2,4],[3,3]]", "train.steps=48",
        line=r"^predictor=pdt, cascade\.chains=\[3, 3\]: .*not evenly spaced.*; .*use K=train\.interval=4",
    ),
    "a cascade longer than the run": no(
        *STABLE, "cascade.chains=[[7,4]]", line=r"looks 28 steps ahead.*train\.steps=24"
    ),
    "a cascade in leap mode": no(
        *LEAP, "cascade.enabled=true", line=r"^cascade\.enabled=true does nothing in mode=leap"
    ),
    "a landscape in leap mode": no(*LEAP, "landscape.enabled=true", line=r"^landscape\.enabled=true does nothing in"),
    "schedule.floor=2": no("schedule.floor=2", line=r"^schedule\.floor=2\.0 must be between 0 and 1$"),
    "a warm-up beyond the run": no("schedule.warmup=25", line=r"longer than the run of .*; use schedule\.warmup=24"),
    "a restart beyond the run": no("schedule=cosine_two_stage", line=r"restart_at=1500 is not within the run"),
    "optimizer.betas=[0.9]": no("optimizer.betas=[0.9]", line=r"^optimizer=adamw: betas=\[0\.9\] must be two numbers"),
    "a seed that no mask takes": no(
        "predictor=pdt_random_mask", "predictors.pdt_random_mask.seed=x", line="seed=x must"
    ),
    "a context of half a snapshot": no("predictors.average.context=0.5", line="predictor=average: context=0.5 must be"),
    # ---- networks ----------------------------------------------------------------------------------------------------
    "weights that do not exist": no("model.init=pretrained", line=r"no pretrained weights; use model\.init=scratch"),
    "n_layer=0": no("model.config.n_layer=0", line=r"^model\.config\.n_layer=0 must be 1 or more$"),
    "n_head=5": no(
        "model.config.n_head=5", line="^model.config of gpt2_nano is not valid: .*must be divisible by num_heads"
    ),
    "n_embd=0": no("model.config.n_embd=0", line="^model.config of gpt2_nano is not valid: ZeroDivisionError: "),
    "n_embd=-4": no("model.config.n_embd=-4", line="^model.config of gpt2_nano is not valid: .*negative dimension -4"),
    "an unknown activation": hydra(
        "+model.config.activation_function=x", line="^model.config of gpt2_nano .*KeyError: 'x'"
    ),
    "vocab_size=1": no("dataset.vocab_size=1", line="vocab_size=1 is not for tokenizer=byte, which has 256 entries"),
    "a network's vocab_size=1": hydra("+model.config.vocab_size=1", line=r"vocab_size=1 is smaller than .*256 entries"),
    # ---- machines ----------------------------------------------------------------------------------------------------
    "unknown device": no("device=gpu", line="^device=gpu is unknown; use auto, cpu or cuda$"),
    "device=mps": no("device=mps", line=r"^device=mps cannot be used here \(.*\); use device=cpu$"),
    "device=meta": no("device=meta", line=r"^device=meta cannot be used here \(.*meta.*\); use device=cpu$"),
    "history_device=cuda": no(
        "history_device=cuda", line="^history_device=cuda, but PyTorch sees no CUDA device here; "
    ),
    "history_device=banana": no("history_device=banana", line="^history_device=banana is unknown; use cpu or cuda$"),
    "history_device=meta": no("history_device=meta", line=r"^history_device=meta cannot be used here \(.*\); use "),
    "threads=100000": no(
        "threads=100000", line=r"^threads=100000 is more than this machine's \d+ cores; use threads=\d+"
    ),
    "n_jobs=0": hydra(
        "-m", "hydra.launcher.n_jobs=0", line=r"^hydra\.launcher\.n_jobs=0 starts nothing; use 1 or more"
    ),
    # ---- places ------------------------------------------------------------------------------------------------------
    "suite=": hydra("suite=", line="^suite= is no name of a folder below results_dir; use letters"),
    "suite=../escape": no("suite=../escape", line=r"^suite=\.\./escape is no name of a folder below results_dir"),
    "suite=/tmp/escape": no("suite=/tmp/escape", line="^suite=/tmp/escape is no name of a folder below results_dir"),
    "a hidden suite": no("suite=.hidden", line=r"^suite=\.hidden is no name of a folder below results_dir"),
    "a very long suite": no(f"suite={'s' * 300}", line="the name is too long; once that is put right, ", status=1),
    "results_dir=": hydra("results_dir=", line="^results_dir= is empty; give a folder, as in results_dir=results/raw$"),
    "results_dir=/proc/nope": no(
        "results_dir=/proc/nope", line="results_dir=/proc/nope .*none can be made; give another"
    ),
    "results below a plain file": no("results_dir={root}/file/raw", line="{root}/file/raw.* is a file, below one"),
    "results are a plain file": no("results_dir={root}/file", line="{root}/file.* is a file, below one"),
    "a cache that cannot be made": no("cache_dir=/proc/nope", line="^cache_dir=/proc/nope cannot be written"),
    "regime.file=/etc/passwd": no(
        "regime=calibrated", "regime.file=/etc/passwd", line=r"^regime\.file=/etc/passwd is no calibration; scripts"
    ),
    "no regime.file": no(
        "regime=calibrated", "regime.file=null", line="^regime=calibrated needs .* which does not exist"
    ),
    "no thresholds": no("regime.tau_high=[]", line=r"^regime\.tau_high=\[\] must be a list of numbers, one or more"),
    "thresholds the wrong way round": no("regime.tau_high=[0.1]", line="tau_low=.* must not be above tau_high=.0.1.$"),
    # ---- texts -------------------------------------------------------------------------------------------------------
    "no such text folder": no("dataset.path={root}/nowhere", line="{root}/nowhere is not a folder, and no text file"),
    "empty text folder": no("dataset.path={root}/empty", line="{root}/empty holds no .txt"),
    "no text file in the folder": no("dataset.path={root}/other", line="{root}/other holds no .txt"),
    "a file that is no text": no("dataset.path={root}/other/a.md", line="a.md is not a folder, and no text file"),
    "text not UTF-8": no("dataset.path={root}/latin", line="{root}/latin/a.txt is not UTF-8"),
    "text too short": no("dataset.path={root}/little", line="add text"),
    "a link that leads nowhere": no(
        "dataset.path={root}/broken", line="{root}/broken/a.txt .*a broken link; take it out"
    ),
}  # fmt: skip


def folder_of_texts(root: Path, name: str, **files: str | bytes) -> Path:
    """A folder with these texts, by the names of the files without .txt."""
    folder = root / name
    folder.mkdir()
    for stem, text in files.items():
        (folder / f"{stem}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture(scope="module")
def root(lab: Lab) -> Path:
    """The lab's folder, with a completed run and with data that is wrong in every way."""
    run(lab.config("predictor=linear"))
    root = lab.root
    folder_of_texts(root, "empty")
    folder_of_texts(root, "latin", a="naïve café".encode("latin-1") * 50)
    folder_of_texts(root, "little", a="too little ")
    (folder_of_texts(root, "broken", b="enough " * 99) / "a.txt").symlink_to("nowhere")
    (folder_of_texts(root, "other") / "a.md").write_text("not a text file " * 20)
    (root / "file").write_text("a plain file")
    return root


HERE = {"device=mps": torch.backends.mps.is_available(), "history_device=cuda": torch.cuda.is_available()}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(lab: Lab, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if HERE.get(name):
        pytest.skip("this machine has that device")
    case = REFUSED[name]
    arguments = tuple(argument.replace("{root}", str(root)) for argument in case.arguments)
    before = lab.files()
    if case.read:
        end = call(monkeypatch, tmp_path, *lab.command(*arguments))
    else:
        end = job(monkeypatch, tmp_path, lab.composed(*arguments))
    line = refused(end)
    assert end.status == case.status
    assert re.search(case.line.replace("{root}", re.escape(str(root))), line), line
    assert lab.files() == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert (root / "file").read_text() == "a plain file"
    assert not Path("/tmp/escape").exists() and not (lab.root / "escape").exists()


def test_wandb_mode_of_the_environment(lab, root, tmp_path, monkeypatch):
    before = lab.files()
    for mode in ("", "banana"):
        monkeypatch.setenv("WANDB_MODE", mode)
        end = call(monkeypatch, tmp_path, *lab.command("logger=wandb"))
        line = refused(end, f"WANDB_MODE={mode} in the environment", "unset it")
        assert end.status == 2 and line
    assert lab.files() == before


# ---- files in the place of a run's own -------------------------------------------------------------------------------


class Placed(NamedTuple):
    """What is put into a run's folder; the line; the exit status; the files that are there afterwards besides."""

    put: Callable[[Path], object]
    line: str
    status: int = 2
    left: tuple[str, ...] = ()


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / name).parent.mkdir(exist_ok=True), (folder / name).write_text(content))


def directory(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).mkdir(parents=True)


def saved(content: object) -> Callable[[Path], object]:
    return lambda folder: ((folder / CHECKPOINT).parent.mkdir(), torch.save(content, folder / CHECKPOINT))


DESCRIBED = (CONFIG, META)
OLD = '{"host": "elsewhere", "pid": 1, "token": "t"}'
STATE = f"{CHECKPOINT} is damaged; delete "
SUMMARISED = "summary.json is damaged; delete it, and the run goes on from its checkpoint, or starts over"
TOLD = "meta.json is damaged; delete it; it only tells of earlier starts"

PLACED = {
    "lock is a file": Placed(text(LOCK, "x"), "lock is no lock: a lock is a folder; delete it, and start again"),
    "lock is a list": Placed(text(f"{LOCK}/{OWNER}", "[1]"), "being run by a process that its lock does not name"),
    "lock is cut short": Placed(text(f"{LOCK}/{OWNER}", OLD[:9]), "being run by a process that its lock does not name"),
    "lock is empty": Placed(directory(LOCK), "already being run by a process that its lock does not name"),
    "lock of another machine": Placed(text(f"{LOCK}/{OWNER}", OLD), "already being run by process 1 on elsewhere"),
    "latest.json is text": Placed(text(CHECKPOINT, "hello"), STATE),
    "latest.json is empty": Placed(text(CHECKPOINT, ""), STATE),
    "latest.json is a folder": Placed(directory(CHECKPOINT), STATE),
    "latest.json is a list": Placed(saved([1, 2]), STATE),
    "latest.json is another dictionary": Placed(saved({"offsets": 3}), STATE),
    "checkpoint is a file": Placed(text("checkpoint", "x"), "checkpoint is a file where a folder belongs; delete it"),
    "summary.json cut short": Placed(text(SUMMARY, '{"status": "comp'), SUMMARISED),
    "summary.json is empty": Placed(text(SUMMARY, ""), SUMMARISED),
    "summary.json is a list": Placed(text(SUMMARY, "[]"), SUMMARISED),
    "summary.json without a status": Placed(text(SUMMARY, "{}"), SUMMARISED),
    "summary.json with a status of its own": Placed(text(SUMMARY, '{"status": "well"}'), SUMMARISED),
    "summary.json is a folder": Placed(directory(SUMMARY), SUMMARISED),
    "meta.json cut short": Placed(text(META, '{"schema": 1, "st'), TOLD, left=(CONFIG,)),
    "meta.json is a list": Placed(text(META, "[]"), TOLD, left=(CONFIG,)),
    "meta.json is a folder": Placed(directory(META), TOLD, left=(CONFIG,)),
    "config.yaml is a folder": Placed(directory(CONFIG), "config.yaml: a folder stands where a file belongs", 1),
    "evals.jsonl is a folder": Placed(
        directory("evals.jsonl"), "evals.jsonl: a folder stands where a file belongs", 1, DESCRIBED
    ),
}  # fmt: skip


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", PLACED)
def test_placed(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case, extra = PLACED[name], ("predictor=none", f"suite=placed{list(PLACED).index(name)}", *EVERY_3_STEPS)
    folder = lab.config(*extra).folder
    folder.mkdir(parents=True)
    case.put(folder)
    before = files_in(folder)
    end = job(monkeypatch, tmp_path, lab.composed(*extra))
    assert end.status == case.status
    assert case.line in refused(end, str(folder)), end.err
    after = files_in(folder)
    assert {name: after.pop(name) for name in before} == before
    assert set(after) == set(case.left)


# ---- what works, and says how ----------------------------------------------------------------------------------------


@pytest.fixture
def said():
    """Nothing has been said in this process yet."""
    remark.cache_clear()
    yield
    remark.cache_clear()


def completed(end):
    """The run's folder, of a command that ended well."""
    assert end.status == 0, end.err
    return Path(re.findall(r" completed: (\S+)", end.out)[-1])


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
@pytest.mark.parametrize("place", [0, 3, 99])
def test_multirun_in_any_position(lab, root, tmp_path, monkeypatch, flag, place):
    words = lab.command("predictor=none", "seed=0,1", "hydra.sweeper.dry_run=true")
    words.insert(place, flag)
    end = call(monkeypatch, tmp_path, *words)
    assert end.status == 0, end.err
    jobs = [json.loads(line)["overrides"] for line in end.out.splitlines()]
    assert len(jobs) == 2 and "seed=0" in jobs[0] and "seed=1" in jobs[1]


def test_text_of_ones_own_has_the_published_thresholds_and_says_so(lab, root, tmp_path, monkeypatch, said):
    words = [word for word in lab.command("predictor=none") if word != "regime=published"]
    end = call(monkeypatch, tmp_path, *words, "suite=own")
    folder = completed(end)
    assert re.fullmatch(r"regime=published: nothing is calibrated for gpt2_nano .*GPT-2 on WikiText-103.*\n", end.err)
    remark.cache_clear()
    chosen = call(monkeypatch, tmp_path, *words, "regime=published", "suite=own")
    assert completed(chosen) == folder and chosen.err == ""  # the same run, and a choice needs no remark
    refused(
        call(monkeypatch, tmp_path, *words, "regime=calibrated"), "gpt2_nano_text_files.yaml", "scripts/calibrate.py"
    )


@pytest.mark.parametrize("documents", [1, 2])
def test_a_single_text_is_split_by_position(lab, root, tmp_path, monkeypatch, said, documents):
    names = [f"{i:05} " for i in range(4000)]
    folder = folder_of_texts(tmp_path, "own", **{f"book{i}": "".join(names) for i in range(documents)})
    end = call(monkeypatch, tmp_path, *lab.command("predictor=none", f"dataset.path={folder}"))
    first = completed(end)
    count = "1 document is" if documents == 1 else "2 documents are"
    parts = "first 90 % train, then 5 % verification, last 5 % validation"
    assert end.err == f"dataset.path={folder}: {count} split by position: {parts}\n"
    if documents == 1:
        remark.cache_clear()
        file = call(monkeypatch, tmp_path, *lab.command("predictor=none", f"dataset.path={folder}/book0.txt"))
        assert records(completed(file)) == records(first) and "split by position" in file.err  # from the cache, too


def test_a_place_has_one_name(lab, root, tmp_path, monkeypatch):
    folder = folder_of_texts(tmp_path, "own", **{f"text{i}": f"it is text {i} " * 60 for i in range(20)})
    (tmp_path / "link").symlink_to(folder)
    ends = [completed(call(monkeypatch, tmp_path, *lab.command("predictor=none", f"dataset.path={folder}")))]
    for path in ("own", "./own/", "../" + tmp_path.name + "/own", "link"):
        ends.append(completed(call(monkeypatch, tmp_path, *lab.command("predictor=none", f"dataset.path={path}"))))
    assert set(ends) == {ends[0]}


def test_folders_behind_links_are_read_once(lab, root, tmp_path, monkeypatch):
    folder_of_texts(tmp_path, "far", **{f"text{i}": f"it is text {i} " * 60 for i in range(20)})
    folder = folder_of_texts(tmp_path, "own")
    (folder / "a").symlink_to(tmp_path / "far")
    (folder / "b").symlink_to(tmp_path / "far")
    (folder / "circle").symlink_to(folder)
    direct = completed(call(monkeypatch, tmp_path, *lab.command("predictor=none", f"dataset.path={tmp_path}/far")))
    linked = completed(call(monkeypatch, tmp_path, *lab.command("predictor=none", f"dataset.path={folder}")))
    assert direct != linked
    totals = [json.loads((end / SUMMARY).read_text())["steps"] for end in (direct, linked)]
    assert totals == [24, 24]


def test_a_folder_that_cannot_be_read_is_named(lab, root, tmp_path, monkeypatch):
    folder = folder_of_texts(tmp_path, "own", **{f"text{i}": f"it is text {i} " * 60 for i in range(20)})
    closed = folder_of_texts(folder, "closed", secret="it is a secret " * 60)
    folder_of_texts(folder, ".hidden", secret="never looked at")
    scan = os.scandir

    def guarded(path: str) -> object:
        if Path(path) in (closed, folder / ".hidden"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    before = lab.files()
    end = call(monkeypatch, tmp_path, *lab.command("predictor=none", f"dataset.path={folder}"))
    assert refused(end, f"{closed} cannot be read (Permission denied); open it, or take it out of {folder}")
    assert end.status == 2 and lab.files() == before


def test_controls_alone_need_no_context_of_others(lab, root, tmp_path, monkeypatch):
    short = ("train.steps=8", "train.interval=4", "schedule.warmup=0", "K=[3]")
    refused(call(monkeypatch, tmp_path, *lab.command("predictor=average", *short)), "predictor=average needs 5")
    completed(call(monkeypatch, tmp_path, *lab.command("predictor=persistence", *short)))


def test_squeue_without_a_cluster(lab, root, tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'squeue: error: Could not establish a configuration source' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    status = script(monkeypatch, "status", "--results", str(lab.results))
    assert status.status == 0 and status.err == ""
    assert "squeue: error: Could not establish a configuration source; what waits in its queue is unknown" in status.out
    submit = script(monkeypatch, "submit", "calibrate_embedded", "--dry-run")
    assert submit.status == 2
    assert refused(submit, "squeue: error: Could not establish", "is there a cluster? scripts/sweep.py runs on this")
