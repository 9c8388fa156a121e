"""What the networks compute: the published numbers, the literal layers, and blocks of edges."""

import math

import pytest
import torch

from leapbench.nowcasters import blocks
from leapbench.nowcasters.architectures import graph_of
from leapbench.nowcasters.blocks import Folded, Nowcast
from leapbench.nowcasters.checkpoints import load
from leapbench.nowcasters.graphs import VALUES, Kind
from leapbench.nowcasters.horizons import published as published_horizons
from leapbench.nowcasters.horizons import published_at, rows
from leapbench.nowcasters.networks import EdgeNetwork, GraphNetwork, TwoStream, WeightNetworks
from leapbench.nowcasters.scaling import scales_of, start
from leapbench.prediction.history import History, Snapshot
from leapbench.predictors.nino import Nino
from leapbench.predictors.wnn import Wnn, operations
from leapbench.predictors.wnn_plus import WnnPlus
from networks import NETWORKS, gpt2, layout_of, waves

each_network = pytest.mark.parametrize("name", NETWORKS)


def history_of(layout, snapshots, interval=10):
    steps = [interval * (n + 1) for n in range(len(snapshots))]
    kept = tuple(Snapshot(step, step, vector) for step, vector in zip(steps, snapshots, strict=True))
    return History(kept, layout, lambda position: 1.0)


