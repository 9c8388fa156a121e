"""WNN: one small network per kind of operation, which reads one weight at a time and its differences (ICML 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.weights import Layout, combine, pieces
from leapbench.predictors._learned import Learned, intervals, on_device, vectors

HORIZON = 5  # intervals ahead that it was trained for
WEIGHTS = 1 << 12  # at a time on a CPU
SMALLEST = 1e-8 + 1e-5  # range of a weight that stands still


class Wnn(Learned):
    """theta_hat_{t+K} = theta_t + 2 R o(x) k / 5, x = (theta - theta_{t-4 Delta}) / (2 R), k = K / Delta.

    Jang, Han and Koo, "Learning to Boost Training by Periodic Nowcasting Near Future Weights", ICML 2023 (no arXiv:
    number; the released code has no licence, and nothing of it is used here). R is the largest minus the smallest of a
    weight's five values, plus 1e-8 + 1e-5. o, in (-1, 1), comes from two streams, x and its differences, each with an
    activation network: v = D_a(r) + D_b(r) exp(D_c(r) u).

    - The paper predicts 5 intervals ahead, and k = 5 here is that; other horizons go along the same line.
    - Networks for convolutions (three and four dimensions), matrices, and the rest; normalisation layers stay.
    - Code: its PyTorch port has a LeakyReLU of slope 0.01 where training had 0.3, and adds the raw last bias instead of
      the normalised one. Here the slope is 0.3 and biases go the same way as all weights.

    Args:
        checkpoint: one file with three networks, or a folder with WNN's three published ones (NWNN_Conv_13.pt, ...).
        sha256: first 12 hex digits of its hash; None = any.

    Raises:
        ValueError: one line: the checkpoint is not there or of another kind, K < 0, fewer than five snapshots, or
            uneven ones.
    """

    @torch.no_grad()
    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        h = history.last(self.context)
        share, snapshots = intervals(h, K) / HORIZON, vectors(h)
        device = h.now.weights.device
        networks = on_device(self.network, device)
        out = combine(snapshots[-1:], [1.0], h.empty_vector())
        for place, operation in operations(h.layout):
            for strip in pieces(place, device):
                step = WEIGHTS if device.type == "cpu" else WEIGHTS << 6
                for first in range(strip.start, strip.stop, step):
                    part = slice(first, min(first + step, strip.stop))
                    values = torch.stack([vector[part].float() for vector in snapshots], 1)
                    x, reach = normalised(values)
                    change: Any = getattr(networks, operation)(x)
                    out[part] += share * reach * change
        return out


def normalised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values (n, 5) of single weights -> x (n, 5), and 2 R (n,), by which changes are multiplied on the way back."""
    reach = 2 * (values.amax(1) - values.amin(1) + SMALLEST)
    return (values - values[:, :1]) / reach[:, None], reach


def operations(layout: Layout) -> list[tuple[slice, str]]:
    """Where the weights of each operation lie, conv | fc | bias, without normalisation layers."""
    norms = {e.name.rpartition(".")[0] for e in layout if len(e.shape) == 1 and e.name.rpartition(".")[2] == "weight"}
    return [
        (slice(e.offset, e.offset + e.size), "conv" if len(e.shape) > 2 else "fc" if len(e.shape) == 2 else "bias")
        for e in layout
        if len(e.shape) > 1 or e.name.rpartition(".")[0] not in norms
    ]  # fmt: skip
