"""Trainings of learned predictors side by side."""

import matplotlib.pyplot as plt
import pytest
from test_meta_train import config_of

from helpers import script
from leapbench.figures.learned import learning_curves
from leapbench.meta.results import curves, page, trainings
from leapbench.meta.run import run
from leapbench.nowcasters.checkpoints import facts_of
from networks import NETWORKS, gpt2, recorded

WORDS = {
    "wnn_plus": (), "wnn_plus, rates": ("network.rates=true",), "wnn_plus, mean": ("target_window=3",),
    "wnn": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Folder of four small trainings, and how each ended."""
    root = tmp_path_factory.mktemp("results")
    for name, make in (("a", gpt2(9, 3, 1, 4, 2)), ("b", NETWORKS["mlp"])):
        recorded(root / "suite" / name, make(), rows=30)
    for name, make in (("c", gpt2(9, 3, 2, 4, 2)), ("d", NETWORKS["fcn"])):
        recorded(root / "others" / name, make(), rows=30)
    held_out = f"validation.trajectories={root / 'others'}"
    ends = {name: run(config_of(name.partition(",")[0], root / "suite", held_out, *w)) for name, w in WORDS.items()}
    return root / "results", ends


def test_a_row_says_how_a_training_ended(found):
    folder, ends = found
    frame = trainings(folder).set_index("run_id")
    assert len(frame) == len(WORDS) and list(frame["network"]) == sorted(frame["network"])
    for name, end in ends.items():
        row, summary = frame.loc[end["run_id"]], end["summary"]
        assert row["ratio"] == pytest.approx(summary["final"]["validation"] / summary["final"]["no_change"])
        assert row["file_bytes"] == (folder / end["run_id"] / summary["weights"]["file"]).stat().st_size
        assert (row["target_window"], row["rates"] is True) == (3 if "mean" in name else 1, "rates" in name)
        held_out = facts_of(folder / end["run_id"] / summary["weights"]["file"])["held_out"]
        assert len(held_out) == 2
        for source in held_out:
            assert row[f"network, {source['weights']:,} weights"] == pytest.approx(source["loss"] / source["no_change"])


def test_all_are_validated_on_the_same_targets(found):
    """Whatever the mean of some rows is that one of them learned."""
    no_change = {end["summary"]["final"]["no_change"] for name, end in found[1].items() if name != "wnn"}
    assert len(no_change) == 1


def test_page_and_figure_show_every_training(found):
    frame = trainings(found[0])
    text = page(frame)
    assert all(run_id in text for run_id in frame["run_id"]) and "target rows" in text
    figure = learning_curves(frame, curves(found[0], list(frame["run_id"])))
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2 and line.get_xdata()[0] == 3]
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx(list(frame["ratio"]))
    assert {line.get_label() for line in lines} == {
        "wnn",
        "wnn_plus",
        "wnn_plus, learning rates",
        "wnn_plus, 3 target rows",
    }
    plt.close(figure)


def test_the_script_writes_table_figure_and_records(found, monkeypatch, tmp_path):
    status, out, err = script(monkeypatch, "learned", "--meta", str(found[0]), "--out", str(tmp_path / "out"))
    assert status == 0, err
    assert out.strip() == (tmp_path / "out" / "trainings.md").read_text().strip()
    run_ids = {end["run_id"] for end in found[1].values()}
    kept = {path.name for path in (tmp_path / "out" / "records").iterdir()}
    assert kept == run_ids and (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    status, _, _ = script(monkeypatch, "learned", "--meta", str(tmp_path))
    assert str(status).startswith("error: ") and "no training that is complete" in str(status)
