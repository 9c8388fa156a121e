"""Next-token prediction as a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from leapbench.config.schema import RunConfig
from leapbench.data import load
from leapbench.models.causal_lm import build, final_hidden
from leapbench.names import SPLITS, TRAIN
from leapbench.training.tasks import IGNORED, Batch, Numbers


class Texts:
    """Next-token prediction."""

    unit, repeats, counts_right, slow = "sequences", 1, False, False

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.data = load(config.dataset, config.cache)
        self.sha256 = self.data.sha256
        self.splits = {split: getattr(self.data, split) for split in SPLITS}
        self.sizes = {split: len(tokens) for split, tokens in self.splits.items()}
        self.tokens = self.data.train.ids.shape[1]
        self.example_bytes = 8 * self.tokens

    def model(self, seed: int) -> nn.Module:
        """A causal language model for the data's vocabulary and length."""
        return build(self.config.model, self.data.vocab_size, self.tokens, seed, self.config.init)

    def train_batch(self, indices: Numbers, seed: Sequence[int]) -> Batch:
        """Sequences by number; nothing in them is random."""
        return self.splits[TRAIN].batch(indices)

    def batch(self, split: str, indices: Numbers) -> Batch:
        """Sequences by number."""
        return self.splits[split].batch(indices)

    def probe(self, batch: Batch) -> Batch:
        """The first tokens."""
        return {key: value[:, : self.config.regime.probe_tokens] for key, value in batch.items()}

    def prompts(self) -> Batch:
        """The published prompts, padded to the longest, at most as long as a sequence."""
        return self.data.prompt_batch(min(self.config.regime.probe_tokens, self.tokens))

    def hidden(self, model: nn.Module, batch: Batch) -> Tensor:
        """After the last norm, (B, T, d)."""
        return final_hidden(model, batch)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Ids and mask."""
        return {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch} | {"use_cache": False}

    def answers(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The token after each; padding is no answer unless the protocol counts it."""
        targets = batch["input_ids"]
        if "attention_mask" in batch and not self.config.pad_in_loss:
            targets = targets.masked_fill(batch["attention_mask"] == 0, IGNORED)
        return logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten()