def lively(network, seed=0):
    """Weights large enough for every part of a network to matter."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        scale = 1 / math.sqrt(parameter.shape[-1])
        parameter.data = scale * torch.randn(parameter.shape, generator=rng)
    return network.requires_grad_(False).eval()


def nino(network, **settings):
    predictor = Nino(**settings)
    predictor.network = network
    return predictor


def literal(network, graph, layout, snapshots, k, positions=None, tokens=None, dead=False):
    """The weights k intervals ahead, edge by edge, in the order of the equations."""
    sources, targets, kinds, places = graph.edge_list()
    scaled, out = torch.zeros(5, layout.size), torch.empty(layout.size)
    sigmas, lasts = torch.empty(layout.size), torch.empty(layout.size)
    for entry in layout:
        part = slice(entry.offset, entry.offset + entry.size)
        values = torch.stack([s[part] for s in snapshots]).double()
        mu, sigma = values.mean(), values.std()
        scaled[:, part] = ((values - mu) / (sigma + 1e-6)).float()
        sigmas[part], lasts[part] = sigma, mu
    features = torch.where(places[:, :, None] >= 0, scaled.T[places.clamp(min=0)], 0.0)[:, : network.kernel]
    for kind, value in VALUES.items():
        features[kinds == kind, 0] = value
    positions = graph.positions if positions is None else positions
    change = network(features.flatten(1), kinds, sources, targets, positions, tokens, dead)[:, :, k - 1]
    change = torch.nn.functional.pad(change, (0, places.shape[1] - network.kernel))
    real = places >= 0
    out[places[real]] = change[real]
    return sigmas * (scaled[-1] + out) + lasts


# ---- the published numbers -------------------------------------------------------------------------------------------

AT = (0, 50, 100, 200)
NINO = {
    1: ((0.22624, -0.55841, 0.68595, 0.80266), 0.017456, 0.92036),
    10: ((0.40559, -0.64000, 0.61694, 0.59568), 0.099144, 3.35953),
    40: ((0.53935, -0.68005, 0.52120, 0.36613), 0.136382, 1.88753),
}
PLUS = {
    1: ((0.23905, -0.56499, 0.68780, 0.80969), 0.021807),
    10: ((0.48170, -0.71530, 0.55841, 0.57142), 0.179357),
    40: ((0.67901, -0.73526, 0.43739, 0.34867), 0.284057),
}


@pytest.fixture(scope="module")
def reference():
    """(layout, snapshots, features of the nodes) of the published vectors: GPT-2, L1 d4 H2 V7 P3."""
    layout = layout_of(gpt2(7, 3, 1, 4, 2)())
    n, q = torch.arange(60, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    return layout, waves(layout.size), (0.1 * torch.cos(0.37 * n * (q + 1))).float()


@pytest.mark.parametrize("edges", [None, 7, 64])
@pytest.mark.parametrize("k", NINO)
def test_nino_gives_the_published_numbers(published, reference, k, edges):
    layout, snapshots, positions = reference
    network, graph = load("nino", str(published / "nino_no_posw.pt")), graph_of(layout)
    assert (layout.size, graph.nodes, graph.edges) == (292, 60, 368)
    scales = scales_of(snapshots, layout)
    out = start(snapshots[-1], layout, scales, torch.empty(layout.size))
    Nowcast(Folded(network), graph, snapshots, scales, positions, edges=edges).add_to(out, k)
    values, mean, total = NINO[k]
    change = out - snapshots[-1]
    assert out[list(AT)].tolist() == pytest.approx(values, abs=2e-5)
    assert float(change.abs().mean()) == pytest.approx(mean, abs=2e-6)
    assert float(change.sum()) == pytest.approx(total, abs=5e-5)
    for dead in (False, True):
        edge_by_edge = literal(network, graph, layout, snapshots, k, positions, dead=dead)
        assert float((edge_by_edge - out).abs().max()) < 2e-6


@pytest.mark.parametrize("k", PLUS)
def test_wnn_plus_gives_the_published_numbers(published, reference, k):
    layout, snapshots, _ = reference
    predictor = WnnPlus(str(published / "nino_mlp.pt"))
    out = predictor.predict(history_of(layout, snapshots), 10 * k)
    values, mean = PLUS[k]
    assert out[list(AT)].tolist() == pytest.approx(values, abs=2e-5)
    assert float((out - snapshots[-1]).abs().mean()) == pytest.approx(mean, abs=2e-6)


def test_published_files_are_as_described(published):
    network = load("nino", str(published / "nino_no_posw.pt"))
    assert sum(p.numel() for p in network.parameters()) == 549_992
    dead = network.convolutions[2]
    assert sum(p.numel() for p in dead.parameters()) == 115_328
    assert all(not p.any() for name, p in dead.named_parameters() if name.endswith("bias")), "it was never trained"
    plus = load("wnn_plus", str(published / "nino_mlp.pt"))
    assert sum(p.numel() for p in plus.parameters()) == 57_384


def test_class_defaults_have_the_published_sizes():
    """nino.pt, with a table of GPT-2's vocabulary, and the narrow ones."""

    def size(network):
        return sum(p.numel() for p in network.parameters())

    assert size(GraphNetwork(tokens=50_257)) == 6_983_016
    assert size(GraphNetwork(width=32, tokens=50_257)) == 1_653_864
    assert size(EdgeNetwork(width=32)) == 5_160
    assert size(TwoStream()) == 9_425


# ---- blocks against edges --------------------------------------------------------------------------------------------


@each_network
@pytest.mark.parametrize("k", [1, 7])
def test_blocks_give_what_the_layers_give_edge_by_edge(name, k):
    layout = layout_of(NETWORKS[name]())
    network, graph, snapshots = lively(GraphNetwork(width=16, horizons=7)), graph_of(layout), waves(layout.size)
    wanted = literal(network, graph, layout, snapshots, k)
    found = nino(network).predict(history_of(layout, snapshots), 10 * k)
    size = float((wanted - snapshots[-1]).abs().max())
    assert size > 0.005 and float((found - wanted).abs().max()) < 2e-5 * max(1, size)


