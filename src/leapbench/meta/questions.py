"""What each network is asked about a window, and what it should have answered: changes of weights, on its own scale."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leapbench.meta.architecture import Architecture
from leapbench.meta.settings import Network, StreamSettings
from leapbench.meta.windows import Window
from leapbench.models.seeded import seeded
from leapbench.nowcasters.architectures import graph_of, typed_blocks
from leapbench.nowcasters.checkpoints import NETWORKS
from leapbench.nowcasters.graphs import VALUES
from leapbench.nowcasters.networks import CONTEXT, GraphNetwork
from leapbench.nowcasters.scaling import EPS, scales_of
from leapbench.predictors.nino import check
from leapbench.predictors.wnn import HORIZON, normalised, operations


class Question(ABC):
    """A network that learns, and how a window is put to it.

    Args:
        settings: of the network.
        seed: of its first weights.
        device: where it learns.

    Attributes:
        horizons: intervals ahead that it predicts at most.
        earliest: the first horizon that it predicts.
        rates: whether it reads learning rates.
    """

    earliest = 1

    def __init__(self, settings: Network, seed: int, device: torch.device) -> None:
        with seeded(seed):
            self.network: Any = NETWORKS[settings.name](**settings.sizes()).to(device)
        self.device = device
        self.horizons: int = getattr(self.network, "horizons", HORIZON)
        self.rates: bool = getattr(self.network, "rates", False)

    @abstractmethod
    def prepare(self, architecture: Architecture) -> None:
        """Work out what all windows of an architecture share.

        Raises:
            ValueError: the network cannot read it; one line.
        """

    @abstractmethod
    def changes(self, window: Window) -> tuple[Tensor, Tensor]:
        """What the network predicts and what came: (weights, horizons) each, in one order, without missing ones."""

    def count(self, architecture: Architecture, horizons: int) -> int:
        """How many numbers :meth:`changes` gives for a window with so many targets."""
        return architecture.layout.size * horizons

    def penalty(self) -> Tensor | None:
        """What is added to the loss, whatever the windows are."""
        return None


@dataclass(frozen=True, eq=False)
class Edges:
    """The graph of an architecture, edge by edge.

    Attributes:
        sources, targets, kinds: (e,).
        real: (e, elements) whether an edge has such a parameter.
        order: (n,) where the parameters are in the vector, in the order of `real`.
        blank: (e, elements, 5) features of edges without a parameter, zeros for the others.
        positions: (nodes, 8).
    """

    sources: Tensor
    targets: Tensor
    kinds: Tensor
    real: Tensor
    order: Tensor
    blank: Tensor
    positions: Tensor


class GraphQuestion(Question):
    """NiNo: weights scaled by tensor, on the edges of a graph. Edges without a parameter have no part in the loss."""

    def __init__(self, settings: Network, seed: int, device: torch.device) -> None:
        super().__init__(settings, seed, device)
        self._edges: dict[str, Edges] = {}

    def prepare(self, architecture: Architecture) -> None:
        """Make the graph; see :meth:`Question.prepare`."""
        check(self.network, graph_of(architecture.whole))
        graph = graph_of(architecture.layout)
        elements = max(block.kernel for block in graph.blocks)
        sources, targets, kinds, places = (part.to(self.device) for part in graph.edge_list())
        places = places[:, :elements]
        blank = torch.zeros(*places.shape, CONTEXT, device=self.device)
        for kind, value in VALUES.items():
            blank[kinds == kind, 0] = value
        real = places >= 0
        positions = graph.positions.to(self.device)
        self._edges[architecture.key] = Edges(sources, targets, kinds, real, places[real], blank, positions)

    def changes(self, window: Window) -> tuple[Tensor, Tensor]:
        """See :meth:`Question.changes`."""
        edges, (shown, wanted) = self._edges[window.architecture.key], _standardised(window, self.device)
        features = edges.blank.clone()
        features[edges.real] = shown[edges.order]
        network: GraphNetwork = self.network
        change = network(
            features.flatten(1), edges.kinds, edges.sources, edges.targets,
            edges.positions * window.signs.to(self.device), self._tokens(window), rates=_on(window.rates, self.device),
        )  # fmt: skip
        return change[edges.real][:, : wanted.shape[1]], wanted[edges.order]

    def _tokens(self, window: Window) -> Tensor | None:
        tokens = graph_of(window.architecture.layout).tokens
        if not self.network.tokens or tokens is None:
            return None
        numbers = torch.zeros(len(self._edges[window.architecture.key].positions), dtype=torch.long)
        numbers[tokens.place] = window.tokens + 1
        return numbers.to(self.device)


class EdgeQuestion(Question):
    """WNN+: the same weights on the same scale, one at a time, with the types of their edges."""

    def __init__(self, settings: Network, seed: int, device: torch.device) -> None:
        super().__init__(settings, seed, device)
        self._kinds: dict[str, Tensor] = {}

    def prepare(self, architecture: Architecture) -> None:
        """Find the type of every weight; see :meth:`Question.prepare`."""
        kinds = torch.zeros(architecture.layout.size, dtype=torch.long)
        for block in typed_blocks(architecture.layout):
            block.view(kinds, *block.whole).fill_(block.kind)
        self._kinds[architecture.key] = kinds.to(self.device)

    def changes(self, window: Window) -> tuple[Tensor, Tensor]:
        """See :meth:`Question.changes`."""
        shown, wanted = _standardised(window, self.device)
        change = self.network(shown, self._kinds[window.architecture.key], _on(window.rates, self.device))
        return change[:, : wanted.shape[1]], wanted


class StreamQuestion(Question):
    """WNN: every weight on a scale of its own, 5 intervals ahead, without normalisation layers."""

    earliest = HORIZON

    def __init__(self, settings: Network, seed: int, device: torch.device) -> None:
        super().__init__(settings, seed, device)
        assert isinstance(settings, StreamSettings)
        self.settings = settings

    def prepare(self, architecture: Architecture) -> None:
        """See :meth:`Question.prepare`.

        Raises:
            ValueError: there is nothing in it that is predicted.
        """
        if not operations(architecture.layout):
            raise ValueError("wnn predicts no normalisation layers, and there is nothing else in this network")

    def changes(self, window: Window) -> tuple[Tensor, Tensor]:
        """See :meth:`Question.changes`."""
        snapshots, target = window.snapshots.to(self.device), window.targets[HORIZON - 1].to(self.device)
        predicted, wanted = [], []
        for place, operation in operations(window.architecture.layout):
            x, reach = normalised(snapshots[:, place].T)
            predicted.append(getattr(self.network, operation)(x))
            wanted.append((target[place] - snapshots[-1, place]) / reach)
        return torch.cat(predicted)[:, None], torch.cat(wanted)[:, None]

    def count(self, architecture: Architecture, horizons: int) -> int:
        """See :meth:`Question.count`."""
        return sum(place.stop - place.start for place, _ in operations(architecture.layout))

    def penalty(self) -> Tensor:
        """L1 on weights and biases of the first and the last layer of each stream."""
        total = torch.zeros((), device=self.device)
        for network in (self.network.conv, self.network.fc, self.network.bias):
            for stream in (network.values, network.differences):
                for layer in (stream.wide, stream.out):
                    total = total + self.settings.l1_weights * layer.weight.abs().sum()
                    total = total + self.settings.l1_biases * layer.bias.abs().sum()
        return total

    def untaught(self, architectures: list[Architecture]) -> list[str]:
        """The networks, conv | fc | bias, for operations that none of the architectures has."""
        met = {operation for a in architectures for _, operation in operations(a.layout)}
        return sorted({"conv", "fc", "bias"} - met)


QUESTIONS: dict[str, type[Question]] = {"nino": GraphQuestion, "wnn_plus": EdgeQuestion, "wnn": StreamQuestion}


def _standardised(window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scaled snapshots (n, 5), and the changes to the targets on the same scale (n, horizons)."""
    layout = window.architecture.layout
    scales, sizes = scales_of(list(window.snapshots), layout), torch.tensor([entry.size for entry in layout])
    mean = torch.tensor([scale.mean for scale in scales]).repeat_interleave(sizes)
    deviation = torch.tensor([scale.deviation for scale in scales]).repeat_interleave(sizes) + EPS
    shown, wanted = (window.snapshots - mean) / deviation, (window.targets - window.snapshots[-1]) / deviation
    return shown.T.to(device), wanted.T.to(device)


def _on(rates: Tensor | None, device: torch.device) -> Tensor | None:
    return None if rates is None else rates.to(device)
