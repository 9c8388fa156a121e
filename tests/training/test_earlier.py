"""A run of other code or data is never taken for this one: a file is edited between two starts."""

import json
import sys
from dataclasses import replace

import pytest

from helpers import EVERY_3_STEPS, Lab, call, interrupted, records, rows
from leapbench.config.errors import ConfigError
from leapbench.names import META, PROPOSALS, SUMMARY, Seconds
from leapbench.records.folder import RunFolder
from leapbench.records.read import load_suite
from leapbench.records.sources import changed, code_of
from leapbench.tables import mixed
from leapbench.training.run import run

PREDICTOR = '''
"""A predictor."""

from leapbench.predictors.linear import Linear


class Mine(Linear):
    """Says something."""

    def coefficients(self, steps, K):
        # A comment.
        return [1.0 + {factor} * K, -{factor} * K]
'''


@pytest.fixture
def write(fresh_lab: Lab, monkeypatch, request):
    """write(text): the user's own module, `mine.py`, with this content."""
    monkeypatch.syspath_prepend(fresh_lab.root)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> None:
        (fresh_lab.root / "mine.py").write_text(text)
        sys.modules.pop("mine", None)

    yield write
    sys.modules.pop("mine", None)


def config_with_mine(lab: Lab, *extra: str):
    config = lab.config("predictor=linear", *extra)
    config.predictors["mine"] = {"_target_": "mine.Mine"}
    return config


def test_a_completed_run_of_other_code_is_not_given_for_this_one(fresh_lab, write):
    write(PREDICTOR.format(factor="0.25"))
    first = run(config_with_mine(fresh_lab))
    assert first.status == "completed"
    old = records(first.folder)
    write(PREDICTOR.format(factor="0.25").replace("# A comment.", "# Another.").replace("Says", "Says again"))
    assert run(config_with_mine(fresh_lab)).reason is None, "a comment changes nothing"

    write(PREDICTOR.format(factor="0.5"))
    with pytest.raises(ConfigError) as error:
        run(config_with_mine(fresh_lab))
    line = str(error.value)
    assert "\n" not in line and "its code has changed since (mine)" in line
    assert f"delete {first.folder}" in line and "stale=accept" in line
    assert records(first.folder) == old

    accepted = run(config_with_mine(fresh_lab, "stale=accept"))
    assert accepted.status == "completed" and "has changed since (mine), accepted" in accepted.reason
    assert run(fresh_lab.config("predictor=linear")).status == "completed", "a run without it is untouched"


def test_a_partial_run_of_other_code_is_not_continued(fresh_lab, write, monkeypatch):
    write(PREDICTOR.format(factor="0.25"))
    config = config_with_mine(fresh_lab, *EVERY_3_STEPS)
    with interrupted(monkeypatch, 14):
        run(config)
    write(PREDICTOR.format(factor="0.5"))
    before = records(config.folder)
    with pytest.raises(ConfigError, match=r"has a checkpoint, but its code has changed since \(mine\); delete"):
        run(config)
    assert records(config.folder) == before
    mixture = run(config_with_mine(fresh_lab, *EVERY_3_STEPS, "stale=accept"))
    starts = json.loads((mixture.folder / META).read_text())["starts"]
    assert len({start["code"] for start in starts}) == 2
    assert f"code: run {mixture.run_id} was continued with other code" in mixed(load_suite(mixture.folder.parent))


def test_other_data_are_noticed(fresh_lab, monkeypatch):
    config = fresh_lab.config("predictor=linear", "suite=whole")
    end = run(config)
    half = fresh_lab.config("predictor=linear", "suite=half", *EVERY_3_STEPS)
    with interrupted(monkeypatch, 14):
        run(half)
    text = fresh_lab.texts / "007.txt"
    before = text.read_text()
    text.write_text(before.replace("fox", "cat"))
    with pytest.raises(ConfigError, match=r"is completed, but dataset=text_files has changed since; delete"):
        run(config)
    with pytest.raises(ConfigError, match=r"has a checkpoint, but dataset=text_files has changed since; delete"):
        run(half)
    text.write_text(before)
    assert run(config).reason is None
    assert run(half).status == "completed"
    assert rows(half.folder, PROPOSALS) and end.folder.exists()


