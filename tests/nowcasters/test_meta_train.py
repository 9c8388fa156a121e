"""Training the networks of learned predictors: the loss, what is learned, the same again and resumed, mistakes."""

import dataclasses
import functools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.nn.functional import leaky_relu, silu

from helpers import End, ended, meta_train, refused, rows
from leapbench import cli
from leapbench.config.errors import ConfigError
from leapbench.meta import command, learn
from leapbench.meta import run as running
from leapbench.meta.architecture import Architecture
from leapbench.meta.learn import CURVE, Learning, exam_of, loss_of
from leapbench.meta.library import open_libraries
from leapbench.meta.questions import QUESTIONS
from leapbench.meta.run import run, span_of
from leapbench.meta.settings import resolve
from leapbench.meta.windows import Draw, batch, evenly
from leapbench.names import CHECKPOINT, PROJECT, SUMMARY
from leapbench.nowcasters.architectures import graph_of, typed_blocks
from leapbench.nowcasters.checkpoints import facts_of, load
from leapbench.nowcasters.graphs import VALUES, Kind, digest
from leapbench.nowcasters.scaling import scales_of, start
from leapbench.nowcasters.trajectories import ABOUT, ROWS, Trajectory
from leapbench.prediction.history import History, Snapshot
from leapbench.predictors.nino import Nino
from leapbench.predictors.wnn import Wnn, normalised, operations
from leapbench.predictors.wnn_plus import WnnPlus
from networks import NETWORKS, gpt2, layout_of, recorded

CPU = torch.device("cpu")
PREDICTORS = {"nino": Nino, "wnn_plus": WnnPlus, "wnn": Wnn}
SMALL = {
    "nino": ("network.width=8", "network.rounds=3", "network.horizons=6"),
    "wnn_plus": ("network.width=8", "network.layers=3", "network.horizons=6"),
    "wnn": (),
}
TINY = (
    "steps=6", "batch.trajectories=2", "batch.windows=2", "targets=3", "validation.every=3", "vocabulary=4",
    "checkpoint.every_s=null", "checkpoint.every_steps=2", "device=cpu", "progress=false",
)  # fmt: skip
each_network = pytest.mark.parametrize("name", SMALL)


@functools.cache
def _composed(name, wandb):
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        return compose("meta_train", [f"network={name}", *(["logger=wandb"] if wandb else [])])


def composed(name, *words):
    """Hydra's configuration of a tiny training."""
    cfg = _composed(name, any(word.startswith("wandb.") for word in words)).copy()
    cfg.merge_with_dotlist([*TINY, *SMALL.get(name, ()), *words])
    return cfg


def config_of(name, folder, *words):
    places = (f"trajectories={folder}", f"results_dir={folder.parent / 'results'}")
    return resolve(composed(name, *places, *words))


def opened(config):
    """(question, trajectories to learn from, those held out), prepared."""
    question = QUESTIONS[config.network.name](config.network, config.seed, CPU)
    learned, held_out = open_libraries(
        config.trajectories, config.validation.trajectories, span_of(config, question), config.vocabulary
    )
    for library in (learned, held_out):
        for group in library.by_architecture:
            question.prepare(group[0].architecture)
    return question, learned, held_out


def enlivened(network, seed=0):
    """Weights large enough for every part of a network to matter."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / math.sqrt(parameter.shape[-1]))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Two language models and a network of linear layers in one folder, a convolutional network in another."""
    root = tmp_path_factory.mktemp("recorded")
    recorded(root / "suite" / "a", gpt2(9, 3, 1, 4, 2)(), seed=1)
    recorded(root / "suite" / "b", gpt2(9, 3, 1, 4, 2)(), seed=2, dtype="float16")
    recorded(root / "suite" / "c", NETWORKS["mlp"](), seed=3)
    recorded(root / "long", NETWORKS["mlp"](), seed=3, rows=30)
    recorded(root / "others" / "d", NETWORKS["fcn"](), seed=4)
    return root / "suite"


# ---- the loss --------------------------------------------------------------------------------------------------------


