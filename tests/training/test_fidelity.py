"""Against slow transcriptions of the published code: schedule, leaps in the training, sweep, cascades, landscape."""

import json
from types import SimpleNamespace

import pytest
import torch

import published as twin
from helpers import by_cell, captured, config_of, flat, interrupted, records, rows
from leapbench.config.choices import Probes
from leapbench.config.errors import ConfigError
from leapbench.models.causal_lm import build
from leapbench.names import CASCADE, EVALS, LANDSCAPE, LEAPS, PROPOSALS, REGIMES, SUMMARY
from leapbench.training.cascade import Start, Starts
from leapbench.training.parts import check_contexts
from leapbench.training.run import run
from leapbench.training.schedule import factor_at
from leapbench.training.workload import Workload, seed_of

STEPS, INTERVAL, HORIZONS, CHAINS = 88, 8, (3, 8, 12, 13), [[3, 5], [2, 8]]
TAU_LOW, TAU_HIGH, CONFIRM = 0.75, 0.94, 2
PUBLISHED = (
    "predictor=[linear,quadratic,momentum]", "protocol=code", f"train.steps={STEPS}", f"train.interval={INTERVAL}",
    f"K={list(HORIZONS)}".replace(" ", ""), "schedule.warmup=10", "schedule.warmup_begins=at",
    "schedule.floor_form=clamped", "schedule.floor=0.1", "optimizer.lr=3e-3", "verify.sequences=4",
    f"regime.tau_low=[{TAU_LOW}]", f"regime.tau_high=[{TAU_HIGH}]", f"regime.confirm={CONFIRM}",
    "cascade.enabled=true", f"cascade.chains={CHAINS}".replace(" ", ""), "landscape.enabled=true",
)  # fmt: skip


def rate_at(step):
    return twin.leap_verify_rate(step, 3e-3, 10, STEPS)


def twin_of(config, workload, inline):
    """The published three passes on the same data, network and thresholds."""
    model = build(config.model, 256, 16, seed_of(config, "init"), "scratch")
    texts = [list(text.encode())[:16] for text in twin.leap_verify_prompts()]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    trained = twin.leap_verify_pass1(
        model, workload, lambda model: twin.leap_verify_fingerprint(model, ids, mask), rate_at, STEPS, INTERVAL,
        TAU_LOW, TAU_HIGH, CONFIRM, 5 if inline else None,
    )  # fmt: skip

    def loss_of(weights):
        twin.put(model, weights)
        return workload.verification_loss(model.eval())

    return SimpleNamespace(
        trained=trained,
        sweep=list(twin.leap_verify_pass2(trained.stored, loss_of, HORIZONS, STEPS, INTERVAL)),
        landscape=list(twin.leap_verify_landscape(trained.stored, loss_of, (0.25, 0.5, 1.0), STEPS)),
        cascades=list(twin.leap_verify_pass3(trained.stored, model, workload, rate_at, CHAINS, STEPS)),
    )


@pytest.fixture(scope="module", params=[True, False], ids=["inline leaps", "no leaps"])
def both(lab, request):
    """A run of protocol=code, its workload, its last weights; and the twin."""
    config = lab.config(*PUBLISHED, f"train.inline_leaps={str(request.param).lower()}")
    with pytest.MonkeyPatch.context() as patch, captured(patch) as made:
        folder = run(config).folder
    weights = flat(made[0].model)
    return SimpleNamespace(
        folder=folder, weights=weights, twin=twin_of(config, made[0], request.param), inline=request.param
    )


def test_the_training_is_the_published_one(both):
    trained = both.twin.trained
    names = torch.cat([tensor.flatten() for tensor in trained.weights.values()])
    assert torch.equal(both.weights, names)
    summary = json.loads((both.folder / SUMMARY).read_text())
    assert summary["steps"] == trained.updates and summary["position"] == trained.stored[-1].step
    losses = [row for row in rows(both.folder, EVALS) if row["split"] == "verification"]
    assert [(row["position"], row["loss_nats"]) for row in losses] == [(c.arrived, c.loss) for c in trained.stored]


def test_regimes_are_the_published_ones(both):
    found = rows(both.folder, REGIMES)
    for row, c in zip(found, both.twin.trained.stored, strict=True):
        assert (row["step"], row["regime"], row["confirmed"]) == (c.arrived, c.regime, c.confirmed)
        assert row["similarity"] == pytest.approx(c.similarity, abs=1e-6)
    assert {row["regime"] for row in found} >= {"unknown", "stable"}


