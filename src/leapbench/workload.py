"""What is trained: a model, its data in three splits, and the loss. Everything random in it hangs on the seed alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leapbench import datasets, models
from leapbench.config import ConfigError, RunConfig
from leapbench.datasets import Tokens
from leapbench.verify import Forward

IGNORED = -100
Batch = dict[str, Tensor]


class Workload:
    """A language model with its training stream, verification batches, validation batches and probes.

    Data order and initial weights are functions of (model, dataset, seed) only, never of predictor, K or mode, so runs
    are paired. Verification sequences and probes are the same for every seed.

    Attributes:
        model: on `device`, weights in float32.
        verification: the fixed held-out batches candidates are scored on.
        validation: the fixed batches only the scorer looks at.
        sha256: hash of the dataset's content.

    Raises:
        ConfigError: the dataset or the model cannot be had, or a split is too small.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        data = datasets.load(config.dataset, config.cache)
        self.sha256 = data.sha256
        self.model: nn.Module = models.build(
            config.model, data.vocab_size, config.dataset.tokens, seed_of(config, "init"), config.init
        ).to(device)
        self._train = data.train
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        if len(data.train.ids) < config.train.batch_size:
            raise ConfigError(
                f"dataset={config.dataset.name} has {len(data.train.ids)} training sequences, fewer than "
                f"train.batch_size={config.train.batch_size}; give it more text or lower the batch size"
            )
        held_out = _shuffled(data.verification, config, "verification", config.verify.sequences + config.regime.probes)
        self.verification = self._fixed(
            data.verification, held_out[: config.verify.sequences], config.verify.batch_size
        )
        self._probes = self._fixed(data.verification, held_out[config.verify.sequences :], config.verify.batch_size)
        for batch in self._probes:
            for key in batch:
                batch[key] = batch[key][:, : config.regime.probe_tokens]
        scored = _shuffled(data.validation, config, "validation", config.eval.sequences)
        self.validation = self._fixed(data.validation, scored, config.eval.batch_size)
        self.forward: Forward = torch.compile(self.model) if config.train.compile else self.model

    def train_batch(self, index: int) -> Batch:
        """The batch of the `index`-th update (0-based): epoch after epoch, each in an order of its own."""
        size, total = self.config.train.batch_size, len(self._train.ids)
        per_epoch = total // size
        epoch, within = divmod(index, per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([seed_of(self.config, "data"), epoch])
            self._epoch, self._order = epoch, rng.permutation(total)
        return self._batch(self._train, self._order[within * size : (within + 1) * size])

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Mean cross-entropy per target token, nats; a scalar with its graph."""
        logits, targets = self._predict(forward, batch)
        return cross_entropy(logits, targets, ignore_index=IGNORED)

    def verification_loss(self, forward: Forward) -> float:
        """Loss on the verification batches, nats."""
        return self._mean_loss(forward, self.verification)

    def validation_loss(self, forward: Forward) -> float:
        """Loss on the validation batches, nats."""
        return self._mean_loss(forward, self.validation)

    def probe_states(self) -> tuple[Tensor, Tensor | None]:
        """The probes' hidden states after the last norm, (P, T, d), and their mask (P, T) if any are padded."""
        with self._scoring(), self.autocast():
            hidden = torch.cat([models.final_hidden(self.model, batch) for batch in self._probes])
        masks = [batch["attention_mask"] for batch in self._probes if "attention_mask" in batch]
        return hidden, torch.cat(masks) if masks else None

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 where the configuration asks for it, nothing otherwise."""
        enabled = self.config.train.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _predict(self, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
        with self.autocast():
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
            logits = forward(**inputs, use_cache=False).logits
        targets = batch["input_ids"]
        if "attention_mask" in batch and not self.config.pad_in_loss:
            targets = targets.masked_fill(batch["attention_mask"] == 0, IGNORED)
        return logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten()

    def _mean_loss(self, forward: Forward, batches: list[Batch]) -> float:
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        with self._scoring():
            for batch in batches:
                logits, targets = self._predict(forward, batch)
                total += cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
                count += int((targets != IGNORED).sum()) if "attention_mask" in batch else targets.numel()
        return float(total) / count

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[None]:
        """Evaluation mode without gradients; the model trains on afterwards."""
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train()

    def _fixed(self, tokens: Tokens, chosen: np.ndarray, batch_size: int) -> list[Batch]:
        return [self._batch(tokens, chosen[i : i + batch_size]) for i in range(0, len(chosen), batch_size)]

    def _batch(self, tokens: Tokens, indices: np.ndarray) -> Batch:
        return {key: value.to(self.device, non_blocking=True) for key, value in tokens.batch(indices).items()}


def seed_of(config: RunConfig, purpose: str) -> int:
    """A seed hashed from (model, dataset, seed) and what it is for."""
    text = f"{config.model.name}/{config.dataset.name}/{config.seed}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _shuffled(tokens: Tokens, config: RunConfig, split: str, wanted: int) -> np.ndarray:
    """`wanted` indices in an order that depends on the split's name and size only."""
    if len(tokens.ids) < wanted:
        need = "verify.sequences + regime.probes" if split == "verification" else "eval.sequences"
        raise ConfigError(
            f"dataset={config.dataset.name} has {len(tokens.ids)} {split} sequences but {need} asks for {wanted}; "
            "lower it or give the dataset more text"
        )
    return np.random.default_rng(len(split)).permutation(len(tokens.ids))[:wanted]
