"""What a user can get wrong: one line on stderr, an exit status that is not 0, nothing written and nothing lost."""

import json
import os
import subprocess
import time

import pytest

from helpers import EVERY_3_STEPS, call, captured, finished, interrupted, records, rows, start
from leapbench.config.errors import ConfigError
from leapbench.names import CHECKPOINT, LOCK, PROPOSALS, STREAMS, SUMMARY
from leapbench.training.run import run


@pytest.fixture(scope="module")
def root(lab):
    """The lab's folder, with a completed run and with data that is wrong in every way."""
    run(lab.config("predictor=linear"))
    root = lab.root
    (root / "empty").mkdir()
    (root / "latin").mkdir()
    (root / "latin" / "a.txt").write_bytes("naïve café".encode("latin-1") * 50)
    (root / "little").mkdir()
    (root / "little" / "a.txt").write_text("too little " * 20)
    (root / "other").mkdir()
    (root / "other" / "a.md").write_text("not a text file " * 20)
    (root / "file").write_text("a plain file")
    return root


@pytest.fixture
def tmpfs(tmp_path):
    """Mount a small file system and return its folder; skipped where that is not allowed."""
    mounted = []

    def mount(name, options):
        folder = tmp_path / name
        folder.mkdir()
        if os.geteuid() != 0:
            pytest.skip("mounting a tmpfs needs root")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a tmpfs does not work here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def refused(end, *words):
    """Check that the command ended with one line on stderr that has these words, and return the line."""
    assert end.status not in (0, None)
    assert "Traceback" not in end.err + end.out
    assert len(end.err.splitlines()) == 1, end.err
    for word in words:
        assert word in end.err
    return end.err.strip()