def slow_errors(config, network, draw):
    """All |x_hat - x| of the windows of a draw, from the trajectory itself: (sum, how many). One number after the other
    but for the linear layers, with everything written out as in the equations."""
    source, name = draw.source, config.network.name
    layout = source.trajectory.layout
    total, count, stride, half = 0.0, 0, source.stride, config.target_window // 2
    for shift in range(draw.count):
        places = [draw.start + shift + j * stride for j in range(5)]
        theta = [source.trajectory.weights(row) for row in places]
        targets = []
        for k in range(1, getattr(config.network, "horizons", 5) + 1):
            around = [places[-1] + k * stride + d for d in range(-half, half + 1)]
            if around[-1] < len(source.trajectory):
                targets.append(sum(source.trajectory.weights(row).double() for row in around) / len(around))
        scale, mean, shown = (torch.empty(*shape, layout.size).double() for shape in ((), (), (5,)))
        for entry in layout:
            part = slice(entry.offset, entry.offset + entry.size)
            values = torch.stack([t[part] for t in theta]).double()
            scale[part], mean[part] = values.std() + 1e-6, values.mean()
            shown[:, part] = (values - mean[part]) / scale[part]
        if name == "wnn":
            for i, out in slow_streams(network, theta, layout).items():
                values = [float(t[i]) for t in theta]
                reach = 2 * (max(values) - min(values) + 1e-8 + 1e-5)
                total += abs((values[4] - values[0]) / reach + out - (float(targets[4][i]) - values[0]) / reach)
                count += 1
            continue
        f = {"nino": slow_graph, "wnn_plus": slow_edges}[name](network, shown, layout, draw.signs)
        for i in range(layout.size):
            for k, target in enumerate(targets):
                total += abs(float(shown[4, i]) + f[i][k] - float((target[i] - mean[i]) / scale[i]))
                count += 1
    return total, count


def slow_graph(network, shown, layout, signs):
    """NiNo's f of every weight, edge by edge: {place: [horizon]}."""
    graph = graph_of(layout)
    sources, targets, kinds, places = graph.edge_list()
    h = [network.node_proj(p * signs) for p in graph.positions]
    ends = list(zip(sources.tolist(), targets.tolist(), kinds.tolist(), places.tolist(), strict=True))
    z = []
    for _, _, kind, place in ends:
        features = torch.zeros(9, 5)
        for element, i in enumerate(place):
            if i >= 0:
                features[element] = shown[:, i].float()
        if kind in VALUES:
            features[0] = VALUES[Kind(kind)]
        z.append(network.edge_proj(features.flatten()) + network.layer_embed.weight[kind])
    for convolution, update in zip(network.convolutions, network.updates, strict=False):
        into = [[] for _ in h]
        for (s, t, _, _), edge in zip(ends, z, strict=True):
            a, b = convolution.edge_encoder(edge).chunk(2)
            into[t].append(a * convolution.pre(torch.cat([h[t], h[s]])) + b)
        mean = [torch.stack(m).mean(0) for m in into]
        h = [silu(convolution.lin(convolution.post_nns[0](torch.cat([n, g])))) for n, g in zip(h, mean, strict=True)]
        z = [
            update.lin1(silu(update.lin_e(edge) + update.lin_s(h[s]) + update.lin_t(h[t])))
            for (s, t, _, _), edge in zip(ends, z, strict=True)
        ]
    found = {}
    for (_, _, _, place), edge in zip(ends, z, strict=True):
        out = network.edge_out(edge)
        for element, i in enumerate(place):
            if i >= 0:
                found[i] = [float(out[element * network.horizons + k]) for k in range(network.horizons)]
    return found


def slow_edges(network, shown, layout, signs):
    """WNN+'s f of every weight: {place: [horizon]}."""
    found = {}
    for block in typed_blocks(layout):
        for i in block.view(torch.arange(layout.size), *block.whole).flatten().tolist():
            z = network.edge_proj(shown[:, i].float()) + network.layer_embed.weight[block.kind]
            found[i] = network.edge_mlp(z).tolist()
    return found


def slow_streams(network, theta, layout):
    """WNN's out of every weight but those of the norm: {place: out}."""
    found = {}
    for entry in layout:
        if entry.name in ("2.weight", "2.bias"):  # the layer norm of `mlp`
            continue
        own = network.fc if len(entry.shape) == 2 else network.bias
        for i in range(entry.offset, entry.offset + entry.size):
            w = torch.stack([t[i] for t in theta])
            x = (w - w[0]) / (2 * (w.max() - w.min() + 1e-8 + 1e-5))
            y = []
            for stream, s in ((own.values, x), (own.differences, x[1:] - x[:-1])):
                u = stream.wide(s)
                r = torch.relu(stream.narrow(u))
                v = stream.a(r) + stream.b(r) * torch.exp(stream.c(r) * u)
                y.append(leaky_relu(stream.out(v), 0.3))
            found[i] = float(torch.tanh(own.head(torch.cat(y))))
    return found


