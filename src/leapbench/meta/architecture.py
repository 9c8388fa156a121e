"""One architecture as a window sees it: all weights, or those of a language model without most of its tokens."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from leapbench.nowcasters.architectures import graph_of
from leapbench.prediction.weights import Entry, Layout

HEAD = re.compile(r"(^|\.)lm_head\.")  # the last layer of a language model, one row per token


class Architecture:
    """What all windows of one architecture share.

    Args:
        key: equal for equal architectures.
        whole: the layout of its trajectories.
        vocabulary: token rows that a window has at most; None = all.

    Attributes:
        layout: of a window's weights: that of the same network with a smaller vocabulary.
        tokens: of the whole vocabulary; 0 for a network that has none, or of which no graph can be made.
    """

    def __init__(self, key: str, whole: Layout, vocabulary: int | None) -> None:
        self.key, self.whole = key, whole
        self.tokens, self._cut = _token_entries(whole)
        self._kept = min(self.tokens, vocabulary or self.tokens)
        entries, offset = [], 0
        for number, entry in enumerate(whole):
            shape = torch.Size([self._kept, *entry.shape[1:]]) if number in self._cut else entry.shape
            entries.append(Entry(entry.name, shape, offset, shape.numel()))
            offset += shape.numel()
        self.layout = Layout(entries)
        self.layout.settings = whole.settings

    def draw(self, rng: np.random.Generator) -> Tensor:
        """(rows,) the tokens of a window, ascending."""
        if self._kept == self.tokens:
            return torch.arange(self.tokens)
        return torch.from_numpy(np.sort(rng.choice(self.tokens, self._kept, replace=False)))

    def part(self, vector: Tensor, rows: Tensor) -> Tensor:
        """The weights of these tokens and of the rest of the network, out of (N,): (layout.size,)."""
        if self._kept == self.tokens:
            return vector
        pieces = vector.split([entry.size for entry in self.whole])
        return torch.cat([
            piece.view(self.tokens, -1)[rows].flatten() if number in self._cut else piece
            for number, piece in enumerate(pieces)
        ])  # fmt: skip


def _token_entries(layout: Layout) -> tuple[int, frozenset[int]]:
    """How many tokens a network knows, and the numbers of the tensors with a row for each."""
    try:
        graph = graph_of(layout)
    except ValueError:
        return 0, frozenset()
    if graph.tokens is None:
        return 0, frozenset()
    found = {block.entry for block in graph.blocks if block.source == graph.tokens}
    found |= {number for number, entry in enumerate(layout) if HEAD.search(entry.name)}
    return graph.tokens.size, frozenset(found)