MISTAKES = {
    "K=0": (["K=0"], ["K=0", "1 or more"]),
    "K=-5": (["K=-5"], ["K=-5", "1 or more"]),
    "K=abc": (["K=abc"], ["K=abc", "positive integer"]),
    "K in a sweep": (["-m", "K=5,0"], ["K=0"]),
    "K too large everywhere": (["K=21"], ["K=21", "at most 20", "train.steps=24"]),
    "downward range": (["-m", "seed=4-0"], ["seed=4-0", "seed=0-4"]),
    "range without -m": (["seed=0-4"], ["seed=0-4", "-m"]),
    "unknown predictor": (["predictor=quadratc"], ["predictor=quadratc", "did you mean quadratic?"]),
    "unknown predictor in a list": (["predictor=[linear,tremd]"], ["tremd", "did you mean trend?"]),
    "unknown model": (["model=gpt2_nan"], ["model=gpt2_nan", "did you mean gpt2_nano?"]),
    "unknown dataset": (["dataset=wikitext"], ["dataset=wikitext", "did you mean wikitext103?"]),
    "interval larger than steps": (["train.interval=25"], ["train.interval=25", "train.steps=24"]),
    "context that never fills": (
        ["predictor=trend", "train.interval=6", "K=[1,3]"], ["predictor=trend", "5 snapshots", "never fills"],
    ),
    "no such text folder": (["dataset.path={root}/nowhere"], ["{root}/nowhere", "is not a folder"]),
    "empty text folder": (["dataset.path={root}/empty"], ["{root}/empty", "no .txt"]),
    "no text file in the folder": (["dataset.path={root}/other"], ["{root}/other", "no .txt"]),
    "text not UTF-8": (["dataset.path={root}/latin"], ["{root}/latin/a.txt", "not UTF-8"]),
    "text too short": (["dataset.path={root}/little"], ["add text"]),
    "too few sequences to train on": (["train.batch_size=99999"], ["train.batch_size=99999"]),
    "too few sequences to verify on": (["verify.sequences=99999"], ["verify.sequences", "100003"]),
    "too few sequences to score": (["eval.sequences=99999"], ["eval.sequences", "99999"]),
    "results below a plain file": (["results_dir={root}/file/raw"], ["{root}/file"]),
    "results are a plain file": (["results_dir={root}/file"], ["{root}/file"]),
    "unknown device": (["device=gpu"], ["device=gpu", "cpu"]),
    "weights that do not exist": (["model.init=pretrained"], ["model.init=scratch"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(lab, root, tmp_path, monkeypatch, case):
    arguments, words = MISTAKES[case]
    changes = [argument.replace("{root}", str(root)) for argument in arguments if argument != "-m"]
    sweep = ["-m"] if "-m" in arguments else []
    keys = {change.partition("=")[0] for change in changes}
    base = [override for override in lab.overrides() if override.partition("=")[0] not in keys]
    if "model" in keys or "dataset" in keys:
        base = [override for override in base if not override.startswith(("model.", "dataset"))]
    before = lab.files()
    end = call(monkeypatch, tmp_path, *sweep, *base, *changes)
    refused(end, *(word.replace("{root}", str(root)) for word in words))
    assert lab.files() == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert (root / "file").read_text() == "a plain file"


def test_no_network_names_the_embedded_default(tmp_path):
    began = time.monotonic()
    places = (f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}", "regime=published")
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    end = finished(start(tmp_path, "dataset=wikitext103", "K=5", *places, **offline), 120)
    assert time.monotonic() - began < 40  # some 6 of them to start Python with torch, more on a busy machine
    assert end.status == 2
    refused(end, "Salesforce/wikitext", "dataset=stdlib")
    assert not (tmp_path / "results").exists()


def test_a_read_only_disk(lab, tmpfs, tmp_path, monkeypatch):
    folder = tmpfs("closed", "ro,size=64k")
    end = call(monkeypatch, tmp_path, *lab.overrides(f"results_dir={folder / 'raw'}"))
    refused(end, str(folder), "read-only")


def test_a_closed_folder(lab, tmp_path, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    end = call(monkeypatch, tmp_path, *lab.overrides(f"results_dir={folder / 'raw'}"))
    refused(end, str(folder), "permission denied")


def test_a_full_disk_loses_nothing(lab, tmpfs, tmp_path, monkeypatch):
    disk = tmpfs("small", "size=8m")
    extra = ("predictor=[linear,momentum]", "suite=full", f"results_dir={disk}")
    config, words = lab.config(*extra), lab.overrides(*extra, *EVERY_3_STEPS)
    folder, filler = disk / "full" / config.run_id, disk / "filler"
    expected = records(run(lab.config(*extra[:2], f"results_dir={tmp_path / 'roomy'}")).folder)

    def fill(workload, index):
        if index == 11:
            with open(filler, "wb", buffering=0) as file:
                for size in (1 << 16, 1 << 8):
                    try:
                        while True:
                            file.write(bytes(size))
                    except OSError:
                        pass

    with captured(monkeypatch, fill):
        refused(call(monkeypatch, tmp_path, *words), str(disk), "no space left", "continues")
    assert not (folder / SUMMARY).exists() and not (folder / LOCK).exists()
    assert (folder / CHECKPOINT).stat().st_size > 0
    for stream in STREAMS:
        written = (folder / stream).read_bytes()
        whole = [json.loads(line) for line in written[: written.rfind(b"\n") + 1].splitlines()]
        untimed = [{key: value for key, value in row.items() if not key.endswith("_s")} for row in whole]
        assert untimed == expected[stream][: len(untimed)]
    refused(call(monkeypatch, tmp_path, *words), str(disk), "no space left")
    assert not (folder / LOCK).exists()
    filler.unlink()
    with captured(monkeypatch, lambda workload, index: drawn.append(index)):
        drawn: list[int] = []
        end = call(monkeypatch, tmp_path, *words)
    assert end.status == 0, end.err
    assert drawn[0] == 9, "it should go on from the checkpoint of step 9"
    assert records(folder) == expected


def test_a_checkpoint_that_cannot_be_read_is_named(lab, monkeypatch):
    config = lab.config("predictor=linear", "suite=broken", *EVERY_3_STEPS)
    with interrupted(monkeypatch, 10, KeyboardInterrupt):
        run(config)
    folder = lab.results / "broken" / config.run_id
    assert not (folder / SUMMARY).exists() and not (folder / LOCK).exists()
    path = next((folder / CHECKPOINT).parent.glob("*.pt"))
    state = path.read_bytes()
    path.write_bytes(state[: len(state) // 2])
    kept = {stream: (folder / stream).read_bytes() for stream in STREAMS}
    with pytest.raises(ConfigError, match=f"{config.run_id}/checkpoint/{path.name} is not what"):
        run(config)
    assert {stream: (folder / stream).read_bytes() for stream in STREAMS} == kept
    path.write_bytes(state)
    assert run(config).status == "completed"
    assert rows(folder, PROPOSALS)