def test_leaps_are_the_published_ones(both):
    taken = [leap["taken"] for leap in both.twin.trained.leaps]
    assert both.inline == bool(taken) and (not both.inline or len(set(taken)) == 2)
    for row, leap in zip(rows(both.folder, LEAPS), both.twin.trained.leaps, strict=True):
        assert (row["step"], row["adopted"], row["loss_now_nats"]) == (leap["step"], leap["taken"], leap["before"])
        assert row["loss_pred_nats"] == pytest.approx(leap["after"], rel=1e-6)


def test_the_sweep_is_the_published_one(both):
    cells = by_cell(rows(both.folder, PROPOSALS))
    assert {key[::2] for key in cells if key[2] in ("linear", "quadratic", "momentum")} == {
        (cell["step"], cell["predictor"]) for cell in both.twin.sweep
    }
    for cell in both.twin.sweep:
        row = cells[cell["step"], "code", cell["predictor"], cell["K"]]
        assert row["loss_now_nats"] == cell["now"]
        assert row["loss_pred_nats"] == pytest.approx(cell["predicted"], rel=2e-4)


def test_after_a_leap_momentum_is_accepted_at_every_horizon_alike(both):
    """The published 10.0 % at K = 5, 10 and 25 alike: here the stable checkpoints that leapt, at every K."""
    stored = {c.arrived: c for c in both.twin.trained.stored}
    leapt = {step for step, c in stored.items() if c.step != step}
    for row in rows(both.folder, PROPOSALS):
        if row["predictor"] == "momentum" and row["step"] in leapt:
            assert row["loss_pred_nats"] < row["loss_now_nats"]
            assert row["position"] == row["step"] + 5
    for step in leapt & {row["step"] for row in rows(both.folder, PROPOSALS)}:
        predicted = {
            row["loss_pred_nats"]
            for row in rows(both.folder, PROPOSALS)
            if row["step"] == step and row["predictor"] in ("momentum", "persistence")
        }
        assert len(predicted) == 1  # out of zero moments no step is predicted
    assert bool(leapt) == both.inline


def test_truth_comes_from_the_place_that_a_leap_has_reached(both):
    """K counts from there; what aimed at a place that a leap has passed has no truth, and is written all the same."""
    trained = both.twin.trained
    leapt = {c.arrived: c.step for c in trained.stored if c.step != c.arrived}
    after = {leap["step"]: leap["after"] for leap in trained.leaps if leap["taken"]}
    at_place = {c.arrived: c.loss for c in trained.stored}
    kinds = set()
    for row in rows(both.folder, PROPOSALS):
        place = row.get("position", row["step"]) + row["K"]
        over = [start for start, end in leapt.items() if start < place < end]
        arrived = [start for start, end in leapt.items() if place == end]
        if over:
            assert row["loss_true_nats"] is None and row["rel_l2_to_true"] is None
            kinds.add("over")
        elif arrived:
            assert row["loss_true_nats"] == pytest.approx(after[arrived[0]], rel=1e-6)
            kinds.add("arrived")
        else:
            assert row["loss_true_nats"] is not None
        if place in at_place and not over:
            assert row["loss_true_nats"] == at_place[place]
    assert kinds == ({"over", "arrived"} if both.inline else set())


def test_the_landscape_is_the_published_one(both):
    found = rows(both.folder, LANDSCAPE)
    by_step = {row["step"]: row for row in found if row["fraction"] == 1.0}
    assert list(by_step) == [probe["step"] for probe in both.twin.landscape] and len(by_step) > 3
    assert {(row["protocol"], row["predictor"], row["K"]) for row in found} == {("code", "momentum", 25)}
    for probe in both.twin.landscape:
        row = by_step[probe["step"]]
        assert row["loss_now_nats"] == pytest.approx(probe["start"], rel=1e-6)
        assert row["displacement_l2"] == pytest.approx(probe["length"], rel=1e-4)
        for other in found:
            if other["step"] == probe["step"]:
                assert other["loss_nats"] == pytest.approx(probe["losses"][other["fraction"]], rel=2e-4)
        size = max(abs(loss) for loss in probe["losses"].values()) / max(probe["length"], 1e-3)
        assert row["directional_derivative"] == pytest.approx(probe["slope"], rel=1e-3, abs=1e-4 * size)
        assert row["curvature"] == pytest.approx(probe["bend"], rel=1e-3, abs=1e-3 * size)


