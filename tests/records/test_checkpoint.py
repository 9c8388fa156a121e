"""A checkpoint is data: it is the run's own, what was written, and executes nothing."""

import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from leapbench.config.errors import ConfigError
from leapbench.names import CHECKPOINT, Regime
from leapbench.records import checkpoint
from leapbench.records.files import write_json

CPU = torch.device("cpu")
RUN = "0123456789ab"


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def state_file(run: Path) -> Path:
    return (run / CHECKPOINT).parent / json.loads((run / CHECKPOINT).read_text())["file"]


def pointed_at(run: Path, content: bytes) -> Path:
    """The checkpoint replaced by `content`, with a pointer that vouches for it."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = (run / CHECKPOINT).parent / "planted.pt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    write_json(run / CHECKPOINT, {"run_id": RUN, "file": path.name, "sha256": sha256})
    return path


def refused(run: Path, *words: str) -> None:
    with pytest.raises(ConfigError) as error:
        checkpoint.load(run, RUN, CPU)
    line = str(error.value)
    assert "\n" not in line and all(word in line for word in (*words, "delete", "starts over")), line


def test_what_is_saved_is_loaded(tmp_path):
    state = {
        "weights": torch.arange(3.0), "regime": Regime.stable, "rng": (3, (1, 2), None), "pairs": [[1, 0.1], [2, 1e-9]],
        "none": None, "bytes": b"\0", "nested": {1: {"a": torch.tensor(True)}},
    }  # fmt: skip
    checkpoint.save(tmp_path, RUN, state)
    loaded = checkpoint.load(tmp_path, RUN, CPU)
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded["nested"][1]["a"] and loaded.pop("nested") and state.pop("nested")
    assert loaded == state and type(loaded["regime"]) is str


def test_only_the_newest_is_kept(tmp_path):
    for step in range(3):
        checkpoint.save(tmp_path, RUN, {"step": step})
    assert checkpoint.load(tmp_path, RUN, CPU) == {"step": 2}
    assert len(list((tmp_path / CHECKPOINT).parent.iterdir())) == 2


@pytest.mark.parametrize("wrapped", [False, True], ids=["raw pickle", "inside torch.save"])
def test_a_malicious_pickle_is_not_executed(tmp_path, wrapped):
    target, content = tmp_path / "attacked", io.BytesIO()
    state = {"step": 1, "weights": Attack(target)}
    torch.save(state, content) if wrapped else pickle.dump(state, content, protocol=2)
    path = pointed_at(tmp_path, content.getvalue())
    refused(tmp_path, str(path))
    assert not target.exists()
    torch.load(path, weights_only=False) if wrapped else pickle.loads(content.getvalue())
    assert target.exists(), "the attack itself works"


def test_changed_bytes_of_a_tensor_are_noticed(tmp_path):
    checkpoint.save(tmp_path, RUN, {"weights": torch.zeros(1000)})
    path = state_file(tmp_path)
    content = bytearray(path.read_bytes())
    start = content.index(bytes(4000)) + 1000
    content[start : start + 64] = b"\x3f" * 64
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["weights"].any(), "torch itself sees nothing"
    refused(tmp_path, str(path), "is not what the run wrote")


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_shortened_file_is_named(tmp_path, keep):
    checkpoint.save(tmp_path, RUN, {"weights": torch.zeros(1000)})
    path = state_file(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(tmp_path, str(path))


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint.save(tmp_path, "ba9876543210", {"step": 1})
    refused(tmp_path, "belongs to run ba9876543210, not to 0123456789ab")


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{}", '{"run_id": "a", "file": "../../x.pt", "sha256": "b"}', '{"run_id": 1, "file": 2}', "\0"],
)
def test_a_damaged_pointer_is_named(tmp_path, content):
    checkpoint.save(tmp_path, RUN, {"step": 1})
    (tmp_path / CHECKPOINT).write_text(content)
    refused(tmp_path, str(tmp_path / CHECKPOINT), "is damaged")


def test_a_folder_and_a_file_in_each_others_place_are_named(tmp_path):
    (tmp_path / CHECKPOINT).mkdir(parents=True)
    refused(tmp_path, "is damaged")
    (tmp_path / CHECKPOINT).rmdir()
    (tmp_path / CHECKPOINT).parent.rmdir()
    (tmp_path / CHECKPOINT).parent.write_text("no folder")
    refused(tmp_path, "is a file")


def test_state_that_is_no_data_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(ConfigError, match=r"state\.optimizer\.parts\.0 is a Attack"):
        checkpoint.save(tmp_path, RUN, {"optimizer": {"parts": [Attack(tmp_path)]}})
    assert checkpoint.load(tmp_path, RUN, CPU) is None
