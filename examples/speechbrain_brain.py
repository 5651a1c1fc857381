"""Anti-transfer in a Brain of SpeechBrain: python examples/speechbrain_brain.py [WORKSPACE]."""

import speechbrain
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

import antigram
from speech import LAYER, make, network


class Words(speechbrain.Brain):
    """A recogniser of words; its forward pass is watched, and its objective has one more term."""

    def compute_forward(self, batch: list, stage: speechbrain.Stage) -> torch.Tensor:
        """Return logits."""
        x, _y, clip_ids = batch
        net = self.modules.net
        if stage != speechbrain.Stage.TRAIN:
            return net(x.to(self.device))
        with self.hparams.at.watch(net, clip_ids):
            return net(x.to(self.device))

    def compute_objectives(
        self, predictions: torch.Tensor, batch: list, stage: speechbrain.Stage
    ) -> torch.Tensor:
        """Return the cross-entropy, in training with the anti-transfer loss."""
        _x, y, _ids = batch
        loss = functional.cross_entropy(predictions, y.to(self.device))
        return loss + self.hparams.at.loss() if stage == speechbrain.Stage.TRAIN else loss

    def on_stage_end(
        self, stage: speechbrain.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Print the mean loss of a pass."""
        print(f"epoch {epoch}: {stage.name.lower()} loss {stage_loss:.4f}")


if __name__ == "__main__":
    store, grams = make()
    train = antigram.SegmentDataset(store, "word", "train")
    validation = antigram.SegmentDataset(store, "word", "validation")
    brain = Words(
        {"net": network(len(train.classes))},
        opt_class=lambda parameters: torch.optim.Adam(parameters, 1e-3),
        hparams={"at": antigram.AntiTransferLoss(grams, {"layer3": LAYER}, beta=1.0)},
        run_opts={"device": "cpu"},
    )
    brain.fit(
        range(1, 3), DataLoader(train, 16, shuffle=True), DataLoader(validation, 64),
        progressbar=False,
    )  # fmt: skip
