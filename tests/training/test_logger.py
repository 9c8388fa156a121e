"""What W&B was told, read back from the files it keeps offline."""

import json
import math
import re
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers import ALWAYS_STABLE, EVERY_3_STEPS, call, interrupted, records, rows
from leapbench.config.errors import ConfigError
from leapbench.names import EVALS, LEAPS, PROPOSALS, REGIMES, STREAMS
from leapbench.prediction.clock import CHARGED
from leapbench.training import logger
from leapbench.training.run import run

BLOCK, HEADER = 32768, 7


def records_of(path: Path) -> list[Any]:
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
    """`records_of`, once the last one is there: W&B's own process writes them, some time after finish() returns."""
    for _ in range(200):
        found = records_of(path)
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} never ended")


def values(items: Any) -> dict[str, str]:
    return {item.key or "/".join(item.nested_key): item.value_json for item in items}


@pytest.fixture
def offline(lab, tmp_path, monkeypatch):
    """offline(...): a tiny run's configuration whose W&B files go to a folder of the test's own."""
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    place = ("logger=wandb", "wandb.mode=offline", "wandb.project=p", f"wandb.dir={tmp_path / 'made' / 'here'}")
    return lambda *extra: lab.config("predictor=linear", *place, *extra)


def shown(folder: Path) -> list[list[Any]]:
    """The records of every start that W&B knows, in order."""
    return [finished(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def of_kind(found: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def history(found: list[Any]) -> list[dict[str, Any]]:
    rows = [values(row.item) for row in of_kind(found, "history")]
    return [{key: json.loads(value) for key, value in row.items()} for row in rows]


def test_a_run_that_is_continued_is_one_run_of_wandb(offline, lab):
    config = offline("suite=mine", "seed=3", "predictor=[linear,trend]")
    for start in range(2):  # the second is a run that is continued
        log = logger.WandbLogger(config)
        log.log({"verification/loss_nats": 2.5 - start}, step=50 + 50 * start)
        log.log({"verification/loss_nats": 2.25 - start}, step=75 + 50 * start)
        log.finish({"status": "completed", "final_loss_nats": 1.25})
    starts = shown(Path(config.wandb.dir))
    assert len(starts) == 2
    steps = []
    for start, found in enumerate(starts):
        (run,) = of_kind(found, "run")
        assert (run.run_id, run.project, run.run_group) == (f"mine-{config.run_id}", "p", "mine")
        assert run.display_name == "linear+trend, gpt2_nano text_files, seed 3"
        assert set(run.tags) == {
            "observe", "gpt2_nano", "text_files", "adamw", "cosine", "linear", "trend", "exact", "seed=3",
        }  # fmt: skip
        told = {key: json.loads(value) for key, value in values(run.config.update).items()}
        assert (told["suite"], told["seed"], told["model"]["name"]) == ("mine", 3, "gpt2_nano")
        assert [row["verification/loss_nats"] for row in history(found)] == [2.5 - start, 2.25 - start]
        steps += [row["_step"] for row in history(found)]
        summary: dict[str, str] = {}
        for record in of_kind(found, "summary"):
            summary |= values(record.update)
        assert (summary["status"], summary["final_loss_nats"]) == ('"completed"', "1.25")
        (end,) = of_kind(found, "exit")
        assert end.exit_code == 0
    assert steps == [50, 75, 100, 125]


def test_names_tags_and_ids(lab):
    plain, leap = lab.config("mode=leap", "predictor=none", "seed=1"), lab.config("mode=leap", "predictor=trend", "K=4")
    assert logger.name_of(plain) == "none, gpt2_nano text_files, seed 1"
    assert logger.name_of(leap) == "trend K=4 strict, gpt2_nano text_files, seed 0"
    assert {"leap", "trend", "K=4", "rule=strict", "gate=confirmed", "exact"} <= set(logger.tags_of(leap))
    assert logger.tags_of(plain)[5:] == ["none", "exact", "seed=1"]
    ids = [logger.id_of(lab.config("predictor=linear", f"suite='{suite}'"))
           for suite in ("a", "b", "a=b", "a-b", "a+b", "s" * 80, "s" * 81)]  # fmt: skip
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w.-]{1,128}", name) for name in ids)
    every = lab.config("protocol=[exact,paper,code]", f"suite={'long' * 40}", "predictor=[linear,quadratic]")
    assert all(1 <= len(tag) <= 64 for tag in logger.tags_of(every))


def test_online_without_a_key_is_one_line(offline, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    config = offline("wandb.mode=online")
    with pytest.raises(ConfigError, match="needs an API key") as caught:
        logger.WandbLogger(config)
    assert "wandb.mode=offline" in str(caught.value)
    assert not Path(config.wandb.dir).exists()


def test_online_without_a_network_is_one_line(offline, monkeypatch):
    import wandb

    def unreachable(**_: Any) -> Any:
        raise wandb.errors.CommError("Network error (ConnectTimeout)\nmore")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.raises(ConfigError, match="use wandb") as caught:
        logger.WandbLogger(offline("wandb.mode=online"))
    assert "wandb.mode=offline" in str(caught.value)
    assert "\n" not in str(caught.value) and "ConnectTimeout" in str(caught.value)


def test_none_needs_no_wandb(lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    log: logger.Logger = logger.build(lab.config("predictor=linear"))
    log.log({"a": 1}, step=1)
    log.figure("curve", "curve.png")
    log.finish({"status": "completed"})


def test_without_the_logger_its_keys_are_explained(lab, monkeypatch, tmp_path):
    for words in (["wandb.mode=offline"], ["-m", "wandb.project=mine", "seed=0-1"]):
        end = call(monkeypatch, tmp_path, *words)
        assert end.status == 2 and "add logger=wandb" in end.err and len(end.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# ---- a whole run -----------------------------------------------------------------------------------------------------


def columns(told: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """The step and these columns of the rows that have them."""
    return [(row["_step"], *(row[name] for name in names)) for row in told if names[0] in row]


@pytest.fixture(scope="module")
def observed(lab, tmp_path_factory):
    """What W&B was told of a run that observes, the run's folder, and W&B's."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        words = ("logger=wandb", "wandb.mode=offline", "predictor=linear", "suite=observed")
        assert call(patch, place, *lab.overrides(*words)).status == 0
    (folder,) = (lab.results / "observed").iterdir()
    (found,) = shown(place / "results")
    return history(found), folder, place


def test_a_run_shows_its_losses_rate_regime_and_time(observed):
    told, folder, _ = observed
    evals = rows(folder, EVALS)
    for split in ("train", "verification", "validation"):
        wanted = [(row["step"], row["loss_nats"]) for row in evals if row["split"] == split]
        assert columns(told, f"{split}/loss_nats") == wanted
    first, *others = [(row["step"], row["similarity"], row["regime"]) for row in rows(folder, REGIMES)]
    assert columns(told, "regime/regime")[0] == (first[0], "unknown") and len(others) == 5
    assert columns(told, "regime/similarity", "regime/regime") == others
    levels = {"chaotic": 0, "transition": 1, "stable": 2}
    assert columns(told, "regime/level") == [(step, levels[regime]) for step, _, regime in others]
    ends = [row for row in evals if row["split"] == "train"]
    assert columns(told, "time/train_s") == [(row["step"], row["train_s"]) for row in ends]
    charged = [sum(row[f"{lap}_s"] for lap in CHARGED) for row in ends]
    assert [time for _, time in columns(told, "time/charged_s")] == pytest.approx(charged)
    # 4 steps of warm-up from 0 to the peak, then half a cosine to a tenth of it; the rate of the step that was taken.
    wanted = [1e-3 * (0.55 + 0.45 * math.cos(math.pi * (row["step"] - 1 - 4) / 20)) for row in ends]
    assert [rate for _, rate in columns(told, "train/lr")][1:] == pytest.approx(wanted[1:])
    steps = [row["_step"] for row in told]
    assert steps == sorted(steps)


def test_a_run_shows_what_is_accepted(observed):
    told, folder, _ = observed
    for step, percent in columns(told, "acceptance/linear_pct"):
        own = [
            row for row in rows(folder, PROPOSALS) if row["predictor"] == "linear" and row["step"] + row["K"] <= step
        ]
        assert percent == pytest.approx(
            100 * sum(row["loss_pred_nats"] < row["loss_now_nats"] for row in own) / len(own)
        )
    assert columns(told, "acceptance/persistence_pct")[-1] == (24, 0.0)


def test_wandb_keeps_its_files_apart(observed):
    told, folder, place = observed
    images = {key.removesuffix("/_type") for row in told for key, value in row.items() if value == "image-file"}
    assert {"loss_regimes", "similarity", "acceptance_strict", "distance"} <= images
    assert {path.name for path in folder.iterdir()} == {*STREAMS, "config.yaml", "meta.json", "summary.json"}
    assert [path.name for path in place.rglob("*") if len(path.relative_to(place).parts) <= 2] == ["results", "wandb"]
    drawn = place / "results" / "wandb" / "figures" / "observed" / folder.name
    assert {path.name.partition("__")[0] for path in drawn.iterdir()} == images


class Kept(logger.NoLogger):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.told.append({"_step": step, **metrics})


@pytest.fixture
def kept(monkeypatch):
    keeper = Kept()
    monkeypatch.setattr("leapbench.training.run.build_logger", lambda config: keeper)
    return keeper


def test_a_run_that_leaps_shows_what_it_adopts(lab, kept):
    words = ("mode=leap", "predictor=linear", "K=3", "leap.gate=not_chaotic", *ALWAYS_STABLE, "logger=wandb")
    folder = run(lab.config(*words)).folder
    leaps = rows(folder, LEAPS)
    assert leaps and any(row["adopted"] for row in leaps)
    adopted = [sum(row["adopted"] for row in leaps[: n + 1]) for n in range(len(leaps))]
    assert columns(kept.told, "leap/adoptions", "leap/proposals", "leap/loss_pred_nats") == [
        (row["step"], adopted[n], n + 1, row["loss_pred_nats"]) for n, row in enumerate(leaps)
    ]
    assert columns(kept.told, "acceptance/linear_pct")[-1][1] == pytest.approx(100 * adopted[-1] / len(leaps))
    regimes = [(row["step"], row["regime"]) for row in rows(folder, REGIMES)]
    assert columns(kept.told, "regime/regime") == regimes


def test_a_run_that_goes_on_counts_on(lab, kept, monkeypatch):
    words = ("predictor=[linear,momentum]", "protocol=[exact,code]", "logger=wandb", *EVERY_3_STEPS)
    run(lab.config(*words, "suite=whole"))
    whole = kept.told.copy()
    kept.told.clear()
    with interrupted(monkeypatch, 17):
        run(lab.config(*words, "suite=broken"))
    kept.told.clear()
    run(lab.config(*words, "suite=broken"))
    names = ("acceptance/exact/linear_pct", "acceptance/code/momentum_pct", "train/lr")
    assert columns(kept.told, *names) == [row for row in columns(whole, *names) if row[0] > 15]
    assert columns(kept.told, "regime/code/similarity")


def test_the_logger_changes_no_number(lab, kept):
    words = ("predictor=[linear,momentum]", "seed=11")
    silent, shown = (run(lab.config(*words, *extra)) for extra in (("suite=silent",), ("suite=told", "logger=wandb")))
    assert silent.run_id == shown.run_id and records(silent.folder) == records(shown.folder)
    assert kept.told