MEAN = ("target_window=3", "interval=20", "targets=2")


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        *((name, "long", words) for name in SMALL for words in ((), MEAN)),
        *((name, "others", ()) for name in ("nino", "wnn_plus")),
    ],
    ids=lambda part: part if isinstance(part, str) else "mean" if part else "published",
)
def test_the_loss_is_that_of_the_equations(suite, name, place, words):
    """Of linear layers and a norm, and of convolutions."""
    config = config_of(name, suite.parent / place, *words, "batch.windows=3")
    question, learned, _ = opened(config)
    enlivened(question.network)
    (source,) = learned.sources
    signs = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1])
    draw = Draw(source, source.starts - 1, 3, torch.arange(0), signs)  # the last windows lack their last targets
    horizons = {source.horizons(first) for first in draw.firsts}
    assert name == "wnn" or (len(horizons) > 1 and max(horizons) <= 6)
    with torch.no_grad():
        total, count = slow_errors(config, question.network, draw)
    found = loss_of(question, [draw])
    assert float(found) == pytest.approx(total / count, rel=1e-4)
    assert count == sum(question.count(source.architecture, source.horizons(first)) for first in draw.firsts)


def test_wnns_penalty():
    config = config_of("wnn", PROJECT)
    question = QUESTIONS["wnn"](config.network, 0, CPU)
    enlivened(question.network)
    wanted = 0.0
    for n, p in question.network.named_parameters():
        if n.split(".")[-2] in ("wide", "out"):
            wanted += (0.1 if n.endswith("bias") else 1e-6) * float(p.abs().sum().detach())
    assert float(question.penalty().detach()) == pytest.approx(wanted, rel=1e-5)
    assert QUESTIONS["nino"](config_of("nino", PROJECT).network, 0, CPU).penalty() is None


@each_network
def test_gradients_reach_all_that_is_alive(suite, name):
    config = config_of(name, suite, f"validation.trajectories={suite.parent / 'others'}")
    question, learned, held_out = opened(config)
    enlivened(question.network)
    draws = [evenly(source, 1)[0] for source in (*learned.sources, *held_out.sources)]
    loss_of(question, draws)
    dead = {n for n, p in question.network.named_parameters() if p.grad is None}
    reached = [p.grad for p in question.network.parameters() if p.grad is not None]
    assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in reached)
    assert all(n.startswith("gnn.convs.2.") for n in dead), "the last round"
    assert bool(dead) == (name == "nino")


# ---- what a step sees ------------------------------------------------------------------------------------------------


def test_a_window_is_rows_of_the_trajectory(suite):
    _, learned, _ = opened(config_of("nino", suite, "interval=20", "targets=1", "vocabulary=null"))
    source = next(s for s in learned.sources if s.folder.name == "a")
    window = list(Draw(source, 1, 2, torch.arange(9), torch.ones(8)).windows(rates=True))[1]
    weights = source.trajectory.weights
    assert torch.equal(window.snapshots, torch.stack([weights(row) for row in (2, 4, 6, 8, 10)]))
    assert torch.equal(window.targets, torch.stack([weights(row) for row in (12, 14, 16, 18)]))
    wanted = [1 - row / 40 for row in (2, 4, 6, 8, 10, 12, 14, 16, 18, 19, 19)]
    assert window.rates.tolist() == pytest.approx(wanted)


def test_draws_cover_everything_and_repeat(suite):
    config = config_of("nino", suite)
    _, learned, _ = opened(config)
    draws = [draw for step in range(40) for draw in batch(learned, config.batch, 3, step)]
    again = [draw for step in range(40) for draw in batch(learned, config.batch, 3, step)]
    assert [(d.start, d.tokens.tolist(), d.signs.tolist()) for d in draws] == [
        (d.start, d.tokens.tolist(), d.signs.tolist()) for d in again
    ]
    names = [draw.source.folder.name for draw in draws]
    assert set(names) == {"a", "b", "c"} and 25 < names.count("c") < 55, "architectures are drawn first"
    assert {d.start for d in draws} == set(range(20 - (5 + 3 + 2))), "the published range"
    assert {len(d.tokens) for d in draws if d.source.folder.name == "a"} == {4}
    assert {s for d in draws for s in d.signs.tolist()} == {-1.0, 1.0}


