"""A sweep's progress and its runner: what has ended, how long the rest takes, what is passed over."""

import io
import json
import os
import re
import runpy
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leapbench.cluster import sweep as sweeping
from leapbench.cluster.screen import Screen
from leapbench.cluster.sweep import PlanError, Progress, duration
from leapbench.names import PROJECT
from leapbench.records.plan import PlannedRun
from leapbench.training.signals import Terminated, terminate


def planned(folder: Path, name: str, steps: int = 100, kind: tuple[str, ...] = ("net", "data")) -> PlannedRun:
    return PlannedRun(name, folder / name, steps, kind)


def end(run: PlannedRun, seconds: float, status: str = "completed") -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    totals = {"charged_s": 0.75 * seconds, "train_s": 0.75 * seconds, "eval_s": 0.25 * seconds, "leaps": 1000}
    (run.folder / "summary.json").write_text(json.dumps({"status": status, "totals": totals}))


class Time:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_planned_run_survives_its_line(tmp_path):
    run = replace(planned(tmp_path, "a", kind=("net", "data", "linear")), overrides=("seed=1", "K=[5,10]"), data="d")
    assert PlannedRun.parse(run.line()) == run
    assert "\n" not in run.line()


def test_time_left_is_work_left_over_pace(tmp_path):
    runs = [planned(tmp_path, f"r{i}") for i in range(6)]
    time = Time()
    end(runs[0], 10.0)  # in an earlier session
    progress = Progress("s", [*runs, runs[0]], time)
    assert progress.left_s() is None
    assert progress.line() == "s: 1 of 6 runs, time left unknown until one ends"
    assert progress.still_open(runs) == runs[1:]

    for run in runs[1:3]:
        end(run, 10.0)
    time.now += 16.0  # two at a time, and six seconds of start-up: 20 seconds of work in 16
    assert progress.look() == 3
    assert progress.left_s() == pytest.approx(30.0 * 16 / 20)
    assert progress.line() == "s: 3 of 6 runs, about 24 s left"
    for run in runs[3:]:
        end(run, 10.0)
    assert progress.look() == 6
    assert (progress.left_s(), progress.line()) == (0.0, "s: 6 of 6 runs, all ended")


def test_runs_of_other_kinds_take_their_own_time(tmp_path):
    text, image = ("gpt", "text"), ("net", "digits")
    runs = [planned(tmp_path, "t0", 100, text), planned(tmp_path, "i0", 50, image)]
    left = {
        planned(tmp_path, "t1", 200, text): 40.0,  # twice the steps of t0
        planned(tmp_path, "i1", 50, (*image, "linear")): 2.0,  # nothing of its kind yet: like its workload
        planned(tmp_path, "o", 10, ("mlp", "other")): 10 * (20 / 100 + 2 / 50) / 2,  # like any run
    }
    time = Time()
    progress = Progress("s", [*runs, *left], time)
    end(runs[0], 20.0)
    end(runs[1], 2.0)
    time.now += 22.0
    progress.look()
    assert progress.left_s() == pytest.approx(sum(left.values()))


