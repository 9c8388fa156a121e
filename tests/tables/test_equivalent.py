"""Equivalent budgets on invented suites: what is known by construction, null laws, and what is missing."""

import functools
import re
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from leapbench import tables
from leapbench.figures import write_figures
from leapbench.names import PROJECT
from leapbench.records.read import load_suite
from leapbench.records.rows import RecordError
from leapbench.tables import equivalent
from leapbench.tables.acceptance import score
from leapbench.tables.compare import bootstrap_factor
from leapbench.tables.curve import ABOVE, BELOW, Curve, fit
from leapbench.tables.equivalent import equivalent_budget
from leapbench.tables.fixed_targets import fixed_targets, performance_profile, share_within
from leapbench.tables.judged import OTHER_SEEDS, PLAIN, Intended, Judged, judged
from leapbench.tables.reference_curve import reference_curve
from leapbench.tables.trials import trials_of

sys.path.insert(0, str(Path(__file__).parent))

from budgets import NULL_SEEDS, SEEDS, SHARES, B, Lab, law, own_steps

GOLDEN = Path(__file__).parent / "golden"
LOW = "plain training, 0.71 B"


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(equivalent, "bootstrap_factor", functools.partial(bootstrap_factor, resamples=200))


@pytest.fixture(scope="module")
def published():
    return tables.load_published(PROJECT / "results" / "published")


def parts_of(lab: Lab, plan: Intended | None = None, cost=own_steps) -> list[Judged]:
    return judged(lab.suite(), cost, plan or Intended())


def made(lab: Lab, plan: Intended | None = None, cost=own_steps):
    table = equivalent_budget(parts_of(lab, plan, cost))
    return table, table.frame.set_index("row")


# ---- the curve -------------------------------------------------------------------------------------------------------


def test_the_inverse_of_the_curve_is_its_inverse():
    curve = Curve(SHARES, tuple(map(law, SHARES)))
    for budget in (0.35, 0.4, 0.71, 1.0, 1.2, 1.9, 2.0):
        assert curve.budget_of(curve.loss_at(budget)) == pytest.approx(budget, rel=1e-6)
        assert curve.loss_at(budget) == pytest.approx(law(budget), abs=1e-3)
    assert curve.budget_of(law(0.3)) == BELOW and curve.budget_of(law(2.2)) == ABOVE
    assert np.isnan(curve.budget_of(np.nan)) and np.isnan(curve.loss_at(3.0))
    assert (curve.within(BELOW), curve.within(0.8), curve.within(ABOVE)) == (0.35, 0.8, 2.0)


def test_losses_that_rise_with_the_budget_are_pooled():
    curve = Curve((0.5, 0.7, 1.0, 1.4), (1.8, 1.6, 1.7, 1.5))
    assert curve.monotone.tolist() == pytest.approx([1.8, 1.65, 1.65, 1.5])
    assert curve.budget_of(1.65) == pytest.approx(0.7)  # the smallest budget with this loss
    assert (np.diff(curve.line[1]) <= 0).all()
    assert curve.budget_of(1.6499) > 1.0 and curve.budget_of(1.6501) < 0.7


def test_intervals_cover_about_95_percent():
    """30 experiments of 10 seeds; at 95 % fewer than 25 hits would come once in 300 times."""
    rng, noise, common, hits = np.random.default_rng(3), 0.004, 0.5, 0
    for _ in range(30):
        seed_part = rng.normal(size=10)

        def sample(budget, seed_part=seed_part):
            errors = np.sqrt(common) * seed_part + np.sqrt(1 - common) * rng.normal(size=10)
            return dict(enumerate(law(budget) + noise * errors))

        curve = {share: sample(share) for share in SHARES}
        factor = bootstrap_factor(sample(1.1), dict.fromkeys(range(10), 1.0), curve, fit, resamples=200)
        hits += factor.low <= 1.1 <= factor.high
    assert hits >= 25


# ---- factors ---------------------------------------------------------------------------------------------------------


