"""The same numbers as `networks`, a block of edges at a time, with what is linear worked out before.

Between the edges' features and the first SiLU everything is linear, and a message is linear in its source node. So the
first round of messages is five products of a weight matrix with the nodes' features, W_i (targets, sources) times
(sources, width), instead of several (edges, width) tensors; its part that depends on the target alone, and the sums
over biases, are taken once per node. Matrices with nothing but addition between them are multiplied beforehand: per
edge three products with a (width, width) matrix are left of twelve. Edges of later rounds are not kept but computed
again from their features for every round, so that memory is a few blocks and a few features per node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from leapbench.nowcasters.graphs import VALUES, Block, Graph, Kind, tiles
from leapbench.nowcasters.horizons import readout
from leapbench.nowcasters.networks import CONTEXT, EdgeNetwork, GraphNetwork
from leapbench.nowcasters.scaling import EPS, Scale

# Edges of a tile: on a CPU two tensors of 128 features (1 MB each) stay near the core.
CPU_EDGES, GPU_EDGES = 1 << 11, 1 << 17
STRIP = 1 << 17  # values whose snapshots are scaled at a time


@dataclass(frozen=True)
class Round:
    """One round, in terms of the edges' y (of their features x in the first round).

    Attributes:
        message: (2 width, inputs), with the constants of each kind of edge (kinds, 2 width): a and b.
        target, source, bias: pre = target h_t + source h_s + bias.
        update: (width, inputs), with constants (kinds, width): what y is the SiLU of, without the nodes' parts.
    """

    message: Tensor
    message_constants: Tensor
    target: Tensor
    source: Tensor
    bias: Tensor
    update: Tensor
    update_constants: Tensor


class Folded:
    """A graph network with its linear maps multiplied, for edges that show one kernel size.

    Args:
        network: on the device of the weights.
        rates: (5 + horizons,) learning rates, for a network that reads them.
    """

    @torch.no_grad()
    def __init__(self, network: GraphNetwork, rates: Tensor | None = None) -> None:
        self.network, width = network, network.width
        encode = network.edge_proj.linears[0]
        # z = matrix y + constants[kind], y = x at first.
        matrix, constants = encode.weight.double(), encoded(network, rates)
        self.rounds = []
        for convolution, update in zip(network.convolutions, network.updates, strict=False):
            a, pre = convolution.edge_encoder, convolution.pre
            e = update.lin_e
            biases = e.bias.double() + update.lin_s.bias.double() + update.lin_t.bias.double()
            self.rounds.append(
                Round(
                    (a.weight.double() @ matrix).float(), (constants @ a.weight.double().T + a.bias.double()).float(),
                    pre.weight[:, :width], pre.weight[:, width:], pre.bias,
                    (e.weight.double() @ matrix).float(), (constants @ e.weight.double().T + biases).float(),
                )
            )  # fmt: skip
            matrix, constants = update.lin1.weight.double(), update.lin1.bias.double().expand_as(constants)
        first = network.edge_out.linears[0]
        self.last = (first.weight.double() @ matrix).float()
        self.last_bias = (first.weight.double() @ constants[0] + first.bias.double()).float()

    def readout(self, K: float) -> tuple[Tensor, Tensor]:
        """The last layer for K intervals: (kernel, width) and (kernel,)."""
        last, horizons = self.network.edge_out.linears[1], self.network.horizons
        return readout(last.weight.view(-1, horizons, last.in_features), last.bias.view(-1, horizons), K)


def encoded(network: GraphNetwork | EdgeNetwork, rates: Tensor | None) -> Tensor:
    """What every edge's encoding has of its type and of the learning rates: (kinds, width) float64."""
    constants = network.edge_proj.linears[0].bias.double() + network.layer_embed.weight.double()
    return constants + network.rate_proj(rates).double() if network.rates else constants


@dataclass(frozen=True)
class Tile:
    """Some edges of a block.

    Attributes:
        shown: (kernel * 5, targets, sources) their scaled snapshots.
        targets, sources: numbers of the nodes.
    """

    kind: Kind
    shown: Tensor
    targets: slice
    sources: slice | Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """How many targets and sources."""
        return self.shown.shape[1], self.shown.shape[2]