def test_a_failed_run_counts_once_it_has_failed_here(tmp_path):
    before, here = planned(tmp_path, "before"), planned(tmp_path, "here")
    end(before, 1.0, "failed")
    os.utime(before.folder / "summary.json", (900, 900))
    time = Time()
    progress = Progress("s", [before, here], time)
    assert progress.look() == 0
    for status in ("diverged", "skipped"):
        end(here, 1.0, status)
        assert Progress("s", [here], time).look() == 1
    end(before, 1.0, "failed")
    assert progress.look() == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (59.6, "1 min"), (2460, "41 min"), (7500, "2 h 5 min"), (3599, "1 h 0 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# ---- scripts/sweep.py ------------------------------------------------------------------------------------------------

# Stands in for train.py: each name in runs=a,b is a run; `bad` fails, and `wrong` cannot be resolved.
TRAIN = """
import json, pathlib, sys
arguments = dict(word.split("=", 1) for word in sys.argv[2:])
names = arguments["runs"].split(",")
if "wrong" in names:
    sys.exit("runs=wrong is not a run")
if arguments.get("hydra.sweeper.dry_run") == "true":
    print("cells in jobs")
    for name in names:
        row = {"run_id": name, "folder": f"raw/{name}", "steps": 10, "kind": ["net", "data"]}
        print(json.dumps(row | {"overrides": [f"runs={name}"], "data": ""}))
    sys.exit()
with open("calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + chr(10))
for name in names:
    folder = pathlib.Path("raw", name)
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"status": "failed" if name == "bad" else "completed", "totals": {"charged_s": 1.0, "train_s": 1.0}}
    (folder / "summary.json").write_text(json.dumps(summary))
    print(name, "ended", file=sys.stderr if name == "bad" else sys.stdout, flush=True)
sys.exit("bad" in names)
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def sweep(tmp_path, capsys):
    """sweep(line, ...): (exit status, stdout, stderr, the command lines that were run)."""
    (tmp_path / "train.py").write_text(TRAIN)

    def call(*lines: str) -> tuple[int, str, str, list[str]]:
        status = sweeping.run("name", [["train.py", "-m", *line.split()] for line in lines], Screen(), tmp_path)
        calls = tmp_path / "calls"
        ran = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return status, *capsys.readouterr(), ran

    return call


def test_a_sweep_runs_every_line_and_resumes_without_starting_anything(sweep):
    lines = "runs=a,b", "runs=b,c,d"
    status, out, err, ran = sweep(*lines)
    assert status == 0
    assert ran == ["-m progress=false runs=a,b", "-m progress=false runs=b,c,d"]
    assert "python train.py -m runs=b,c,d\n  # 2 of 3 runs to do\n" in out
    assert "a ended\n" in out and "d ended\n" in out
    assert err.splitlines()[0] == "name: 0 of 4 runs, time left unknown until one ends"
    assert re.fullmatch(r"name: 4 of 4 runs, all ended \(\d+ s\)", err.splitlines()[-1])

    status, out, err, ran = sweep(*lines)
    assert (status, ran) == (0, [])
    assert out.count("all 2 runs have ended") == out.count("all 3 runs have ended") == 1


def test_a_failed_run_does_not_stop_the_next_line(sweep):
    status, _, err, ran = sweep("runs=bad", "runs=c")
    assert status == 1
    assert len(ran) == 2
    assert "bad ended\n" in err
    status, _, _, ran = sweep("runs=bad", "runs=c")
    assert (status, ran) == (1, ["-m progress=false runs=bad"])


def test_a_command_that_cannot_run_stops_the_sweep(sweep, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace('sys.exit("bad" in names)', "sys.exit(2)"))
    status, _, err, ran = sweep("runs=a", "runs=b")
    assert (status, len(ran)) == (2, 1)
    assert err.splitlines()[-1].startswith("name: 1 of 2 runs, about ")


def test_nothing_runs_before_everything_resolves(sweep):
    with pytest.raises(PlanError) as caught:
        sweep("runs=a", "runs=wrong")
    assert (str(caught.value), caught.value.status) == ("runs=wrong is not a run", 1)


def test_a_terminal_keeps_one_progress_line(sweep, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    sweep("runs=a,bad")
    shown = terminal.getvalue()
    assert "bad ended\n" in shown  # above the progress line, which is wiped first
    assert shown.index("\x1b[2K") < shown.index("bad ended")
    assert re.search(r"name: 2 of 2 runs, all ended \(\d+ s\)\n$", shown)


def test_the_script_says_what_is_wrong(monkeypatch, capsys):
    def refuse(*_: Any) -> Any:
        raise PlanError("optimizer.lr=tuned: nothing is known", 2)

    script = runpy.run_path(str(PROJECT / "scripts" / "sweep.py"))
    monkeypatch.setattr(sweeping, "run", refuse)
    monkeypatch.setattr(sys, "argv", ["sweep.py", "ttb_embedded", "--allow-dirty"])
    assert script["main"]() == 2
    assert capsys.readouterr() == ("", "optimizer.lr=tuned: nothing is known\n")


def test_uncommitted_code_is_refused_unless_allowed(monkeypatch, capsys):
    script, ran = runpy.run_path(str(PROJECT / "scripts" / "sweep.py")), []
    monkeypatch.setattr(sweeping, "run", lambda name, lines, *_: ran.append(lines) or 0)
    monkeypatch.setattr("leapbench.records.commit.changes", lambda *_: ["src/leapbench/loop.py", "train.py"])
    monkeypatch.setattr(sys, "argv", ["sweep.py", "ttb_embedded"])
    assert script["main"]() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "src/leapbench/loop.py and 1 more" in line and "--allow-dirty" in line
    for allowed in (["--allow-dirty"], ["--", "allow_dirty=true", "device=cpu"]):
        monkeypatch.setattr(sys, "argv", ["sweep.py", "ttb_embedded", *allowed])
        assert script["main"]() == 0
    assert all("allow_dirty=true" in command for lines in ran for command in lines)
    assert len(ran) == 2


@pytest.mark.parametrize(("end", "status"), [(KeyboardInterrupt(), 130), (Terminated(143), 143), (130, 130)])
def test_the_script_says_how_to_go_on(monkeypatch, capsys, end, status):
    def stop(*_: Any) -> int:
        if isinstance(end, int):
            return end
        raise end

    script = runpy.run_path(str(PROJECT / "scripts" / "sweep.py"))
    monkeypatch.setattr(sweeping, "run", stop)
    monkeypatch.setattr(sys, "argv", ["scripts/sweep.py", "ttb_embedded", "--allow-dirty", "--", "K=[5, 10]"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert script["main"]() == status
    finally:
        signal.signal(signal.SIGTERM, before)
    told = "interrupted, the same command continues where it stopped: "
    told += "python scripts/sweep.py ttb_embedded --allow-dirty -- 'K=[5, 10]'\n"
    assert capsys.readouterr() == ("", told)


def test_who_ends_a_sweep_ends_its_command_line(tmp_path, monkeypatch):
    """SIGTERM goes to the script alone; the terminal's Ctrl-C to both."""
    (tmp_path / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('ended').touch(), sys.exit(143)))\n"
        "pathlib.Path('began').touch()\ntime.sleep(60)\n"
    )
    before = signal.signal(signal.SIGTERM, terminate)
    monkeypatch.setattr(sweeping, "LOOK_S", 0.05)

    def tick() -> None:
        if (tmp_path / "began").exists():
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with pytest.raises(Terminated) as caught:
            sweeping.execute(["train.py", "-m"], Screen(), tick, tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    assert (tmp_path / "ended").exists()