def test_plain_training_of_another_budget_under_a_methods_name_has_that_factor():
    lab = Lab().curve()
    for seed in SEEDS:
        lab.run(seed, law(1.25), "linear")
        lab.run(seed, law(1.25), "trend", overhead=0.1)
        lab.run(seed, law(0.9 * 1.25), "pdt", steps=900)
    _, rows = made(lab)
    assert rows.loc["linear strict", ["equivalent_budget", "factor_steps", "factor_charged"]].tolist() == pytest.approx(
        [1.25] * 3, abs=0.005
    )
    assert rows.loc["trend strict", "factor_steps"] == pytest.approx(1.25, abs=0.005)
    assert rows.loc["trend strict", "factor_charged"] == pytest.approx(1.25 / 1.1, abs=0.005)
    assert rows.loc["pdt strict", "equivalent_budget"] == pytest.approx(1.125, abs=0.005)
    assert rows.loc["pdt strict", "factor_charged"] == pytest.approx(1.25, abs=0.005)
    assert rows.loc[PLAIN, ["equivalent_budget", "factor_steps", "factor_charged"]].tolist() == [1, 1, 1]
    assert list(rows.index)[-1] == PLAIN  # sorted by the charged factor


def test_costs_are_in_steps_of_the_reference_optimizer():
    """A step of muon costs 1.4: its own curve and its methods cost more alike, so factors stay and costs do not."""
    lab = Lab().curve(optimizer="muon").curve()
    for seed in SEEDS:
        lab.run(seed, law(1.25), "linear", optimizer="muon", overhead=0.1)
        lab.run(seed, law(1.25), "linear", overhead=0.1)

    def cost(suite):
        costs = own_steps(suite)
        muon = costs["run_id"].map(suite.runs.set_index("run_id")["optimizer"]) == "muon"
        return costs.assign(cost=costs["cost"] * np.where(muon, 1.4, 1.0))

    table = equivalent_budget(parts_of(lab, cost=cost))
    frame = table.frame.set_index(["optimizer", "row"])
    for optimizer, unit in (("adamw", 1000), ("muon", 1400)):
        row = frame.loc[(optimizer, "linear strict")]
        assert row["factor_charged"] == pytest.approx(1.25 / 1.1, abs=0.005)
        assert row["factor_steps"] == pytest.approx(1.25, abs=0.005)
        assert row["cost"] == pytest.approx(1.1 * unit) and frame.loc[(optimizer, PLAIN), "cost"] == unit


def test_verdicts_follow_the_decision_rule():
    lab = Lab(noise=0.003).curve()
    lab.method("linear", 1.25).method("trend", 0.8).method("pdt", 1.05).method("quadratic", 1.4, seeds=range(5))
    table, rows = made(lab)
    assert rows["verdict"].to_dict() == {
        "quadratic strict": "undecided", "linear strict": "faster", "pdt strict": "undecided", PLAIN: "",
        "trend strict": "slower",
    }  # fmt: skip
    assert rows.loc["linear strict", "factor_charged_ci_low"] > 1 > rows.loc["trend strict", "factor_charged_ci_high"]
    assert rows.loc["linear strict", "p"] == pytest.approx(2 / 2**10)
    assert rows.loc["linear strict", "p_holm"] == pytest.approx(4 * 2 / 2**10)
    assert rows.loc["quadratic strict", "p"] == pytest.approx(2 / 2**5)
    assert np.isnan(rows.loc[PLAIN, "p"])
    assert "1 of 4 methods cannot be decided: so few seeds give no p below 0.05." in table.remarks[str(*table.remarks)]
    assert table.summary == "4 methods: 1 faster, 1 slower, 2 undecided; 0 controls" and not table.problems
    cells = table.per_seed[table.per_seed["row"] == "linear strict"]
    assert len(cells) == 10 and cells["factor_charged"].median() == pytest.approx(1.19, abs=0.05)


def test_what_a_seed_does_to_all_runs_alike_cancels():
    lab = Lab(noise=0.02, common=0.999).curve().method("linear", 1.02, overhead=0.0)
    _, rows = made(lab)
    row = rows.loc["linear strict"]
    assert (
        row["factor_charged_ci_high"] - row["factor_charged_ci_low"] < 0.03 < 0.02 / 0.15
    )  # what the noise alone would make of the factors
    assert row["p"] < 0.01


