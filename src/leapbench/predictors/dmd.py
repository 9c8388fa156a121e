"""A linear system fitted to the last snapshots (dynamic mode decomposition) and run ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import fractional_matrix_power
from torch import Tensor

from leapbench.prediction.history import History
from leapbench.prediction.predictor import Predictor, spacing
from leapbench.prediction.weights import Entry, Layout, combine, places

Array = NDArray[np.float64]

SCOPES = ("global", "tensor", "group")
# Singular values below this share of the largest are rounding, not data, and never used. Float64 squares leave noise of
# about 1e-8 of the largest, float32 snapshots of about 6e-8.
SMALLEST = 1e-7
# Elements turned into float64 at a time: h = 5 of them stay in a CPU's second cache; on a GPU they take 170 MB.
CPU_PART, GPU_PART = 1 << 14, 1 << 22
# What lies outside the blocks of a ViT, as torchvision's first words have it.
VIT_GROUPS = {
    "vit.embeddings.cls_token": "class_token", "vit.embeddings.patch_embeddings.": "conv_proj",
    "vit.embeddings.position_embeddings": "encoder", "vit.layernorm.": "encoder",
}  # fmt: skip
LARGEST = float(torch.finfo(torch.float32).max)


class Dmd(Predictor):
    """theta_hat_{t+K} = a + Re{Phi (Lambda^tau - I) Phi^+ a}, tau = K / Delta, a = theta_0 the newest snapshot.

    PDT (predictive differential training, ICLR 2026, OpenReview zSTgrLkpRi); DMD of Tu et al., arXiv:1312.0041, with
    projected modes. X (N, h-1) the older snapshots, Y (N, h-1) the newer, no mean subtracted; thin SVD X = U S V^T, cut
    to rank r; A~ = U_r^T Y V_r S_r^-1 (r, r) = Q Lambda Q^-1; Phi = U_r Q (N, r).

    - Paper: theta_hat = Phi Lambda^tau Phi^+ w, which also drops the part of w outside the modes. Code, behind all of
      the published numbers and here: the displacement form above, the identity at K = 0.
    - Code: float32 SVD, complex64 modes, N x r pseudoinverse. Here Phi^+ a = Q^-1 U_r^T a and U_r = X V_r S_r^-1, so
      theta_hat = a + X c with h-1 numbers c = V_r S_r^-1 (A~^tau - I) S_r^-1 V_r^T X^T a out of the Gram matrix of the
      snapshots: two passes over memory, nothing complex of size N.
    - Code: ranks up to h-1. Here never above the numerical rank; a float outside (0, 1) and an int below -1, which the
      code takes for "no truncation", are refused.
    - PDT's interval is an epoch, its mask and its schedule of tau belong to its training loop: none of them is here.

    A~^tau is the principal power, also for a fractional tau and for a defective A~ (a straight line gives one):
    lambda = |lambda| e^(i phi), phi in (-pi, pi], becomes |lambda|^tau e^(i tau phi), lambda = 0 becomes 0 (1 at
    tau = 0), a negative real lambda turns complex when tau is fractional and its real part is taken. Where the sum may
    leave the range of float32, the weights are inf, never nan.

    Args:
        context: h >= 2, snapshots the system is fitted to.
        rank: 0 = Gavish and Donoho's hard threshold, 1 or more = that many modes, a float in (0, 1) = the fewest modes
            with that share of the energy (sum of squared singular values), -1 = all.
        scope: global = one system for all weights; tensor = one for each tensor of the layout; group = one for each
            component of a numbered block and for each other module (PDT-Layerwise, see `group_of`). A system whose
            snapshots are all zero keeps its weights.

    Raises:
        ValueError: a setting outside these; in `predict` fewer snapshots than `context`, uneven ones, weights that are
            not finite, or K < 0.
    """

    def __init__(self, context: int = 5, rank: int | float = 0, scope: str = "global") -> None:
        if context < 2:
            raise ValueError(f"dmd fits one snapshot to the next: context={context} must be 2 or more")
        if not (rank >= -1 if type(rank) is int else type(rank) is float and 0 < rank < 1):
            raise ValueError(
                f"rank={rank} must be 0 (threshold), 1, 2, ... (modes), within (0, 1) (energy) or -1 (all)"
            )
        if scope not in SCOPES:
            raise ValueError(f"scope={scope} is unknown; use {' or '.join(SCOPES)}")
        self.context, self.rank, self.scope = context, rank, scope

    def predict(self, history: History, K: int) -> Tensor:
        """Weights K steps after `history.now`: (N,) float32."""
        if K < 0:
            raise ValueError(f"dmd predicts ahead: K={K} must be 0 or more")
        h = history.last(self.context)
        return self._run(h, K / spacing(h.steps))

    def _run(self, h: History, tau: float) -> Tensor:
        """Weights tau intervals after the newest of exactly the snapshots that are fitted: (N,) float32."""
        out = h.empty_vector()
        for system, spans in self._systems(h):
            for place in spans:
                system.run([s.weights[place] for s in h.snapshots], tau, out[place])
        return out

    def _systems(self, h: History) -> Iterator[tuple[System, Sequence[slice]]]:
        """Every system of the scope, fitted to all snapshots of `h`, and where its weights lie."""
        for entries in groups(h.layout, self.scope):
            spans = self._places(entries)
            grams = [gram_of([s.weights[place] for s in h.snapshots]) for place in spans]
            gram = np.sum(grams, axis=0)
            if not np.isfinite(gram).all():
                raise ValueError("dmd needs finite weights: a snapshot holds inf or nan")
            yield System(gram, self.rank, rows=sum(entry.size for entry in entries)), spans

    def _places(self, entries: list[Entry]) -> Sequence[slice]:
        """The entries' places, in as few pieces as possible."""
        return places(entries)


