"""Weight prediction in a PyTorch loop of one's own: python examples/plain_pytorch.py [STEPS]."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import leapbench

TOKENS, BATCH = 32, 16


class NextByte(nn.Module):
    """A small recurrent language model: ids (B, T) -> logits (B, T, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(256, 48), nn.Linear(96, 256)
        self.cell = nn.GRU(48, 96, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.output(self.cell(self.embedding(ids))[0])


def loss_of(forward, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next byte, nats; `forward` is the model or something callable like it."""
    return cross_entropy(forward(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def main(steps: int = 600) -> None:
    """Train, and leap where the verification loss agrees."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = torch.frombuffer(bytearray(Path(torch.__file__).read_bytes()), dtype=torch.uint8).long()
    sequences = text[: len(text) // TOKENS * TOKENS].view(-1, TOKENS)
    verification, train = sequences[::20], sequences[torch.arange(len(sequences)) % 20 != 0]
    model = NextByte()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    @torch.no_grad()
    def verify(forward) -> float:
        return float(loss_of(forward, verification[:64]))

    leap = leapbench.Leap(model, optimizer, predictor="trend", K=10, verify=verify, interval=20)
    for _ in range(steps):
        loss_of(model, train[torch.randint(len(train), (BATCH,))]).backward()
        optimizer.step()
        optimizer.zero_grad()
        for proposal in leap.step():
            verdict = "adopted" if proposal.adopted else "rejected"
            print(f"step {proposal.step}: {proposal.loss_now:.3f} -> {proposal.loss_pred:.3f} nats, {verdict}")
    print(f"{leap.steps} steps taken, {leap.position - leap.steps} skipped, verification loss {verify(model):.3f} nats")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
