"""What a prediction of the learned predictors costs: time, operations, memory, and what limits it.

Measured with networks of the published sizes and weights drawn at random, which cost what any weights do, on the GPT-2
of 170,560 parameters for which the published implementation of NiNo was timed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from leapbench.bench.costs import constant, fastest, interleaved
from leapbench.config.choices import Init
from leapbench.config.groups import ModelConfig
from leapbench.models.causal_lm import build as build_language_model
from leapbench.nowcasters.architectures import graph_of
from leapbench.nowcasters.graphs import VALUES
from leapbench.nowcasters.networks import CONTEXT, EdgeNetwork, GraphNetwork, WeightNetworks
from leapbench.nowcasters.scaling import EPS, scales_of, start
from leapbench.prediction.history import History, Snapshot
from leapbench.prediction.weights import FlatWeights
from leapbench.predictors._learned import Learned, on_device
from leapbench.predictors.nino import Nino
from leapbench.predictors.wnn import Wnn
from leapbench.predictors.wnn_plus import WnnPlus

# The published implementation on one CPU thread: seconds and megabytes beyond those of the training.
PUBLISHED_S, PUBLISHED_MB = 3.6, 640
FASTER_AT_LEAST, MEMORY_AT_MOST = 5.0, 1 / 3
K, INTERVAL = 2000, 200
TILE = 1 << 11
Row = dict[str, Any]


def network_of(
    vocabulary: int = 256, positions: int = 64, layers: int = 3, width: int = 64, heads: int = 4
) -> nn.Module:
    """The GPT-2 that the published implementation was timed on, or another."""
    config = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": positions}
    return build_language_model(ModelConfig("timed", "gpt2", config=config), vocabulary, positions, 0, Init.scratch)


def history_on(model: nn.Module, device: torch.device) -> History:
    """Five snapshots of a random walk from the model's weights."""
    weights = FlatWeights.of(model)
    rng = torch.Generator().manual_seed(0)
    snapshots = []
    for number in range(1, CONTEXT + 1):
        weights.vector.add_(torch.randn(weights.layout.size, generator=rng), alpha=1e-3)
        vector = weights.vector.clone().to(device)
        snapshots.append(Snapshot(number * INTERVAL, number * INTERVAL, vector))
    return History(tuple(snapshots), weights.layout, constant)


def methods() -> dict[str, Learned]:
    """The learned predictors with networks of the published sizes."""
    networks: dict[type[Learned], nn.Module] = {Nino: GraphNetwork(), WnnPlus: EdgeNetwork(), Wnn: WeightNetworks()}
    found = {}
    for kind, network in networks.items():
        predictor = kind.__new__(kind)
        predictor.network = network.requires_grad_(False).eval()
        found[kind.__name__] = predictor
    found["Nino"].__dict__.update(edge_share=1.0, subgraphs=False, schedule_steps=None)
    found["WnnPlus"].__dict__.update(schedule_steps=None)
    return {"nino": found["Nino"], "wnn_plus": found["WnnPlus"], "wnn": found["Wnn"]}


