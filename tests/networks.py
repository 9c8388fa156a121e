"""Small networks of every architecture that a neural graph can be made of, vectors of weights and trajectories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from leapbench.config.choices import Init
from leapbench.config.groups import ModelConfig
from leapbench.models.causal_lm import build
from leapbench.models.image_classifier import build_image_classifier
from leapbench.nowcasters.trajectories import Recorder
from leapbench.prediction.weights import FlatWeights, Layout

QWEN = {
    "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 8, "num_hidden_layers": 2,
}  # fmt: skip


def text(model_type: str, vocabulary: int = 11, **config: object) -> Callable[[], nn.Module]:
    cfg = ModelConfig(model_type, model_type, config=config)
    return lambda: build(cfg, vocabulary, 3, seed=0, init=Init.scratch)


def image(model_type: str, **config: object) -> Callable[[], nn.Module]:
    cfg = ModelConfig(model_type, model_type, config=config)
    return lambda: build_image_classifier(cfg, 1, 32, 10, seed=0, init=Init.scratch)


def gpt2(vocabulary: int, positions: int, layers: int, width: int, heads: int) -> Callable[[], nn.Module]:
    return text("gpt2", vocabulary, n_positions=positions, n_layer=layers, n_embd=width, n_head=heads)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2(11, 5, 2, 8, 2),
    "gpt2 untied": text("gpt2", n_positions=5, n_layer=1, n_embd=8, n_head=2, tie_word_embeddings=False),
    "llama": text("llama", **QWEN | {"num_key_value_heads": 4}),
    "qwen2": text("qwen2", **QWEN, tie_word_embeddings=True),
    "qwen3": text("qwen3", **QWEN, head_dim=2),
    "vit": image("vit", patch_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12),
    "resnet": image("resnet", embedding_size=4, hidden_sizes=[4, 8], depths=[2, 1], layer_type="basic"),
    "bottleneck": image("resnet", embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], layer_type="bottleneck"),
    "fcn": image("fcn", channels=[4, 6]),
    "alexnet": image("alexnet", channels=[4, 6, 6, 6, 5], kernel=5, stride=2, padding=2, pooled=2, hidden=9),
    "mlp": lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, 3, bias=False)),
    "linear": lambda: nn.Linear(4, 3),
}


def layout_of(network: nn.Module) -> Layout:
    return FlatWeights.of(network).layout


def waves(size: int, count: int = 5) -> list[torch.Tensor]:
    """theta_i^(j) = sin(0.7 i) + 0.05 j cos(1.3 i), float32."""
    i = torch.arange(size, dtype=torch.float64)
    return [(torch.sin(0.7 * i) + 0.05 * j * torch.cos(1.3 * i)).float() for j in range(count)]


def recorded(
    folder: Path, network: nn.Module, rows: int = 20, every: int = 10, seed: int = 0, dtype: str = "float32",
    facts: bool = True, line: bool = False,
) -> Path:  # fmt: skip
    """A trajectory on which every weight bends towards a place of its own, or goes there along a line, with learning
    rates that fall."""
    layout, rng = layout_of(network), torch.Generator().manual_seed(seed)
    start, end, pace = (torch.randn(layout.size, generator=rng) for _ in range(3))
    folder.mkdir(parents=True)
    recorder = Recorder(folder, layout, (rows - 1) * every, every, dtype)
    for row in range(rows):
        way = 0.2 * row if line else 0.3 * (1 - torch.exp(-(0.05 + 0.05 * pace.abs()) * row))
        recorder.record(row * every, 0.5 * start + way * end)
    rates = [0.01 * (1 - row / (2 * rows)) for row in range(rows)]
    recorder.finish({"run_id": f"run{seed}", "rates": rates} if facts else {})
    return folder