@pytest.mark.parametrize("network", ["gpt2", "gpt2 untied", "llama"])
def test_a_part_of_the_vocabulary_is_a_smaller_network(network):
    layout = layout_of(NETWORKS[network]())
    part = Architecture(digest(layout), layout, 4)
    rng = np.random.default_rng(0)
    tokens = part.draw(rng)
    assert part.tokens == 11 and len(tokens) == 4 and tokens.tolist() == sorted(set(tokens.tolist()))
    assert graph_of(part.layout).tokens.size == 4
    vector = torch.arange(float(layout.size))
    found, whole = part.layout.views(part.part(vector, tokens)), layout.views(vector)
    for name, tensor in whole.items():
        wanted = tensor[tokens] if name.split(".")[-2] in ("wte", "lm_head", "embed_tokens") else tensor
        assert torch.equal(found[name], wanted), name
    all_of_it = Architecture(digest(layout), layout, 1000)
    assert torch.equal(all_of_it.part(vector, all_of_it.draw(rng)), vector)


def test_a_table_of_tokens_is_read_by_their_own_numbers(suite):
    config = config_of("nino", suite / "a", "network.tokens=9")
    question, learned, _ = opened(config)
    enlivened(question.network)
    (draw,) = evenly(learned.sources[0], 1)
    assert len(draw.tokens) == 4
    loss_of(question, [draw])
    touched = question.network.wte_pos_enc_layer.weight.grad.any(1).nonzero()[:, 0].tolist()
    assert touched == [0, *(draw.tokens + 1).tolist()]


# ---- learning --------------------------------------------------------------------------------------------------------


@each_network
def test_one_trajectory_is_soon_known(tmp_path, name):
    recorded(tmp_path / "x", NETWORKS["linear"](), line=True)
    words = ("steps=90", "batch.trajectories=1", "validation.every=30", "optimizer.final_lr=0.001")
    own = ("network.l1_biases=0.0", "optimizer.lr=0.005") if name == "wnn" else ("optimizer.lr=0.03",)
    config = config_of(name, tmp_path / "x", *words, *own)
    found = run(config)
    folder = tmp_path / "results" / found["run_id"]
    curve = rows(folder, CURVE)
    assert [row["step"] for row in curve] == [30, 60, 90] and curve[-1]["loss"] < curve[0]["loss"]
    assert curve[-1]["rate"] == pytest.approx(0.001, rel=0.05) and curve[-1]["validation"] is None
    question, learned, _ = opened(config)
    question.network.load_state_dict(load(name, str(folder / f"{name}.safetensors")).state_dict())
    with torch.no_grad():
        end = exam_of(question, evenly(learned.sources[0], 10))
    assert end["loss"] < end["no_change"] / 2


@pytest.fixture(scope="module")
def trained(suite):
    """trained(name): how a tiny training of this network ended, and its configuration; each is carried out once."""

    @functools.cache
    def one(name):
        config = config_of(name, suite, f"validation.trajectories={suite.parent / 'others'}", *RATES.get(name, ()))
        return run(config), config

    return one


RATES = {"nino": ("network.rates=true", "network.tokens=9"), "wnn_plus": ("network.rates=true",)}


def history_of(trajectory, first, factor_at):
    """The history that a window beginning with this row shows."""
    found = (Snapshot(10 * row, 10 * row, trajectory.weights(row)) for row in range(first, first + 5))
    return History(tuple(found), trajectory.layout, factor_at)


