"""Control: PDT's prediction on as many weights of each tensor as PDT accepts, but others."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.weights import Entry, chunks, places
from leapbench.predictors._masks import check_seed, subset_of
from leapbench.predictors.pdt import Pdt


class PdtShuffled(Pdt):
    """theta_hat_{t+K} = p on a random subset of each tensor as large as `pdt`'s, else c = theta_t; p as in `pdt`.

    Not in the PDT paper (OpenReview zSTgrLkpRi): the same prediction at the same acceptance, with an uninformed
    mask. What `pdt` gains over this is due to which weights it picks. The subset is redrawn at every step, by
    (seed, step). Weights that `pdt` accepts although neither they nor their prediction move count too.

    Args:
        h, rank, scope, variant, mode: as in `Pdt`.
        seed: of the subsets.

    Raises:
        ValueError: a negative seed, and as in `Pdt`.
    """

    control = True

    def __init__(
        self,
        h: int = 5,
        rank: int | float = 0,
        scope: str = "global",
        variant: str = "code",
        mode: str = "both",
        seed: int = 0,
    ) -> None:
        super().__init__(h, rank, scope, variant, mode)
        self.seed = check_seed(seed)

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        start, newest, tau = self._start(history, K)
        out = start.empty_vector()
        if K == 0:
            return out.copy_(newest)
        offsets = [entry.offset for entry in start.layout]
        counts = torch.zeros(len(offsets), dtype=torch.int64, device=out.device)
        for piece, accepted in self._masks(start, newest, tau, out):
            counts[bisect_right(offsets, piece.start) - 1] += accepted.sum()
        rng = np.random.default_rng((self.seed, history.now.step))
        for entry, count in zip(start.layout, counts.tolist(), strict=True):
            parts = list(chunks(entry.size, out.device))
            sizes = [part.stop - part.start for part in parts]
            # A shuffle of the whole tensor, one piece at a time: first how many fall into each piece, then which.
            shares = rng.multivariate_hypergeometric(sizes, count, method="marginals")
            for part, size, share in zip(parts, sizes, shares.tolist(), strict=True):
                piece = slice(entry.offset + part.start, entry.offset + part.stop)
                accepted = subset_of(size, share, rng, out.device)
                torch.where(accepted, out[piece], newest[piece].to(out.dtype), out=out[piece])
        return out

    def _places(self, entries: list[Entry]) -> Sequence[slice]:
        """One place per tensor, so that no piece holds weights of two."""
        return [place for entry in entries for place in places([entry])]
