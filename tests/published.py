"""Slow twins of what the papers' released code does, one named tensor at a time, in the order in which it does it.

Leap+Verify: arXiv:2602.19580, github jmcentire/leap-verify. PDT: OpenReview zSTgrLkpRi, github aicip/PDT. They describe
behaviour, not code: names, structure and storage are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Named = dict[str, torch.Tensor]

# ---- Leap+Verify: schedule, prompts, regimes -------------------------------------------------------------------------


def leap_verify_rate(step: int, peak: float, warmup: int, steps: int) -> float:
    """The learning rate of the update after `step` updates: the first one of all is made at rate 0."""
    if step < warmup:
        return peak * (step / warmup)
    done = (step - warmup) / (steps - warmup)
    half_cosine = (1 + math.cos(math.pi * done)) / 2
    return peak * (half_cosine if half_cosine > 0.1 else 0.1)


def leap_verify_prompts() -> list[str]:
    """100 texts: 21 kinds in turn, a blank filled when it is met, in the order country, year, ..., second number."""
    rng = np.random.RandomState(0)
    pools: list[tuple[str, list[Any]]] = [
        ("<country>", ["France", "Japan", "Brazil", "Egypt", "Canada", "India", "Germany", "Australia"]),
        ("<year>", ["1969", "1776", "2000", "1945", "1989", "2020", "1066", "1492"]),
        ("<compound>", ["water", "salt", "glucose", "methane", "ethanol", "carbon dioxide"]),
        ("<word>", ["happy", "fast", "bright", "cold", "large", "quiet", "simple", "strong"]),
        ("<phrase>", ["good morning", "thank you", "how are you", "goodbye"]),
        ("<first>", list(range(1, 50))), ("<second>", list(range(1, 50))),
    ]  # fmt: skip
    kinds = [
        "The capital of <country> is", "In the year <year>, the most significant event was",
        "The chemical formula for <compound> is", "If all cats are animals and all animals breathe, then cats",
        "The number that comes after <first> is", "To solve <first> + <second>, you compute",
        "The opposite of '<word>' is", "Translate '<phrase>' to French:", "The plural of '<word>' is",
        "def fibonacci(n):\n    ", "import numpy as np\nnp.array([1, 2, 3]).", "for i in range(10):\n    print(",
        "Once upon a time, in a land far away,", "The sunset painted the sky in shades of",
        "She opened the door and found", "The gradient of the loss function with respect to",
        "In quantum mechanics, the wave function", "The Big O complexity of binary search is",
        "Hello, how are you today?", "Can you explain what machine learning is?", "What do you think about",
    ]  # fmt: skip
    texts = []
    for i in range(100):
        text = kinds[i % 21]
        for blank, pool in pools:
            if blank in text:
                text = text.replace(blank, str(rng.choice(pool)))
        texts.append(text)
    return texts


def leap_verify_fingerprint(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """(P, d): the last norm's output, averaged over all positions, padded ones too."""
    model.eval()
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden.mean(1).numpy()


def leap_verify_similarity(before: np.ndarray, after: np.ndarray) -> float:
    """Mean of the cosines, probe by probe."""
    lengths = (np.linalg.norm(before, axis=1) + 1e-8) * (np.linalg.norm(after, axis=1) + 1e-8)
    return float(np.mean((before * after).sum(1) / lengths))


# ---- Leap+Verify: three passes ---------------------------------------------------------------------------------------


@dataclass
class Stored:
    """A checkpoint as it is written: after a leap, with the loss from before it; weights and moments in float16."""

    arrived: int
    step: int
    loss: float
    rate: float
    regime: str
    similarity: float | None
    in_a_row: int
    confirmed: bool
    weights: Named
    first: Named
    second: Named

    @property
    def now(self) -> Named:
        return {name: tensor.float() for name, tensor in self.weights.items()}


@dataclass
class Pass1:
    """What the training leaves: its checkpoints, the leaps it tried, its last weights, its updates."""

    stored: list[Stored] = field(default_factory=list)
    leaps: list[dict[str, Any]] = field(default_factory=list)
    weights: Named = field(default_factory=dict)
    updates: int = 0


