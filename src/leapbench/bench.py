"""What snapshots, predictions and swaps of weights cost, against a memory copy and against the usual state_dict way.

Everything is measured on the weights of a real GPT-2, without its forward pass: :class:`Bodiless` keeps the model's
parameters and skips its computation, so what is left of an evaluation is the cost of putting other weights in place.
"""

from __future__ import annotations

import gc
import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from leapbench import models
from leapbench.config import PROJECT, ModelConfig
from leapbench.resolve import BASELINE
from leapbench.history import Adam, History, Ring
from leapbench.predictors.base import Predictor, coefficients_of
from leapbench.predictors.momentum import Momentum
from leapbench.predictors.momentum_decay import MomentumDecay
from leapbench.predictors.quadratic import Quadratic
from leapbench.propose import rescaled
from leapbench.verify import candidate_loss
from leapbench.weights import FlatMoments, FlatWeights

PREDICT_AT_MOST, SWAP_AT_LEAST = 1.5, 8.0
LARGE = 10_000_000  # parameters; smaller weights stay in cache and are measured more often
LR, INTERVAL, K = 1e-3, 50, 75
ADAM = Adam(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
Measure = Callable[[], object]


# ---- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, by the clock on the wall and by the processor time of this process."""

    wall: float
    cpu: float

    def on(self, device: torch.device) -> float:
        """What counts: processor time on a CPU (one thread, so other processes do not add to it), else wall time."""
        return self.cpu if device.type == "cpu" else self.wall


def interleaved(
    measures: Mapping[str, Measure], rounds: int, device: torch.device, batch: int = 1
) -> dict[str, list[Timing]]:
    """Time all `measures` in turn, A B C A B C ..., so that what disturbs the machine disturbs all of them.

    Args:
        batch: calls of one measure in a row; from the second on, its data is in the caches if it fits there.

    Returns:
        rounds x batch timings per measure, after one call each to warm up.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    timings: dict[str, list[Timing]] = {name: [] for name in measures}
    for round_ in range(rounds + 1):
        for name, measure in measures.items():
            for _ in range(batch if round_ else 1):
                wait()
                cpu, wall = time.process_time(), time.perf_counter()
                measure()
                wait()
                if round_:
                    timings[name].append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    return timings


def fastest(timings: list[Timing]) -> Timing:
    """The least wall time and the least processor time: what the work takes when nothing disturbs it."""
    return Timing(min(t.wall for t in timings), min(t.cpu for t in timings))


# ---- what is measured ------------------------------------------------------------------------------------------------


class Bodiless(nn.Module):
    """A model with all its parameters whose forward pass does nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> None:
        """Nothing."""


def gpt2_like(parameters: int) -> nn.Module:
    """A GPT-2 of about this many parameters: GPT-2's width and vocabulary if it is large, gpt2_nano's bytes if small."""
    vocabulary, positions = (50_257, 1024) if parameters >= 5 * LARGE else (256, 64)
    width = next((w for w in (768, 512, 384, 256, 128, 64) if 55 * w * w <= parameters), 32)
    layers = max(1, round((parameters - (vocabulary + positions) * width) / (12 * width * width + 13 * width)))
    config = {"n_embd": width, "n_layer": layers, "n_head": width // 32, "n_positions": positions}
    return models.build(ModelConfig("gpt2_like", "gpt2", config=config), vocabulary, positions, seed=0, init="scratch")


def variants() -> dict[tuple[str, str], Predictor]:
    """Every predictor in conf/predictor in every form that a protocol gives it, by (name, form)."""
    found = {}
    protocols = [OmegaConf.load(path)["predictors"] for path in sorted((PROJECT / "conf/protocol").glob("*.yaml"))]
    for path in sorted((PROJECT / "conf/predictor").glob("*.yaml")):
        for forms in protocols if path.stem != BASELINE else ():
            spec = OmegaConf.merge(OmegaConf.load(path), forms.get(path.stem, {}))
            found[path.stem, spec.get("form", "")] = instantiate(spec)
    return found


class Subject:
    """Weights, Adam moments and a filled history of one model, as after a few AdamW steps on random gradients."""

    def __init__(self, parameters: int, device: torch.device, context: int) -> None:
        self.model = Bodiless(gpt2_like(parameters).to(device))
        self.weights = FlatWeights(self.model)
        optimizer = torch.optim.AdamW(self.weights.parameters, LR, (ADAM.beta1, ADAM.beta2), ADAM.eps, fused=True)
        for p in self.weights.parameters:
            p.grad = 1e-3 * torch.randn_like(p)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.moments = FlatMoments(optimizer, self.weights)
        self.scratch = torch.empty_like(self.weights.vector)
        self.ring = Ring(context, INTERVAL, self.weights.layout, lambda position: LR, ADAM, moments_capacity=1)
        for i in range(1, context + 1):
            self.ring.push(i * INTERVAL, i * INTERVAL, self.weights.vector, self.moments)
            self.weights.vector.add_(torch.randn_like(self.weights.vector), alpha=LR)
        self.history = self.ring.history()

    def copy(self) -> None:
        """A memory copy of one vector: 8 bytes moved per parameter."""
        self.scratch.copy_(self.weights.vector)

    def predict(self, predictor: Predictor) -> Tensor:
        """A candidate, as :class:`leapbench.propose.Proposer` has it built."""
        return predictor.predict(replace(self.history, scratch=[self.scratch]), K)

    def swap(self, predictor: Predictor, full: Tensor) -> None:
        """Everything of verification but the forward pass, for each candidate that the predictor wants verified."""
        for scale in predictor.scales:
            candidate_loss(self.model, self.weights.layout, rescaled(full, self.history, scale), no_loss)


def no_loss(forward: Callable[..., Any]) -> float:
    """A loss function that calls the model and is not interested."""
    forward()
    return 0.0


def vectors_moved(predictor: Predictor, history: History) -> int:
    """Vectors of N that a prediction must read or write."""
    coefficients = coefficients_of(predictor, history, K)
    if coefficients is not None:
        return sum(c != 0.0 for c in coefficients) + 1
    # Moments: theta, m, v and the result. A clamp by norms: the snapshots once for the norms and once for the sum.
    return 4 if predictor.needs_moments else 2 * predictor.context + 1


class StateDictWay:
    """The usual way: the history is a list of state_dicts and a candidate is loaded into the model and out again.

    Each equation is written as one writes it for one tensor. A tied tensor stands twice in a state_dict.
    """

    def __init__(self, subject: Subject) -> None:
        self.model, self.flat = subject.model, subject.history
        first = {id(p): name for name, p in self.model.named_parameters()}
        names = {key: first[id(p)] for key, p in self.model.state_dict(keep_vars=True).items()}

        def state(vector: Tensor) -> dict[str, Tensor]:
            views = subject.weights.layout.views(vector)
            return {key: views[name] for key, name in names.items()}

        self.history = [state(s.weights) for s in self.flat.snapshots]
        assert self.flat.now.exp_avg is not None and self.flat.now.exp_avg_sq is not None
        self.moments = state(self.flat.now.exp_avg), state(self.flat.now.exp_avg_sq)

    def snapshot(self, moments: bool = False) -> list[dict[str, Tensor]]:
        """Copies of the weights, and of both moments if wanted."""
        states = [self.model.state_dict(), *(self.moments if moments else ())]
        return [{key: tensor.clone() for key, tensor in state.items()} for state in states]

    def verify(self, equation: Callable[..., Tensor], predictor: Predictor) -> None:
        """Keep the live weights, load each candidate, and bring them back."""
        (live,) = self.snapshot()
        for scale in predictor.scales:
            self.model.load_state_dict(self.predicted(equation, predictor, scale))
            # The forward pass would be here.
        self.model.load_state_dict(live)

    def predicted(self, equation: Callable[..., Tensor], predictor: Predictor, scale: float = 1.0) -> dict[str, Tensor]:
        """The candidate as a new state_dict."""
        sources = self.history[-predictor.context :]
        if predictor.needs_moments:
            return {key: equation(theta, *(m[key] for m in self.moments), scale) for key, theta in sources[-1].items()}
        return {key: equation(*(state[key] for state in sources)) for key in sources[-1]}

    def equation(self, predictor: Predictor) -> Callable[..., Tensor] | None:
        """One tensor's snapshots, oldest first, or (theta, m, v, scale) -> its prediction; None for an unknown method."""
        coefficients, u = coefficients_of(predictor, self.flat, K), self.flat.now.updates
        if coefficients is not None:
            return lambda *xs: reduce(operator.add, (c * x for c, x in zip(coefficients, xs, strict=True) if c != 0.0))
        if isinstance(predictor, Quadratic):
            return _clamped
        if isinstance(predictor, Momentum) and predictor.form == "paper":
            return lambda theta, m, v, c: theta + c * K * m / (v.sqrt() + ADAM.eps)
        if isinstance(predictor, Momentum) and predictor.form == "code":
            return lambda theta, m, v, c: theta - c * K * LR * m / (v.sqrt() + 1e-8)
        if isinstance(predictor, Momentum | MomentumDecay):
            fading = ADAM.beta1 if isinstance(predictor, MomentumDecay) else 1.0
            return partial(_adamw, u=u, lrs=K * LR, faded=sum(LR * fading**j for j in range(1, K + 1)))
        return None


def _clamped(older: Tensor, old: Tensor, now: Tensor) -> Tensor:
    s, d1, d2 = K / INTERVAL, now - old, now - 2 * old + older
    velocity, acceleration = d1.norm(), d2.norm()
    if acceleration > 0.5 * velocity:
        d2 = d2 * (0.5 * velocity / acceleration)
    return now + s * d1 + s * s / 2 * d2


def _adamw(theta: Tensor, m: Tensor, v: Tensor, scale: float, u: int, lrs: float, faded: float) -> Tensor:
    mhat, vhat = m / (1 - ADAM.beta1**u), v / (1 - ADAM.beta2**u)
    return theta - scale * (faded * mhat / (vhat.sqrt() + ADAM.eps) + lrs * ADAM.weight_decay * theta)


# ---- the table -------------------------------------------------------------------------------------------------------


def measure(parameters: int, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """One row per predictor and form at one size, with times in ms and ratios.

    Args:
        parameters: about how many the model has.
        repeats: rounds at LARGE and above; ten times as many, of three calls each, below.
    """
    methods = variants()
    subject = Subject(parameters, device, max(p.context for p in methods.values()))
    usual, count = StateDictWay(subject), subject.weights.layout.size
    rounds, batch = (repeats, 1) if count >= LARGE else (10 * repeats, 3)
    rows = []
    with torch.no_grad():
        snapshots = _snapshots(subject, usual, rounds, batch)
        for (name, form), predictor in methods.items():
            equation, full = usual.equation(predictor), subject.predict(predictor)
            measures: dict[str, Measure] = {
                "copy": subject.copy,
                "predict": partial(subject.predict, predictor),
                "swap": partial(subject.swap, predictor, full),
            }
            if equation is not None:
                measures["state_dict"] = partial(usual.verify, equation, predictor)
            timings = {key: fastest(found) for key, found in interleaved(measures, rounds, device, batch).items()}
            timings |= snapshots[predictor.needs_moments]
            vectors = {
                "snapshot": 6 if predictor.needs_moments else 2,
                "predict": vectors_moved(predictor, subject.history),
            }
            row = {"parameters": count, "tensors": len(subject.weights.layout), "predictor": name, "form": form}
            rows.append(row | {"rounds": rounds} | figures(timings, vectors, count, device))
            gc.collect()
    return rows


def _snapshots(subject: Subject, usual: StateDictWay, rounds: int, batch: int) -> dict[bool, dict[str, Timing]]:
    """Timings of a snapshot without and with Adam's moments, ours, the state_dict way's, and of a copy beside them."""
    found = {}
    for moments in (False, True):
        ring = Ring(1, 0, subject.weights.layout, lambda position: LR, ADAM, moments_capacity=int(moments))
        measures: dict[str, Measure] = {
            "snapshot_copy": subject.copy,
            "snapshot": partial(ring.push, 0, 0, subject.weights.vector, subject.moments),
            "snapshot_state_dict": partial(usual.snapshot, moments),
        }
        timings = interleaved(measures, rounds, subject.weights.vector.device, batch)
        found[moments] = {key: fastest(values) for key, values in timings.items()}
    return found


def figures(timings: dict[str, Timing], vectors: dict[str, int], count: int, device: torch.device) -> dict[str, Any]:
    """Megabytes, milliseconds, ratios and verdicts of one row; nothing where a measure is missing."""
    row: dict[str, Any] = {f"{key}_ms": 1e3 * timing.on(device) for key, timing in timings.items()}
    row |= {f"{key}_wall_ms": 1e3 * timing.wall for key, timing in timings.items()}
    row |= {f"{key}_mb": 4e-6 * count * moved for key, moved in vectors.items()}
    row["snapshot_x_copy"] = row["snapshot_ms"] / (row["snapshot_copy_ms"] * vectors["snapshot"] / 2)
    row["predict_x_copy"] = row["predict_ms"] / (row["copy_ms"] * vectors["predict"] / 2)
    row["predict_target_met"] = row["predict_x_copy"] <= PREDICT_AT_MOST
    if "state_dict" in timings:
        row["times_faster"] = row["state_dict_ms"] / (row["predict_ms"] + row["swap_ms"])
        row["swap_target_met"] = row["times_faster"] >= SWAP_AT_LEAST
    return row