def test_cascades_are_the_published_ones(both):
    found, wanted = rows(both.folder, CASCADE), both.twin.cascades
    assert len(found) == len(wanted) > 8
    assert len({row["step"] for row in found}) <= 4
    for row, link in zip(found, wanted, strict=True):
        assert all(row[key] == link[key] for key in ("step", "depth", "K", "link"))
        assert row["loss_pred_nats"] == pytest.approx(link["predicted"], rel=1e-3)
        assert row["loss_nats"] == pytest.approx(link["trained"], rel=1e-3)
        assert row["rel_l2_drift"] == pytest.approx(link["drift"], rel=1e-3)


# ---- what the published sweep keeps to itself ------------------------------------------------------------------------


def test_leaping_uses_the_live_float32_state_at_scale_1(lab, monkeypatch):
    """float16 snapshots and the choice of a scale belong to the published sweep; here mode=leap follows the code."""
    extra = (
        "mode=leap", "predictor=momentum", "protocol=code", "K=3", "leap.gate=any", "leap.rule=always",
        "leap.moments=published", "train.steps=11", "schedule.warmup=2", "leap.follow=[]",
    )  # fmt: skip
    config = lab.config(*extra)
    with captured(monkeypatch) as made:
        folder = run(config).folder
    workload, reached = made[0], flat(made[0].model)
    assert [(row["step"], row["position"], row["adopted"]) for row in rows(folder, LEAPS)] == [(4, 4, True)]
    model = build(config.model, 256, 16, seed_of(config, "init"), "scratch")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.01, fused=True)
    factor = factor_at(config.schedule, 11)
    for update, position in enumerate([0, 1, 2, 3, 7, 8, 9, 10]):
        rate = config.optimizer.lr * factor(position)
        twin.train_some(model, workload, optimizer, update, rate)
        if update == 3:
            states = {name: optimizer.state[p] for name, p in model.named_parameters()}
            first, second = ({name: s[key] for name, s in states.items()} for key in ("exp_avg", "exp_avg_sq"))
            twin.put(model, twin.along_momentum(twin.parameters_of(model), first, second, 3, rate))
            for state in states.values():
                state["exp_avg"].zero_()
                state["exp_avg_sq"].zero_()
    assert torch.allclose(reached, flat(model), rtol=1e-5, atol=1e-6)


def test_a_gate_sees_the_regimes_that_are_observed(lab):
    """Of the protocol's own probes, in either mode; staying is never better than staying, so nothing is adopted."""
    for protocol in ("exact", "code"):
        common = (f"protocol={protocol}", f"suite={protocol}", "regime.tau_low=[0.9]", "regime.tau_high=[0.99]")
        leaping = run(lab.config(*common, "mode=leap", "predictor=persistence", "K=3", "leap.gate=stable")).folder
        observed = run(lab.config(*common, "predictor=none")).folder
        found = [[row["similarity"] for row in rows(folder, REGIMES)] for folder in (leaping, observed)]
        assert found[0] == found[1] and len(found[0]) == 6


def test_the_best_starts_are_those_with_the_longest_stable_run():
    starts = Starts()
    for step, in_a_row in enumerate([2, 3, 4, 5, 6, 2, 3, 4, 5]):
        starts.offer(Start(step, in_a_row, 0.0, None))
    assert [(start.step, start.stable_in_a_row) for start in starts.best] == [(4, 6), (3, 5), (8, 5), (2, 4)]


def test_fingerprints_are_float32_whatever_the_training_is(lab, monkeypatch):
    """Two networks that bfloat16 cannot tell apart are told apart."""
    workload = Workload(lab.config("train.precision=bfloat16", "protocol=[exact,code]"), torch.device("cpu"))
    for protocol, kind in (("exact", Probes.held_out), ("code", Probes.prompts)):
        hidden, mask = workload.probe_states(protocol)
        assert hidden.dtype == torch.float32 and (mask is None) == (kind == Probes.held_out)
        with torch.no_grad():
            wanted = torch.cat(
                [workload.model.base_model(**batch).last_hidden_state for batch in workload._probes[kind]]
            )
        assert torch.equal(hidden, wanted)
        assert not torch.equal(hidden, hidden.bfloat16().float())
    assert sum(len(batch["input_ids"]) for batch in workload._probes[Probes.prompts]) == 100