def parameters_of(model: torch.nn.Module) -> Named:
    return {name: parameter.data.clone() for name, parameter in model.named_parameters()}


def put(model: torch.nn.Module, weights: Named) -> None:
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])


def along_momentum(weights: Named, first: Named, second: Named, K: int, rate: float, scale: float = 1.0) -> Named:
    return {
        name: weights[name] - scale * K * rate * first[name].float() / (second[name].float().sqrt() + 1e-8)
        for name in weights
    }


def train_some(model: torch.nn.Module, workload: Any, optimizer: Any, batch: int, rate: float) -> None:
    """One update: gradient, then the learning rate, then the clipping."""
    model.train()
    workload.loss(model, workload.train_batch(batch)).backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def leap_verify_pass1(
    model: torch.nn.Module, workload: Any, fingerprint: Callable[[Any], np.ndarray], rate_at: Callable[[int], float],
    steps: int, interval: int, tau_low: float, tau_high: float, confirm: int, K: int | None,
) -> Pass1:  # fmt: skip
    """Train, find regimes, leap by K where that is confirmed and helps (K None: never), store."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate_at(steps), weight_decay=0.01, fused=True)
    result, step, in_a_row, previous = Pass1(), 0, 0, None
    while step < steps:
        rate = rate_at(step)
        train_some(model, workload, optimizer, result.updates, rate)
        step, result.updates = step + 1, result.updates + 1
        if step % interval:
            continue
        arrived, similarity, regime = step, None, "unknown"
        current = fingerprint(model)
        if previous is not None:
            similarity = leap_verify_similarity(previous, current)
            regime = "stable" if similarity >= tau_high else "chaotic" if similarity <= tau_low else "transition"
        in_a_row = in_a_row + 1 if regime == "stable" else 0
        loss = workload.verification_loss(model.eval())
        states = {name: optimizer.state[p] for name, p in model.named_parameters()}
        first, second = ({name: s[key] for name, s in states.items()} for key in ("exp_avg", "exp_avg_sq"))
        if K is not None and previous is not None and in_a_row >= confirm:
            before = parameters_of(model)
            put(model, along_momentum(before, first, second, K, rate))
            predicted = workload.verification_loss(model.eval())
            result.leaps.append({"step": step, "before": loss, "after": predicted, "taken": predicted < loss})
            if predicted < loss:
                step += K
                for state in states.values():
                    state["exp_avg"].zero_()
                    state["exp_avg_sq"].zero_()
            else:
                put(model, before)
        result.stored.append(
            Stored(
                arrived, step, loss, rate, regime, similarity, in_a_row, in_a_row >= confirm,
                *({name: tensor.half() for name, tensor in tensors.items()}
                  for tensors in (parameters_of(model), first, second)),
            )
        )  # fmt: skip
        previous = current
    result.weights = parameters_of(model)
    return result


def leap_verify_pass2(
    stored: list[Stored], loss_of: Callable[[Named], float], horizons: tuple[int, ...], steps: int, interval: int
) -> Iterator[dict[str, Any]]:
    """Every predictor and K at every checkpoint (the published one leaves chaotic ones out of the same list)."""
    for i, c in enumerate(stored):
        one, two = (stored[i - n].now if i >= n else None for n in (1, 2))
        for K in horizons:
            if c.step + K > steps:
                continue
            t = K / interval
            losses = [loss_of(along_momentum(c.now, c.first, c.second, K, c.rate, s)) for s in (0.8, 1.0, 1.2)]
            found = {"momentum": min(losses)}
            if one is not None:
                found["linear"] = loss_of({n: w + t * (w - one[n]) for n, w in c.now.items()})
            if two is not None:
                weights = {}
                for n, w in c.now.items():
                    speed, change = w - one[n], (w - one[n]) - (one[n] - two[n])
                    if change.norm() > 0.5 * speed.norm() > 0:
                        change = change * (0.5 * speed.norm() / change.norm())
                    weights[n] = w + t * speed + 0.5 * t * t * change
                found["quadratic"] = loss_of(weights)
            for predictor, loss in found.items():
                yield {"step": c.arrived, "K": K, "predictor": predictor, "now": c.loss, "predicted": loss}


def leap_verify_landscape(
    stored: list[Stored], loss_of: Callable[[Named], float], fractions: tuple[float, ...], steps: int
) -> Iterator[dict[str, Any]]:
    """Along momentum at K = 25, from the float16 weights: losses, secant and second difference per unit of length."""
    for c in stored:
        if c.regime == "chaotic" or c.step + 25 > steps:
            continue
        now, ahead = c.now, along_momentum(c.now, c.first, c.second, 25, c.rate)
        length = math.sqrt(sum(float(((ahead[n] - now[n]) ** 2).sum()) for n in now))
        losses = {f: loss_of({n: now[n] + f * (ahead[n] - now[n]) for n in now}) for f in fractions}
        start, h = loss_of(now), 0.5 * length
        yield {
            "step": c.arrived, "losses": losses, "start": start, "length": length,
            "slope": (losses[1.0] - start) / length if length else 0.0,
            "bend": (losses[1.0] - 2 * losses[0.5] + start) / (h * h) if length else 0.0,
        }  # fmt: skip


def leap_verify_pass3(
    stored: list[Stored], model: torch.nn.Module, workload: Any, rate_at: Callable[[int], float],
    chains: list[list[int]], steps: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Cascades: predict by the start's moments, train as long with a fresh optimizer, go on from there."""
    best = sorted((c for c in stored if c.confirmed), key=lambda c: c.in_a_row, reverse=True)[:4]
    batch = 0
    for c in best:
        for depth, K in chains:
            if c.step + depth * K > steps:
                continue
            weights, at = c.now, c.step
            for link in range(1, depth + 1):
                predicted = along_momentum(weights, c.first, c.second, K, rate_at(at))
                put(model, predicted)
                loss_predicted = workload.verification_loss(model.eval())
                optimizer = torch.optim.AdamW(model.parameters(), lr=rate_at(at), weight_decay=0.01, fused=True)
                for number in range(K):
                    train_some(model, workload, optimizer, batch, rate_at(at + number))
                    batch += 1
                weights, at = parameters_of(model), at + K
                apart = sum(float(((predicted[n] - weights[n]) ** 2).sum()) for n in weights)
                size = sum(float((predicted[n] ** 2).sum()) for n in weights)
                yield {
                    "step": c.arrived, "depth": depth, "K": K, "link": link, "predicted": loss_predicted,
                    "trained": workload.verification_loss(model.eval()), "drift": math.sqrt(apart / size),
                }  # fmt: skip


