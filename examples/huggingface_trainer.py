"""Anti-transfer in a Trainer of Hugging Face: python examples/huggingface_trainer.py [WORKSPACE].

The student is an audio spectrogram transformer, the teacher a VGG: a transformer's layer of 64
features is compared with a convolution of 64 channels.
"""

from typing import Any

import torch
from transformers import ASTConfig, ASTForAudioClassification, Trainer, TrainingArguments

import antigram
from speech import LAYER, make

TAPPED = "audio_spectrogram_transformer.layers.1"


class AntiTransferTrainer(Trainer):
    """A Trainer whose loss has the anti-transfer loss added."""

    def __init__(self, at: antigram.AntiTransferLoss, **given: Any) -> None:
        super().__init__(**given)
        self.at = at

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, **more: Any
    ) -> Any:
        """Return the model's own loss, in training with the anti-transfer loss."""
        clip_ids = inputs.pop("clip_ids")
        with self.at.watch(model, clip_ids):
            loss, outputs = super().compute_loss(model, inputs, True, **more)
        loss = loss + self.at.loss() if model.training else loss
        return (loss, outputs) if return_outputs else loss


def collate(segments: list) -> dict[str, Any]:
    """Return the inputs of the model, and the ids."""
    x, y, clip_ids = zip(*segments, strict=True)
    return {"input_values": torch.cat(x), "labels": torch.tensor(y), "clip_ids": list(clip_ids)}


if __name__ == "__main__":
    store, grams = make()
    data = antigram.SegmentDataset(store, "word")
    frames, bins = store.shape
    config = ASTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        num_labels=len(data.classes), max_length=frames, num_mel_bins=bins,
    )  # fmt: skip
    settings = TrainingArguments(
        "trainer", num_train_epochs=1, per_device_train_batch_size=16, learning_rate=1e-3,
        use_cpu=True, remove_unused_columns=False, report_to=[], save_strategy="no",
    )  # fmt: skip
    at = antigram.AntiTransferLoss(grams, {TAPPED: LAYER}, beta=1.0)
    given = {"model": ASTForAudioClassification(config), "args": settings}
    done = AntiTransferTrainer(at, **given, train_dataset=data, data_collator=collate).train()
    print(f"training loss {done.training_loss:.4f}, anti-transfer {at.loss().item():.4f}")