def test_another_number_of_rounds_and_a_table_of_tokens():
    layout = layout_of(NETWORKS["gpt2"]())
    network = lively(GraphNetwork(width=8, kernel=1, horizons=3, rounds=4, tokens=11))
    graph, snapshots = graph_of(layout), waves(layout.size)
    tokens = torch.zeros(graph.nodes, dtype=torch.long)
    tokens[:11] = torch.arange(1, 12)
    wanted = literal(network, graph, layout, snapshots, 2, tokens=tokens)
    found = nino(network).predict(history_of(layout, snapshots), 20)
    assert float((found - wanted).abs().max()) < 2e-5
    other = literal(network, graph, layout, snapshots, 2)
    assert float((other - wanted).abs().max()) > 1e-3, "the table matters"


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "alexnet"])
def test_how_many_edges_at_a_time_changes_nothing(name, monkeypatch):
    layout = layout_of(NETWORKS[name]())
    network, history = lively(GraphNetwork(width=8)), history_of(layout, waves(layout.size))
    whole = nino(network).predict(history, 25)
    monkeypatch.setattr(blocks, "CPU_EDGES", 5)
    monkeypatch.setattr(blocks, "STRIP", 40)
    assert float((nino(network).predict(history, 25) - whole).abs().max()) < 1e-5


def test_the_last_round_does_nothing():
    layout = layout_of(NETWORKS["gpt2"]())
    network, history = lively(GraphNetwork(width=8)), history_of(layout, waves(layout.size))
    before = nino(network).predict(history, 25)
    lively(network.convolutions[-1], seed=9)
    assert torch.equal(nino(network).predict(history, 25), before)


def test_snapshots_stored_in_half_precision():
    layout = layout_of(NETWORKS["gpt2"]())
    network, snapshots = lively(GraphNetwork(width=8)), [s.half() for s in waves(layout.size)]
    found = nino(network).predict(history_of(layout, snapshots), 10)
    wanted = nino(network).predict(history_of(layout, [s.float() for s in snapshots]), 10)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


# ---- alike neurons are alike -----------------------------------------------------------------------------------------