# ---- PDT -------------------------------------------------------------------------------------------------------------


def pdt_displacement(H: np.ndarray, tau: float) -> np.ndarray:
    """The displacement Re{Phi (Lambda^tau - I) Phi^+ a} of PDT's released code, by SVD, in float64."""
    X, Y = H[:, :-1], H[:, 1:]
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    beta = min(X.shape) / max(X.shape)
    bar = (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43) * np.sort(s)[(len(s) - 1) // 2]
    r = max(1, int((s > bar).sum()))
    U, s, V = U[:, :r], s[:r], Vt[:r].T
    values, Q = np.linalg.eig(U.T @ Y @ V / s)
    Phi = U @ Q
    return (Phi @ ((values**tau - 1) * (np.linalg.pinv(Phi) @ H[:, -1]))).real


def pdt_epochs(losses: list[float], tau: int, first: int = 5, every: int = 1) -> list[Any]:
    """(epoch, tau) of every prediction, epochs counted from 0, given the mean training loss of each."""
    columns, since, predicted_before, predictions = 0, 0, False, []
    previous = before_that = None
    for epoch, loss in enumerate(losses):
        ready = columns >= first
        if ready and not predicted_before:
            since, predicted_before = every, True
        due = ready and since >= every
        columns += 1  # the start of this epoch
        if due:
            predictions.append((epoch, tau))
            since = 1
        elif columns >= first:
            since += 1
        # ---- the scheduler: after the epoch and its prediction, from the fourth loss on ------------------------------
        if epoch == 0:
            continue
        if previous is None:
            previous = loss
            continue
        if before_that is None:
            before_that, previous = previous, loss
            continue
        if loss > previous and loss > before_that:
            tau, every = (tau - 2, every) if tau > 4 else (3, every + 1) if tau == 4 else (tau, every + 2)
        elif loss > previous:
            tau, every = (tau - 1, every) if tau > 3 else (tau, every + 1)
        before_that, previous = previous, loss
    return predictions


def pdt_rates(optimizer_rate: float, lowest: float, epochs: int, warmup: int = 0, first_stage: int = 0) -> list[float]:
    """The rate of every epoch of PDT's trainers, which step torch's own schedulers once per epoch."""
    group = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=optimizer_rate)
    make = torch.optim.lr_scheduler
    stages: list[Any] = [make.CosineAnnealingLR(group, (first_stage or epochs) - warmup, lowest)]
    ends = []
    if first_stage:
        second = make.CosineAnnealingLR(group, epochs - first_stage, lowest)
        second.base_lrs = [10 * lowest]
        stages, ends = [*stages, second], [first_stage]
    if warmup:
        stages, ends = [make.LinearLR(group, start_factor=0.1, total_iters=warmup), *stages], [warmup, *ends]
    scheduler = make.SequentialLR(group, stages, ends) if ends else stages[0]
    rates = []
    for _ in range(epochs):
        rates.append(group.param_groups[0]["lr"])
        group.step()
        scheduler.step()
    return rates