def test_outside_the_curve_there_is_no_number(tmp_path):
    lab = Lab(noise=0.001).curve().method("linear", 4.0).method("trend", 0.2)
    table, rows = made(lab)
    above, below = rows.loc["linear strict"], rows.loc["trend strict"]
    assert (above["outside"], below["outside"]) == ("above", "below")
    assert rows.loc[["linear strict", "trend strict"], ["equivalent_budget", "factor_charged"]].isna().all(axis=None)
    assert list(rows.index) == ["linear strict", PLAIN, "trend strict"]
    assert (above["verdict"], below["verdict"]) == ("faster", "slower")
    tables.write(table, lab.suite(), tmp_path)
    text = (tmp_path / "equivalent_budget.md").read_text()
    assert "| > 2.000" in text and "| < 0.350" in text and f"> {2 / 0.945:.3f}" in text
    assert not re.search(r"\binf\b", text + (tmp_path / "equivalent_budget.csv").read_text())


def test_an_interval_may_leave_the_curve():
    row = {"outside": "", "f": 1.9, "f_ci_low": 1.7, "f_ci_high": np.nan, "f_least": 0.33, "f_most": 2.1}
    assert equivalent.factor_text(row, "f") == "1.900 [1.700, > 2.100]"
    assert equivalent.factor_text(row, "f", brief=True) == "1.900"
    row |= {"f": 0.4, "f_ci_low": np.nan, "f_ci_high": 0.5}
    assert equivalent.factor_text(row, "f") == "0.400 [< 0.330, 0.500]"


def test_a_row_of_which_a_seed_diverged_is_never_faster():
    lab = Lab(noise=0.003).curve().method("linear", 1.3, seeds=range(1, 10))
    lab.run(0, 9.9, "linear", status="diverged")
    table, rows = made(lab)
    row = rows.loc["linear strict"]
    assert (row["n_seeds"], row["diverged"], row["verdict"], row["outside"]) == (9, 1, "diverged", "below")
    body = table.body(table.frame, False).set_index("method")
    assert body.loc["linear strict", "seeds"] == "9 + 1 diverged" and body.loc["linear strict", "E/B"] == "< 0.350"


def test_verification_chooses_among_plain_rows():
    """The better row on validation is the worse one on verification, and is not taken."""
    lab = Lab().curve()
    for seed in SEEDS:
        lab.run(seed, law(1.0) - 0.1, lr=5e-4, verification=law(1.0) + 0.1)
        lab.run(seed, law(1.0), "linear")
    (part,) = parts_of(lab)
    point = part.points.set_index("budget").loc[B]
    assert point["lr"] == 1e-3 and point["loss_nats"] == pytest.approx(law(1.0))
    assert PLAIN in part.rows() and len(part.rows()[PLAIN]) == 10
    frame = reference_curve([part]).frame
    assert frame["share"].tolist() == list(SHARES) and frame["n_seeds"].eq(10).all()


def test_a_wrapper_is_a_method_without_a_predictor():
    lab = Lab(noise=0.003).curve().method("linear", 1.0)
    for seed in SEEDS:
        lab.run(seed, law(1.3), wrapper="ema")
    _, rows = made(lab)
    assert rows.loc["ema", "kind"] == "method" and rows.loc["ema", "factor_steps"] == pytest.approx(1.3, abs=0.05)


def test_trials_and_edges_of_the_tuning():
    parts = parts_of(Lab(noise=0.003).curve().method("linear", 1.1).method("trend", 1.0))
    tuning = pd.DataFrame({"row": ["linear strict", PLAIN], "trials": [24, 26], "at_edge": [True, False]})
    table = equivalent_budget(parts, tuning)
    body = table.body(table.frame, False).set_index("method")["trials"]
    assert body.to_dict() == {"linear strict": "24 (edge)", PLAIN: "26", "trend strict": ""}


# ---- null laws -------------------------------------------------------------------------------------------------------


