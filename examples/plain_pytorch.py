"""Anti-transfer in a plain PyTorch loop: python examples/plain_pytorch.py [WORKSPACE]."""

import torch
from torch.nn import functional
from torch.utils.data import DataLoader

import antigram
from speech import LAYER, make, network


def accuracy(net: torch.nn.Module, data: antigram.SegmentDataset) -> float:
    """Return the share of segments whose word is recognised."""
    net.eval()
    correct = 0
    with torch.no_grad():
        for x, y, _ in DataLoader(data, 64):
            correct += int((net(x).argmax(1) == y).sum())
    net.train()
    return correct / len(data)


def main() -> None:
    """Train a recogniser of words that is penalised for resembling the teacher of emotions."""
    store, grams = make()
    train = antigram.SegmentDataset(store, "word", "train")
    validation = antigram.SegmentDataset(store, "word", "validation")
    torch.manual_seed(0)
    net = network(len(train.classes))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)

    at = antigram.AntiTransferLoss(grams, {"layer3": LAYER}, beta=1.0)
    for epoch in range(1, 4):
        for x, y, clip_ids in DataLoader(train, 16, shuffle=True):
            with at.watch(net, clip_ids):
                loss = functional.cross_entropy(net(x), y) + at.loss()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        similarity = float(at.similarities["layer3"][at.teachers[0]])
        print(f"epoch {epoch}: similarity {similarity:.4f}, word {accuracy(net, validation):.3f}")


if __name__ == "__main__":
    main()
