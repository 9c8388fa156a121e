"""WNN+: NiNo without its graph, a network that reads one weight at a time (arXiv:2409.04434, its own control)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import silu

from leapbench.nowcasters.architectures import typed_blocks
from leapbench.nowcasters.blocks import encoded, strips
from leapbench.nowcasters.horizons import readout
from leapbench.nowcasters.networks import EdgeNetwork
from leapbench.nowcasters.scaling import scales_of, start
from leapbench.prediction.history import History
from leapbench.predictors._learned import Learned, ahead, checked_schedule, on_device, rates_of, vectors

WEIGHTS = 1 << 11  # at a time on a CPU: two tensors of 128 features stay near the core


class WnnPlus(Learned):
    """theta_hat_{t+K} = sigma (x_t + f_k(x_{t-4 Delta}, ..., x_t, type)) + mu, scaled as in `nino`, k = K / Delta.

    Knyazev et al., ICLR 2025, arXiv:2409.04434, where it is WNN of `wnn` with NiNo's scale, edge types, direct
    prediction of 40 horizons and schedule. f is five snapshots and the type of the weight through four linear layers
    with SiLU; kernel elements are weights of their own.

    - Code: types come from its graph classes. Here those of a network that `nino` knows are used, and elsewhere what
      the shape says: convolution, matrix, norm (a vector called weight), bias.
    - A checkpoint with `rate_proj` in it reads learning rates too, as in `nino`.
    - Between two whole k a line, below the first one towards no change.

    Args:
        checkpoint, sha256, schedule_steps: as in `nino`.

    Raises:
        ValueError: one line: the checkpoint is not there or of another kind, K is beyond the horizons or negative,
            fewer than five snapshots, or uneven ones.
    """

    def __init__(
        self, checkpoint: str | None = None, sha256: str | None = None, schedule_steps: int | None = None
    ) -> None:
        super().__init__(checkpoint, sha256)
        self.schedule_steps = checked_schedule(schedule_steps)

    @torch.no_grad()
    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        h = history.last(self.context)
        network = _Folded.on(self.network, h.now.weights.device, rates_of(self.network, h))
        matrix, constant = network.readout(ahead(h, K, self.schedule_steps, self.network.horizons))
        snapshots = vectors(h)
        scales = scales_of(snapshots, h.layout)
        out = start(h.now.weights.float(), h.layout, scales, h.empty_vector())
        for block in typed_blocks(h.layout):
            deviation = scales[block.entry].deviation
            for shown, targets, sources in strips(block, snapshots, scales[block.entry]):
                features = shown.transpose(0, 1).flatten(1)
                change = torch.cat([
                    network.change(part.T, block.kind, matrix, constant)
                    for part in features.split(WEIGHTS if out.device.type == "cpu" else WEIGHTS << 6, 1)
                ])  # fmt: skip
                place = block.view(out, targets, sources)
                place.add_(change.view(place.shape), alpha=deviation)
        return out


class _Folded:
    """The network with its first two linear maps multiplied."""

    def __init__(self, network: EdgeNetwork, rates: Tensor) -> None:
        encode, first = network.edge_proj.linears[0], network.edge_mlp.linears[0]
        constants = encoded(network, rates)
        self.first = (first.weight.double() @ encode.weight.double()).float()
        self.constants = (constants @ first.weight.double().T + first.bias.double()).float()
        self.middle, self.last = network.edge_mlp.linears[1:-1], network.edge_mlp.linears[-1]

    @staticmethod
    @lru_cache(maxsize=4)
    def on(network: EdgeNetwork, device: torch.device, rates: tuple[float, ...]) -> _Folded:
        """Prepared for weights on this device, and for these learning rates if it reads them."""
        return _Folded(on_device(network, device), torch.tensor(rates, device=device))

    def readout(self, K: float) -> tuple[Tensor, Tensor]:
        """The last layer for K intervals: (width,) and a number."""
        return readout(self.last.weight, self.last.bias, K)

    def change(self, x: Tensor, kind: int, matrix: Tensor, constant: Tensor) -> Tensor:
        """Scaled snapshots (e, 5) of weights of one type -> their changes (e,)."""
        y = silu(torch.addmm(self.constants[kind], x, self.first.T), inplace=True)
        for layer in self.middle:
            y = silu(layer(y), inplace=True)
        return torch.addmv(constant, y, matrix)