@dataclass(frozen=True)
class System:
    """One linear system, given by the dot products of its snapshots.

    Attributes:
        gram: (h, h), oldest snapshot first.
        rank: as in `Dmd`.
        rows: n, its weights.
    """

    gram: Array
    rank: int | float
    rows: int

    def displacement(self, tau: float) -> Array:
        """c (h-1,): in tau intervals the newest snapshot moves by X c."""
        return displacement(self.gram, tau, self.rank, self.rows)

    def run(self, vectors: list[Tensor], tau: float, out: Tensor) -> None:
        """out = a + X c for any part (n,) of the snapshots, oldest first."""
        self.sum(vectors, np.append(self.displacement(tau), 1.0), out)

    def sum(self, vectors: list[Tensor], coefficients: Array, out: Tensor) -> None:
        """out = sum_i coefficients[i] vectors[i] over as many of the oldest snapshots, inf where it may overflow."""
        # No weight exceeds its snapshot's norm, so no partial sum can exceed this; a nan fails the comparison too.
        if np.abs(coefficients) @ np.sqrt(self.gram.diagonal()[: len(coefficients)]) < LARGEST:
            combine(vectors[: len(coefficients)], coefficients.tolist(), out)
        else:
            out.fill_(torch.inf)


def groups(layout: Layout, scope: str) -> list[list[Entry]]:
    """The entries of each system, in the order of the layout."""
    if scope == "global":
        return [list(layout)]
    groups_by_name: dict[str, list[Entry]] = {}
    for entry in layout:
        groups_by_name.setdefault(group_of(entry.name) if scope == "group" else entry.name, []).append(entry)
    return list(groups_by_name.values())


def group_of(name: str) -> str:
    """The PDT-Layerwise group of a parameter.

    A component of a numbered block (`transformer.h.0.attn`, `vit.layers.11.mlp`, `features.3`), counted from the first
    number in the name (a ResNet's `resnet.encoder.stages.0.layers`, a stage); elsewhere the module below the model's
    own (`transformer.wte`, `classifier`). PDT's code does the same for torchvision's ViT, by its names
    (`encoder.layers.<block>.<component>`, else the first word), and skips a group whose SVD fails; a ViT's groups are
    those of torchvision's names, so that ViT-Huge has its 132.
    """
    for prefix, group in VIT_GROUPS.items():
        if name.startswith(prefix):
            return group
    modules = name.split(".")[:-1]
    for i, module in enumerate(modules):
        if module.isdigit():
            return ".".join(modules[: i + 2])
    return ".".join(modules[:2]) or name