def test_every_protocol_has_its_own_probes(lab):
    """The published prompts for paper and code, held-out sequences for exact; regime.probes=prompts is for all."""
    config = lab.config("protocol=[exact,paper,code,code_float32]")
    assert [str(config.probes_of(name)) for name in config.protocols] == ["held_out", "prompts", "prompts", "prompts"]
    config = lab.config("protocol=[exact,code]", "regime.probes=prompts")
    assert {config.probes_of(name) for name in config.protocols} == {Probes.prompts}
    digits = config_of("digits_vit", "protocol=[exact,code]")
    assert {digits.probes_of(name) for name in digits.protocols} == {Probes.held_out}


def test_only_the_last_checkpoints_are_kept(lab):
    """As for Qwen, whose older checkpoints are deleted: the first that is kept has none before it."""
    common = ("predictor=[linear,quadratic]", "protocol=code", "K=[4]", "regime.confirm=1", "train.steps=40")
    whole, last = (run(lab.config(*common, f"verify.checkpoints={count}")).folder for count in ("null", 5))
    kept = {(row["step"], row["predictor"]) for row in rows(last, PROPOSALS)}
    starts = {"persistence": 24, "linear": 28, "quadratic": 32}
    assert kept == {(step, name) for name, first in starts.items() for step in range(first, 40, 4)}
    cells = by_cell(rows(whole, PROPOSALS))
    for key, row in by_cell(rows(last, PROPOSALS)).items():
        assert row["loss_pred_nats"] == cells[key]["loss_pred_nats"]
    assert rows(whole, REGIMES) == rows(last, REGIMES)  # the training and its regimes are seen from the start
    with pytest.raises(ConfigError, match=r"predictor=quadratic needs 3 snapshots .* verify\.checkpoints=3"):
        check_contexts(lab.config(*common, "verify.checkpoints=3"), {"average": ""})


@pytest.mark.parametrize("index", [27, 60])
def test_a_training_that_leaps_resumes_bit_equal(lab, monkeypatch, index):
    extra = (*PUBLISHED, "train.inline_leaps=true")
    whole = run(lab.config(*extra)).folder
    config = lab.config(*extra, "checkpoint.every_s=null", "checkpoint.every_steps=3", f"suite=killed{index}")
    with interrupted(monkeypatch, index):
        run(config)
    assert records(run(config).folder) == records(whole)


# ---- configuration ---------------------------------------------------------------------------------------------------


def test_who_leaps_in_the_training(lab):
    """protocol=code of GPT-2 does, momentum K=5; not that of Qwen, nor anyone unless train.inline_leaps is true."""
    gpt2 = [config_of("leap_verify_gpt2", f"protocol={name}") for name in ("exact", "paper", "code", "code_float32")]
    leaps = [config.inline_leaps and (config.inline_leaps.predictor, config.inline_leaps.K) for config in gpt2]
    assert leaps == [None, None, ("momentum", 5), ("momentum", 5)]
    qwen = config_of("leap_verify_qwen", "protocol=code")
    assert qwen.inline_leaps is None and qwen.protocol.inline_leaps is not None
    assert (qwen.dataset.subset, qwen.verify.checkpoints) == ("wikitext-103-v1", 15)
    assert (gpt2[2].dataset.subset, gpt2[2].verify.checkpoints) == ("wikitext-103-raw-v1", None)
    assert lab.config("protocol=code").inline_leaps is None
    common = ("protocol=code", "train.interval=8")
    leaping = lab.config(*common, "train.inline_leaps=true")
    assert lab.config(*common).trajectory != leaping.trajectory
    other = lab.config(*common, "train.inline_leaps=true", "regime.confirm=3")
    assert other.trajectory != leaping.trajectory  # what decides about leaps decides about the training


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("protocol=[exact,code]", "train.interval=8", "train.inline_leaps=true"), "leap differently while they train"),
        (("protocol=code", "train.inline_leaps=true"), "inline_leaps.K=5 of protocol=code must be below"),
        (("regime.probes=none",), "regime.probes=none must be 1 or more held-out sequences, or prompts"),
        (("regime.probes=0",), "regime.probes=0 must be 1 or more"),
        (("schedule.every=0",), "schedule.every=0 must be 1 or more"),
        (("verify.checkpoints=0",), "verify.checkpoints=0 must be 1 or more"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(lab, extra, words):
    with pytest.raises(ConfigError, match=words) as caught:
        lab.config(*extra)
    assert "\n" not in str(caught.value)


def test_leaps_by_momentum_need_an_optimizer_that_has_it(lab):
    config = lab.config("protocol=code", "optimizer=sgd", "train.interval=8", "train.inline_leaps=true")
    with pytest.raises(ConfigError, match=r"train\.inline_leaps=true needs Adam moments; optimizer=sgd keeps none"):
        run(config)