@each_network
def test_the_file_predicts_what_the_network_does(trained, suite, name):
    """The predictor with the file, and the training's own way through a window with the whole vocabulary."""
    found, config = trained(name)
    predictor = PREDICTORS[name](str(suite.parent / "results" / found["run_id"] / f"{name}.safetensors"))
    config = dataclasses.replace(config, vocabulary=None)
    question, learned, _ = opened(config)
    first = [p.clone() for p in question.network.parameters()]
    question.network.load_state_dict(predictor.network.state_dict())
    assert sum(not torch.equal(a, b) for a, b in zip(first, question.network.parameters(), strict=True)) > 8
    source = next(s for s in learned.sources if s.folder.name == "a")
    (window,) = Draw(source, 3, 1, torch.arange(9), torch.ones(8)).windows(question.rates)
    with torch.no_grad():
        predicted = question.changes(window)[0][:, 0 if name == "wnn" else 4]
    layout, now = source.trajectory.layout, window.snapshots[-1]
    wanted, divisor = torch.zeros(layout.size), torch.empty(layout.size)
    for entry in layout:
        part = slice(entry.offset, entry.offset + entry.size)
        divisor[part] = window.snapshots[:, part].std()
    base = (
        now if name == "wnn" else start(now, layout, scales_of(list(window.snapshots), layout), torch.empty_like(now))
    )
    if name == "nino":
        order = question._edges[source.architecture.key].order
        wanted[order] = divisor[order] * predicted
    elif name == "wnn_plus":
        wanted = divisor * predicted
    else:
        places = torch.cat([torch.arange(place.start, place.stop) for place, _ in operations(layout)])
        wanted[places] = normalised(window.snapshots.T)[1][places] * predicted
    out = predictor.predict(history_of(source.trajectory, 3, lambda position: 1 - position / 400), 50)
    assert float(wanted.abs().max()) > 1e-4
    assert torch.allclose(out, base + wanted, atol=5e-7, rtol=0)


@pytest.mark.parametrize("name", ["nino", "wnn_plus"])
def test_learning_rates_matter_to_a_network_that_reads_them(trained, suite, name):
    found, config = trained(name)
    predictor = PREDICTORS[name](str(suite.parent / "results" / found["run_id"] / f"{name}.safetensors"))
    question, _, _ = opened(config)
    enlivened(question.network)
    predictor.network = question.network.requires_grad_(False).eval()
    trajectory = Trajectory.open(suite / "a")
    high, low = (predictor.predict(history_of(trajectory, 0, lambda position, f=f: f), 20) for f in (1.0, 0.1))
    assert float((high - low).abs().max()) > 1e-3


@each_network
def test_a_file_says_what_made_it(trained, suite, name):
    found, _ = trained(name)
    folder = suite.parent / "results" / found["run_id"]
    facts = facts_of(folder / f"{name}.safetensors")
    assert facts["kind"] == name and facts["config"]["steps"] == 6 and facts["config"]["network"]["name"] == name
    assert {t["sha256"] for t in facts["learned"]} == {Trajectory.open(p).sha256 for p in suite.iterdir()}
    (held_out,) = facts["held_out"]
    last = rows(folder, CURVE)[-1]
    assert held_out["loss"] == last["validation"] > 0 and held_out["no_change"] == last["no_change"] > 0
    assert str(suite) not in json.dumps(facts), "places are not the science"
    summary = json.loads((folder / SUMMARY).read_text())
    assert summary["status"] == "completed" and summary["final"] == last
    assert not (folder / CHECKPOINT).parent.exists()


def test_validation_is_a_mean_over_weights_and_horizons(suite):
    config = config_of("nino", suite, f"validation.trajectories={suite.parent / 'others'}")
    question, _, held_out = opened(config)
    with torch.no_grad():
        for parameter in question.network.parameters():
            parameter.zero_()
        (source,) = held_out.sources
        draws = evenly(source, 3)
        found = exam_of(question, draws)
    assert [draw.start for draw in draws] == [0, 4, 9] and found["loss"] == found["no_change"] > 0


# ---- again, and resumed ----------------------------------------------------------------------------------------------


class BrokenOffError(Exception):
    """Stands for anything that ends a process."""


@each_network
@pytest.mark.parametrize("at", [1, 5])
def test_broken_off_and_resumed_it_is_the_same_file(trained, suite, tmp_path, monkeypatch, name, at):
    found, config = trained(name)
    wanted = suite.parent / "results" / found["run_id"]
    config.results_dir = str(tmp_path)
    update = Learning._update

    def break_off(self):
        if self.step == at:
            raise BrokenOffError
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(BrokenOffError):
        patch.setattr(Learning, "_update", break_off)
        run(config)
    folder = tmp_path / found["run_id"]
    assert (folder / CHECKPOINT).exists() == (at > 2) and not (folder / SUMMARY).exists()
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(Learning, "_update", lambda self: seen.append(self.step) or update(self))
        again = run(config)
    assert seen == list(range(0 if at == 1 else 4, 6)) and again["run_id"] == found["run_id"]
    for file in (f"{name}.safetensors", CURVE):
        assert (folder / file).read_bytes() == (wanted / file).read_bytes()
    monkeypatch.setattr(learn, "loss_of", None)
    assert run(config)["status"] == "completed", "a training that is complete is not carried out again"