def gram_of(vectors: list[Tensor]) -> Array:
    """Dot products of all pairs of vectors (N,) of any float dtype, multiplied and summed in float64: (h, h)."""
    h, size, device = len(vectors), vectors[0].numel(), vectors[0].device
    part = max(1, min(size, CPU_PART if device.type == "cpu" else GPU_PART))
    upper = torch.zeros(h, h, dtype=torch.float64, device=device)
    buffer = torch.empty(h, part, dtype=torch.float64, device=device)
    for start in range(0, size, part):
        rows = buffer[:, : min(part, size - start)]
        for row, vector in zip(rows, vectors, strict=True):
            row.copy_(vector[start : start + part])
        for i in range(h):  # five slim products take half the time of one rows @ rows.T
            upper[i, i:].addmv_(rows[i:], rows[i])
    half = upper.cpu().numpy()
    return half + np.triu(half, 1).T


def displacement(gram: Array, tau: float, rank: int | float, rows: int) -> Array:
    """The numbers c with Re{Phi (Lambda^tau - I) Phi^+ a} = X c: (h-1,).

    The Gram matrix squares the condition number: with k = s_1 / s_j, s_j comes out with a relative error of about
    2e-16 k^2. Rounding float32 snapshots has already cost it about 6e-8 k, which is more for every k below 3e8, and k
    stays below 1 / SMALLEST = 1e7. In float32 the error would be 6e-8 k^2: nothing left at k = 4000, which successive
    snapshots of a training reach, since they differ by about one part in a thousand.

    Args:
        gram: (h, h) dot products of the snapshots, oldest first.
        tau: intervals ahead, not below 0.
        rank: as in `Dmd`.
        rows: N, the length of the snapshots.
    """
    squares, V = np.linalg.eigh(gram[:-1, :-1])
    # Ascending to descending; rounding can leave a square below 0; a matrix (N, h-1) has min(N, h-1) singular values.
    singular = np.sqrt(squares[::-1].clip(min=0.0))[: min(rows, len(squares))]
    r = min(rank_of(singular, (rows, len(squares)), rank), int((singular > SMALLEST * singular[:1]).sum()))
    basis = V[:, ::-1][:, :r] / singular[:r]  # V_r S_r^-1, so that U_r = X basis
    if r == 0:  # all weights are zero and stay so
        return np.zeros(len(squares))
    reduced = basis.T @ gram[:-1, 1:] @ basis  # A~
    with np.errstate(over="ignore", invalid="ignore"):
        power = fractional_matrix_power(reduced, tau).real  # by squaring for a whole tau, else by Schur and Pade
        return basis @ ((power - np.eye(r)) @ (basis.T @ gram[:-1, -1]))


def rank_of(singular: Array, shape: tuple[int, int], rank: int | float) -> int:
    """Modes to keep, given the singular values of a matrix of this shape in descending order: at most as many.

    The threshold keeps s_j > omega(beta) median(s), omega = 0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43, beta = the smaller
    over the larger side, and at least one. The median of an even number of values is the lower of the middle two, as
    torch.median has it in PDT's code; PyDMD takes their mean, a higher bar.
    """
    n = len(singular)
    if n == 0 or rank == -1:
        return n
    if isinstance(rank, float):
        energy = np.cumsum(singular**2)
        return min(n, 1 + int(np.searchsorted(energy, rank * energy[-1])))
    if rank > 0:
        return min(n, rank)
    beta = min(shape) / max(shape)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    lower_median = singular[::-1][(n - 1) // 2]
    return max(1, int((singular > omega * lower_median).sum()))
