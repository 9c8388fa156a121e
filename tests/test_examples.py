"""The examples, as a user would run them."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_leaps_and_says_so(path, capsys):
    runpy.run_path(str(path))["main"](200)
    out = capsys.readouterr().out
    leaps = re.findall(r"^step (\d+): ([\d.]+) -> ([\d.]+) nats, (adopted|rejected)$", out, re.MULTILINE)
    assert [int(step) for step, *_ in leaps][:1] == [100]  # the fifth snapshot, 20 steps apart
    assert any(verdict == "adopted" and float(pred) <= float(now) for _, now, pred, verdict in leaps)
    assert re.search(r"200 steps.*verification loss \d\.\d+ nats", out)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short(path):
    assert len(path.read_text().splitlines()) < 60
