"""The tables and figures of pipelines, from runs of a few steps."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import Lab
from leapbench import tables
from leapbench.figures import write_figures
from leapbench.figures.pipeline import arms
from leapbench.names import PROJECT, SUMMARY
from leapbench.records.files import write_json
from leapbench.records.read import load_suite
from leapbench.records.rows import RecordError
from leapbench.tables.acceptance import score
from leapbench.tables.pipeline import formula_bytes
from leapbench.tables.pipeline_headline import pipeline_headline
from leapbench.training.pipeline.throughput import folder_beside
from leapbench.training.run import run

COMMON = ("model=gpt2_nano_untied", "model.config.n_layer=2", "mode=leap", "predictor=none", "suite=pipelines")
PIPELINED = (*COMMON, "pipeline=layerpipe2", "pipeline.stages=4")
COMPARED = ("pipeline.compare=[ramp,centre]",)
ARMS = {
    "stash": COMPARED, "latest": ("pipeline.versions=latest",),
    "ema_pipeline/ramp": ("pipeline.versions=ema_pipeline",), "linear+stash": ("pipeline.forward=linear",),
}  # fmt: skip


@pytest.fixture(scope="module")
def published():
    return tables.load_published(PROJECT / "results" / "published")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    for seed in ("seed=0", "seed=1"):
        run(lab.config(*COMMON, seed))
        for extra in ARMS.values():
            run(lab.config(*PIPELINED, *extra, seed))
    run(lab.config(*COMMON, "pipeline=layerpipe2", "pipeline.stages=2", "seed=0"))
    return load_suite(lab.results / "pipelines")


def test_a_suite_of_pipelines_has_its_own_tables(suite, published, tmp_path):
    made = {table.name: table for table in tables.build(suite, published)}
    assert set(made) == set(tables.PIPELINED)
    for table in made.values():
        assert {path.suffix for path in tables.write(table, suite, tmp_path)} == {".csv", ".md", ".tex"}
        tables.console(table, compact=False)
    figures = write_figures(suite, score(suite), list(made.values()), published, tmp_path)
    assert [path.name.partition("__")[0] for path in figures] == ["pipeline", "reconstruction"]
    text = (tmp_path / "pipeline.md").read_text()
    assert "INFERRED" in next(line for line in text.splitlines() if "| ema_pipeline/ramp" in line)


def test_arms_are_compared_with_the_same_seeds_without_delay_and_with_stashing(suite, published):
    table = next(table for table in tables.build(suite, published) if table.name == "pipeline")
    frame, cells = table.frame.set_index(["stages", "arm"]), table.per_seed.set_index(["seed", "stages", "arm"])
    assert set(frame.index) == {(1, "sequential"), (2, "stash"), *((4, arm) for arm in ARMS)}
    assert frame.loc[(4, "stash"), "over_stash"] == frame.loc[(1, "sequential"), "over_sequential"] == 1.0
    for seed in (0, 1):
        for arm in ARMS:
            cell = cells.loc[(seed, 4, arm)]
            for column, other in (("over_sequential", (seed, 1, "sequential")), ("over_stash", (seed, 4, "stash"))):
                assert cell[column] == cell["loss_nats"] / cells.loc[other, "loss_nats"]
    mean = np.exp(np.mean([np.log(cells.loc[(seed, 4, "latest"), "over_sequential"]) for seed in (0, 1)]))
    assert np.isclose(frame.loc[(4, "latest"), "over_sequential"], mean)
    assert np.isnan(frame.loc[(1, "sequential"), "over_stash"]) and np.isnan(frame.loc[(2, "stash"), "over_stash"]) == 0
    assert (frame["extra_bytes"].fillna(0) == frame["formula_bytes"].fillna(0)).all()
    assert frame.loc[(4, "stash"), "extra_bytes"] > frame.loc[(4, "ema_pipeline/ramp"), "extra_bytes"] > 0
    assert frame.loc[(4, "linear+stash"), "extra_bytes"] == 2 * frame.loc[(4, "stash"), "extra_bytes"]


def test_the_figure_shows_every_arm_over_stashing_the_best_first(suite, published):
    frame = next(table for table in tables.build(suite, published) if table.name == "pipeline").frame
    four = frame[frame["stages"] == 4].sort_values("over_stash")
    assert is_shown(frame) == (["final loss over stash's"], [*four["over_stash"]], [*four["arm"]])
    frame = frame[frame["arm"] != "stash"]
    four = frame[frame["stages"] == 4].sort_values("loss_nats")
    assert is_shown(frame) == (["final validation loss [nats]"], [*four["loss_nats"]], [*four["arm"]])
    twice = pd.concat([four, four.assign(delay_model="S")])
    assert len(is_shown(twice)[2]) == 2 * len(four) and "latest, S" in is_shown(twice)[2]
    assert arms(frame[frame["arm"] == "sequential"], "none") is None


def is_shown(frame):
    """Of the panel with the most stages: its axis, its dots from the top, their labels without the asterisk."""
    figure = arms(frame, "a workload")
    *_, panel, memory = figure.axes
    dots = panel.collections[-1].get_offsets()
    labels = [text.get_text().replace("*", "") for text in figure.axes[0].get_yticklabels()]
    found = [panel.get_xlabel()], [float(x) for x, _ in sorted(dots, key=lambda dot: dot[1])], labels
    assert len(memory.patches) == len(dots)
    plt.close(figure)
    return found


def test_the_documents_show_the_arms(suite, published, tmp_path):
    made = {table.name: table for table in tables.build(suite, published)}
    for table in made.values():
        tables.write(table, suite, tmp_path)
    table = made["pipeline"]
    text = pipeline_headline(tmp_path, ["0123abc"])
    frame = table.frame.set_index(["arm", "stages"])
    assert "reconstruction at its best (`ema_pipeline/ramp`)" in text and "(`linear+stash`)" in text
    for arm in ARMS:
        cells = next(line for line in text.splitlines() if line.startswith(f"| `{arm}` |")).split("|")
        assert float(cells[4].split()[0]) == pytest.approx(frame.loc[(arm, 4), "over_sequential"], abs=1e-3)
    assert "Runs" not in text and "runs of commit `0123abc`" in text
    errors = made["reconstruction"].frame.set_index(["stages", "arm", "form", "delay"])["error_ratio"]
    for form in ("ema_pipeline/ramp", "ema_pipeline/centre"):
        line = [line for line in text.splitlines() if line.startswith(f"| `{form}` |")][-1]
        for delay, cell in zip((2, 4, 6), line.split("|")[3:], strict=False):
            assert float(cell.strip(" *")) == pytest.approx(errors[(4, "stash", form, delay)], abs=1e-3)
    assert "Trained with 4 stages these 1 forms" in text


def test_errors_are_shown_per_delay_and_form(suite, published):
    frame = next(table for table in tables.build(suite, published) if table.name == "reconstruction").frame
    by = frame[frame["stages"] == 4].set_index(["arm", "form", "delay"])["error_ratio"]
    for delay in (2, 4, 6):
        assert by[("stash", "stash", delay)] == 0.0 and by[("latest", "latest", delay)] == 1.0
        assert 0 < by[("stash", "ema_pipeline/ramp", delay)] < 1
        assert by[("stash", "ema_pipeline/ramp", delay)] != by[("stash", "ema_pipeline/centre", delay)]
    assert frame.loc[frame["form"] == "ema_pipeline/centre", "source"].eq("INFERRED").all()


def test_the_throughput_model_is_that_of_the_slowest_stage(suite, published):
    table = next(table for table in tables.build(suite, published) if table.name == "throughput")
    for row in table.frame.to_dict("records"):
        assert 1 <= row["ideal_speedup"] <= row["stages"]
        assert np.isclose(row["slowest_share_pct"], 100 / row["ideal_speedup"])
        assert np.isclose(row["unfilled_pct"], 100 * 2 * (row["stages"] - 1) / (24 + 2 * (row["stages"] - 1)))
        assert np.isclose(row["speedup"], row["ideal_speedup"] * (1 - row["unfilled_pct"] / 100))
    # Activations of 4 sequences of 16 tokens, 32 wide, in float32, both ways, across each boundary.
    assert set(table.frame["bytes_per_update"]) == {2 * 4 * 16 * 32 * 4, 3 * 2 * 4 * 16 * 32 * 4}


def test_measured_speeds_stand_beside_the_model(suite, published):
    (run_id,) = [run_id for run_id, science in suite.configs.items() if science.get("pipeline", {}).get("stages") == 2]
    folder = folder_beside(suite.folder) / run_id
    folder.mkdir(parents=True)
    stages = [{"waiting_pct": 10.0}, {"waiting_pct": 40.0}]
    summary = {"stages": stages, "science": suite.configs[run_id], "made_by": {}, "one_process": {"speedup": 1.5}}
    write_json(folder / SUMMARY, summary)
    try:
        (table,) = tables.build(suite, published, "throughput")
        frame = table.frame.set_index("stages")
        assert frame.loc[2, ["measured_speedup", "waiting_pct"]].tolist() == [1.5, 25.0]
        assert frame.loc[4, ["measured_speedup", "waiting_pct"]].isna().all()
        assert "measured" in table.body(table.frame, False)
        (folder / SUMMARY).write_text("{}")
        with pytest.raises(RecordError, match="is damaged"):
            tables.build(suite, published, "throughput")
    finally:
        (folder / SUMMARY).unlink()
    (table,) = tables.build(suite, published, "throughput")
    assert "measured" not in table.body(table.frame, False)


@pytest.mark.parametrize(
    ("arm", "vectors"),
    [({}, 6), ({"versions": "latest"}, 0), ({"versions": "ema_fixed"}, 1), ({"versions": "pipemare"}, 1),
     ({"forward": "linear", "versions": "latest"}, 6), ({"forward": "trend"}, 10), ({"forward": "xpipe"}, 6)],
)  # fmt: skip
def test_the_formula_of_the_memory(arm, vectors):
    pipeline = {"versions": "stash", "forward": "delayed"} | arm
    assert formula_bytes(pipeline, 6, 100) == 400 * vectors and formula_bytes(pipeline, 0, 100) == 0