def permuted(name, network, rng):
    """(N,) places p of the weights of a network that computes the same in another order: new = old[p].

    Hidden neurons, heads and the numbers within a head, tokens, positions and channels.
    """
    layout = layout_of(network)
    index = {e.name: (e.offset + torch.arange(e.size)).view(e.shape) for e in layout}

    def shuffle(part, *ends, order=None):
        """Permute dimension `dim` of all tensors (name, dim) that one group of neurons belongs to."""
        for tensor, dim in ends:
            if tensor in index:
                index[tensor] = index[tensor].index_select(dim, part if order is None else order)

    def some(n):
        return torch.randperm(n, generator=rng)

    def head_order(heads, each, groups=None):
        """Heads in another order, and the numbers within all of them alike."""
        return (some(heads)[:, None] * each + some(each)).flatten()

    if name == "gpt2":
        shuffle(some(11), ("transformer.wte.weight", 0))
        shuffle(some(5), ("transformer.wpe.weight", 0))
        for layer in range(2):
            at = f"transformer.h.{layer}."
            hidden = some(32)
            shuffle(hidden, (f"{at}mlp.c_fc.weight", 1), (f"{at}mlp.c_fc.bias", 0), (f"{at}mlp.c_proj.weight", 0))
            order = head_order(2, 4)
            both = torch.cat([order, 8 + order, 16 + order])
            shuffle(both, (f"{at}attn.c_attn.weight", 1), (f"{at}attn.c_attn.bias", 0))
            shuffle(order, (f"{at}attn.c_proj.weight", 0))
    elif name in ("llama", "qwen2"):
        shuffle(some(11), ("model.embed_tokens.weight", 0), *([("lm_head.weight", 0)] if name == "llama" else []))
        for layer in range(2):
            at = f"model.layers.{layer}."
            hidden = some(12)
            shuffle(
                hidden, *((f"{at}mlp.{x}_proj.weight", 0) for x in ("gate", "up")), (f"{at}mlp.down_proj.weight", 1)
            )
            if name == "llama":
                order = shared = head_order(4, 2)
            else:  # key heads, the query heads of each, and the numbers within a head
                group, within, member = some(2), some(2), [some(2) for _ in range(2)]
                shared = (group[:, None] * 2 + within).flatten()
                order = torch.cat([(int(g) * 2 + m) * 2 + within for g in group for m in member[int(g)]])
            for x, part in (("q", order), ("k", shared), ("v", shared)):
                shuffle(part, (f"{at}self_attn.{x}_proj.weight", 0), (f"{at}self_attn.{x}_proj.bias", 0))
            shuffle(order, (f"{at}self_attn.o_proj.weight", 1))
    elif name == "vit":
        for layer in range(2):
            at = f"vit.layers.{layer}."
            shuffle(some(12), (f"{at}mlp.fc1.weight", 0), (f"{at}mlp.fc1.bias", 0), (f"{at}mlp.fc2.weight", 1))
            order = head_order(2, 4)
            for x in "qkv":
                shuffle(order, (f"{at}attention.{x}_proj.weight", 0), (f"{at}attention.{x}_proj.bias", 0))
            shuffle(order, (f"{at}attention.o_proj.weight", 1))
    elif name == "resnet":
        stage = "resnet.encoder.stages.0.layers."
        stream, inner = some(4), [some(4) for _ in range(2)]
        norms = ("weight", "bias")
        first = "resnet.embedder.embedder."
        shuffle(stream, (f"{first}convolution.weight", 0), *((f"{first}normalization.{n}", 0) for n in norms))
        for number in range(2):
            a, b = f"{stage}{number}.layer.0.", f"{stage}{number}.layer.1."
            shuffle(stream, (f"{a}convolution.weight", 1), (f"{b}convolution.weight", 0))
            shuffle(stream, *((f"{b}normalization.{n}", 0) for n in norms))
            shuffle(inner[number], (f"{a}convolution.weight", 0), (f"{b}convolution.weight", 1))
            shuffle(inner[number], *((f"{a}normalization.{n}", 0) for n in norms))
        at = "resnet.encoder.stages.1.layers.0."
        shuffle(stream, (f"{at}shortcut.convolution.weight", 1), (f"{at}layer.0.convolution.weight", 1))
    elif name == "fcn":
        channels = some(4)
        shuffle(channels, *((f"convolutions.{x}", 0) for x in ("0.weight", "0.bias", "1.weight", "1.bias")))
        shuffle(channels, ("convolutions.4.weight", 1))
    elif name == "alexnet":
        channels, hidden = some(5), some(9)
        shuffle(channels, ("convolutions.10.weight", 0), ("convolutions.10.bias", 0))
        shuffle((channels[:, None] * 4 + torch.arange(4)).flatten(), ("hidden.1.weight", 1))
        shuffle(hidden, ("hidden.1.weight", 0), ("hidden.1.bias", 0), ("hidden.4.weight", 1))
    else:
        neurons = some(7)
        shuffle(neurons, ("0.weight", 0), ("0.bias", 0), ("2.weight", 0), ("2.bias", 0), ("3.weight", 1))
    return torch.cat([part.flatten() for part in index.values()])


ALIKE = ["gpt2", "llama", "qwen2", "vit", "resnet", "fcn", "alexnet", "mlp"]


