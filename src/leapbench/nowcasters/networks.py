"""The published networks, layer by layer, with the names that their files give to the weights.

What is computed here edge by edge takes several numbers of memory per edge and feature; `blocks` gives the same in
less. NiNo: arXiv:2409.04434. WNN: Jang, Han and Koo, Learning to Boost Training by Periodic Nowcasting Near Future
Weights, ICML 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear, relu, silu

CONTEXT = 5  # snapshots that every one of these networks reads
KINDS = 15  # rows of the table of edge types
LEAKY = 0.3  # Keras' slope, with which WNN was trained
RATES = "rate_proj.weight"  # only in files of networks that read learning rates


class NotThisNetworkError(ValueError):
    """Weights that are not those of the network; the message says what is different."""


class Layers(nn.Module):
    """Linear layers with SiLU between them, called fc.0, fc.2, ..."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.SiLU()] * bool(layers) + [nn.Linear(inputs, outputs)]
        self.fc = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(..., first width) -> (..., last width)."""
        return self.fc(x)

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers without the SiLUs."""
        return [layer for layer in self.fc if isinstance(layer, nn.Linear)]


def _first_weights(module: nn.Module) -> None:
    """N(0, 0.02^2), biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def _encoded(network: GraphNetwork | EdgeNetwork, features: Tensor, kinds: Tensor, rates: Tensor | None) -> Tensor:
    """z of the edges before any round: (e, width). Columns of kernel elements that are not shown are not needed."""
    encode = network.edge_proj.linears[0]
    z = linear(features, encode.weight[:, : features.shape[1]], encode.bias) + network.layer_embed(kinds)
    return z + network.rate_proj(rates) if network.rates else z


class _Convolution(nn.Module):
    """One round of messages: the mean over the edges into a node."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge_encoder = nn.Linear(width, 2 * width)
        self.pre_nns = nn.ModuleList([nn.Sequential(nn.Linear(2 * width, width))])  # one per tower, of which it has one
        self.post_nns = nn.ModuleList([nn.Sequential(nn.Linear(2 * width, width))])
        self.lin = nn.Linear(width, width)

    @property
    def pre(self) -> nn.Linear:
        """Of the two ends of an edge, target first."""
        return cast(Any, self.pre_nns[0])[0]

    def forward(self, h: Tensor, z: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Nodes (n, width), edges (e, width), their ends (e,) -> nodes (n, width)."""
        a, b = self.edge_encoder(z).chunk(2, -1)
        message = a * self.pre(torch.cat([h[target], h[source]], -1)) + b
        counts = torch.zeros(len(h), device=h.device).index_add_(0, target, torch.ones_like(a[:, 0]))
        mean = torch.zeros_like(h).index_add_(0, target, message) / counts.clamp(min=1)[:, None]
        return self.lin(self.post_nns[0](torch.cat([h, mean], -1)))


class _Update(nn.Module):
    """z = W_1 SiLU(W_e z + W_s h_s + W_t h_t)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin_e, self.lin_s, self.lin_t, self.lin1 = (nn.Linear(width, width) for _ in range(4))

    def forward(self, h: Tensor, z: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Nodes (n, width), edges (e, width), their ends (e,) -> edges (e, width)."""
        return self.lin1(silu(self.lin_e(z) + self.lin_s(h)[source] + self.lin_t(h)[target]))


class GraphNetwork(nn.Module):
    """NiNo: rounds of messages over the edges of a neural graph, then one output per kernel element and horizon.

    Args:
        width: features of nodes and edges.
        kernel: kernel elements that an edge shows.
        horizons: K, rows of the output: 1, 2, ..., horizons intervals ahead.
        rounds: of messages. Only edges are read in the end, and the last round changes none, so it does nothing; the
            published files contain it, and `dead` computes it all the same.
        tokens: rows of a table with one vector per token, behind a first one for all other nodes; 0 = no table.
        positions: Laplacian eigenvectors of a node.
        rates: whether it reads the learning rates too, which the published networks do not.
    """

    def __init__(
        self, width: int = 128, kernel: int = 9, horizons: int = 40, rounds: int = 3, tokens: int = 0,
        positions: int = 8, rates: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.kernel, self.horizons, self.tokens, self.rates = width, kernel, horizons, tokens, rates
        self.layer_embed = nn.Embedding(KINDS, width)
        self.node_proj, self.edge_proj = Layers(positions, width), Layers(kernel * CONTEXT, width)
        if tokens:
            self.wte_pos_enc_layer = nn.Embedding(tokens + 1, width)
        if rates:
            self.rate_proj = nn.Linear(CONTEXT + horizons, width, bias=False)
        self.gnn = nn.Module()
        self.gnn.convs = nn.ModuleList([_Convolution(width) for _ in range(rounds)])
        self.gnn.edge_update = nn.ModuleList([_Update(width) for _ in range(rounds - 1)])
        self.edge_out = Layers(width, width, kernel * horizons)
        _first_weights(self)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> GraphNetwork:
        """A network with layers as wide and as many as those of a file."""
        width, columns = _shape(state, "edge_proj.fc.0.weight")
        kernel, rest = divmod(columns, CONTEXT)
        outputs = _shape(state, "edge_out.fc.2.weight")[0]
        if rest or not kernel or outputs % kernel:
            raise NotThisNetworkError(
                f"edge_proj has {columns} inputs and edge_out {outputs} outputs, no multiple of {CONTEXT} snapshots"
            )
        rounds = len([name for name in state if name.startswith("gnn.convs.") and name.endswith(".lin.weight")])
        tokens = len(state["wte_pos_enc_layer.weight"]) - 1 if "wte_pos_enc_layer.weight" in state else 0
        positions = _shape(state, "node_proj.fc.0.weight")[1]
        return cls(width, kernel, outputs // kernel, rounds, tokens, positions, RATES in state)

    def forward(
        self, features: Tensor, kinds: Tensor, source: Tensor, target: Tensor, positions: Tensor,
        tokens: Tensor | None = None, dead: bool = False, rates: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Changes in scaled weights, for all elements that are shown and all horizons: (e, elements, horizons).

        Args:
            features: (e, elements * 5) scaled snapshots, the elements one after the other, oldest snapshot first; the
                first of a kernel's elements are enough where no edge has more.
            kinds, source, target: (e,) types and ends of the edges.
            positions: (n, 8) of the nodes.
            tokens: (n,) token + 1, 0 for other nodes; with a table only.
            rates: (5 + horizons,) learning rates as shares of the peak, at the snapshots and at the horizons; for a
                network that reads them.
        """
        h = self.node_proj(positions)
        if self.tokens:
            nobody = torch.zeros(len(h), dtype=torch.long, device=h.device)
            h = h + self.wte_pos_enc_layer(nobody if tokens is None else tokens)
        z = _encoded(self, features, kinds, rates)
        for convolution, update in zip(self.convolutions, self.updates, strict=False):
            h = silu(convolution(h, z, source, target))
            z = update(h, z, source, target)
        if dead:
            self.convolutions[-1](h, z, source, target)
        elements = features.shape[1] // CONTEXT
        first, last = self.edge_out.linears
        outputs = elements * self.horizons
        change = linear(silu(first(z)), last.weight[:outputs], last.bias[:outputs])
        return change.view(len(z), elements, self.horizons)

    @property
    def convolutions(self) -> list[_Convolution]:
        """Of every round, the dead one last."""
        return cast(Any, list(cast(Any, self.gnn).convs))

    @property
    def updates(self) -> list[_Update]:
        """Of the edges, behind every round but the last."""
        return cast(Any, list(cast(Any, self.gnn).edge_update))


class EdgeNetwork(nn.Module):
    """WNN+: one weight at a time, NiNo without its graph.

    Args:
        width, horizons, rates: as in `GraphNetwork`.
        layers: linear layers behind the encoding, 2 or more.
    """

    def __init__(self, width: int = 128, horizons: int = 40, layers: int = 4, rates: bool = False) -> None:
        super().__init__()
        self.width, self.horizons, self.rates = width, horizons, rates
        self.layer_embed, self.edge_proj = nn.Embedding(KINDS, width), Layers(CONTEXT, width)
        if rates:
            self.rate_proj = nn.Linear(CONTEXT + horizons, width, bias=False)
        self.edge_mlp = Layers(*[width] * layers, horizons)
        _first_weights(self)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> EdgeNetwork:
        """A network with layers as wide and as many as those of a file."""
        layers = len([name for name in state if name.startswith("edge_mlp.fc.") and name.endswith(".weight")])
        horizons = _shape(state, f"edge_mlp.fc.{2 * max(layers - 1, 1)}.weight")[0]
        return cls(_shape(state, "edge_proj.fc.0.weight")[0], horizons, max(layers, 2), RATES in state)

    def forward(self, features: Tensor, kinds: Tensor, rates: Tensor | None = None) -> Tensor:
        """Scaled snapshots (e, 5), oldest first, and types (e,) -> changes at all horizons (e, horizons)."""
        return self.edge_mlp(_encoded(self, features, kinds, rates))


class _Stream(nn.Module):
    """One of WNN's two streams, with its activation network."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(inputs, 64), nn.Linear(64, 8)
        self.a, self.b, self.c = (nn.Linear(8, 64) for _ in range(3))
        self.out = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        """(e, inputs) -> (e, 32)."""
        u = self.wide(x)
        r = relu(self.narrow(u))
        return leaky_relu(self.out(self.a(r) + self.b(r) * torch.exp(self.c(r) * u)), LEAKY)


class TwoStream(nn.Module):
    """WNN: one weight at a time, from its normalised values and their differences."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.differences, self.head = _Stream(CONTEXT), _Stream(CONTEXT - 1), nn.Linear(64, 1)
        for part in self.modules():
            if isinstance(part, nn.Linear):  # variance 0.1 / fan_in, uniform
                nn.init.uniform_(part.weight, -(bound := (0.3 / part.in_features) ** 0.5), bound)
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised values (e, 5), oldest first -> the normalised change, 5 intervals ahead: (e,)."""
        both = torch.cat([self.values(x), self.differences(x[:, 1:] - x[:, :-1])], -1)
        return torch.tanh(self.head(both)).squeeze(-1)


class WeightNetworks(nn.Module):
    """WNN's three networks: for convolutions, for matrices and for vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.bias = TwoStream(), TwoStream(), TwoStream()

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> WeightNetworks:
        """The networks, which have one size only."""
        return cls()


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in state or state[name].dim() != 2:
        raise NotThisNetworkError(f"it has no matrix {name}")
    rows, columns = state[name].shape
    return rows, columns
