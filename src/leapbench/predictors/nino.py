"""NiNo: a network that reads the graph of another network, with its last weights on the edges (arXiv:2409.04434)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from leapbench.nowcasters.architectures import graph_of
from leapbench.nowcasters.blocks import Folded, Nowcast
from leapbench.nowcasters.graphs import Graph
from leapbench.nowcasters.networks import GraphNetwork
from leapbench.nowcasters.scaling import scales_of, start
from leapbench.nowcasters.subgraphs import cut
from leapbench.prediction.history import History
from leapbench.prediction.weights import Layout
from leapbench.predictors._learned import Learned, ahead, checked_schedule, on_device, rates_of, vectors


class Nino(Learned):
    """theta_hat_{t+K} = sigma (x_t + f_k) + mu, x = (theta - mu) / (sigma + 1e-6), k = K / Delta.

    Knyazev et al., "Accelerating Training with Neuron Interaction and Nowcasting Networks", ICLR 2025,
    arXiv:2409.04434. mu and sigma (unbiased) are those of one tensor's elements in all five snapshots. f (horizons, N)
    comes from rounds of messages over the neural graph, where neurons are nodes and weights edges; f_k is its row k.

    - Paper and code: k is a whole number of intervals, taken from a schedule over the training. Here it is K / Delta;
      between two rows a line, below the first one towards no change; `schedule_steps` gives the published schedule.
    - Code: three rounds, of which the last changes nothing that is read; here it is not computed.
    - Code: parameters become views of one new vector, and all edges are held at once; here nothing is changed, and
      edges are computed block by block (`leapbench.nowcasters.blocks`), for the same numbers.
    - Code: eigenvectors of the whole Laplacian with random signs; here those that are constant on layers, with fixed
      signs. For networks of more than a few layers they are the same ones.
    - A checkpoint with `rate_proj` in it was trained with learning rates as inputs, which the paper did not try: shares
      of the peak at every snapshot and horizon, here those of the history's schedule.
    - Code: scales of 'std' alone are read here; min-max and the like are not offered.

    Args:
        checkpoint: file in the published layout (.pt) or as safetensors; None = the one that comes with the package.
        sha256: first 12 hex digits of its hash; None = any.
        edge_share: of the edges that send messages, drawn anew for each group of edges; every edge is predicted.
        subgraphs: one graph per numbered block of the network, instead of one for all of it.
        schedule_steps: steps of the training; then k is that of the published schedule at the newest snapshot, and K
            says only how far the training moves on.

    Raises:
        ValueError: one line: the checkpoint is not there or of another kind, no graph can be made of the network, its
            vocabulary is not that of the checkpoint's table, K is beyond the horizons or negative, fewer than five
            snapshots, or uneven ones.
    """

    def __init__(
        self, checkpoint: str | None = None, sha256: str | None = None, edge_share: float = 1.0,
        subgraphs: bool = False, schedule_steps: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(checkpoint, sha256)
        if not 0 < edge_share <= 1:
            raise ValueError(f"edge_share={edge_share} must be above 0 and at most 1")
        self.edge_share, self.subgraphs, self.schedule_steps = edge_share, subgraphs, checked_schedule(schedule_steps)

    def check_network(self, layout: Layout) -> None:
        """Raise ValueError if no graph can be made of the network, or the checkpoint does not fit it."""
        check(self.network, graph_of(layout))

    @torch.no_grad()
    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        h = history.last(self.context)
        k = ahead(h, K, self.schedule_steps, self.network.horizons)
        graph = graph_of(h.layout)
        check(self.network, graph)
        snapshots = vectors(h)
        scales = scales_of(snapshots, h.layout)
        out = start(h.now.weights.float(), h.layout, scales, h.empty_vector())
        folded = folded_on(self.network, h.now.weights.device, rates_of(self.network, h))
        for part in cut(graph, h.layout) if self.subgraphs else (graph,):
            Nowcast(folded, part, snapshots, scales, share=self.edge_share, seed=h.now.step).add_to(out, k)
        return out


def check(network: GraphNetwork, graph: Graph) -> None:
    """Raise ValueError if the network cannot read this graph."""
    if network.tokens and graph.tokens is not None and graph.tokens.size != network.tokens:
        raise ValueError(
            f"this checkpoint has a table for a vocabulary of {network.tokens:,} tokens, and the network that is "
            f"trained has {graph.tokens.size:,}; use a checkpoint without a table"
        )
    if (largest := max(block.kernel for block in graph.blocks)) > network.kernel:
        raise ValueError(
            f"this checkpoint reads {network.kernel} kernel elements per edge, and the network that is trained has "
            f"kernels of {largest} or more; use a checkpoint that was trained on convolutions"
        )


@lru_cache(maxsize=4)
def folded_on(network: GraphNetwork, device: torch.device, rates: tuple[float, ...]) -> Folded:
    """The network prepared for weights on this device, and for these learning rates if it reads them."""
    return Folded(on_device(network, device), torch.tensor(rates, device=device))
