"""From run folders to tables: rules by hand, golden tables, missing cells, runs that do not count, broken records."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers import reseal, rows, script
from leapbench import tables
from leapbench.names import PROJECT
from leapbench.records.read import load_suite
from leapbench.records.rows import RecordError
from leapbench.tables import stats
from leapbench.tables.acceptance import rates, score
from leapbench.tables.observed_headline import headline
from leapbench.tables.skill import skill_of

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

from regenerate import EXPECTED, PUBLISHED, write_tables  # noqa: E402
from synthetic import write_run  # noqa: E402

SMALL = {"K": (50, 100), "steps": 400}


@pytest.fixture(scope="module")
def published():
    return tables.load_published(PUBLISHED)


def only(suite, published, name):
    return tables.build(suite, published, name)[0]


def rewrite(run: Path, file: str, rows: list[dict]) -> None:
    (run / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    reseal(run)


# Golden tables


def test_golden_tables(tmp_path):
    write_tables(tmp_path)
    hint = "if the change is meant: python tests/tables/golden/regenerate.py, then read the difference"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in EXPECTED.iterdir()}, hint
    for path in sorted(EXPECTED.iterdir()):
        wrong = f"{path.name} differs from the reviewed file; {hint}"
        try:
            pd.testing.assert_frame_equal(pd.read_csv(tmp_path / path.name), pd.read_csv(path), rtol=2e-5)
        except AssertionError as error:
            raise AssertionError(f"{wrong}\n{error}") from None


@pytest.mark.parametrize("suite", ["tiny", "tiny_leap"])
def test_every_header_says_which_interval_it_shows(suite, published):
    words = (stats.INTERVAL, stats.RATE_INTERVAL, stats.RATIO_INTERVAL)
    for table in tables.build(load_suite(GOLDEN / "raw" / suite), published):
        assert any(word in table.header for word in words) and not set("{}") & set(table.header), table.name


# Rules by hand


@pytest.fixture
def by_hand(tmp_path):
    """One run, 4 checkpoints with losses 4, 2, 3, 1 and one predictor whose losses were chosen by hand."""
    run = write_run(tmp_path / "s", 0, ("linear",), ("exact", "paper", "code"), (1,), steps=200)
    losses = {50: 4.0, 100: 2.0, 150: 3.0, 200: 1.0}
    evals = [{"step": s, "position": s, "split": "verification", "loss_nats": x} for s, x in losses.items()]
    rewrite(run, "evals.jsonl", evals)
    predicted = {50: 4.0, 100: 2.9, 150: 3.14, 200: None}
    base = {"K": 1, "loss_true_nats": 1.0, "rel_l2_to_true": 0.5, "rel_l2_now_to_true": 0.25, "status": "ok"}
    rewrite(
        run,
        "proposals.jsonl",
        [
            {
                **base, "step": s, "protocol": protocol, "predictor": "linear", "regime": "stable",
                "loss_now_nats": losses[s], "loss_pred_nats": predicted[s],
            }
            for protocol in ("exact", "paper", "code")
            for s in losses
        ],
    )  # fmt: skip
    return load_suite(tmp_path / "s")


def test_rules_by_hand(by_hand):
    scored = score(by_hand).set_index(["protocol", "step"]).sort_index()
    exact, paper, code = scored.loc["exact"], scored.loc["paper"], scored.loc["code"]
    assert list(exact["strict"]) == [False, False, False, False]
    # std of (4), (4, 2), (4, 2, 3), (4, 2, 3, 1): 0, 1, 0.816, 1.118
    assert list(exact["sigma_nats"]) == pytest.approx([0, 1, (2 / 3) ** 0.5, 1.25**0.5])
    assert list(exact["adaptive"]) == [True, True, True, False]
    # |excess| / L: 0, 0.45, 0.047, not finite
    assert list(exact["proximity"]) == [True, False, True, False]
    # The paper's < where exact and code have <=: at 50 sigma is 0, and 0 is not below 0.
    assert list(paper["adaptive"]) == [False, True, True, False]
    assert list(paper["proximity"]) == [True, False, True, False]
    assert list(code["sigma_nats"]) == pytest.approx([1.25**0.5] * 4)
    assert list(code["proximity"]) == [True, False, False, False]


def test_rate_and_distance_by_hand(by_hand):
    found = rates(score(by_hand), "proximity").set_index(["protocol", "regime"])
    assert found.loc[("exact", "stable"), "rate"] == 50 and found.loc[("exact", "all"), "proposals"] == 4
    assert found.loc[("exact", "all"), "distance_ratio"] == 2
    assert found.loc[("exact", "all"), "loss_now_nats"] == 2.5
    assert found.loc[("exact", "all"), "loss_pred_nats"] == pytest.approx((4.0 + 2.9 + 3.14) / 3)


def test_skill_by_hand(tmp_path, published):
    """Per proposal (now, predicted, true): a half, worse, perfect, nothing to share in, not finite, no truth."""
    run = write_run(tmp_path / "s", 0, ("linear",), ("exact",), (1,), steps=400)
    cases = {
        50: (4.0, 3.0, 2.0), 100: (2.0, 3.0, 1.0), 150: (3.0, 2.0, 2.0), 200: (1.0, 0.5, 1.5),
        250: (2.0, None, 1.0), 300: (2.0, 1.0, None), 350: (2.0, 1.75, 1.0),
    }  # fmt: skip
    base = {"K": 1, "rel_l2_to_true": 0.5, "rel_l2_now_to_true": 0.25, "protocol": "exact", "predictor": "linear"}
    rewrite(
        run,
        "proposals.jsonl",
        [
            {
                **base, "step": step, "regime": "stable", "status": "ok", "loss_now_nats": now,
                "loss_pred_nats": predicted, "loss_true_nats": true,
            }
            for step, (now, predicted, true) in cases.items()
        ],
    )  # fmt: skip
    suite = load_suite(tmp_path / "s")
    skills = skill_of(score(suite).sort_values("step")).tolist()
    assert skills == pytest.approx([0.5, -1.0, 1.0, np.nan, np.nan, np.nan, 0.25], nan_ok=True)
    table = only(suite, published, "skill")
    cell = table.frame.set_index(["regime", "predictor"]).loc[("stable", "linear")]
    assert (cell["mean"], cell["n_proposals"], cell["n_seeds"]) == (0.375, 7, 1)
    assert (cell["skill_q1"], cell["skill_q3"]) == pytest.approx(np.quantile([-1.0, 0.25, 0.5, 1.0], [0.25, 0.75]))
    assert cell["undefined_pct"] == pytest.approx(100 * 2 / 7)
    assert cell["nonfinite_pct"] == pytest.approx(100 / 7) and cell["distance_ratio"] == 2
    lines = [
        line for line in tables.console(table, compact=False).splitlines() if "linear" in line and "stable" in line
    ]
    assert "0.375 [-0.062, 0.625]" in lines[0] and "skill" in lines[0]
    assert "2.000" in lines[1] and "distance" in lines[1]


def test_skill_is_a_mean_of_the_seeds_medians(published):
    suite = load_suite(GOLDEN / "raw" / "tiny")
    rows = score(suite)
    rows = rows[(rows["protocol"] == "exact") & (rows["predictor"] == "linear") & (rows["K"] == 5)]
    medians = skill_of(rows).groupby(rows["seed"]).median()
    frame = only(suite, published, "skill").frame.set_index(["protocol", "regime", "predictor", "K"])
    cell = frame.loc[("exact", "all", "linear", 5)]
    assert cell["mean"] == pytest.approx(medians.mean()) and cell["n_seeds"] == len(medians) == 3
    assert frame.loc[("exact", "all", "persistence", 5), "mean"] == 0


def test_where_the_published_rates_of_momentum_come_from_is_said(tmp_path, published):
    for leaping in (False, True):
        write_run(tmp_path / "s", 0, ("momentum",), ("exact", "code"), K=(5, 10, 25, 50),
                  extra={"train.inline_leaps": leaping})  # fmt: skip
    for rule, rate in (("strict", "10 %"), ("proximity", "16.5 %")):
        remarks = only(load_suite(tmp_path / "s"), published, f"acceptance_{rule}").remarks
        assert len(remarks) == 2 and all("protocol code" in name for name in remarks)
        for name, (text,) in remarks.items():
            assert f"Published for momentum in `stable`: {rate} at K = 5, 10, 25 alike. Most likely" in text
            kind = "makes those leaps" if "inline_leaps=true" in name else "makes no such leaps"
            assert kind in text
    assert only(load_suite(tmp_path / "s"), published, "acceptance_adaptive").remarks == {}


@pytest.mark.parametrize("suite", ["leap_verify_embedded", "leap_verify_embedded_lr5e-5"])
def test_the_front_page_compares_like_with_like(suite):
    """Ours over the checkpoints that the published ratios are over, not over all."""
    folder = PROJECT / "results/tables" / suite
    momentum = pd.read_csv(folder / "momentum_catastrophe.csv")
    momentum = momentum[(momentum["predictor"] == "momentum") & (momentum["protocol"] == "code")]
    momentum = momentum[~momentum["setting"].astype(str).str.contains("inline_leaps=true")]
    ratios = momentum.set_index(["regime", "K"])["ratio_of_means"]
    text = headline(folder, ["0123abc"])
    line = next(line for line in text.splitlines() if line.startswith("| `code` |"))
    shown = [float(cell.replace(",", "")) for cell in line.split("|")[2:5]]
    assert shown == pytest.approx([ratios["transition+stable", K] for K in (5, 25, 100)], rel=0.01, abs=0.01)
    assert "over the checkpoints of transition and stable alone" in text
    assert not momentum.loc[momentum["regime"] == "all", "published_ratio"].notna().any()


def test_catastrophe_by_hand(tmp_path, published):
    for seed, factor in ((0, 10), (1, 30)):
        run = write_run(tmp_path / "s", seed, ("momentum",), ("code",), **SMALL)
        found = rows(run, "proposals.jsonl")
        for row in found:
            if row["predictor"] == "momentum":
                row["loss_pred_nats"] = row["loss_now_nats"] * factor if row["step"] > 50 else None
        rewrite(run, "proposals.jsonl", found)
    frame = only(load_suite(tmp_path / "s"), published, "momentum_catastrophe").frame
    cell = frame.set_index(["predictor", "regime", "K"]).loc[("momentum", "all", 50)]
    assert cell["mean"] == pytest.approx(300**0.5) and cell["std"] == pytest.approx(200**0.5)
    assert 0 < cell["ci_low"] < 300**0.5 < cell["ci_high"]
    assert cell["ratio_median"] == pytest.approx(20) and cell["n_proposals"] == 14
    assert cell["nonfinite_pct"] == pytest.approx(100 / 7)
    assert cell["underflow_pct"] == pytest.approx(32)
    calm = frame.set_index(["predictor", "regime", "K"]).loc[("momentum", "transition+stable", 50)]
    assert calm["published_ratio"] == 2742 and calm["published_model"] == "gpt2-124m"
    assert {"persistence", "average"} <= set(frame["predictor"])


# Controls, published values, missing cells


def test_persistence_is_never_better_and_always_near(published):
    suite = load_suite(GOLDEN / "raw" / "tiny")
    for rule, rate in (("strict", 0), ("proximity", 100), ("adaptive", 100)):
        frame = only(suite, published, f"acceptance_{rule}").frame
        means = frame.loc[frame["predictor"] == "persistence", "mean"].dropna()
        assert len(means) and (means == rate).all(), rule
        assert {"persistence", "average"} <= set(frame["predictor"])


def test_no_rate_of_several_seeds_is_without_an_interval_or_a_point(published):
    """Of the committed runs: what every seed refuses has an upper bound in every table that shows rates."""
    suite = load_suite(GOLDEN / "raw" / "tiny")
    for name, prefixes in (("acceptance_strict", ("",)), ("consistency", ("",)), ("protocols", ("exact_", "code_"))):
        table = only(suite, published, name)
        for prefix in prefixes:
            frame = table.frame[table.frame[f"{prefix}n_seeds"] > 1]
            low, mean, high = (frame[f"{prefix}{column}"] for column in ("ci_low", "mean", "ci_high"))
            assert (low < high).all() and (low <= mean).all() and (mean <= high).all()
            assert (high[mean == 0] > 0).all() and (low[mean == 100] < 100).all() and (mean == 0).any()
        assert stats.RATE_INTERVAL in table.header
    # Three seeds, 7 proposals each: 7 / 1.6 count.
    frame = only(suite, published, "acceptance_strict").frame.set_index(["protocol", "regime", "predictor", "K"])
    cell = frame.loc[("exact", "all", "persistence", 5)]
    assert cell["n_proposals"] == 21 and cell["ci_high"] == pytest.approx(100 * (1 - 0.05 ** (1.6 / 21)))


def test_a_regime_is_counted_between_none_and_all_checkpoints(published):
    frame = only(load_suite(GOLDEN / "raw" / "tiny"), published, "regime_distribution").frame
    assert (frame["ci_low"].dropna() >= 0).all() and (frame["ci_high"].dropna() <= 8).all()
    unknown = frame[frame["regime"] == "unknown"]  # the first checkpoint of every run
    assert unknown["mean"].eq(1).all() and unknown["ci_low"].isna().all()


def test_published_values_stand_beside_ours(tmp_path, published):
    for model, name, value in (("gpt2", "gpt2-124m", 9.3), ("qwen2_5_1_5b", "qwen2.5-1.5b", 37.2)):
        write_run(tmp_path / "s", 0, K=(5, 75), model=model)
        frame = only(load_suite(tmp_path / "s"), published, "acceptance_strict").frame
        cell = frame.set_index(["model", "regime", "predictor", "K"]).loc[(model, "transition", "linear", 5)]
        assert (cell["published_mean"], cell["published_model"], cell["published_n"]) == (value, name, 5)
    cell = frame.set_index(["model", "regime", "predictor", "K"]).loc[("gpt2", "transition", "linear", 75)]
    assert pd.isna(cell["published_mean"]) and pd.isna(cell["published_model"])


def test_cells_are_counted(tmp_path, published):
    for seed in range(2):
        write_run(tmp_path / "s", seed, **SMALL)
    table = only(load_suite(tmp_path / "s"), published, "acceptance_strict")
    assert table.summary == "8 cells (2 predictors x 2 K x 2 seeds) + 8 control cells"
    assert len(table.per_seed) == 16 and set(table.per_seed["status"]) == {"completed"}


def test_a_cell_without_records_is_shown_as_missing(tmp_path, published):
    run = write_run(tmp_path / "s", 0, skipped={"quadratic": "needs three snapshots"}, **SMALL)
    kept = [row for row in rows(run, "proposals.jsonl") if row["predictor"] != "quadratic"]
    rewrite(run, "proposals.jsonl", kept)
    suite = load_suite(tmp_path / "s")
    table = only(suite, published, "acceptance_strict")
    gone = table.frame[table.frame["predictor"] == "quadratic"]
    assert len(gone) == 4 * 2 and gone["mean"].isna().all() and gone["n_proposals"].isna().all()
    assert table.summary.endswith("2 of them missing")
    tables.write(table, suite, tmp_path)
    text = (tmp_path / "acceptance_strict.md").read_text()
    assert "missing" in text and "needs three snapshots" in text
    line = next(
        x for x in (tmp_path / "acceptance_strict.csv").read_text().splitlines() if "transition,50,quadratic" in x
    )
    assert ",quadratic,,,,,0,,," in line


def test_a_regime_that_never_came_is_not_missing(tmp_path, published):
    run = write_run(tmp_path / "s", 0, **SMALL)
    for file in ("proposals.jsonl", "regimes.jsonl"):
        rewrite(run, file, [{**row, "regime": "transition"} for row in rows(run, file)])
    frame = only(load_suite(tmp_path / "s"), published, "acceptance_strict").frame
    chaotic = frame[frame["regime"] == "chaotic"]
    assert (chaotic["n_proposals"] == 0).all() and (chaotic["n_seeds"] == 0).all() and chaotic["mean"].isna().all()


def test_runs_that_do_not_count_are_listed_and_left_out(tmp_path, published):
    write_run(tmp_path / "s", 0, **SMALL)
    diverged = write_run(tmp_path / "s", 1, **SMALL, status="diverged", reason="loss is not finite at step 9")
    partial = write_run(tmp_path / "s", 2, **SMALL, status=None)
    failed = write_run(tmp_path / "s", 3, **SMALL, status="failed", reason="Traceback\n  deep\nValueError: boom")
    killed = tmp_path / "s" / "000000000000"
    killed.mkdir()
    suite = load_suite(tmp_path / "s")
    table = only(suite, published, "acceptance_strict")
    assert table.frame["n_seeds"].max() == 1
    tables.write(table, suite, tmp_path)
    text = (tmp_path / "acceptance_strict.md").read_text()
    for run, words in (
        (diverged, "diverged"), (diverged, "not finite at step 9"), (partial, "partial"), (failed, "boom"),
            (killed, "partial"),
    ):  # fmt: skip
        assert any(run.name in line and words in line for line in text.splitlines()), words
    assert "1 of 4 seeds" in text
    assert table.summary.endswith("24 of them missing")


# Several runs of one training


def test_shared_rows_count_once(tmp_path, published):
    for predictor in ("linear", "quadratic"):
        write_run(tmp_path / "s", 0, (predictor,), **SMALL)
    suite = load_suite(tmp_path / "s")
    assert suite.runs["trajectory"].nunique() == 1 and len(suite.runs) == 2
    key = ["step", "protocol", "predictor", "K"]
    shared = rows(next((tmp_path / "s").iterdir()), "regimes.jsonl")
    with pytest.raises(RecordError, match=r"share a training but their proposals.jsonl differ at step="):
        assert not suite.proposals.duplicated(key).any()
    runs = sorted((tmp_path / "s").iterdir())
    first, second = (rows(run, "proposals.jsonl") for run in runs)
    known = {tuple(row[k] for k in key): row for row in first}
    rewrite(runs[1], "proposals.jsonl", [known.get(tuple(row[k] for k in key), row) for row in second])
    suite = load_suite(tmp_path / "s")
    assert not suite.proposals.duplicated(key).any()
    assert set(suite.proposals["predictor"]) == {"linear", "quadratic", "persistence", "average"}
    assert len(suite.regimes) == len(shared)
    assert len(suite.evals) == 17  # eight of each of two splits, and validation at the end


def test_other_settings_are_other_workloads(tmp_path, published):
    write_run(tmp_path / "s", 0, **SMALL)
    write_run(tmp_path / "s", 0, **SMALL, lr=0.01)
    write_run(tmp_path / "s", 0, **SMALL, extra={"train.batch_size": 16})
    frame = only(load_suite(tmp_path / "s"), published, "acceptance_strict").frame
    pairs = frame[["lr", "setting"]].drop_duplicates().to_records(index=False).tolist()
    assert pairs == [(0.001, "train.batch_size=16"), (0.001, "train.batch_size=8"), (0.01, "")]
    assert frame["n_seeds"].max() == 1


# Broken records


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"step": 50, "prot', "not readable as JSON"), ('{"step": 50, "protocol": "exact"}', "no predictor"),
        ('{"step": 1.5, "protocol": "exact", "predictor": "a", "K": 5}', "step=1.5 is not of type int"),
        ("", "not readable as JSON"), ('{"step": 5, "protocol": "x", "predictor": "a", "K": 5, "cosine": NaN}', "JSON"),
    ],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line, words):
    run = write_run(tmp_path / "s", 0, **SMALL)
    path = run / "proposals.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], line, *lines[6:]]) + "\n")
    reseal(run)
    (reason,) = load_suite(tmp_path / "s").runs["reason"]
    assert f"{path}:7: " in reason and words in reason and "\n" not in reason


def test_an_unfinished_last_line_is_a_fault_of_complete_runs_only(tmp_path):
    run = write_run(tmp_path / "s", 0, **SMALL, status=None)
    assert (load_suite(tmp_path / "s").runs["status"] == "partial").all()
    n = len((run / "proposals.jsonl").read_text().splitlines())
    (run / "regimes.jsonl").unlink(), (run / "evals.jsonl").unlink()
    (run / "summary.json").write_text('{"status": "completed"}')
    reseal(run)
    (reason,) = load_suite(tmp_path / "s").runs["reason"]
    assert f"proposals.jsonl:{n}: not readable" in reason


def test_rules_missing_from_a_config_are_named(tmp_path):
    run = write_run(tmp_path / "s", 0, **SMALL)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["science"]["protocols"]["exact"]["rules"]["proximity"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    reseal(run)
    with pytest.raises(RecordError, match=r"config.yaml: no 'proximity' under"):
        score(load_suite(tmp_path / "s"))


# Other tables and scripts


def test_cascade_and_landscape(tmp_path, published):
    for seed in range(2):
        write_run(tmp_path / "s", seed, cascade=True, landscape=True)
    suite = load_suite(tmp_path / "s")
    names = [table.name for table in tables.build(suite, published)]
    assert {"cascade", "landscape"} <= set(names) and "protocols" not in names
    chain = only(suite, published, "cascade").frame
    assert len(chain) == 4 * 6 and set(chain["n_seeds"]) == {2}
    still = chain[chain["predictor"] == "persistence"]
    assert still["rel_l2_drift"].eq(0).all()
    along = only(suite, published, "landscape").frame
    assert along.loc[along["predictor"] == "persistence", "mean"].eq(0).all()


def test_a_suite_without_predictors_has_regimes_only(tmp_path, published):
    write_run(tmp_path / "s", 0, (), ("exact", "code"), **SMALL)
    suite = load_suite(tmp_path / "s")
    assert [table.name for table in tables.build(suite, published)] == ["regime_distribution"]
    for name in tables.TABLES:
        table = only(suite, published, name)
        assert len(table.frame) == (8 if name == "regime_distribution" else 0)
        tables.write(table, suite, tmp_path)
        tables.console(table, compact=False)


def test_consistency_is_the_coefficient_of_variation(published):
    suite = load_suite(GOLDEN / "raw" / "tiny")
    frame = only(suite, published, "consistency").frame
    known = frame.dropna(subset=["cov_pct"])
    assert len(known) and np.allclose(known["cov_pct"], 100 * known["std"] / known["mean"])


def test_protocols_stand_side_by_side(published):
    frame = only(load_suite(GOLDEN / "raw" / "tiny"), published, "protocols").frame
    cell = frame.set_index(["rule", "regime", "predictor", "K"]).loc[("proximity", "all", "momentum", 100)]
    assert cell["code_mean"] == 0 and cell["exact_n_seeds"] == cell["code_n_seeds"] == 3


def test_aggregate_script(tmp_path, monkeypatch):
    tiny = ["--suite", "tiny", "--results", str(GOLDEN / "raw"), "--out", str(tmp_path)]
    status, said, _ = script(monkeypatch, "aggregate", *tiny)
    assert status == 0
    assert "acceptance_strict: 40 cells (2 protocols x 2 predictors x 2 K x 5 seeds) + 40 control cells" in said
    assert "not counted: diverged" in said and "acceptance_strict.md" in said
    assert (tmp_path / "tables/tiny/acceptance_strict.tex").read_text().count(r"\toprule") == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--suite", "none"], "no such suite"), (["--only", "nothing"], "no table 'nothing'"), ([], "no suites")],
)
def test_aggregate_script_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, more, words):
    results = GOLDEN / "raw" if "--only" in more else tmp_path
    end = script(monkeypatch, "aggregate", "--results", str(results), "--out", str(tmp_path), *more)
    lines = (end.err if end.status == 1 else end.status).splitlines()
    assert lines and all(line.startswith("error: ") and words in line for line in lines)


def test_report_script_links_what_it_wrote(tmp_path, monkeypatch):
    for seed in range(2):
        write_run(tmp_path / "raw" / "s", seed, (), K=(50,), steps=400)
    assert script(monkeypatch, "report", "--results", str(tmp_path / "raw"), "--out", str(tmp_path)).status == 0
    page = tmp_path / "tables" / "s" / "README.md"
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert len(links) > 3 and all((page.parent / link).is_file() for link in links)
    assert "| completed | 2 | 0123abc |" in page.read_text()


def test_calibrate_script(tmp_path, monkeypatch):
    out = tmp_path / "c.yaml"
    tiny = ("--suite", "tiny", "--results", str(GOLDEN / "raw"), "--out", str(out))
    assert script(monkeypatch, "calibrate", *tiny).status == 0
    found = yaml.safe_load(out.read_text())
    assert found["source"]["seeds"] == [0, 1, 2] and found["source"]["percentiles"] == [70, 30]
    run = next(r for r in found["source"]["run_ids"] if _seed(r) == 0)
    code = [row for row in rows(GOLDEN / "raw" / "tiny" / run, "regimes.jsonl") if row["protocol"] == "code"]
    similarity = [row["similarity"] for row in code if row["similarity"] is not None]
    assert found["protocols"]["code"]["tau_high"][0] == pytest.approx(np.percentile(similarity, 70))
    assert found["protocols"]["code"]["tau_low"][0] == pytest.approx(np.percentile(similarity, 30))


def _seed(run: str) -> int:
    return yaml.safe_load((GOLDEN / "raw" / "tiny" / run / "config.yaml").read_text())["science"]["seed"]