def test_null_laws_hold_on_null_data(tmp_path):
    lab = Lab(noise=0.003).curve().nulls()
    table, rows = made(lab)
    assert not table.problems
    (lines,) = table.remarks.values()
    held = [line for line in lines if line.startswith("Null law holds")]
    assert len(held) == 4 and not any("violated" in line or "not checked" in line for line in lines)
    assert "at every step (10 of 10 seeds, 100 evaluations)" in held[0]
    assert "1 minus its overhead is 0.962" in held[1] and "half-width" in held[3] and "n = 10" in held[3]
    assert rows.loc["persistence strict", "factor_charged"] == pytest.approx(1 / 1.04, abs=1e-6)
    assert rows.loc[[OTHER_SEEDS, LOW, "persistence strict"], "kind"].eq("control").all()
    assert rows.loc[[OTHER_SEEDS, LOW], "factor_charged"].tolist() == pytest.approx([1, 1], abs=0.03)
    assert rows["verdict"].eq("").all()
    body = table.body(table.frame, False)
    assert f"{LOW} (control)" in set(body["method"])


def test_the_same_seeds_are_no_null_control_but_the_plan_may_say_otherwise():
    lab = Lab(noise=0.003).curve(seeds=range(15)).method("linear", 1.0)
    for seed in SEEDS:
        lab.run(seed, lab.finals()[seed], "persistence")
    _, rows = made(lab)  # the methods' seeds make the curve
    assert rows.loc[OTHER_SEEDS, "n_seeds"] == 5 and rows.loc[PLAIN, "n_seeds"] == 10
    _, rows = made(lab, Intended(curve_seeds=frozenset(range(12))))
    assert rows.loc[OTHER_SEEDS, "n_seeds"] == 3 and rows.loc[PLAIN, "n_seeds"] == 12
    table, rows = made(lab, Intended(curve_seeds=frozenset(range(15))))
    assert OTHER_SEEDS not in rows.index
    (lines,) = table.remarks.values()
    assert sum("Null law not checked: no plain training" in line for line in lines) == 2 and not table.problems


def violations(lab: Lab) -> list[str]:
    table, _ = made(lab)
    (lines,) = table.remarks.values()
    assert len(table.problems) == sum(line.startswith("**Null law violated") for line in lines)
    assert all("\n" not in line for line in table.problems)
    return table.problems


def test_plain_training_that_is_worse_than_itself_violates_a_null_law(tmp_path):
    lab = Lab(noise=0.003).curve().nulls(worse=0.03)
    found = violations(lab)
    assert len(found) == 2 and all("outside the interval" in line for line in found)
    assert {name for name in (OTHER_SEEDS, LOW) for line in found if f"`{name}`" in line} == {OTHER_SEEDS, LOW}
    table, _ = made(lab)
    tables.write(table, lab.suite(), tmp_path)
    text = (tmp_path / "equivalent_budget.md").read_text()
    assert text.index("outside the interval") < text.index("Decision rule")  # at the top


def test_persistence_with_another_loss_violates_a_null_law():
    lab = Lab(noise=0.003).curve().nulls()
    row = next(row for row in reversed(lab.evals) if row["split"] == "validation" and row["step"] == 500)
    row["loss_nats"] += 0.25  # on the way of one persistence run
    (line,) = violations(lab)
    assert "`persistence strict` changes no weight" in line and "first at step 500, by up to 0.25 nats" in line


def test_persistence_that_is_better_than_plain_training_violates_a_null_law():
    lab = Lab(noise=0.003).curve().nulls()
    for row in lab.evals:
        if row["step"] == B and lab.configs[row["run_id"]]["predictors"]:
            row["loss_nats"] -= 0.05
    found = violations(lab)
    assert len(found) == 2 and "1 minus its overhead is 0.962, outside the interval" in found[1]


def test_noise_that_hides_four_percent_violates_a_null_law():
    (line,) = violations(Lab(noise=0.02, rng=1).curve().nulls(shares=(1.0,)))
    assert "half-width" in line and "for 10 seeds it may be 4%" in line


def test_persistence_that_was_tuned_elsewhere_is_not_compared_step_for_step():
    lab = Lab(noise=0.003).curve().method("linear", 1.0)
    for seed in SEEDS:
        lab.run(seed, lab.finals()[seed], "persistence", lr=5e-4)
    table, _ = made(lab)
    (lines,) = table.remarks.values()
    assert any("not checked step for step: no plain training with the settings of `persistence" in x for x in lines)


# ---- what is missing -------------------------------------------------------------------------------------------------


