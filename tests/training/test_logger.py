"""What W&B was told, read back from the files it keeps offline."""

import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from leapbench.config.errors import ConfigError
from leapbench.config.groups import WandbConfig
from leapbench.training import logger

RUN_ID = "0123456789ab"
BLOCK, HEADER = 32768, 7


def records(path: Path) -> list[Any]:
    """W&B's protobuf records of a .wandb file, which is a LevelDB log behind a 7-byte header."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts, found = path.read_bytes(), HEADER, b"", []
    assert data[:4] == b":W&B"
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _crc, size, kind = struct.unpack("<IHB", data[position : position + HEADER])
        parts += data[position + HEADER : position + HEADER + size]
        position += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def finished(path: Path) -> list[Any]:
    """`records`, once the last one is there: W&B's own process writes them, some time after finish() returns."""
    for _ in range(200):
        found = records(path)
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} never ended")


def values(items: Any) -> dict[str, str]:
    return {item.key or "/".join(item.nested_key): item.value_json for item in items}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return WandbConfig(mode="offline", project="p", dir=str(tmp_path / "made" / "here"))


def test_values_reach_wandb_under_the_run_id(offline):
    for start in range(2):  # the second is a run that is continued
        log = logger.WandbLogger(offline, RUN_ID, {"model": {"name": "gpt2_nano"}, "seed": 3})
        log.log({"verification/loss_nats": 2.5 - start, "regime": "stable"}, step=50 + 50 * start)
        log.log({"verification/loss_nats": 2.25 - start}, step=75 + 50 * start)
        log.finish({"status": "completed", "final_loss_nats": 1.25})

    files = sorted(Path(offline.dir).glob("wandb/offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{RUN_ID}.wandb"] * 2
    steps = []
    for start, file in enumerate(files):
        found = finished(file)
        (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.project) == (RUN_ID, "p")
        assert values(run.config.update)["model"] == '{"name":"gpt2_nano"}'
        rows = [values(record.history.item) for record in found if record.WhichOneof("record_type") == "history"]
        assert [float(row["verification/loss_nats"]) for row in rows] == [2.5 - start, 2.25 - start]
        assert rows[0]["regime"] == '"stable"'
        steps += [int(row["_step"]) for row in rows]
        summary: dict[str, str] = {}
        for record in found:
            summary |= values(record.summary.update)
        assert (summary["status"], summary["final_loss_nats"]) == ('"completed"', "1.25")
        (end,) = [record.exit for record in found if record.WhichOneof("record_type") == "exit"]
        assert end.exit_code == 0
    assert steps == [50, 75, 100, 125]


def test_online_without_a_key_is_one_line(offline, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    offline.mode = "online"
    with pytest.raises(ConfigError, match="needs an API key") as caught:
        logger.WandbLogger(offline, RUN_ID, {})
    assert "wandb.mode=offline" in str(caught.value)
    assert not Path(offline.dir).exists()


def test_online_without_a_network_is_one_line(offline, monkeypatch):
    import wandb

    def unreachable(**_: Any) -> Any:
        raise wandb.errors.CommError("Network error (ConnectTimeout)\nmore")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", unreachable)
    offline.mode = "online"
    with pytest.raises(ConfigError, match="use wandb") as caught:
        logger.WandbLogger(offline, RUN_ID, {})
    assert "wandb.mode=offline" in str(caught.value)
    assert "\n" not in str(caught.value) and "ConnectTimeout" in str(caught.value)


def test_none_needs_no_wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config: Any = type("Config", (), {"logger": "none", "wandb": WandbConfig()})
    log: logger.Logger = logger.build(config, RUN_ID, {})
    log.log({"a": 1}, step=1)
    log.figure("curve", "curve.png")
    log.finish({"status": "completed"})


def test_a_run_shows_its_metrics_and_figures(lab, tmp_path, monkeypatch):
    from helpers import call, rows

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    words = lab.overrides("logger=wandb", "wandb.mode=offline", f"wandb.dir={tmp_path}", "predictor=linear")
    assert call(monkeypatch, tmp_path, *words).status == 0
    (folder,) = (lab.results / "default").iterdir()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    shown = [values(r.history.item) for r in finished(file) if r.WhichOneof("record_type") == "history"]
    told = [float(row["validation/loss_nats"]) for row in shown if "validation/loss_nats" in row]
    assert told == [row["loss_nats"] for row in rows(folder, "evals.jsonl") if row["split"] == "validation"]
    images = {key.removesuffix("/_type") for row in shown for key, value in row.items() if value == '"image-file"'}
    assert {"loss_regimes", "similarity", "acceptance_strict", "distance"} <= images
    assert file.name == f"run-{folder.name}.wandb"