def test_where_trajectories_lie_and_in_which_order_changes_nothing(suite, tmp_path):
    places = [shutil.copytree(suite / name, tmp_path / f"other_{name}") for name in "cab"]
    words = (f"results_dir={tmp_path / 'results'}", "steps=1")
    found = [
        run(resolve(composed("wnn_plus", *words, f"trajectories=[{','.join(map(str, of))}]")))["run_id"]
        for of in ([suite], places, [*places, suite])
    ]
    assert len(set(found)) == 1
    assert run(resolve(composed("wnn_plus", *words, f"trajectories={suite}", "seed=1")))["run_id"] not in found


def test_weights_and_biases_see_the_curve(suite, tmp_path, monkeypatch):
    seen = []

    class Run:
        def __init__(self):
            self.summary = {}

        def log(self, metrics, step):
            seen.append((step, metrics))

        def finish(self, exit_code):
            seen.append(exit_code)

    def begin(settings, **identity):
        assert settings.project == "leapbench" and identity["config"]["steps"] == 6
        return Run()

    monkeypatch.setattr(running, "begin", begin)
    run(config_of("wnn_plus", suite, "wandb.mode=offline", f"results_dir={tmp_path}"))
    assert [step for step, _ in seen[:-1]] == [3, 6] and seen[-1] == 0
    assert {"meta/loss", "meta/rate", "meta/validation", "meta/no_change"} == set(seen[0][1])


# ---- the command -----------------------------------------------------------------------------------------------------


def job(monkeypatch, cwd, name, *words) -> End:
    """The same for a configuration that is composed already."""
    monkeypatch.chdir(cwd)
    return ended(
        monkeypatch, lambda: cli.main(lambda: command.job(composed(name, *words)), command.answer), "meta_train.py"
    )


def test_the_command_ends_with_the_file(suite, tmp_path, monkeypatch):
    words = ("network=wnn_plus", "network.width=8", f"trajectories={suite}", "targets=3", *TINY)
    end = meta_train(monkeypatch, tmp_path, *words, f"validation.trajectories={suite.parent / 'others'}")
    assert (end.status, end.err) == (0, "")
    (path,) = (tmp_path / "results" / "meta").glob("*/wnn_plus.safetensors")
    assert f"predictor.checkpoint={path.relative_to(tmp_path)}" in end.out and "validation loss: " in end.out
    refused(meta_train(monkeypatch, tmp_path, "trajectories=nowhere", "progress=false"), "nowhere is no folder")
    refused(meta_train(monkeypatch, tmp_path, "network=ninja"), "network=ninja", "there are: nino, wnn, wnn_plus")
    refused(meta_train(monkeypatch, tmp_path, "stepz=3"), "stepz is not a key; did you mean steps?")
    refused(meta_train(monkeypatch, tmp_path, "network=wnn", "network.width=3"), "width is not a key")


