"""Anti-transfer as a callback of Lightning: python examples/lightning_callback.py [WORKSPACE]."""

import functools

import lightning
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

import antigram
from speech import LAYER, make, network


class Words(lightning.LightningModule):
    """A recogniser that knows nothing of anti-transfer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = network(classes)

    def training_step(self, batch: list) -> torch.Tensor:
        """Return the cross-entropy of a batch."""
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.Adam(self.parameters(), 1e-3)


class AntiTransfer(lightning.Callback):
    """Adds the anti-transfer loss to the training step of any LightningModule."""

    def __init__(self, at: antigram.AntiTransferLoss) -> None:
        self.at = at

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Words) -> None:
        """Wrap the training step."""
        step = pl_module.training_step

        @functools.wraps(step)  # Lightning looks at its arguments
        def training_step(batch: list, *rest: int) -> torch.Tensor:
            with self.at.watch(pl_module, batch[-1]):
                cross_entropy = step(batch, *rest)
            pl_module.log("at", self.at.loss().detach())
            return cross_entropy + self.at.loss()

        pl_module.training_step = training_step


if __name__ == "__main__":
    store, grams = make()
    data = antigram.SegmentDataset(store, "word")
    at = antigram.AntiTransferLoss(grams, {"net.layer3": LAYER}, beta=1.0)
    plain = {"max_epochs": 2, "logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(accelerator="cpu", callbacks=[AntiTransfer(at)], **plain)
    trainer.fit(Words(len(data.classes)), DataLoader(data, 16, shuffle=True))
    print(f"anti-transfer loss {trainer.callback_metrics['at']:.4f}")
