"""Faults around a run, a full disk or no network: one line on stderr, an exit status that is not 0, nothing lost."""

import json
import os
import subprocess
import time

import pytest

from helpers import EVERY_3_STEPS, call, captured, finished, interrupted, records, refused, rows, start
from leapbench.config.errors import ConfigError
from leapbench.names import CHECKPOINT, LOCK, PROPOSALS, STREAMS, SUMMARY
from leapbench.training.run import run


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