def pdt_groups(blocks: int) -> list[list[str]]:
    """The groups of PDT-Layerwise for torchvision's vision transformer, as its parameters' names."""
    names = ["class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"]
    parts = {
        "ln_1": ["weight", "bias"], "ln_2": ["weight", "bias"],
        "self_attention": ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"],
        "mlp": ["0.weight", "0.bias", "3.weight", "3.bias"],
    }  # fmt: skip
    for block in range(blocks):
        for part, leaves in parts.items():
            names += [f"encoder.layers.encoder_layer_{block}.{part}.{leaf}" for leaf in leaves]
    names += ["encoder.ln.weight", "encoder.ln.bias", "heads.head.weight", "heads.head.bias"]
    groups: dict[str, list[str]] = {}
    for name in names:
        words = name.split(".")
        is_block = words[:2] == ["encoder", "layers"]
        groups.setdefault(" ".join(words[2:4]) if is_block else words[0], []).append(name)
    return list(groups.values())


def torchvision_vit(blocks: int, d: int, hidden: int, patch: int, size: int, classes: int) -> Named:
    """First weights of a vision transformer made of torch's own layers in torchvision's manner, by short names."""
    weights: Named = {}
    patches = torch.nn.Conv2d(3, d, patch, patch)
    torch.nn.init.trunc_normal_(patches.weight, std=(1 / (3 * patch * patch)) ** 0.5)
    weights |= {"patches.weight": patches.weight, "patches.bias": torch.zeros(d)}
    weights |= {"cls": torch.zeros(1, 1, d), "positions": torch.empty(1, (size // patch) ** 2 + 1, d).normal_(std=0.02)}
    for block in range(blocks):
        attention = torch.nn.MultiheadAttention(d, 4, batch_first=True)
        weights |= {f"{block}.{name}": value for name, value in attention.named_parameters()}
        for number, (inputs, outputs) in enumerate(((d, hidden), (hidden, d))):
            weights[f"{block}.mlp{number}.weight"] = torch.nn.init.xavier_uniform_(torch.empty(outputs, inputs))
            weights[f"{block}.mlp{number}.bias"] = torch.empty(outputs).normal_(std=1e-6)
    weights |= {"head.weight": torch.zeros(classes, d), "head.bias": torch.zeros(classes)}
    return {name: value.detach() for name, value in weights.items()}
