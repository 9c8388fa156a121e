"""What README.md and docs/ show is written from csv files, and nothing else."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from golden.synthetic import write_run

from leapbench import tables
from leapbench.names import PROJECT
from leapbench.records.read import load_suite
from leapbench.records.rows import RecordError
from leapbench.tables.documents import PLACES, into_document, marks, text_of, write_documents
from leapbench.tables.equivalent import equivalent_budget
from leapbench.tables.headline import MOST_ROWS
from leapbench.tables.judged import Intended, judged
from leapbench.tables.observed_headline import HORIZONS, headline, published_headline

sys.path.insert(0, str(Path(__file__).parent))

from budgets import Lab, own_steps

RATES = (5e-5, 1e-3, 4e-3)


@pytest.mark.parametrize(("name", "place"), PLACES.items(), ids=list(PLACES))
def test_every_table_has_its_place(name, place):
    text = (PROJECT / place.document).read_text()
    start, end = marks(name)
    assert text.count(start) == text.count(end) == 1 and text.index(start) < text.index(end)


def test_the_documents_show_the_committed_tables(tmp_path):
    """If it fails: python scripts/report.py --documents."""
    for name in ("results/tables", "results/figures", "docs"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    shutil.copy(PROJECT / "README.md", tmp_path)
    complaints = write_documents(tmp_path)
    assert "acceptance" not in complaints
    for place in PLACES.values():
        assert (tmp_path / place.document).read_text() == (PROJECT / place.document).read_text()


def test_rows_of_the_front_page_are_those_of_the_table(tmp_path):
    lab = Lab(noise=0.004).curve().nulls()
    lab.curve(optimizer="muon", seeds=range(10))
    for optimizer in ("adamw", "muon"):
        lab.method("linear", 1.25, optimizer=optimizer)
        lab.method("trend", 0.8, optimizer=optimizer)
    lab.method("momentum", 0.9)  # with adamw alone: not on the front page
    suite = lab.suite()
    table = equivalent_budget(judged(suite, own_steps, Intended()))
    folder = tmp_path / "tables" / suite.name
    tables.write(table, suite, folder)
    figure = tmp_path / "figures" / suite.name / "equivalent_budget__s.png"
    figure.parent.mkdir(parents=True)
    figure.touch()
    text = text_of("does it save time", folder, ["0123abc"])
    rows = dict(re.findall(r"^\| `(.+?)`(?: \(control\))? \| (.+) \|$", text, re.MULTILINE))
    assert len(rows) <= MOST_ROWS and not any("momentum" in row for row in rows)
    for row, cells in rows.items():
        for optimizer, cell in zip(("adamw", "muon"), cells.split(" | "), strict=True):
            line = table.frame[(table.frame["row"] == row) & (table.frame["optimizer"] == optimizer)].iloc[0]
            assert float(cell.split()[0]) == pytest.approx(line["factor_charged"], rel=1e-3)
            assert cell.endswith(line["verdict"])
    (linear,) = (cells for row, cells in rows.items() if row.startswith("linear"))
    assert linear.count("faster") == 2
    assert f"results/figures/{suite.name}/{figure.name}" in text and "`0123abc`" in text


def test_the_front_page_says_what_the_rates_do(tmp_path):
    for lr in RATES:
        for seed in range(2):
            write_run(tmp_path / "s", seed, ("linear", "trend"), ("exact",), HORIZONS, steps=400, lr=lr)
    suite = load_suite(tmp_path / "s")
    (table,) = tables.build(suite, tables.load_published(PROJECT / "results/published"), "learning_rates")
    tables.write(table, suite, tmp_path / "tables/s")
    text = text_of("where weights can be predicted", tmp_path / "tables/s", ["0123abc"])
    frame = table.frame
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [\de.-]+ \|", line)]
    assert [float(row[0]) for row in rows] == list(RATES)
    for row, lr in zip(rows, RATES, strict=True):
        found = frame[(frame["lr"] == lr) & (frame["measure"] == "accepted_pct")].set_index(["predictor", "K"])["mean"]
        expected = [found[name, K] for name in ("linear", "trend") for K in HORIZONS]
        assert np.allclose([float(cell) for cell in row[2:]], expected, atol=0.5)


def test_acceptance_stands_beside_the_published_one():
    """Of protocol code, from trainings that do not leap by themselves."""
    folder = PROJECT / "results/tables/leap_verify_embedded"
    text = published_headline(folder, ["0123abc"])
    assert text.startswith(headline(folder, ["0123abc"]))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    (names,) = (cells for cells in lines if cells[:2] == ["rule", "regime"])
    shown = {(cells[0].strip("`"), cells[1], int(cells[2])): dict(zip(names[3:], cells[3:], strict=True))
             for cells in lines if cells[0] in ("`strict`", "`proximity`")}  # fmt: skip
    assert len(shown) == 12
    frames = {rule: pd.read_csv(folder / f"acceptance_{rule}.csv") for rule in ("strict", "proximity")}
    for (rule, regime, K), cells in shown.items():
        frame = frames[rule]
        frame = frame[(frame["protocol"] == "code") & ~frame["setting"].str.contains("inline_leaps=true")]
        found = frame.set_index(["regime", "K", "predictor"])
        for name in ("linear", "quadratic", "momentum"):
            ours, published = cells[f"`{name}`"].split(" / ")
            assert float(ours.split()[0]) == pytest.approx(found.loc[(regime, K, name), "mean"], abs=0.06)
            if regime == "all":
                assert published == "-"
            else:
                assert float(published) == found.loc[(regime, K, name), "published_mean"]


def test_a_document_without_the_place_is_one_line(tmp_path):
    (tmp_path / "README.md").write_text("# nothing\n")
    with pytest.raises(RecordError, match=r"README\.md: no place for somewhere; put the lines <!-- "):
        into_document(tmp_path / "README.md", "somewhere", "text")