def strips(block: Block, snapshots: Sequence[Tensor], scale: Scale) -> Iterator[tuple[Tensor, slice, slice]]:
    """Scaled snapshots of all edges of a block, (kernel, 5, targets, sources), some at a time, and which those are."""
    for targets, sources in tiles(*block.whole, STRIP // block.kernel):
        views = [block.view(snapshot, targets, sources) for snapshot in snapshots]
        shown = torch.empty(block.kernel, len(views), *views[0].shape[1:], device=views[0].device)
        for number, view in enumerate(views):
            shown[:, number].copy_(view)
        yield shown.sub_(scale.mean).div_(scale.deviation + EPS), targets, sources


class Nowcast:
    """One prediction with a graph network.

    Args:
        folded, graph: the network, and the edges that it is run on.
        snapshots: CONTEXT vectors (N,), oldest first, on the device of the network.
        scales: of the tensors.
        positions: (nodes, 8) features of the nodes; None = those of the graph.
        share: of each strip's sources, drawn anew for every strip, that send messages; all edges are predicted.
        seed: of those.
        edges: in a tile; None = as many as suit the device.
    """

    def __init__(
        self, folded: Folded, graph: Graph, snapshots: Sequence[Tensor], scales: Sequence[Scale],
        positions: Tensor | None = None, share: float = 1.0, seed: int = 0, edges: int | None = None,
    ) -> None:  # fmt: skip
        self.folded, self.graph, self.snapshots, self.scales = folded, graph, snapshots, scales
        self.device = snapshots[-1].device
        self.positions = (graph.positions if positions is None else positions).to(self.device)
        self.share, self.seed = share, seed
        self.edges = edges or (CPU_EDGES if self.device.type == "cpu" else GPU_EDGES)
        self.width = folded.network.width
        self.buffers = [torch.empty(self.edges, self.width, device=self.device) for _ in range(2)]

    @torch.no_grad()
    def add_to(self, out: Tensor, K: float) -> Tensor:
        """Add the change K intervals ahead to out (N,), in the scale of the weights."""
        parts = self._rounds()
        matrix, constant = self.folded.readout(K)
        for block in self.graph.blocks:
            deviation = self.scales[block.entry].deviation
            weight, bias = matrix[: block.kernel] * deviation, constant[: block.kernel] * deviation
            for strip, place in self._strips(block, out):
                change = torch.empty_like(place, memory_format=torch.contiguous_format)
                for tile, part in self._tiles(strip, change):
                    y, rest = self._states(tile, parts)
                    last = torch.addmm(self.folded.last_bias, y, self.folded.last.T, out=rest)
                    found = torch.addmm(bias, silu(last, inplace=True), weight.T)
                    part.copy_(found.T.view(part.shape))
                place.add_(change)
        return out

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def _rounds(self) -> list[tuple[Tensor, Tensor]]:
        """Per round what its edges' y take from their source and from their target: (nodes, width) each."""
        network, parts = self.folded.network, list[tuple[Tensor, Tensor]]()
        h = network.node_proj(self.positions)
        if network.tokens:
            h = h + network.wte_pos_enc_layer(self._token_numbers())
        for now, convolution, update in zip(self.folded.rounds, network.convolutions, network.updates, strict=False):
            mean = self._messages(now, h, parts)
            h = silu(convolution.lin(convolution.post_nns[0](torch.cat([h, mean], -1))), inplace=True)
            parts.append((h @ update.lin_s.weight.T, h @ update.lin_t.weight.T))
        return parts

    def _messages(self, now: Round, h: Tensor, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean of the messages into every node: (nodes, width).

        A message is a * (to + of) + b, where `to` and `of` belong to its target and its source, and a = A y + c.
        """
        sums = Sums(self.graph.nodes, self.width, self.device)
        to, of = torch.addmm(now.bias, h, now.target.T), h @ now.source.T
        generator = torch.Generator().manual_seed(self.seed)
        for block in self.graph.blocks:
            for strip, _ in self._strips(block, self.snapshots[-1]):
                chosen = self._drawn(strip, generator)
                self._add(now, chosen, of, sums, parts)
                source = of[chosen.sources]
                constants = now.message_constants[block.kind]
                sums.products[chosen.targets] += constants[: self.width] * source.sum(0)
                sums.both[chosen.targets] += len(source) * constants
                sums.counts[chosen.targets] += len(source)
        for links in self.graph.links:
            for start in range(0, len(links.source), self.edges):
                ends = slice(start, start + self.edges)
                self._linked(now, links.kind, links.source[ends], links.target[ends], of, sums, parts)
        return sums.mean(to)

    def _add(
        self, now: Round, strip: Tile, of: Tensor, sums: Sums, parts: list[tuple[Tensor, Tensor]]
    ) -> None:  # fmt: skip
        """Add the messages of a strip, without their constants."""
        if not parts:
            message = now.message[:, : len(strip.shown)]
            products = (strip.shown.flatten(0, 1) @ of[strip.sources]).view(len(strip.shown), -1, self.width)
            sums.products[strip.targets] += products.mul_(message[: self.width].T[:, None]).sum(0)
            sums.both[strip.targets] += strip.shown.sum(2).T @ message.T
            return
        for tile, _ in self._tiles(strip, strip.shown[:1]):
            y, rest = self._states(tile, parts)
            a = torch.mm(y, now.message[: self.width].T, out=rest).view(*tile.shape, -1)
            sums.products[tile.targets] += a.mul_(of[tile.sources]).sum(1)
            sums.both[tile.targets] += y.view(a.shape).sum(1) @ now.message.T

    def _linked(
        self, now: Round, kind: Kind, source: Tensor, target: Tensor, of: Tensor, sums: Sums,
        parts: list[tuple[Tensor, Tensor]],
    ) -> None:  # fmt: skip
        """Add the messages of edges without a parameter."""
        source, target = source.to(self.device), target.to(self.device)
        y = torch.full((len(source), CONTEXT), VALUES[kind], device=self.device)
        for past, (from_source, from_target) in zip(self.folded.rounds, parts, strict=False):
            y = y @ past.update[:, : y.shape[1]].T + past.update_constants[kind]
            y = silu(y.add_(from_source[source]).add_(from_target[target]), inplace=True)
        both = y @ now.message[:, : y.shape[1]].T + now.message_constants[kind]
        sums.both.index_add_(0, target, both)
        sums.products.index_add_(0, target, both[:, : self.width] * of[source])
        sums.counts.index_add_(0, target, torch.ones_like(both[:, :1]))

    # ---- edges -------------------------------------------------------------------------------------------------------

    def _strips(self, block: Block, vector: Tensor) -> Iterator[tuple[Tile, Tensor]]:
        """All edges of a block, and their values in a vector (N,): (kernel, targets, sources), a view."""
        for shown, targets, sources in strips(block, self.snapshots, self.scales[block.entry]):
            ends = _within(block.target.start, targets), _within(block.source.start, sources)
            yield Tile(block.kind, shown.flatten(0, 1), *ends), block.view(vector, targets, sources)

    def _tiles(self, strip: Tile, values: Tensor) -> Iterator[tuple[Tile, Tensor]]:
        """A strip in pieces that stay in the cache, and the same pieces of `values` (..., targets, sources)."""
        high, wide = strip.shape
        for t, s in tiles(slice(0, high), slice(0, wide), self.edges):
            targets = slice(strip.targets.start + t.start, strip.targets.start + t.stop)
            sources = strip.sources[s] if isinstance(strip.sources, Tensor) else _within(strip.sources.start, s)
            yield Tile(strip.kind, strip.shown[:, t, s], targets, sources), values[..., t, s]

    def _states(self, tile: Tile, parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """y of a tile after as many rounds as there are parts, (targets * sources, width), and as much free memory."""
        high, wide = tile.shape
        y = tile.shown.flatten(1).T
        free, other = (buffer[: high * wide] for buffer in self.buffers)
        for past, (from_source, from_target) in zip(self.folded.rounds, parts, strict=False):
            row, column = from_target[tile.targets] + past.update_constants[tile.kind], from_source[tile.sources]
            torch.add(row[:, None], column, out=free.view(high, wide, -1))
            y = silu(torch.addmm(free, y, past.update[:, : y.shape[1]].T, out=free), inplace=True)
            free, other = other, free
        return y, free

    def _drawn(self, strip: Tile, generator: torch.Generator) -> Tile:
        """Some of the strip's sources, in order."""
        count = strip.shape[1]
        wanted = max(1, round(self.share * count))
        if wanted == count:
            return strip
        assert isinstance(strip.sources, slice)
        chosen = torch.randperm(count, generator=generator)[:wanted].sort().values.to(self.device)
        return Tile(strip.kind, strip.shown[:, :, chosen], strip.targets, strip.sources.start + chosen)

    def _token_numbers(self) -> Tensor:
        numbers = torch.zeros(self.graph.nodes, dtype=torch.long, device=self.device)
        if self.graph.tokens is not None:
            numbers[self.graph.tokens.place] = torch.arange(1, self.graph.tokens.size + 1, device=self.device)
        return numbers


class Sums:
    """Over the edges into every node: of a and b (nodes, 2 width), of a times `of` (nodes, width), and how many."""

    def __init__(self, nodes: int, width: int, device: torch.device) -> None:
        self.both = torch.zeros(nodes, 2 * width, device=device)
        self.products = torch.zeros(nodes, width, device=device)
        self.counts = torch.zeros(nodes, 1, device=device)

    def mean(self, to: Tensor) -> Tensor:
        """Of the messages: (nodes, width)."""
        a, b = self.both.chunk(2, 1)
        return (a * to + self.products + b) / self.counts


def _within(start: int, part: slice) -> slice:
    return slice(start + part.start, start + part.stop)