def test_help_shows_every_key(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    end = meta_train(monkeypatch, tmp_path, "--help")
    for word in ("network=nino", "network=wnn ", "trajectories=[]", "target_window=1", "checkpoint.every_s=60"):
        assert word in end.out
    assert end.status == 0 and max(map(len, end.out.splitlines())) <= 120


@pytest.mark.parametrize("name", SMALL)
def test_every_key_says_what_it_is_and_whether_it_is_science(name):
    for path in (PROJECT / "conf" / "meta_train.yaml", PROJECT / "conf" / "network" / f"{name}.yaml"):
        for line in path.read_text().split("hydra:")[0].splitlines():
            key, _, value = line.partition(":")
            if value.strip() and key.strip() != "name" and not line.startswith(("#", "  -", "defaults")):
                assert "# [science]" in line or "# [machine]" in line or value.strip().startswith("#"), line


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("nino", (), "trajectories=[] holds nothing to learn from"),
        ("nino", ("trajectories=nowhere",), "trajectories: nowhere is no folder"),
        ("nino", ("trajectories={empty}",), "holds no trajectory; record one with record_trajectory=true"),
        ("nino", ("trajectories=3",), "trajectories=3 must be a folder or a list of folders"),
        ("nino", ("trajectories={unfinished}",), "holds no finished trajectory"),
        ("nino", ("trajectories={cut}",), "it is cut off or another file"),
        ("nino", ("trajectories={changed}",), "its sha256 is another"),
        ("nino", ("trajectories=[{suite},{sparse}]",), "rows are 10 steps apart in"),
        ("nino", ("trajectories={suite}", "validation.trajectories={sparse}"), "and 20 in"),
        ("nino", ("trajectories={suite}", "interval=15"), "interval=15 is no multiple of the 10 steps"),
        ("nino", ("trajectories={suite}", "interval=100"), "has 20 rows, and 101 are needed"),
        ("nino", ("trajectories={short}",), "has 9 rows, and 11 are needed"),
        ("nino", ("trajectories={lstm}",), "no graph can be made of this network"),
        ("nino", ("trajectories={others}", "network.kernel=1"), "reads 1 kernel elements per edge"),
        ("nino", ("trajectories={suite}", "network.tokens=12"), "a vocabulary of 12 tokens"),
        ("nino", ("trajectories={suite}", "validation.trajectories={suite}/a"), "is of the same architecture as"),
        ("nino", ("trajectories={silent}", "network.rates=true"), "does not say its learning rates"),
        ("nino", ("trajectories={suite}", "target_window=2"), "target_window=2 has no row in its middle"),
        ("nino", ("trajectories={suite}", "target_window=11"), "use 9 at most"),
        ("nino", ("trajectories={suite}", "network.rounds=1"), "network.rounds=1 must be 2 or more"),
        ("nino", ("trajectories={suite}", "seed=0-4"), "seed"),
        ("wnn_plus", ("trajectories={suite}", "optimizer.lr=0"), "optimizer.lr=0.0 must be a positive number"),
        ("wnn_plus", ("trajectories={suite}", "device=cuda:99"), "device=cuda:99"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(suite, faulty, tmp_path, monkeypatch, name, words, message):
    words = [word.format(suite=suite, **faulty) for word in words]
    refused(job(monkeypatch, tmp_path, name, *words), message)
    assert not (tmp_path / "results").exists()


@pytest.fixture(scope="module")
def faulty(suite, tmp_path_factory):
    """Folders of trajectories that something is wrong with."""
    root = tmp_path_factory.mktemp("faulty")
    (root / "empty").mkdir()
    mlp = NETWORKS["mlp"]()
    for name in ("unfinished", "cut", "changed"):
        recorded(root / name, mlp)
    (root / "unfinished" / ABOUT).unlink()
    content = (root / "cut" / ROWS).read_bytes()
    (root / "cut" / ROWS).write_bytes(content[:-1])
    (root / "changed" / ROWS).write_bytes(bytes(len(content)))
    recorded(root / "sparse", NETWORKS["linear"](), every=20, rows=40)
    recorded(root / "short", mlp, rows=9)
    recorded(root / "lstm", torch.nn.LSTM(3, 4))
    recorded(root / "silent", mlp, facts=False)
    return {path.name: path for path in root.iterdir()} | {"others": suite.parent / "others"}


def test_a_loss_that_is_no_number_ends_the_training(tmp_path, monkeypatch):
    recorded(tmp_path / "x", NETWORKS["mlp"]())
    words = (f"trajectories={tmp_path / 'x'}", "optimizer.lr=1e30", "optimizer.final_lr=1e30")
    for _ in range(2):
        end = job(monkeypatch, tmp_path, "wnn_plus", *words)
        line = refused(end, "diverged: the loss became nan at step", "lower optimizer.lr=1e+30, or use another seed")
        assert end.status == 1 and "results/meta" in line
    assert not list(tmp_path.glob("results/meta/*/*.safetensors"))


def test_weights_without_a_network_of_their_own_are_said_aloud(suite, tmp_path, monkeypatch):
    from leapbench.config.remarks import remark

    remark.cache_clear()
    end = job(monkeypatch, tmp_path, "wnn", f"trajectories={suite}", "steps=1")
    assert end.status == 0 and "no trajectory has weights for the network conv of wnn" in end.err


def test_a_file_that_is_gone_is_missed(suite, tmp_path):
    config = config_of("wnn_plus", suite / "c", "steps=1", f"results_dir={tmp_path}")
    folder = tmp_path / run(config)["run_id"]
    (folder / "wnn_plus.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"is gone; delete .* to train it anew"):
        run(config)