def no_bench(suite):
    raise RecordError("no bench_cost.csv; run make bench")


@pytest.mark.parametrize(
    ("shares", "change", "words"),
    [
        (SHARES, lambda lab: lab.run(0, 9.0, share=0.6, status="diverged"), "has a hole at 600 steps"),
        (SHARES[:2], lambda lab: None, "has 2 budgets (350, 500 steps) and needs 3"),
        ((0.35, 0.5, 0.71, 1.41), lambda lab: None, "no point at the methods' own budget, 1000 steps"),
        (SHARES, lambda lab: lab.run(3, 1.5, "linear", share=0.8), "methods have budgets of 800, 1000 steps"),
    ],
)
def test_a_curve_that_cannot_be_used_is_one_line(tmp_path, shares, change, words):
    lab = Lab(noise=0.003).curve(shares).method("linear", 1.1)
    change(lab)
    table, rows = made(lab)
    assert any(words in line for line in table.problems) and all("\n" not in line for line in table.problems)
    assert all(
        line.startswith("invented: gpt2_nano, stdlib, 1000 steps of 16 x 128 tokens, adamw: ")
        for line in table.problems
    )
    assert rows["factor_charged"].isna().all() and set(rows["verdict"]) == {""}
    tables.write(table, lab.suite(), tmp_path)
    assert "missing" in (tmp_path / "equivalent_budget.md").read_text()
    assert fixed_targets(parts_of(lab)).frame.empty


def test_a_budget_of_the_plan_that_was_not_run_is_a_hole():
    lab = Lab(noise=0.003).curve((0.35, 0.71, 1.0)).method("linear", 1.1)
    assert not made(lab)[0].problems
    (line,) = made(lab, Intended(budgets=(0.35, 0.5, 0.707, 1.0)))[0].problems  # 707 is 710 but for rounding
    assert "has a hole at 500 steps" in line


def test_methods_without_their_optimizers_curve_are_one_line():
    lab = Lab(noise=0.003).curve().method("linear", 1.1).method("linear", 1.2, optimizer="muon")
    table, _ = made(lab, Intended(budgets=SHARES))
    (line,) = table.problems
    assert "methods of muon have no reference curve; run plain training of muon at several budgets" in line
    frame = table.frame.set_index(["optimizer", "row"])
    assert np.isnan(frame.loc[("muon", "linear strict"), "factor_charged"])
    assert frame.loc[("adamw", "linear strict"), "factor_charged"] > 1


def test_runs_without_a_cost_are_one_line():
    table, rows = made(Lab(noise=0.003).curve().method("linear", 1.1), cost=no_bench)
    (line,) = table.problems
    assert line.endswith("no cost in baseline steps: no bench_cost.csv; run make bench")
    assert rows["factor_charged"].isna().all()


def test_a_suite_without_a_curve_has_no_such_table(published):
    suite = load_suite(GOLDEN / "raw" / "tiny_leap")
    assert not {table.name for table in tables.build(suite, published)} & set(tables.BUDGETED)
    one_budget = Lab(noise=0.003).curve((1.0,)).method("linear", 1.1).suite()
    only_plain = Lab(noise=0.003).curve().suite()
    for empty in (suite, one_budget, only_plain):
        for name in tables.BUDGETED:
            (table,) = tables.build(empty, published, name)
            assert table.frame.empty and not table.problems


# ---- fixed targets ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def targets():
    """`linear` is at the loss of half of B at 300 steps and at B's at 800; `trend` reaches the first only, at 900."""
    lab, high, middle, low = Lab().curve(), law(0.5), law(0.71), law(1.0)
    for seed in SEEDS:
        falling = [3.0, 2.0, high, 1.62, 1.6, middle, 1.52, low, low, 1.4]
        lab.run(seed, 1.4, "linear", overhead=0.2, losses=falling)
        lab.run(seed, 1.4, "trend", losses=[3.0] * 8 + [1.61, 1.6])
    return fixed_targets(parts_of(lab))