def test_a_sweep_names_what_has_changed_and_goes_on(fresh_lab, monkeypatch, tmp_path):
    words = ("-m", *fresh_lab.overrides("predictor=linear", "suite=swept"), f"hydra.sweep.dir={tmp_path}/sweep")
    assert call(monkeypatch, tmp_path, *words, "seed=0").status == 0
    (fresh_lab.texts / "000.txt").write_text("other words " * 100)
    end = call(monkeypatch, tmp_path, *words, "seed=0-1")
    assert end.status == 1
    assert "sweep: 1 completed, 0 skipped, 0 diverged, 1 failed" in end.err
    (line,) = [line for line in (end.out + end.err).splitlines() if "has changed since" in line]
    assert "stale=accept" in line
    again = call(monkeypatch, tmp_path, *words, "seed=0-1", "stale=accept")
    assert again.status == 0 and again.out.count("accepted") == 1


def test_a_record_of_an_older_version_is_refused(fresh_lab):
    config = fresh_lab.config("predictor=linear")
    summary = run(config).folder / SUMMARY
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "schema": 1}))
    with pytest.raises(ConfigError, match="was recorded in schema 1"):
        run(config)


def test_a_suite_of_several_codes_is_named(lab, monkeypatch):
    for seed in range(3):
        with monkeypatch.context() as patch:
            if seed == 2:
                patch.setattr(
                    "leapbench.training.run.code_of",
                    lambda science: {**code_of(science), "leapbench.training.loop": "0"},
                )
            run(lab.config("predictor=linear", f"seed={seed}", "suite=several"))
    assert mixed(load_suite(lab.results / "several")) == [
        "code: leapbench.training.loop has 2 versions among the runs (of 2 and 1 runs)"
    ]


def test_a_suite_whose_seconds_are_not_all_of_one_kind_is_named(lab, monkeypatch):
    """Records from before this was written down counted wall time; a resumed run may have changed devices."""
    for seed, seconds in enumerate((Seconds.processor, None, Seconds.wall)):
        with monkeypatch.context() as patch:
            if seconds is None:
                patch.setattr(RunFolder, "describe", without_seconds(RunFolder.describe))
            else:
                patch.setattr("leapbench.training.run.seconds_on", lambda device, kind=seconds: kind)
            run(lab.config("predictor=linear", f"seed={seed}", "suite=clocks"))
    suite = load_suite(lab.results / "clocks")
    assert sorted(suite.runs["seconds"]) == ["processor", "wall", "wall"]
    told = "the laps' seconds are wall time in 2 runs, processor time in 1 run: compare steps and shares, not seconds"
    assert mixed(suite) == [told]
    assert mixed(replace(suite, runs=suite.runs[suite.runs["seconds"] == "wall"])) == []
    (told,) = mixed(replace(suite, runs=suite.runs.assign(seconds="processor+wall")))
    assert told.startswith("the laps' seconds are processor+wall time in 3 runs")


def without_seconds(describe):
    """`describe` as it was before starts said what their clock counts."""

    def earlier(self, science, machine, meta):
        meta["start"].pop("seconds")
        describe(self, science, machine, meta)

    return earlier


# ---- which code a run uses -------------------------------------------------------------------------------------------


def test_code_is_that_of_the_parts_in_use():
    linear, pdt = ({"predictor": {"_target_": f"leapbench.predictors.{name}"}} for name in ("linear.Linear", "pdt.Pdt"))
    difference = changed(code_of(linear), code_of(pdt))
    assert "leapbench.predictors.linear" in difference and "leapbench.predictors.pdt" in difference
    assert all(name.startswith("leapbench.predictors.") for name in difference)
    used = code_of(linear)
    for name in ("training.loop", "prediction.leap", "models.causal_lm", "data.stdlib", "training.schedule"):
        assert f"leapbench.{name}" in used
    assert not [name for name in used if name.split(".")[1:2] in (["tables"], ["figures"], ["cluster"], ["records"])]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("x = 1\n\n\ndef f():\n    return x\n", True), ("'''Doc.'''\nx = 1\ndef f():\n    'Doc.'\n    return x", True),
        ("x = (1)  # one\ndef f(): return x", True), ("x = 2\ndef f(): return x", False),
        ("x = 1\ndef f(): return -x", False), ("x = 1.0\ndef f(): return x", False),
    ],
)  # fmt: skip
def test_layout_and_comments_are_not_code(tmp_path, monkeypatch, text, same):
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for number, content in enumerate(("x = 1\ndef f(): return x\n", text)):
        (tmp_path / f"own{number}.py").write_text(content)
        hashes.append(code_of({"_target_": f"own{number}.f"})[f"own{number}"])
    assert (hashes[0] == hashes[1]) is same


def test_modules_beside_the_users_own_are_followed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside.py").write_text("import json, torch\n")
    (tmp_path / "own_entry.py").write_text("def f():\n    import beside\n")
    found = set(code_of({"_target_": "own_entry.f"}))
    assert {"own_entry", "beside"} <= found and not found & {"json", "torch"}