@pytest.mark.parametrize("settings", [{}, {"subgraphs": True}], ids=["whole", "parts"])
@pytest.mark.parametrize("name", ALIKE)
def test_permuting_neurons_permutes_the_prediction(name, settings):
    model = NETWORKS[name]()
    layout, rng = layout_of(model), torch.Generator().manual_seed(1)
    order = permuted(name, model, rng)
    assert order.sort().values.equal(torch.arange(layout.size)) and not order.equal(torch.arange(layout.size))
    snapshots = waves(layout.size)
    judged = torch.ones(layout.size)
    for layer in range(2 if name == "gpt2" else 0):
        # The biases of the keys, which are published as edges into the stream. They have no gradient and stay at zero.
        for vector in (*snapshots, judged):
            layout.views(vector)[f"transformer.h.{layer}.attn.c_attn.bias"][8:16] = 0
    predictor = nino(lively(GraphNetwork(width=16)), **settings)
    plain = predictor.predict(history_of(layout, snapshots), 70)
    shuffled = predictor.predict(history_of(layout, [s[order] for s in snapshots]), 70)
    assert float(((shuffled - plain[order]) * judged).abs().max()) < 2e-5
    wrong = order[torch.randperm(layout.size, generator=rng)]
    lost = predictor.predict(history_of(layout, [s[wrong] for s in snapshots]), 70)
    assert float((lost - plain[wrong]).abs().max()) > 1e-3, "any order would do"


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "vit"])
def test_the_permuted_network_computes_the_same(name):
    """So that the orders of the test above are those of neurons that are alike, and not of the graph's making."""
    model = NETWORKS[name]().eval()
    order = permuted(name, model, torch.Generator().manual_seed(1))
    layout = layout_of(model)
    if name == "gpt2":
        for layer in range(2):
            model.get_parameter(f"transformer.h.{layer}.attn.c_attn.bias").data.normal_()
    vector = torch.cat([p.detach().flatten() for p in model.parameters()])
    views = layout.views(vector[order])
    if name == "vit":
        pixels = torch.randn(2, 1, 32, 32)
        plain, other = model(pixels).logits, torch.func.functional_call(model, views, (pixels,)).logits
    else:
        tokens = torch.tensor([[1, 4, 2]])
        renamed = layout.views(order.float())[
            "transformer.wte.weight" if name == "gpt2" else "model.embed_tokens.weight"
        ]
        at = [int(row) // 8 for row in (renamed[:, 0] - renamed.min()).tolist()]  # new row -> old token
        back = {old: new for new, old in enumerate(at)}
        if name == "gpt2":
            places = layout.views(order.float())["transformer.wpe.weight"][:, 0]
            old = ((places - places.min()) / 8).long().tolist()
            views["transformer.wpe.weight"] = views["transformer.wpe.weight"][[old.index(p) for p in range(5)]]
        new = torch.tensor([[back[int(t)] for t in tokens[0]]])
        plain = model(input_ids=tokens, use_cache=False).logits
        other = torch.func.functional_call(model, views, (), {"input_ids": new, "use_cache": False}).logits
        plain = plain[..., at]
    assert float((plain - other).detach().abs().max()) < 1e-5


# ---- horizons --------------------------------------------------------------------------------------------------------


def test_between_two_rows_is_a_line():
    layout = layout_of(NETWORKS["mlp"]())
    history = history_of(layout, waves(layout.size))
    for predictor in (nino(lively(GraphNetwork(width=8, horizons=4))), WnnPlus()):
        zero, one, two, half, some = (predictor.predict(history, K) for K in (0, 10, 20, 5, 13))
        assert float((zero - history.now.weights).abs().max()) < 1e-5
        assert torch.allclose(half, (zero + one) / 2, atol=1e-6)
        assert torch.allclose(some, 0.7 * one + 0.3 * two, atol=1e-6)


def test_the_last_row_is_the_limit():
    layout = layout_of(NETWORKS["mlp"]())
    predictor, history = nino(lively(GraphNetwork(width=8, horizons=4))), history_of(layout, waves(layout.size))
    assert bool(predictor.predict(history, 40).isfinite().all())
    with pytest.raises(
        ValueError, match=r"K is 4.1 intervals, and this network predicts up to 4; use a longer interval"
    ):
        predictor.predict(history, 41)
    with pytest.raises(ValueError, match="K=-1 must be 0 or more"):
        predictor.predict(history, -1)
    assert rows(40, 40) == {39: 1.0} and rows(0, 40) == {} and rows(0.25, 40) == {0: 0.25}


def test_the_published_schedule():
    assert published_horizons(10_000, 1000) == [40, 33, 26, 21, 16, 11, 8, 5, 3, 1]
    assert published_horizons(3000, 1000) == [40, 13, 1]
    assert published_horizons(10, 1000) == [40]
    assert [published_at(s, 3000, 1000) for s in (1, 1000, 1001, 2000, 3000, 9000)] == [40, 40, 13, 13, 1, 1]


def test_the_schedule_takes_the_place_of_the_horizon():
    layout = layout_of(NETWORKS["mlp"]())
    network, history = lively(GraphNetwork(width=8)), history_of(layout, waves(layout.size))
    scheduled = nino(network, schedule_steps=150)  # one nowcast per 50 steps: 40, 13, 1
    assert torch.equal(scheduled.predict(history, 10), nino(network).predict(history, 400))
    assert torch.equal(WnnPlus(schedule_steps=150).predict(history, 10), WnnPlus().predict(history, 400))
    later = History(
        tuple(Snapshot(s.step + 50, s.position, s.weights) for s in history.snapshots), layout, history.factor_at
    )
    assert torch.equal(scheduled.predict(later, 10), nino(network).predict(history, 130))


# ---- parts, sampling -------------------------------------------------------------------------------------------------


def test_sampled_edges_are_the_same_every_time_and_change_little():
    layout = layout_of(gpt2(64, 8, 1, 16, 2)())
    network, history = lively(GraphNetwork(width=8)), history_of(layout, waves(layout.size))
    whole, half, again = (nino(network, edge_share=share).predict(history, 50) for share in (1.0, 0.5, 0.5))
    assert torch.equal(half, again) and not torch.equal(half, whole)
    change = float((whole - history.now.weights).norm())
    assert 0 < float((half - whole).norm()) < 0.3 * change


@pytest.mark.parametrize("settings", [{"edge_share": 0.0}, {"edge_share": 1.5}, {"schedule_steps": 0}])
def test_settings_out_of_range_are_refused(settings):
    for predictor in (Nino, WnnPlus) if "schedule_steps" in settings else (Nino,):
        with pytest.raises(ValueError, match=next(iter(settings))):
            predictor(**settings)


def test_parts_see_their_own_graph_alone():
    layout = layout_of(NETWORKS["gpt2"]())
    network, plain = lively(GraphNetwork(width=8)), waves(layout.size)
    other = waves(layout.size)
    for s in other:
        layout.views(s)["transformer.h.0.mlp.c_proj.weight"][3] *= -1.7
    for subgraphs, behind_stays in ((True, True), (False, False)):
        predictor = nino(network, subgraphs=subgraphs)
        a, b = (layout.views(predictor.predict(history_of(layout, s), 50)) for s in (plain, other))
        same = {name for name in a if torch.equal(a[name], b[name])}
        behind = {e.name for e in layout if "h.1." in e.name or "ln_f" in e.name}
        assert (behind <= same) == behind_stays and "transformer.h.0.mlp.c_proj.weight" not in same


# ---- scale -----------------------------------------------------------------------------------------------------------


def test_scales_are_those_of_one_tensor_in_all_snapshots():
    layout = layout_of(NETWORKS["gpt2"]())
    snapshots = waves(layout.size)
    for s in snapshots:
        layout.views(s)["transformer.ln_f.weight"].fill_(1.0)
        layout.views(s)["transformer.wte.weight"].mul_(1e-4).add_(3.0)
    out = start(snapshots[-1], layout, scales_of(snapshots, layout), torch.empty(layout.size))
    for entry, scale in zip(layout, scales_of(snapshots, layout), strict=True):
        values = torch.stack([s[entry.offset : entry.offset + entry.size] for s in snapshots]).double()
        assert scale.mean == pytest.approx(float(values.mean()), rel=1e-9)
        assert scale.deviation == pytest.approx(float(values.std()), rel=1e-6, abs=1e-12)
        x = (values[-1] - values.mean()) / (values.std() + 1e-6)
        assert (out[entry.offset : entry.offset + entry.size] - (x * values.std() + values.mean())).abs().max() < 1e-6
    assert layout.views(out)["transformer.ln_f.weight"].eq(1.0).all(), "what stands still stays"


# ---- WNN -------------------------------------------------------------------------------------------------------------


def test_wnn_equals_its_equation():
    """One weight at a time. The released weights, which would give published numbers, are not available."""
    networks = lively(WeightNetworks())
    layout = layout_of(NETWORKS["fcn"]())
    predictor, snapshots = Wnn(), waves(layout.size)
    predictor.network = networks
    history = history_of(layout, snapshots)
    found, twice = predictor.predict(history, 50), predictor.predict(history, 100)

    def stream(s, x):
        u = x @ s.wide.weight.T + s.wide.bias
        r = torch.clamp(u @ s.narrow.weight.T + s.narrow.bias, min=0)
        a, b, c = (r @ part.weight.T + part.bias for part in (s.a, s.b, s.c))
        y = (a + b * torch.exp(c * u)) @ s.out.weight.T + s.out.bias
        return torch.where(y > 0, y, 0.3 * y)

    for entry in layout:
        net = networks.conv if len(entry.shape) == 4 else networks.bias
        for place in range(entry.offset, entry.offset + entry.size, 5):
            w = torch.tensor([float(s[place]) for s in snapshots])
            R = float(w.max() - w.min()) + 1e-8 + 1e-5
            x = (w - w[0]) / (2 * R)
            y = torch.cat([stream(net.values, x), stream(net.differences, x[1:] - x[:-1])])
            out = torch.tanh(y @ net.head.weight[0] + net.head.bias[0])
            wanted = float((x[4] + out) * 2 * R + w[0])
            if entry.name.startswith(("convolutions.1.", "convolutions.5.")):
                wanted = float(w[4])  # batch norm
            assert float(found[place]) == pytest.approx(wanted, abs=2e-5), entry.name
    assert torch.allclose(twice - snapshots[-1], 2 * (found - snapshots[-1]), atol=1e-5)


def test_wnn_knows_operations():
    layout = layout_of(NETWORKS["gpt2"]())
    of = {
        layout[i].name: op
        for place, op in operations(layout)
        for i in range(len(layout))
        if layout[i].offset == place.start
    }
    assert of["transformer.wte.weight"] == "fc" and of["transformer.h.0.attn.c_attn.bias"] == "bias"
    assert not [name for name in of if ".ln_" in name]


@pytest.mark.parametrize("kind", [Kind.LINEAR, Kind.CONV])
def test_wnn_plus_reads_the_type(kind):
    network = lively(EdgeNetwork(width=8))
    x = torch.randn(3, 5)
    out = network(x, torch.full((3,), int(kind)))
    assert out.shape == (3, 40) and not torch.equal(out, network(x, torch.full((3,), int(Kind.BIAS))))


@pytest.mark.parametrize("name", ["gpt2", "alexnet"])
def test_wnn_plus_equals_its_layers(name):
    layout = layout_of(NETWORKS[name]())
    predictor, snapshots, graph = WnnPlus(), waves(layout.size), graph_of(layout)
    predictor.network = lively(EdgeNetwork(width=8, horizons=6))
    found = predictor.predict(history_of(layout, snapshots), 30)
    _, _, kinds, places = graph.edge_list()
    of = torch.zeros(layout.size, dtype=torch.long)
    of[places[places >= 0]] = kinds[:, None].expand_as(places)[places >= 0]
    for entry in layout:
        part = slice(entry.offset, entry.offset + entry.size)
        values = torch.stack([s[part] for s in snapshots], 1)
        mu, sigma = values.mean(), values.std()
        change = predictor.network((values - mu) / (sigma + 1e-6), of[part])[:, 2]
        assert torch.allclose(found[part], values[:, -1] + sigma * change, atol=1e-5)