def test_cost_to_fixed_targets_by_hand(targets):
    cost = targets.frame.set_index(["row", "share"])["cost"]
    assert cost["linear strict"].to_dict() == pytest.approx({0.5: 360, 0.71: 720, 1.0: 960}, rel=1e-6)
    assert cost["trend strict", 0.5] == pytest.approx(900) and cost["trend strict"].isna().sum() == 2
    assert cost[PLAIN, 1.0] == pytest.approx(1000)  # its own mean, which half of its seeds miss where there is noise
    assert targets.frame.set_index(["row", "share"]).loc[("trend strict", 1.0), "reached"] == 0
    assert len(targets.per_seed) == 3 * 3 * 10 and targets.per_seed["cost"].isna().sum() == 20
    body = targets.body(targets.frame, False).set_index("method")
    assert "- (0/10)" in body.loc["trend strict"].to_list()


def test_plain_training_reaches_its_own_mean_although_half_of_its_seeds_do_not():
    lab = Lab(noise=0.01, rng=4).curve().method("linear", 1.0)
    frame = fixed_targets(parts_of(lab)).frame.set_index(["row", "share"])
    row = frame.loc[(PLAIN, 1.0)]
    assert 0 < row["reached"] < 10 and row["cost"] == pytest.approx(1000)


def test_the_performance_profile_by_hand(targets):
    table = performance_profile(targets.frame)
    rows = {name: part for name, part in table.frame.groupby("row")}
    assert share_within(rows["linear strict"], 1.0) == 1
    assert share_within(rows[PLAIN], 1.0) == 0 and share_within(rows[PLAIN], 1.05) == pytest.approx(1 / 3)
    assert share_within(rows["trend strict"], 100) == pytest.approx(1 / 3)
    assert (table.frame["pairs"] == 3).all()
    body = table.body(table.frame, False)
    assert body["method"].tolist()[0] == "linear strict" and body["tau = 1"].tolist()[0] == "1.000"


# ---- through the doors -----------------------------------------------------------------------------------------------


def test_tables_and_figures_of_a_suite(tmp_path, published):
    lab = Lab(noise=0.003).curve().nulls().method("linear", 1.2).method("trend", 3.0)
    suite = lab.suite()
    suite_tables = tables.build(suite, published)
    assert [table.name for table in suite_tables] == [*tables.BUDGETED, "time_to_baseline"]
    assert suite_tables[-1].frame["total_steps"].eq(B).all()  # the points of the curve are no workloads of their own
    for table in suite_tables:
        tables.write(table, suite, tmp_path)
        tables.console(table, compact=True)
    assert (tmp_path / "equivalent_budget_cells.csv").is_file() and (tmp_path / "fixed_targets_cells.csv").is_file()
    paths = write_figures(suite, score(suite.part("observe")), suite_tables, published, tmp_path)
    names = {path.name for path in paths}
    assert {
        f"{stem}__invented.png" for stem in ("equivalent_budget", "reference_curve", "performance_profile")
    } <= names
    for path in paths:
        assert matplotlib.image.imread(path)[..., :3].std() > 0.02, path.name
    assert set(NULL_SEEDS).isdisjoint(SEEDS)


# ---- what was spent on finding the settings --------------------------------------------------------------------------


def test_trials_come_from_the_suites_own_file(tmp_path):
    assert trials_of(tmp_path / "none.yaml") == (Intended(), None)
    path = tmp_path / "suite.yaml"
    path.write_text("""
plan: {budgets: [0.5, 1], curve_seeds: [0, 1]}
entries:
- {row: none, optimizer: muon, budget: 1, tried: [1, 2, 3], at_edge: [optimizer.lr], like: null}
- {row: none, optimizer: muon, budget: 0.5, tried: [1], at_edge: [], like: null}
- {row: persistence strict, optimizer: muon, budget: 1, tried: [], at_edge: [], like: none}
""")
    plan, tuning = trials_of(path)
    assert plan == Intended((0.5, 1), frozenset({0, 1}))
    assert tuning.to_dict("records") == [
        {"row": "plain training", "optimizer": "muon", "trials": 3, "at_edge": "optimizer.lr"},
        {"row": "persistence strict", "optimizer": "muon", "trials": 3, "at_edge": "optimizer.lr"},
    ]
    path.write_text("nonsense")
    with pytest.raises(RecordError, match=r"suite\.yaml cannot be read"):
        trials_of(path)
