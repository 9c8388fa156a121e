"""Weight prediction in a transformers Trainer: python examples/transformers_trainer.py [STEPS]."""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import leapbench

TOKENS = 32


class LeapCallback(TrainerCallback):
    """Adopts predicted weights that are better on `verification` (n, T), token ids that are not trained on."""

    def __init__(self, verification: torch.Tensor, **options) -> None:
        self.verification, self.options = verification, options

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs) -> None:
        """The optimizer exists from here on; accelerate has wrapped it."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self.leap = leapbench.Leap(model, optimizer, verify=self.loss, **self.options)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """After `optimizer.step()`."""
        for proposal in self.leap.step():
            verdict = "adopted" if proposal.adopted else "rejected"
            print(f"step {proposal.step}: {proposal.loss_now:.3f} -> {proposal.loss_pred:.3f} nats, {verdict}")

    @torch.no_grad()
    def loss(self, forward) -> float:
        """Verification loss, nats; `forward` is the model or something callable like it."""
        return float(forward(input_ids=self.verification, labels=self.verification).loss)


def main(steps: int = 300) -> None:
    """Train a small GPT-2 on the text of a Python file, and leap where the verification loss agrees."""
    torch.manual_seed(0)
    text = torch.frombuffer(bytearray(Path(torch.__file__).read_bytes()), dtype=torch.uint8).long()
    sequences = text[: len(text) // TOKENS * TOKENS].view(-1, TOKENS)
    train = [{"input_ids": ids, "labels": ids} for ids in sequences[::2]]
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    size = {"n_positions": TOKENS, "n_embd": 48, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **size, **no_dropout))
    callback = LeapCallback(sequences[1:64:2], predictor="trend", K=10, interval=20)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=2e-3, report_to=[], use_cpu=True,
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=train, callbacks=[callback]).train()
    print(f"{callback.leap.steps} steps, verification loss {callback.loss(model.eval()):.3f} nats")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