@torch.no_grad()
def edge_by_edge(network: GraphNetwork, history: History) -> Tensor:
    """NiNo's prediction K steps ahead by its layers as they are printed, with all edges in memory, dead round included.

    Returns:
        the weights (N,).
    """
    graph, layout, device = graph_of(history.layout), history.layout, history.now.weights.device
    snapshots = [snapshot.weights for snapshot in history.snapshots]
    scales = scales_of(snapshots, layout)
    sizes = torch.tensor([entry.size for entry in layout])
    means = torch.tensor([scale.mean for scale in scales]).repeat_interleave(sizes).to(device)
    deviations = torch.tensor([scale.deviation for scale in scales]).repeat_interleave(sizes).to(device)
    scaled = (torch.stack(snapshots, 1) - means[:, None]) / (deviations + EPS)[:, None]
    sources, targets, kinds, places = (part.to(device) for part in graph.edge_list())
    places = places[:, : network.kernel]
    features = torch.where(places[:, :, None] >= 0, scaled[places.clamp(min=0)], 0.0)
    for kind, value in VALUES.items():
        features[kinds == kind, 0] = value
    changes = on_device(network, device)(
        features.flatten(1), kinds, sources, targets, graph.positions.to(device), dead=True
    )
    out = start(snapshots[-1], layout, scales, torch.empty_like(snapshots[-1]))
    real = places >= 0
    out[places[real]] += deviations[places[real]] * changes[:, :, K // INTERVAL - 1][real]
    return out


def extra_mb(action: Callable[[], object], device: torch.device) -> float:
    """Memory that an action takes at its peak beyond what is held before it, MB; nan where that cannot be found out."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        action()
        return (torch.cuda.max_memory_allocated(device) - held) / 1e6
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # what was freed before would be used again unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        action()
        return float("nan")
    before = _status("VmRSS")
    action()
    return (_status("VmHWM") - before) / 1e6


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(device: torch.device, rounds: int, model: nn.Module | None = None) -> list[Row]:
    """One row per learned predictor, and one for NiNo's layers edge by edge; all take turns.

    Returns:
        predictor, parameters, edges, and: seconds (least of the rounds; processor time on a CPU), wall_s, flops (of
        its matrix products), rate (their number per second), product_rate (of a matrix product alone), reached (their
        ratio), moved_mb (what has to be read and written), extra_mb; of nino also times_faster than edge by edge.
    """
    history = history_on(network_of() if model is None else model, device)
    predictors, scratch = methods(), [torch.empty_like(history.now.weights)]
    actions: dict[str, Callable[[], Any]] = {
        name: partial(_predict, predictor, history, scratch) for name, predictor in predictors.items()
    }
    actions["edge by edge"] = partial(edge_by_edge, predictors["nino"].network, history)
    graph = graph_of(history.layout)
    memory, flops = dict[str, float](), dict[str, int]()
    small = history_on(network_of(16, 8, 1, 16, 2), device)
    for name in actions:  # what libraries load at their first call is not counted
        other = predictors[name].predict if name in predictors else None
        other(small, K) if other else edge_by_edge(predictors["nino"].network, small)
        memory[name] = extra_mb(actions[name], device)
        with FlopCounterMode(display=False) as counter:
            actions[name]()
        flops[name] = counter.get_total_flops()
    x, w, out = (torch.randn(size, 128, device=device) for size in (TILE, 128, TILE))
    actions["product"] = lambda: [torch.mm(x, w, out=out) for _ in range(20)]
    best = {name: fastest(timings) for name, timings in interleaved(actions, rounds, device).items()}
    product_rate = 20 * 2 * TILE * 128 * 128 / best["product"].on(device)
    rows = []
    for name in memory:
        seconds = best[name].on(device)
        row: Row = {"predictor": name, "parameters": history.layout.size, "edges": graph.edges, "seconds": seconds}
        row |= {"wall_s": best[name].wall, "flops": flops[name], "rate": flops[name] / seconds}
        row |= {"product_rate": product_rate, "reached": flops[name] / seconds / product_rate}
        row |= {"moved_mb": 4e-6 * (CONTEXT + 1) * history.layout.size, "extra_mb": memory[name], "rounds": rounds}
        rows.append(row)
    for row in rows:
        if row["predictor"] == "nino":
            row["times_faster"] = best["edge by edge"].on(device) / row["seconds"]
    return rows


def verdicts(row: Row) -> list[str]:
    """Whether the row of nino meets its targets, a line each."""
    faster, share = PUBLISHED_S / row["seconds"], row["extra_mb"] / PUBLISHED_MB
    met = {True: "met", False: "missed"}
    return [
        f"at least {FASTER_AT_LEAST:g}x faster than the published {PUBLISHED_S} s: "
        f"{met[faster >= FASTER_AT_LEAST]}, {faster:.1f}x",
        f"at most a third of the published {PUBLISHED_MB} MB: {met[share <= MEMORY_AT_MOST]}, {row['extra_mb']:.0f} MB",
    ]


def _predict(predictor: Learned, history: History, scratch: list[Tensor]) -> Tensor:
    history.scratch[:] = scratch
    return predictor.predict(history, K)
