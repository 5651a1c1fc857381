"""Compare initial weights of a narrow VGG16: scaled, and those of torchvision.

Run ``python -m benchmarks.initial_weights STORE``, STORE being a feature store such as one of
Arabic Speech Commands. Each network is trained on the CPU for a few epochs with three seeds; the
losses and accuracies of its epochs are written to ``benchmarks/results/initial_weights.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from antigram.model.choices import Init
from antigram.model.nets.arch import Arch
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.features.store import FeatureStore
from benchmarks.record import save

_INITS: tuple[Init, ...] = ("scaled", "torchvision")


def epochs_of(store: FeatureStore, config: TrainConfig) -> list[dict[str, float]]:
    """Train a network; return loss and accuracy of training and validation after each epoch."""
    net = build_student(config, len(store.classes[config.task]), None, store.shape)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        train(net, store, None, config, run, device=torch.device("cpu"))
        lines = (run / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [
        {f"{split} {key}": entry[split][key] for split in ("train", "validation") for key in keys}
        for keys in [("ce", "accuracy")]
        for entry in entries
    ]


def main() -> None:
    """Train with both kinds of initial weights and all seeds, and save the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    asked = parser.parse_args()
    store = FeatureStore(asked.store)
    curves: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in range(3):
        for init in _INITS:
            config = TrainConfig(
                mode="baseline",
                task=store.main_label,
                arch=Arch("vgg16", asked.width),
                epochs=asked.epochs,
                patience=asked.epochs,
                seed=seed,
                init=init,
            )
            curves.setdefault(init, {})[str(seed)] = epochs_of(store, config)
    content = {
        "store": store.name,
        "segments": len(store.rows("train", store.main_label)),
        "classes": len(store.classes[store.main_label]),
        "width": asked.width,
        "epochs": curves,
    }
    save("initial_weights", content)


if __name__ == "__main__":
    main()
